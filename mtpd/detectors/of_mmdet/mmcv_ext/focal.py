"""Focal losses (Lin et al. 2017, equation 5) and their gradients in closed form.

N samples, C classes. `target` (N,) int64 holds class indices; for the sigmoid form any other value, such as C, means
background. `weight` (C,) scales a sample by its target's class; an empty tensor means none.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mtpd.detectors.of_mmdet.mmcv_ext.numerics import common


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Fills `output` (N, C) with the loss of each of the logits `input` (N, C)."""
    (logits,) = common(input)
    p = logits.sigmoid()
    positive = -alpha * (1 - p) ** gamma * logsigmoid(logits)
    negative = -(1 - alpha) * p**gamma * logsigmoid(-logits)
    output.copy_(torch.where(_is_target(input, target), positive, negative) * _weights(weight, target)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Fills `grad_input` (N, C) with the derivative of each loss with respect to its logit."""
    (logits,) = common(input)
    p = logits.sigmoid()
    positive = alpha * (1 - p) ** gamma * (gamma * p * logsigmoid(logits) - (1 - p))
    negative = (1 - alpha) * p**gamma * (p - gamma * (1 - p) * logsigmoid(-logits))
    grad_input.copy_(torch.where(_is_target(input, target), positive, negative) * _weights(weight, target)[:, None])


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Fills `output` (N,) with the loss of each row of probabilities `input` (N, C); 0 where the target is negative."""
    p, log_p = _target_probability(input, target)
    loss = -alpha * (1 - p) ** gamma * log_p * _weights(weight, target)
    output.copy_(loss.masked_fill(target < 0, 0))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Fills `grad_input` (N, C) with the derivative of each row's loss with respect to its logits."""
    p, log_p = _target_probability(input, target)
    # log(p) / (1 - p) tends to -1 as p tends to 1.
    slope = torch.where(p < 1, log_p / (1 - p), -1)
    factor = alpha * (1 - p) ** gamma * (gamma * p * slope - 1) * _weights(weight, target)
    factor = factor.masked_fill(target < 0, 0)
    buff.copy_(factor)
    labels = _is_target(input, target).to(factor.dtype)
    grad_input.copy_(factor[:, None] * (labels - common(input)[0]))


def _is_target(input: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(input.size(1), device=input.device)


def _target_probability(probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    p = common(probabilities)[0].gather(1, target.clamp(min=0)[:, None])[:, 0]
    # The smallest normal number keeps the logarithm of an underflowed probability finite.
    return p, p.clamp(min=torch.finfo(p.dtype).tiny).log()


def _weights(weight: Tensor, target: Tensor) -> Tensor:
    return common(weight)[0][target] if weight.numel() else torch.ones_like(target)
