"""Gradients of operators that are written in differentiable PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor


def gradients_of(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of `function(*inputs)` with respect to each input, computed by running it again."""
    with torch.enable_grad():
        leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
        output = function(*leaves)
    # An input that has no part in the output, such as an offset that is left out, gets zeros.
    return torch.autograd.grad(output, leaves, grad_output.to(output.dtype), materialize_grads=True)
