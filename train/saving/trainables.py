"""What a stage trains and trains with, and one step of it."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from mtpd_train.optimization.averaging import build_average, update_average
from mtpd_train.optimization.gradient_step import gradient_step
from mtpd_train.optimization.optimizer import Recipe, build_optimizer, build_schedule
from mtpd_train.processes import World
from mtpd_train.records.meter import Meter
from mtpd_train.stage import Stage


@dataclass(frozen=True)
class Trainables:
    """Everything whose state a resumed stage needs; `average` is None where no moving average is kept."""

    model: nn.Module
    distiller: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: GradScaler
    meter: Meter
    average: AveragedModel | None = None

    @property
    def student(self) -> nn.Module:
        """The network that is evaluated and saved: the moving average where there is one, else what is trained."""
        if self.average is None:
            return self.model
        averaged: nn.Module = self.average.module
        return averaged

    def with_state(self) -> dict[str, Any]:
        """What has a state, by the names that it has in the file."""
        return {name: part for name, part in vars(self).items() if part is not None}


def build_trainables(stage: Stage, *, device: torch.device, world: World) -> Trainables:
    """The parts of a stage at its start, whose student has its first weights."""
    recipe, model, distiller = stage.recipe, stage.student.model, stage.distiller
    optimizer = build_optimizer(
        itertools.chain(model.parameters(), distiller.parameters()),
        kind=recipe.optimizer,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    schedule = build_schedule(
        optimizer,
        kind=recipe.schedule,
        epochs=recipe.epochs,
        steps_per_epoch=stage.steps_per_epoch,
        milestones=recipe.milestones,
        min_lr=recipe.min_lr,
        warmup_steps=recipe.warmup_steps,
        warmup_ratio=recipe.warmup_ratio,
    )
    scaler = GradScaler(device.type, enabled=recipe.precision == 'fp16')
    meter = Meter(stage=stage.number, device=device, world=world)
    average = None if recipe.ema is None else build_average(model)
    return Trainables(model, distiller, optimizer, schedule, scaler, meter, average)


def optimizer_step(trainables: Trainables, recipe: Recipe, *, step: int) -> tuple[float, Tensor | None]:
    """Makes step number `step`, from 1, of the gradient that the parameters hold, and clears it.

    Returns:
        the learning rate, and the gradient's L2 norm before clipping; None where it is not clipped.
    """
    optimizer, schedule, scaler = trainables.optimizer, trainables.schedule, trainables.scaler
    loss_scale = scaler.get_scale()
    grad_norm = gradient_step(optimizer, scaler, grad_clip=recipe.grad_clip)
    lr = float(schedule.get_last_lr()[0])
    # A scale that fell means that the gradient overflowed and the optimizer took no step.
    if scaler.get_scale() >= loss_scale:
        schedule.step()
    if trainables.average is not None and recipe.ema is not None:
        update_average(trainables.average, trainables.model, decay=recipe.ema, step=step)
    return lr, grad_norm
