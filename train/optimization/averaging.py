"""The moving average of a student's weights, by torch's own `AveragedModel`.

After step t (from 1) the average A of the weights W becomes d A + (1 - d) W, with d = min(decay, (1 + t) / (10 + t)):
at first it follows the student closely, else its random start would weigh in for long. The first step sets A to W.
Batch statistics are averaged as the weights are; counters are copied.
"""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def build_average(model: nn.Module) -> AveragedModel:
    """An average that has seen nothing yet, on the device of `model`."""
    return AveragedModel(model, use_buffers=True)


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, *, decay: float, step: int) -> None:
    """Takes the weights of `model` after optimizer step `step`, from 1, into the average."""
    average.multi_avg_fn = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
    average.update_parameters(model)
    for own, current in zip(average.module.buffers(), model.buffers(), strict=True):
        if not own.is_floating_point():
            own.copy_(current)
