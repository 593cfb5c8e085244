"""Precision in which the replacement operators compute, and gradients of those in differentiable PyTorch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def common(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors in one dtype, the widest of them, float32 at least."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return tuple(tensor.to(dtype) for tensor in tensors)


def fill_gradients(
    targets: Sequence[Tensor], function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor
) -> None:
    """Fills `targets` with the gradients of `function(*inputs)` with respect to each input, by running it again."""
    with torch.enable_grad():
        leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
        output = function(*leaves)
    # An input that does not affect the output, such as an omitted offset, gets zeros.
    gradients = torch.autograd.grad(output, leaves, grad_output.to(output.dtype), materialize_grads=True)
    for target, gradient in zip(targets, gradients, strict=True):
        target.copy_(gradient)
