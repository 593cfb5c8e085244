"""One step of an optimizer along the gradient that its parameters hold."""

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer


def gradient_step(optimizer: Optimizer, scaler: GradScaler, *, grad_clip: float | None) -> Tensor | None:
    """Clips the gradient, takes the step unless the gradient has overflowed, and clears the gradient.

    Args:
        optimizer: its parameters hold a gradient that `scaler` has scaled.
        scaler: takes its own step too.
        grad_clip: greatest L2 norm of the gradient; None: no clipping.

    Returns:
        the gradient's L2 norm before clipping; None where it is not clipped.
    """
    grad_norm = None
    if grad_clip is not None:
        scaler.unscale_(optimizer)
        trained = [one for group in optimizer.param_groups for one in group['params']]
        grad_norm = clip_grad_norm_(trained, grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm
