"""How `OptimSettings` are carried out: optimizer, schedule, loss scaler, moving average (EMA), and the step."""

import math
from bisect import bisect_right
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mtpd.detectors.backbones import backbone_blocks
from mtpd.detectors.detector import BACKBONE, Detector, part_of
from mtpd.errors import InputError
from mtpd_train.settings.stage_settings import OptimSettings

DISTILLER = 'distiller'  # in place of the names of its modules
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Optimization:
    """Optimizer, schedule, loss scaler and moving average (`average`, None without `ema`) of a stage.

    `student` is the network to evaluate and to save: the average where there is one, else the one that is trained.
    """

    def __init__(
        self,
        detector: Detector,
        distiller: nn.Module,
        optim: OptimSettings,
        *,
        steps_per_epoch: int,
        device: torch.device,
    ) -> None:
        """Before the first step; `detector` has its first weights, and both networks are on `device`."""
        model = detector.module
        self._model, self._optim = model, optim
        self.optimizer = build_optimizer(model, distiller, optim, detector=detector)
        self.schedule = build_schedule(self.optimizer, optim, steps_per_epoch=steps_per_epoch)
        self.scaler = GradScaler(device.type, enabled=optim.precision == 'fp16')
        self.average = None if optim.ema is None else AveragedModel(model, use_buffers=True)
        self.student: nn.Module = model if self.average is None else self.average.module

    def step(self, number: int) -> tuple[float, Tensor | None]:
        """Makes step `number`, from 1, with the scaled gradient of the parameters, and clears the gradient.

        Returns the learning rate, and the gradient's L2 norm before clipping; None where it is not clipped.
        """
        scaler, optim, grad_norm = self.scaler, self._optim, None
        loss_scale = scaler.get_scale()
        if optim.grad_clip is not None:
            scaler.unscale_(self.optimizer)
            trained = [one for group in self.optimizer.param_groups for one in group['params']]
            grad_norm = clip_grad_norm_(trained, optim.grad_clip)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        lr = float(self.schedule.get_last_lr()[0])
        # A scale that fell means that the gradient overflowed and the optimizer took no step.
        if scaler.get_scale() >= loss_scale:
            self.schedule.step()
        if self.average is not None and optim.ema is not None:
            update_average(self.average, self._model, decay=optim.ema, step=number)
        return lr, grad_norm


def parameter_groups(
    model: nn.Module, distiller: nn.Module, optim: OptimSettings, *, detector: Detector | None = None
) -> list[dict[str, Any]]:
    """The parameters that require a gradient, by learning rate and weight decay; the first group has those of `optim`.

    Where all have these there is one group. The layers of `distiller` always have them. `detector` is that of
    the model, where its backbone has another name than `backbone`.
    """
    backbone, part = (BACKBONE, part_of) if detector is None else (detector.backbone, detector.part_of)
    layer_lrs = layer_factors(model, backbone, decay=optim.layer_decay) if optim.layer_decay != 1 else {}
    groups: dict[tuple[float, float], list[Parameter]] = {(optim.lr, optim.weight_decay): []}
    known: set[Parameter] = set()  # modules may share them
    for module_name, module in (*model.named_modules(), *((DISTILLER, one) for one in distiller.modules())):
        of_backbone = module_name != DISTILLER and part(module_name) == BACKBONE
        is_norm = isinstance(module, NORMS)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in known:
                continue
            known.add(parameter)
            lr = optim.lr * (optim.backbone_lr * layer_lrs.get(module, 1.0) if of_backbone else 1)
            decays = module_name == DISTILLER or (optim.norm_decay if is_norm else optim.bias_decay or name != 'bias')
            groups.setdefault((lr, optim.weight_decay if decays else 0.0), []).append(parameter)
    return [{'params': one, 'lr': lr, 'weight_decay': decay} for (lr, decay), one in groups.items() if one]


def layer_factors(model: nn.Module, backbone: str, *, decay: float) -> dict[nn.Module, float]:
    """Module of the backbone -> the factor of its learning rate: `decay` for each layer from it to the heads.

    As in BEiT (Bao et al. 2022) and mmdet's constructor of optimizers: a backbone of N blocks has the layers 0 (all
    before its first block) to N, and N + 1 (all after its last), whose factor is 1; layer i has decay ** (N + 1 - i).
    """
    owner = model.get_submodule(backbone)
    blocks = list(backbone_blocks(owner))
    if not blocks:
        raise InputError(
            f'optim.layer_decay is {decay}, but the backbone of the student has no sequence of blocks; remove it'
        )
    numbers = {module: number for number, block in enumerate(blocks, start=1) for module in block.modules()}
    factors: dict[nn.Module, float] = {}
    layer = 0
    for module in owner.modules():
        # In the order of registration: what is in no block belongs to the block before it, or follows them all.
        layer = numbers.get(module, len(blocks) + 1 if layer >= len(blocks) else layer)
        factors[module] = decay ** (len(blocks) + 1 - layer)
    return factors


