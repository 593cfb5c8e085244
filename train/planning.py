"""Plans a run before its first step: images, steps, time, disk and memory; dry runs and their trials."""

import itertools
import math
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtpd.cache.format.arrays import file_place
from mtpd.errors import UnavailableError
from mtpd.system.files import free_bytes
from mtpd.system.text import format_bytes, format_duration, table
from mtpd_train.data.sampling import share_of
from mtpd_train.evaluation import detect
from mtpd_train.optimization import Optimization
from mtpd_train.processes import ALONE, World
from mtpd_train.stage import Stage
from mtpd_train.student import inheritance_table
from mtpd_train.training.step import add_gradient, build_network, loaded

# Batches that each worker process prefetches (the default of torch's DataLoader).
PREFETCHED_BATCHES = 2
# Kept free for logs and other writers to the disk.
MARGIN_BYTES = 64 * 2**20
NUM_PREDICTED_IMAGES = 2  # a batch, where one image alone might pass


@dataclass(frozen=True)
class StagePlan:
    """Work, disk and memory of a stage."""

    number: int  # from 1
    num_images: int  # of an epoch
    epochs: int
    num_steps: int  # of the optimizer
    cache_bytes: int  # read of the cache in an epoch, on average over the views that are drawn
    student_bytes: int  # of a student's checkpoint
    progress_bytes: int  # of the state that a stage is resumed from
    left_bytes: int  # of all checkpoints that the stage leaves on the disk
    host_bytes: int  # of prefetched codes and images, at most, by all processes of a machine; an estimate


@dataclass(frozen=True)
class Trial:
    """Result of a trial."""

    num_steps: int  # timed optimizer steps, after some to warm up
    seconds_per_step: float  # including reading its images; without evaluations
    gpu_bytes: int | None  # peak of tensors on the GPU of this process; None on a CPU


def dry_run(
    stages: Sequence[Stage],
    plans: Sequence[StagePlan],
    *,
    out: Path,
    device: torch.device,
    world: World,
    num_trial_steps: int,
) -> None:
    """Prints what the run would take, by a few real steps of each stage unless `num_trial_steps` is 0.

    All processes of `world` take these steps; the first of them prints. Nothing is written. Refuses as `require_room`.
    """
    for stage in stages:
        if stage.inheritance and world.is_main:
            print(inheritance_table(stage.inheritance))
    trials = [run_trial(stage, device, num_steps=num_trial_steps, world=world) for stage in stages if num_trial_steps]
    if not world.is_main:
        return
    lines = plan_lines(plans, trials)
    lines.append(f'disk     {format_bytes(disk_bytes(plans))} at most, {format_bytes(free_bytes(out))} free at {out}')
    needed = max(plan.host_bytes for plan in plans)
    if needed:
        ram = format_bytes(_ram_bytes())
        lines.append(f'memory   {format_bytes(needed)} at most for prefetched batches, of {ram}; an estimate')
    if device.type == 'cuda':
        free, total = map(format_bytes, torch.cuda.mem_get_info(device))
        lines.append(f'GPU      {free} free of {total}; batches of larger images need more than the trial')
    print('\n'.join(lines))
    require_room(plans, out)
    print('Dry run: nothing was trained or written.')


