"""Optimizer and learning rate, built from torch's own classes."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from mtpd.errors import InputError

OptimizerKind = Literal['sgd', 'adamw']
ScheduleKind = Literal['multistep', 'cosine', 'linear', 'onecycle']
Precision = Literal['fp32', 'fp16', 'bf16']


@dataclass(frozen=True)
class Recipe:
    """How a stage is optimised.

    Attributes:
        optimizer, lr, momentum, weight_decay: see `build_optimizer`.
        epochs: passes over the training images.
        schedule, milestones, min_lr, warmup_steps, warmup_ratio: see `build_schedule`.
        grad_clip: greatest L2 norm of the gradient; None: no clipping.
        accumulate: batches whose gradients make one optimizer step.
        precision: floating-point format of the forward pass.
        ema: decay of the moving average of the weights, see `mtpd_train.optimization.averaging`; None: none.
        channels_last: use channels-last (NHWC) memory format for the student's inputs and weights.
    """

    optimizer: OptimizerKind
    lr: float
    momentum: float
    weight_decay: float
    epochs: int
    schedule: ScheduleKind
    milestones: tuple[int, ...]
    min_lr: float
    warmup_steps: int | None
    warmup_ratio: float | None
    grad_clip: float | None
    accumulate: int
    precision: Precision
    ema: float | None
    channels_last: bool


def build_optimizer(
    parameters: Iterable[Parameter],
    *,
    kind: OptimizerKind,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
) -> Optimizer:
    """SGD or AdamW over the parameters that require a gradient.

    Args:
        parameters: of the student and of the distillation layers; frozen ones are left out.
        kind: `sgd` or `adamw`.
        lr: highest learning rate.
        momentum: momentum of SGD, first beta of AdamW.
        weight_decay: the same for all parameters, as in mmdet's 1x recipes.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if kind == 'adamw':
        return AdamW(trained, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)
    return SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)


def build_schedule(
    optimizer: Optimizer,
    *,
    kind: ScheduleKind,
    epochs: int,
    steps_per_epoch: int,
    milestones: Sequence[int] = (),
    min_lr: float = 0.0,
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
) -> LRScheduler:
    """Learning rate per optimizer step; call `step()` after each step of the optimizer.

    The warm-up rises from `warmup_ratio * lr` to `lr` and multiplies the rest of the schedule, which runs from step 0:
    mmdet's recipes combine their linear warm-up and their milestones like this.

    Args:
        optimizer: its learning rate is the highest one.
        kind: `multistep`: a tenth after each milestone; `cosine`: half a cosine to `min_lr`; `linear`: a line to it;
            `onecycle`: a cosine up, the warm-up, and a cosine down.
        epochs: passes over the training images.
        steps_per_epoch: optimizer steps per epoch (batches / accumulation).
        milestones: epochs after which `multistep` divides by 10.
        min_lr: what `cosine` and `linear` end at, after the last step.
        warmup_steps: optimizer steps of the warm-up, 0 for none; None: 500 but at most a tenth of all, with `onecycle`
            30% of all.
        warmup_ratio: share of the learning rate that the warm-up starts from; None: 0.001, with `onecycle` 0.04. These
            are the defaults of mmdet and of torch.

    Raises:
        InputError: the warm-up is not over before the training is.
    """
    num_steps = epochs * steps_per_epoch
    require_warmup_ends(warmup_steps, epochs=epochs, steps_per_epoch=steps_per_epoch)
    if kind == 'onecycle':
        return OneCycleLR(
            optimizer,
            max_lr=[group['lr'] for group in optimizer.param_groups],
            total_steps=num_steps,
            pct_start=0.3 if warmup_steps is None else _rising_share(warmup_steps, num_steps),
            div_factor=25 if warmup_ratio is None else 1 / warmup_ratio,
            cycle_momentum=False,
        )
    if warmup_steps is None:
        warmup_steps = min(500, num_steps // 10)
    ratio = 1e-3 if warmup_ratio is None else warmup_ratio
    drops = [milestone * steps_per_epoch for milestone in milestones]

    # In closed form: torch's chained schedulers work from the rate before, which a warm-up and a floor make wrong.
    def factor(step: int, *, floor: float) -> float:
        warmup = ratio + (1 - ratio) * step / warmup_steps if step < warmup_steps else 1.0
        if kind == 'multistep':
            return float(warmup * 0.1 ** bisect_right(drops, step))
        done = step / num_steps
        left = 1 - done if kind == 'linear' else (1 + math.cos(math.pi * done)) / 2
        return warmup * (floor + (1 - floor) * left)

    return LambdaLR(optimizer, [partial(factor, floor=min_lr / group['lr']) for group in optimizer.param_groups])


def require_warmup_ends(warmup_steps: int | None, *, epochs: int, steps_per_epoch: int) -> None:
    """Checks that the warm-up of `build_schedule` is over before the training is.

    Raises:
        InputError: it is not.
    """
    num_steps = epochs * steps_per_epoch
    if warmup_steps and warmup_steps + 1 >= num_steps:
        raise InputError(
            f'optim.warmup_iters is {warmup_steps}, but the training has only {num_steps} optimizer steps '
            f'({epochs} epochs of {steps_per_epoch}); lower it'
        )


def _rising_share(warmup_steps: int, num_steps: int) -> float:
    """`pct_start` with which OneCycleLR peaks at `warmup_steps`: its rise ends at step pct * total - 1."""
    # A rise of no steps would divide by zero there; a share of 0 leaves the rise out.
    return (warmup_steps + 1) / num_steps if warmup_steps else 0.0
