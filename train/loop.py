"""Training one stage, from top to bottom."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_

from mtpd.console import progress_bar
from mtpd.interrupt import StopFlag
from mtpd.outcome import Interrupted
from mtpd_train.checkpoint import Trainables, load_progress, require_finite, save_progress
from mtpd_train.evaluation import evaluate_stage
from mtpd_train.meter import Meter
from mtpd_train.metrics import append_record, truncate_metrics
from mtpd_train.optimizer import build_optimizer, build_schedule
from mtpd_train.stage import Stage
from mtpd_train.step import add_gradient, loaded

LOG_EVERY = 20


@dataclass(frozen=True)
class Place:
    """Where a stage runs: its device, the file of its training state, the run's log, and the user's wish to stop."""

    device: torch.device
    progress_file: Path
    metrics_file: Path
    stop: StopFlag


def train_stage(stage: Stage, place: Place) -> None:
    """Trains the stage's student in place, going on from `place.progress_file` when that is there.

    Raises:
        Interrupted: the user asked to stop; the last finished epoch is saved.
        MtpdError: a loss is not finite, an image cannot be read, the cache is damaged.
    """
    device, recipe = place.device, stage.recipe
    stage.to(device)
    model, distiller = stage.student.model, stage.distiller
    parameters = [one for one in itertools.chain(model.parameters(), distiller.parameters()) if one.requires_grad]
    num_batches = len(stage.epoch_batches(0))
    steps_per_epoch = -(-num_batches // recipe.accumulate)
    num_steps = recipe.epochs * steps_per_epoch

    optimizer = build_optimizer(
        parameters, kind=recipe.optimizer, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = build_schedule(
        optimizer,
        kind=recipe.schedule,
        epochs=recipe.epochs,
        steps_per_epoch=steps_per_epoch,
        milestones=recipe.milestones,
        min_lr=recipe.min_lr,
        warmup_steps=recipe.warmup_steps,
        warmup_ratio=recipe.warmup_ratio,
    )
    scaler = GradScaler(device.type, enabled=recipe.precision == 'fp16')
    trainables = Trainables(model, distiller, optimizer, schedule, scaler)
    first_epoch, step = 0, 0
    if place.progress_file.exists():
        first_epoch, step = load_progress(place.progress_file, trainables)
    truncate_metrics(place.metrics_file, stage=stage.number, step=step)

    for epoch in range(first_epoch, recipe.epochs):
        # Seeded epoch by epoch, so that a resumed run draws what an uninterrupted one would have drawn.
        torch.manual_seed(int(np.random.default_rng(stage.epoch_seed(epoch)).integers(2**63)))
        batches = stage.epoch_batches(epoch)
        model.train()
        meter = Meter(stage=stage.number, device=device)
        bar = progress_bar(
            total=sum(map(len, batches)), unit='image', desc=f'stage {stage.number} epoch {epoch + 1}/{recipe.epochs}'
        )
        with bar:
            for number, (samples, ahead) in enumerate(meter.timed(loaded(stage, batches))):
                # The last step of an epoch may have fewer batches than the others.
                begun = number // recipe.accumulate * recipe.accumulate
                share = 1 / min(recipe.accumulate, num_batches - begun)
                progress = step / num_steps
                losses = add_gradient(
                    stage, samples, ahead, share=share, progress=progress, epoch=epoch, scaler=scaler, device=device
                )
                meter.add(losses, num_images=len(samples))
                bar.update(len(samples))
                if place.stop:
                    raise Interrupted(_how_to_go_on(stage, epoch))
                if (number + 1) % recipe.accumulate and number + 1 < num_batches:
                    continue

                if recipe.grad_clip is not None:
                    scaler.unscale_(optimizer)
                    meter.grad_norm = clip_grad_norm_(parameters, recipe.grad_clip)
                loss_scale = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                lr = float(schedule.get_last_lr()[0])
                # A scale that fell means that the gradient overflowed and the optimizer took no step.
                if scaler.get_scale() >= loss_scale:
                    schedule.step()
                step += 1
                if step % LOG_EVERY == 0 or number + 1 == num_batches:
                    image_ids = [sample.image_id for sample in samples]
                    decay = stage.decay_factors(progress=progress)
                    record = meter.record(step=step, epoch=epoch + 1, lr=lr, decay=decay, image_ids=image_ids)
                    append_record(place.metrics_file, record)
                    bar.set_postfix_str(f'loss {record.losses["total"]:.3f}', refresh=False)

        require_finite(model, stage=stage.number, step=step)
        if stage.val_set is not None and ((epoch + 1) % stage.evaluate_every == 0 or epoch + 1 == recipe.epochs):
            append_record(place.metrics_file, evaluate_stage(stage, step=step, epoch=epoch + 1, device=device))
        save_progress(place.progress_file, trainables, epoch=epoch + 1, step=step)


def _how_to_go_on(stage: Stage, epoch: int) -> str:
    saved = f'its finished epochs ({epoch}) are saved' if epoch else 'no epoch of it had finished'
    return f'stopped in epoch {epoch + 1} of stage {stage.number}; {saved}; run the same command with --resume to go on'
