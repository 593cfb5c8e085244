"""The plan of a run for people, and whether the machine has room for it."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from mtpd.errors import UnavailableError
from mtpd.system.files import free_bytes
from mtpd.system.text import format_bytes, table
from mtpd_train.planning.plan import StagePlan, disk_bytes
from mtpd_train.planning.trial import Trial

# Kept free for logs and other writers to the disk.
MARGIN_BYTES = 64 * 2**20


def plan_lines(plans: Sequence[StagePlan], trials: Sequence[Trial] = ()) -> list[str]:
    """A table with a row for each stage; with trials of all of them hours and GPU memory too, and what they rest on."""
    header = ['stage', 'images', 'epochs', 'steps', 'read/epoch', 'student', 'state', 'RAM']
    rows = [
        [
            str(plan.number), f'{plan.num_images:,}', str(plan.epochs), f'{plan.num_steps:,}',
            _size(plan.cache_bytes), _size(plan.student_bytes), _size(plan.progress_bytes), _size(plan.host_bytes),
        ]
        for plan in plans
    ]  # fmt: skip
    if not trials:
        return table(header, rows)
    seconds = [plan.num_steps * trial.seconds_per_step for plan, trial in zip(plans, trials, strict=True)]
    rows = [
        [*row, f'{trial.seconds_per_step:.3g}', _time(one), _size(trial.gpu_bytes)]
        for row, trial, one in zip(rows, trials, seconds, strict=True)
    ]
    num_steps = min(trial.num_steps for trial in trials)
    return [
        *table([*header, 's/step', 'time', 'GPU'], rows),
        f'time     {_time(sum(seconds))} in total, without evaluations; estimated from {num_steps} timed '
        'steps per stage',
    ]


def room_lines(plans: Sequence[StagePlan], out: Path, device: torch.device) -> list[str]:
    """Disk and memory that the run needs, and what is available."""
    needed = max(plan.host_bytes for plan in plans)
    lines = [f'disk     {format_bytes(disk_bytes(plans))} at most, {format_bytes(free_bytes(out))} free at {out}']
    if needed:
        ram = format_bytes(_ram_bytes())
        lines.append(f'memory   {format_bytes(needed)} at most for prefetched batches, of {ram}; an estimate')
    if device.type == 'cuda':
        free, total = torch.cuda.mem_get_info(device)
        room = f'{format_bytes(free)} free of {format_bytes(total)}'
        lines.append(f'GPU      {room}; batches of larger images need more than the trial')
    return lines


def require_room(plans: Sequence[StagePlan], out: Path) -> None:
    """Refuses to start a run that will fill the disk, or whose buffers alone are more than the memory.

    Raises:
        UnavailableError: names what is needed and what there is.
    """
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


def _ram_bytes() -> int:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _time(seconds: float) -> str:
    if seconds < 90:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes // 60}:{minutes % 60:02} h' if minutes >= 90 else f'{minutes} min'


def _size(num_bytes: int | None) -> str:
    return format_bytes(num_bytes) if num_bytes else '-'
