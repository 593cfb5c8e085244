"""Training one stage, from top to bottom."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mtpd.errors import Interrupted
from mtpd.system.console import progress_bar
from mtpd.system.interrupt import StopFlag, StopRequested
from mtpd_train.data.sampling import share_of
from mtpd_train.evaluation import evaluate_stage
from mtpd_train.optimization import Optimization
from mtpd_train.processes import ALONE, World
from mtpd_train.records.meter import Meter
from mtpd_train.records.metrics import append_record
from mtpd_train.stage import Stage
from mtpd_train.training.saving import Position, Saver
from mtpd_train.training.step import add_gradient, build_network, check_teacher, loaded

LOG_EVERY = 20


def train_stage(
    stage: Stage, *, device: torch.device, progress_file: Path, metrics_file: Path, stop: StopFlag, world: World = ALONE
) -> None:
    """Trains the stage's student in place, resuming from `progress_file`; in the end it has the weights of any EMA.

    Raises Interrupted when the user stopped it; the last optimizer step is then saved.
    """
    stage.to(device)
    model, optim = stage.student.module, stage.settings.optim
    num_batches, steps_per_epoch = stage.num_batches, stage.steps_per_epoch
    num_steps = optim.epochs * steps_per_epoch
    # First, since it sends the weights to all processes.
    network = build_network(stage, world)
    optimization = Optimization(stage.student, stage.distiller, optim, steps_per_epoch=steps_per_epoch, device=device)
    student = replace(stage.student, module=optimization.student)
    meter = Meter(stage=stage.number, device=device, world=world)
    saver = Saver(stage, optimization, meter, progress_file=progress_file, world=world)
    start = saver.restore(metrics_file)
    if start == Position():
        check_teacher(stage)
    step = start.step

    for epoch in range(start.epoch, optim.epochs):
        batches = stage.epoch_batches(epoch)
        shares = [share_of(batch, rank=world.rank, size=world.size) for batch in batches]
        # Batches do not depend on earlier ones, so a resumed epoch starts in its middle.
        done = (step - epoch * steps_per_epoch) * optim.accumulate
        model.train()
        sizes, title = [len(batch) for batch in batches], f'stage {stage.number} epoch {epoch + 1}/{optim.epochs}'
        with progress_bar(total=sum(sizes), initial=sum(sizes[:done]), unit='image', desc=title) as bar:
            requests = [share.requests for share in shares[done:]]
            for number, (samples, ahead) in enumerate(meter.timed(loaded(stage, requests)), start=done):
                seed_everything((*stage.epoch_seed(epoch), number, world.rank))
                weight = shares[number].weight
                # The last step of an epoch may have fewer batches than the others.
                begun = number // optim.accumulate * optim.accumulate
                batches_of_step = min(optim.accumulate, num_batches - begun)
                ends_step = number + 1 == begun + batches_of_step
                progress = step / num_steps
                stage.student.tell_progress(epoch=epoch, step=step)
                losses = add_gradient(
                    stage,
                    samples,
                    ahead,
                    # DistributedDataParallel averages the gradients of all processes.
                    share=weight * world.size / batches_of_step,
                    progress=progress,
                    epoch=epoch,
                    scaler=optimization.scaler,
                    network=network,
                    ends_step=ends_step,
                )
                meter.add(losses, step=step + 1, image_ids=[one.image_id for one in samples], weight=weight)
                bar.update(sizes[number])
                if not ends_step:
                    continue

                step += 1
                lr, meter.grad_norm = optimization.step(step)
                if step % LOG_EVERY == 0 or number + 1 == num_batches:
                    decay = stage.decay_factors(progress=progress)
                    record = meter.record(step=step, epoch=epoch + 1, lr=lr, decay=decay)
                    if world.is_main:
                        append_record(metrics_file, record)
                    bar.set_postfix_str(f'loss {record.losses["total"]:.3f}', refresh=False)
                stopped, is_due = world.any(bool(stop), saver.is_due)
                if stopped or is_due:
                    saver.save(Position(epoch, step))
                if stopped:
                    raise _interrupted(stage, epoch, step)

        world.share_buffers(model, student.module)
        metrics: Mapping[str, float] = {}
        is_last = epoch + 1 == optim.epochs
        if stage.val_set is not None and (is_last or (epoch + 1) % stage.settings.evaluate.every == 0):
            try:
                evaluation = evaluate_stage(stage, student, step=step, epoch=epoch + 1, stop=stop, world=world)
            except StopRequested:
                saver.save(Position(epoch, step))
                raise _interrupted(stage, epoch, step) from None
            if world.is_main:
                append_record(metrics_file, evaluation)
            metrics = evaluation.metrics
        saver.finish_epoch(Position(epoch + 1, step), metrics)
    if student.module is not model:
        model.load_state_dict(student.module.state_dict())


def seed_everything(seed: Sequence[int]) -> None:
    """Seeds every generator that a training step may draw from: draws depend only on the position in the run."""
    number = int(np.random.default_rng(seed).integers(2**63))
    torch.manual_seed(number)
    # Some samplers of mmdet draw from these.
    np.random.seed(number % 2**32)
    random.seed(number)


def _interrupted(stage: Stage, epoch: int, step: int) -> Interrupted:
    return Interrupted(
        f'stopped in epoch {epoch + 1} of stage {stage.number}, step {step}; everything is saved; '
        'run the same command with --resume to continue'
    )
