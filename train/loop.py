"""Training one stage, from top to bottom."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_

from mtpd.console import progress_bar
from mtpd.interrupt import StopFlag, StopRequested
from mtpd.outcome import Interrupted
from mtpd_train.averaging import build_average, update_average
from mtpd_train.evaluation import evaluate_stage
from mtpd_train.meter import Meter
from mtpd_train.metrics import append_record
from mtpd_train.optimizer import build_optimizer, build_schedule
from mtpd_train.progress import Position, Trainables
from mtpd_train.saving import Saver
from mtpd_train.seeding import seed_everything
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

    Where the recipe asks for a moving average the student has the averaged weights in the end.

    Raises:
        Interrupted: the user asked to stop; the last optimizer step is saved.
        MtpdError: the training has diverged, an image cannot be read, the cache is damaged, the disk is full.
    """
    device, recipe, stop = place.device, stage.recipe, place.stop
    stage.to(device)
    model, distiller = stage.student.model, stage.distiller
    parameters = [one for one in itertools.chain(model.parameters(), distiller.parameters()) if one.requires_grad]
    num_batches, steps_per_epoch = len(stage.epoch_batches(0)), stage.steps_per_epoch
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
    meter = Meter(stage=stage.number, device=device)
    average = None if recipe.ema is None else build_average(model)
    # What is evaluated and saved: the moving average where there is one, else what is trained.
    student = stage.student if average is None else replace(stage.student, model=average.module)
    trainables = Trainables(model, distiller, optimizer, schedule, scaler, meter, average)
    saver = Saver(stage, trainables, student=student.model, progress_file=place.progress_file)
    start = saver.go_on(place.metrics_file)
    step = start.step

    for epoch in range(start.epoch, recipe.epochs):
        batches = stage.epoch_batches(epoch)
        # Batches are known without those before them, so a resumed epoch begins in its middle.
        done = (step - epoch * steps_per_epoch) * recipe.accumulate
        model.train()
        meter.start_clock()
        with _progress_bar(stage, epoch, num_images=[len(batch) for batch in batches], done=done) as bar:
            for number, (samples, ahead) in enumerate(meter.timed(loaded(stage, batches[done:])), start=done):
                seed_everything((*stage.epoch_seed(epoch), number))
                # The last step of an epoch may have fewer batches than the others.
                begun = number // recipe.accumulate * recipe.accumulate
                share = 1 / min(recipe.accumulate, num_batches - begun)
                progress = step / num_steps
                losses = add_gradient(
                    stage, samples, ahead, share=share, progress=progress, epoch=epoch, scaler=scaler, device=device
                )
                meter.add(losses, step=step + 1, image_ids=[sample.image_id for sample in samples])
                bar.update(len(samples))
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
                if average is not None and recipe.ema is not None:
                    update_average(average, model, decay=recipe.ema, step=step)
                if step % LOG_EVERY == 0 or number + 1 == num_batches:
                    record = meter.record(
                        step=step, epoch=epoch + 1, lr=lr, decay=stage.decay_factors(progress=progress)
                    )
                    append_record(place.metrics_file, record)
                    bar.set_postfix_str(f'loss {record.losses["total"]:.3f}', refresh=False)
                stopped = bool(stop)
                if stopped or saver.is_due:
                    saver.save(Position(epoch, step))
                if stopped:
                    raise Interrupted(_how_to_go_on(stage, epoch, step))

        metrics: Mapping[str, float] = {}
        if stage.val_set is not None and ((epoch + 1) % stage.evaluate_every == 0 or epoch + 1 == recipe.epochs):
            try:
                evaluation = evaluate_stage(stage, student, step=step, epoch=epoch + 1, device=device, stop=stop)
            except StopRequested:
                saver.save(Position(epoch, step))
                raise Interrupted(_how_to_go_on(stage, epoch, step)) from None
            append_record(place.metrics_file, evaluation)
            metrics = evaluation.metrics
        saver.finish_epoch(Position(epoch + 1, step), metrics)
    if average is not None:
        model.load_state_dict(student.model.state_dict())


def _progress_bar(stage: Stage, epoch: int, *, num_images: list[int], done: int) -> Any:
    title = f'stage {stage.number} epoch {epoch + 1}/{stage.recipe.epochs}'
    return progress_bar(total=sum(num_images), initial=sum(num_images[:done]), unit='image', desc=title)


def _how_to_go_on(stage: Stage, epoch: int, step: int) -> str:
    return (
        f'stopped in epoch {epoch + 1} of stage {stage.number}, step {step}; all of it is saved; '
        'run the same command with --resume to go on'
    )