def plan_stage(stage: Stage, world: World = ALONE) -> StagePlan:
    """The plan of a stage that the processes of `world` train; nothing is read but the records of its cache."""
    num_images, settings, optim = len(stage.train_set.sizes(with_objects=True)), stage.settings, stage.settings.optim
    student = _num_bytes(stage.student.module.state_dict().values())
    parameters = itertools.chain(stage.student.module.parameters(), stage.distiller.parameters())
    moments = 2 if optim.type == 'adamw' else int(optim.momentum > 0)  # of each parameter, in the optimizer
    optimizer = moments * _num_bytes(one for one in parameters if one.requires_grad)
    # The last one, the best, and those of the last epochs.
    num_students = 1 + (stage.val_set is not None) + min(settings.save.keep, optim.epochs)
    return StagePlan(
        number=stage.number,
        num_images=num_images,
        epochs=optim.epochs,
        num_steps=optim.epochs * stage.steps_per_epoch,
        cache_bytes=_cache_bytes(stage, num_images=num_images),
        student_bytes=student,
        progress_bytes=(2 if optim.ema else 1) * student
        + _num_bytes(stage.distiller.state_dict().values())
        + optimizer,
        left_bytes=num_students * student,
        host_bytes=world.local_size * _host_bytes(stage, batch_size=-(-settings.data.batch_size // world.size)),
    )


def disk_bytes(plans: Sequence[StagePlan]) -> int:
    """The peak of a run on the disk: what its stages leave, and a training state beside the one that replaces it."""
    left = sum(plan.left_bytes for plan in plans) + plans[-1].student_bytes  # The run has a copy of the last student.
    return left + 2 * max(plan.progress_bytes for plan in plans)


def plan_lines(plans: Sequence[StagePlan], trials: Sequence[Trial] = ()) -> list[str]:
    """A table with a row for each stage; with trials of all of them time and GPU memory too, and what they rest on."""
    header, rows = ['stage', 'images', 'epochs', 'steps', 'read/epoch', 'student', 'state', 'RAM'], []
    for plan in plans:
        sizes = (plan.cache_bytes, plan.student_bytes, plan.progress_bytes, plan.host_bytes)
        numbers = [str(plan.number), f'{plan.num_images:,}', str(plan.epochs), f'{plan.num_steps:,}']
        rows.append(numbers + [_size(one) for one in sizes])
    if not trials:
        return table(header, rows)
    seconds = [plan.num_steps * trial.seconds_per_step for plan, trial in zip(plans, trials, strict=True)]
    for row, trial, one in zip(rows, trials, seconds, strict=True):
        row += [f'{trial.seconds_per_step:.3g}', format_duration(one), _size(trial.gpu_bytes)]
    timed = f'{min(trial.num_steps for trial in trials)} timed steps per stage'
    total = f'{format_duration(sum(seconds))} in total, without evaluations; estimated from {timed}'
    return [*table([*header, 's/step', 'time', 'GPU'], rows), f'time     {total}']


def require_room(plans: Sequence[StagePlan], out: Path) -> None:
    """Raises an UnavailableError if disk or memory do not suffice; it names what is needed and what is free."""
    needed, free = disk_bytes(plans) + MARGIN_BYTES, free_bytes(out)
    if needed > free:
        raise UnavailableError(
            f'{out}: its checkpoints need {format_bytes(needed)}, and the disk has '
            f'{format_bytes(free)} free; free some space, or choose another --out'
        )
    worst = max(plans, key=lambda plan: plan.host_bytes)
    if worst.host_bytes > _ram_bytes():
        raise UnavailableError(
            f'stage {worst.number}: prefetched batches need {format_bytes(worst.host_bytes)} of memory, but '
            f'this machine has {format_bytes(_ram_bytes())}; lower data.batch_size or data.workers'
        )


def run_trial(stage: Stage, device: torch.device, *, num_steps: int, world: World = ALONE) -> Trial:
    """Trains a stage for some steps, in all processes of `world`, and leaves it changed: for dry runs only.

    At least `num_steps` steps are timed, more where processes read images, and fewer where an epoch is shorter.
    """
    on_gpu, accumulate = device.type == 'cuda', stage.settings.optim.accumulate
    stage.to(device)
    stage.student.module.train()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    network = build_network(stage, world)
    # A learning rate that changes nothing: untrained networks must not diverge in the trial.
    optim = stage.settings.optim.model_copy(update={'lr': 1e-3 * stage.settings.optim.lr, 'min_lr': 0.0})
    steps = stage.steps_per_epoch
    optimization = Optimization(stage.student, stage.distiller, optim, steps_per_epoch=steps, device=device)
    num_warm, num_timed = _trial_steps(stage, num_steps)
    # The whole epoch is requested, so that images are prefetched during the whole trial, as in training.
    shares = [share_of(batch, rank=world.rank, size=world.size).requests for batch in stage.epoch_batches(0)]
    num_tried = min(len(shares), (num_warm + num_timed) * accumulate)
    stage.student.tell_progress(epoch=0, step=0)
    moments = [time.perf_counter()]
    for number, (samples, ahead) in enumerate(itertools.islice(loaded(stage, shares), num_tried), start=1):
        ends_step = number % accumulate == 0 or number == num_tried
        add_gradient(
            stage,
            samples,
            ahead,
            share=1 / accumulate,
            scaler=optimization.scaler,
            network=network,
            ends_step=ends_step,
        )
        if ends_step:
            optimization.step(len(moments))
            if on_gpu:
                torch.cuda.synchronize(device)
            moments.append(time.perf_counter())
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    stage.to(torch.device('cpu'))
    # An epoch may be short.
    timed = moments[min(num_warm, (len(moments) - 1) // 2) :]
    return Trial(len(timed) - 1, (timed[-1] - timed[0]) / (len(timed) - 1), peak)


def try_predictions(stages: Iterable[Stage], device: torch.device) -> None:
    """Runs one prediction of each config's student, so that it fails before the training if so; changes nothing."""
    of_config: dict[str, Stage] = {}
    for stage in stages:
        of_config.setdefault(stage.config_text, stage)
    for stage in of_config.values():
        model, before = stage.student.module, stage.device
        modes = [(module, module.training) for module in model.modules()]
        dataset = stage.train_set if stage.val_set is None else stage.val_set
        batch_size = stage.settings.data.batch_size
        model.to(device).eval()
        with _generators_kept(device):
            detect(stage.student, dataset, batch_size=batch_size, num_workers=0, num_images=NUM_PREDICTED_IMAGES)
        model.to(before)
        for module, is_training in modes:
            module.training = is_training


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Restores every random generator after the block."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _trial_steps(stage: Stage, num_steps: int) -> tuple[int, int]:
    """How many optimizer steps warm up, and how many are then timed."""
    accumulate, workers = stage.settings.optim.accumulate, stage.settings.data.workers
    if not workers:
        return 1, num_steps
    # Batches that were prefetched during the first step must be used up, or a trial would not wait for images as the
    # run does. Workers start together and deliver at about the same time: a batch of each is timed.
    num_rounds = math.ceil(num_steps * accumulate / workers)
    return math.ceil(PREFETCHED_BATCHES * workers / accumulate), math.ceil(num_rounds * workers / accumulate)


def _cache_bytes(stage: Stage, *, num_images: int) -> int:
    if stage.source is None or not stage.is_taught:
        return 0
    flip = stage.settings.data.flip
    # '': the proposals, which both views share
    shares = {'plain': 1 - flip, 'flip': flip, '': stage.uses_stored_rois}
    total = 0.0
    for reader, names in stage.source.caches([level.name for level in stage.teacher_levels]):
        for name, record in reader.manifest.files.items():
            place = file_place(name)
            if place is not None and (not place.view or place.array.split('.')[0] in names):
                total += record.num_bytes * shares[place.view] / len(reader)
    return round(total * num_images)


def _host_bytes(stage: Stage, *, batch_size: int) -> int:
    """Prefetched images and codes of one process with `batch_size` images of each batch."""
    padded = map(stage.student.preprocessing.geometry.padded, set(stage.train_set.sizes().values()))
    pixels = max(height * width for height, width in padded)
    bytes_per_value = 4 if stage.student.preprocessing.geometry.float_pixels else 1
    images = PREFETCHED_BATCHES * stage.settings.data.workers * batch_size * 3 * pixels * bytes_per_value
    levels = [level.name for level in stage.teacher_levels]
    return images + (stage.source.buffer_bytes(levels, batch_size=batch_size) if stage.source and levels else 0)


def _ram_bytes() -> int:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _size(num_bytes: int | None) -> str:
    return format_bytes(num_bytes) if num_bytes else '-'


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)
