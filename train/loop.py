"""Training one stage, from top to bottom."""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from mtpd.detectors.detection import captured_maps, collate, detection_losses
from mtpd.detectors.transforms import Sample
from mtpd.interrupt import StopFlag
from mtpd.outcome import Interrupted
from mtpd.prefetch import prefetched
from mtpd_train.build import Stage
from mtpd_train.checkpoint import Trainables, load_progress, save_progress
from mtpd_train.dataset import load_batches
from mtpd_train.evaluation import evaluate_student
from mtpd_train.meter import Meter
from mtpd_train.metrics import EvaluationRecord, MetricsLog
from mtpd_train.optimizer import build_optimizer, build_schedule
from mtpd_train.sampling import Request, training_batches
from mtpd_train.teacher_maps import Encoded, batch_maps, batch_masks, read_batch

Item = TypeVar('Item')

LOG_EVERY = 20
PRECISIONS = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """Where a stage runs: its device, the file of its training state, the log, and the user's wish to stop."""

    device: torch.device
    progress_file: Path
    log: MetricsLog
    stop: StopFlag


def train_stage(stage: Stage, place: Place) -> None:
    """Trains the stage's student in place, going on from `place.progress_file` when that is there.

    Raises:
        Interrupted: the user asked to stop; the last finished epoch is saved.
        MtpdError: a loss is not finite, an image cannot be read, the cache is damaged.
    """
    device, optim = place.device, stage.optim
    model, distiller = stage.student.model.to(device), stage.distiller.to(device)
    parameters = [one for one in itertools.chain(model.parameters(), distiller.parameters()) if one.requires_grad]
    sizes = stage.train_set.sizes(with_objects=True)
    num_batches = len(_batches(stage, sizes, epoch=0))

    optimizer = build_optimizer(
        parameters, kind=optim.type, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
    )
    schedule = build_schedule(
        optimizer,
        kind=optim.schedule,
        epochs=optim.epochs,
        steps_per_epoch=-(-num_batches // optim.accumulate),
        milestones=optim.milestones,
        warmup_steps=optim.warmup_iters,
        warmup_ratio=optim.warmup_ratio,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == 'fp16')
    trainables = Trainables(model, distiller, optimizer, schedule, scaler)
    first_epoch, step = 0, 0
    if place.progress_file.exists():
        first_epoch, step = load_progress(place.progress_file, trainables)
    meter = Meter(stage=stage.number, device=device)

    for epoch in range(first_epoch, optim.epochs):
        # Seeded epoch by epoch, so that a resumed run draws what an uninterrupted one would have drawn.
        torch.manual_seed(hash((stage.seed, stage.number, epoch)) % 2**63)
        batches = _batches(stage, sizes, epoch=epoch)
        bar = tqdm(
            total=len(sizes),
            unit='image',
            desc=f'stage {stage.number} epoch {epoch + 1}/{optim.epochs}',
            mininterval=0.5,
        )
        model.train()
        with bar:
            for number, (samples, encoded) in enumerate(meter.timed(_loaded(stage, batches))):
                with torch.autocast(device.type, PRECISIONS[optim.precision], enabled=optim.precision != 'fp32'):
                    losses = step_losses(stage, samples, encoded, device=device)
                    total = torch.stack(list(losses.values())).sum()
                torch.autograd.backward(scaler.scale(total / optim.accumulate))
                meter.add(losses, num_images=len(samples))
                bar.update(len(samples))
                if place.stop:
                    raise Interrupted(_how_to_go_on(stage, epoch))
                if (number + 1) % optim.accumulate and number + 1 < len(batches):
                    continue

                if optim.grad_clip is not None:
                    scaler.unscale_(optimizer)
                    meter.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, optim.grad_clip)
                loss_scale = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                lr = schedule.get_last_lr()[0]
                # A scale that fell means that the gradient overflowed and the optimizer took no step.
                if scaler.get_scale() >= loss_scale:
                    schedule.step()
                step += 1
                if step % LOG_EVERY == 0 or number + 1 == len(batches):
                    record = meter.record(
                        step=step, epoch=epoch + 1, lr=lr, image_ids=[one.image_id for one in samples]
                    )
                    place.log.write(record)
                    bar.set_postfix_str(f'loss {record.losses["total"]:.3f}', refresh=False)

        if stage.val_set is not None and ((epoch + 1) % stage.evaluate_every == 0 or epoch + 1 == optim.epochs):
            place.log.write(_evaluation(stage, step=step, epoch=epoch + 1, device=device))
        save_progress(place.progress_file, trainables, epoch=epoch + 1, step=step)


def step_losses(
    stage: Stage, samples: Sequence[Sample], encoded: Sequence[Encoded], *, device: torch.device
) -> dict[str, Tensor]:
    """The detector's own losses and the distillation losses of one batch, by name."""
    student = stage.student
    sides = [stage.geometry.padded(sample.data_sample.ori_shape) for sample in samples]
    padded = max(height for height, _ in sides), max(width for _, width in sides)
    images = collate(samples, padded=padded, normalisation=student.preprocessing.normalisation, device=device)
    with captured_maps(student.model) as student_maps:
        losses = detection_losses(student.model, images, samples)
    if stage.teacher_levels:
        teacher = batch_maps(encoded, levels=stage.teacher_levels, padded=padded, device=device)
        masks = batch_masks([one.resized for one in samples], levels=stage.teacher_levels, padded=padded, device=device)
        named = {level.name: maps for level, maps in zip(student.levels, student_maps, strict=True)}
        losses |= stage.distiller(named, teacher, masks)
    return losses


def _batches(stage: Stage, sizes: dict[int, tuple[int, int]], *, epoch: int) -> list[list[Request]]:
    return training_batches(sizes, batch_size=stage.batch_size, flip=stage.flip, seed=stage.seed, epoch=epoch)


def _loaded(stage: Stage, batches: list[list[Request]]) -> Iterator[tuple[list[Sample], Sequence[Encoded]]]:
    """Samples from worker processes and codes from a thread, both read ahead."""
    # The processes are started before the thread: a fork copies the locks that other threads hold.
    samples = load_batches(stage.train_set, batches, num_workers=stage.num_workers)
    cache = stage.cache
    if cache is None or not stage.teacher_levels:
        return zip(samples, itertools.repeat(()), strict=False)
    names = [level.name for level in stage.teacher_levels]
    codes: Iterable[Sequence[Encoded]] = prefetched(
        lambda batch: read_batch(cache, batch, levels=names), batches, num_threads=1, depth=2
    )
    return zip(samples, codes, strict=True)


def _evaluation(stage: Stage, *, step: int, epoch: int, device: torch.device) -> EvaluationRecord:
    assert stage.val_set is not None
    started = time.perf_counter()
    metrics = evaluate_student(
        stage.student, stage.val_set, batch_size=stage.batch_size, num_workers=stage.num_workers, device=device
    )
    tqdm.write(
        f'stage {stage.number} epoch {epoch}: '
        + ', '.join(f'{name} {100 * value:.1f}' for name, value in metrics.items() if name.endswith(('/AP', '/AP50')))
    )
    return EvaluationRecord(stage.number, step, epoch, metrics, time.perf_counter() - started)


def _how_to_go_on(stage: Stage, epoch: int) -> str:
    saved = f'the {epoch} finished epochs are saved' if epoch else 'no epoch of it had finished'
    return f'stopped in epoch {epoch + 1} of stage {stage.number}; {saved}; run the same command with --resume to go on'