def build_optimizer(
    model: nn.Module, distiller: nn.Module, optim: OptimSettings, *, detector: Detector | None = None
) -> Optimizer:
    """SGD or AdamW over the parameters of both that require a gradient."""
    groups = parameter_groups(model, distiller, optim, detector=detector)
    if not groups:
        raise InputError('the student has no parameter that learns: all are frozen; unfreeze some, with `model`')
    if optim.type == 'adamw':
        return AdamW(groups, lr=optim.lr, betas=(optim.momentum, 0.999), weight_decay=optim.weight_decay)
    return SGD(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)


def build_schedule(optimizer: Optimizer, optim: OptimSettings, *, steps_per_epoch: int) -> LRScheduler:
    """Learning rate per optimizer step: `step()` follows each step of the optimizer; raises as `require_warmup_ends`.

    The warm-up rises from `warmup_ratio * lr` to `lr` and multiplies the rest of the schedule, which runs from step 0,
    as in mmdet's recipes. Its defaults are those of mmdet, with `onecycle` those of torch.
    """
    num_steps = optim.epochs * steps_per_epoch
    require_warmup_ends(optim, steps_per_epoch=steps_per_epoch)
    if optim.schedule == 'onecycle':
        # The rise ends at step pct_start * num_steps - 1. One of no steps would divide by zero: a share of 0 omits it.
        rise = 0.0 if not optim.warmup_iters else (optim.warmup_iters + 1) / num_steps
        return OneCycleLR(
            optimizer,
            max_lr=[float(group['lr']) for group in optimizer.param_groups],
            total_steps=num_steps,
            pct_start=0.3 if optim.warmup_iters is None else rise,
            div_factor=25 if optim.warmup_ratio is None else 1 / optim.warmup_ratio,
            cycle_momentum=False,
        )
    warmup_iters, ratio = warmup_of(optim, num_steps=num_steps)
    drops = [milestone * steps_per_epoch for milestone in optim.milestones]
    floor = optim.min_lr / optim.lr

    # In closed form: torch's chained schedulers work from the rate before, which a warm-up and a floor make wrong.
    def factor(step: int) -> float:
        warmup = ratio + (1 - ratio) * step / warmup_iters if step < warmup_iters else 1.0
        if optim.schedule == 'multistep':
            return float(warmup * 0.1 ** bisect_right(drops, step))
        done = step / num_steps
        left = 1 - done if optim.schedule == 'linear' else (1 + math.cos(math.pi * done)) / 2
        return warmup * (floor + (1 - floor) * left)

    return LambdaLR(optimizer, factor)


def warmup_of(optim: OptimSettings, *, num_steps: int) -> tuple[int, float]:
    """Optimizer steps of the warm-up and the ratio it starts from, of all schedules but `onecycle`."""
    warmup_iters = min(500, num_steps // 10) if optim.warmup_iters is None else optim.warmup_iters
    return warmup_iters, 1e-3 if optim.warmup_ratio is None else optim.warmup_ratio


def require_warmup_ends(optim: OptimSettings, *, steps_per_epoch: int) -> None:
    """Raises an InputError if the warm-up does not end before the training does."""
    num_steps = optim.epochs * steps_per_epoch
    if optim.warmup_iters and optim.warmup_iters + 1 >= num_steps:
        raise InputError(
            f'optim.warmup_iters is {optim.warmup_iters}, but the training has only {num_steps} optimizer steps '
            f'({optim.epochs} epochs of {steps_per_epoch}); lower it'
        )


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, *, decay: float, step: int) -> None:
    """Updates the moving average A with the weights W of `model` after optimizer step `step`, from 1.

    A becomes d A + (1 - d) W, with d = min(decay, (1 + step) / (10 + step)), so that a random start does not weigh in
    for long; the first step sets A to W. Batch statistics are averaged as the weights are; counters are copied.
    """
    average.multi_avg_fn = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
    average.update_parameters(model)
    for own, current in zip(average.module.buffers(), model.buffers(), strict=True):
        if not own.is_floating_point():
            own.copy_(current)
