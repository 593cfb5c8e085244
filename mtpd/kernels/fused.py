"""The weighted mean squared error as an operator of PyTorch with a Triton kernel for each direction.

Registered operators are opaque to torch.compile and autocast, which take them as they are.

Bytes per element, for a half-precision student and int8 codes: forward 2 + 1, backward 2 + 1 + 2, together 8; the
reference moves about 90, and keeps float32 copies of the maps for its backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from mtpd.kernels.launch import Inputs, backward, forward

_INPUTS = 'Tensor student, Tensor teacher, Tensor weights, Tensor? scale, Tensor? channel_weights'


@torch.library.custom_op('mtpd::weighted_mse', mutates_args=(), schema=f'({_INPUTS}) -> (Tensor, Tensor)')
def fused_weighted_mse(
    student: Tensor, teacher: Tensor, weights: Tensor, scale: Tensor | None, channel_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss and what it was divided by, float32 scalars; arguments as in `mtpd.kernels.launch.Inputs`.

    Differentiable by the student alone, once.
    """
    return forward(Inputs(student, teacher, weights, scale, channel_weights))


@fused_weighted_mse.register_fake
def _(
    student: Tensor, teacher: Tensor, weights: Tensor, scale: Tensor | None, channel_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    return student.new_empty((), dtype=torch.float32), student.new_empty((), dtype=torch.float32)


@torch.library.custom_op(
    'mtpd::weighted_mse_backward',
    mutates_args=(),
    schema=f'(Tensor grad_loss, {_INPUTS}, Tensor denominator) -> Tensor',
)
def _gradient(
    grad_loss: Tensor,
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    channel_weights: Tensor | None,
    denominator: Tensor,
) -> Tensor:
    return backward(grad_loss, Inputs(student, teacher, weights, scale, channel_weights), denominator)


@_gradient.register_fake
def _(grad_loss: Tensor, student: Tensor, *_: Tensor | None) -> Tensor:
    return torch.empty_like(student)


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    _, denominator = output
    ctx.save_for_backward(*inputs, denominator)
    ctx.mark_non_differentiable(denominator)


def _differentiate(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return _gradient(grad_loss, *ctx.saved_tensors), None, None, None, None


fused_weighted_mse.register_autograd(_differentiate, setup_context=_save)
