"""The folder of a run: what lies where in it, and whether a new run may use it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mtpd.errors import InputError, UnavailableError
from mtpd.system.console import warn
from mtpd.system.environment import describe_device, versions
from mtpd.system.files import TEMPORARY, require_writable
from mtpd.system.locks import HolderLock, LockHeldError
from mtpd_train.run_identity import SOURCES, described_contents, described_stages, require_same_run
from mtpd_train.settings.stage_settings import StageSettings
from mtpd_train.stage import Stage
from mtpd_train.training.saving import write_file

STUDENT_FILE, CONFIG_FILE, INHERITANCE_FILE = 'student.pth', 'student_config.py', 'inheritance.txt'
PROGRESS_FILE, METRICS_FILE, RUN_FILE = 'progress.pth', 'metrics.jsonl', 'run.json'
DIVERGED_FILE, LOCK_FILE = 'diverged.jsonl', '.lock'
LIBRARIES = (
    'mtpd', 'torch', 'torchvision', 'mmdet', 'mmengine', 'numpy', 'opencv-python', 'simplejpeg', 'pycocotools'
)  # fmt: skip


def stage_folder(out: Path, number: int) -> Path:
    """Where the files of a stage are."""
    return out / f'stage{number}'


def describe_run(settings: Sequence[StageSettings], stages: Sequence[Stage], device: torch.device) -> dict[str, Any]:
    """The content of run.json: stage files with all defaults, hashes of what they name, teachers, what of the
    students' own recipes is not taken over, device, versions."""
    sources = [stage.source for stage in stages if stage.source is not None]
    return {
        'stages': described_stages(settings),
        'contents': described_contents(settings, stages),
        **{kind: {one.name: one.description for one in sources if one.kind == kind} for kind in SOURCES},
        'not_taken_over': {str(stage.number): list(stage.not_taken_over) for stage in stages},
        'device': describe_device(device),
        'versions': versions(LIBRARIES),
    }


def require_usable(out: Path, settings: Sequence[StageSettings], *, resume: bool) -> None:
    """Early check, before the stages are built, which takes long; `claim_folder` makes the final one.

    Raises:
        InputError: the folder holds something else, another run, or one that was not to be resumed.
        UnavailableError: it cannot be written.
    """
    _require_own(out)
    require_writable(out)
    if (out / RUN_FILE).exists():
        _require_run(out, {'stages': described_stages(settings)}, resume=resume, is_early=True)


@contextmanager
def held_folder(out: Path) -> Iterator[None]:
    """Makes the run's folder, and keeps other processes from writing into it; tidies up after one that was killed.

    Raises:
        InputError: the folder holds something else.
        UnavailableError: another process writes this run.
    """
    _require_own(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with HolderLock(out / LOCK_FILE):
            for half_written in out.rglob(f'{TEMPORARY}*'):
                half_written.unlink()
            yield
    except LockHeldError as error:
        raise UnavailableError(f'{out}: {error} is writing this run; wait for it, or choose another --out') from None


def claim_folder(out: Path, description: Mapping[str, Any], *, resume: bool) -> None:
    """Makes the folder this run's, or checks that what is there is this run. The folder is held.

    Changed paths with the same content are reported and recorded.

    Raises:
        InputError: the folder holds another run, or one that was not to be resumed.
    """
    run_file = out / RUN_FILE
    if not run_file.exists():
        write_file(run_file, json.dumps(description, indent=1).encode())
        return
    found, moved = _require_run(out, description, resume=resume)
    if moved:
        compared = 'the same content (image files are not compared)'
        warn(f'{out}: resumed with different paths to {compared}: {"; ".join(moved)}')
    if moved or 'contents' not in found:
        # Who reads the run later looks for its caches and data there.
        changes = {key: value for key, value in description.items() if key in ('stages', 'contents', *SOURCES)}
        write_file(run_file, json.dumps({**found, **changes}, indent=1).encode())


def _require_own(out: Path) -> None:
    """Checks that the folder holds a run, or nothing but what one that was killed may have left before."""
    is_taken = out.exists() and any(not path.name.startswith((LOCK_FILE, TEMPORARY)) for path in out.iterdir())
    if is_taken and not (out / RUN_FILE).exists():
        raise InputError(f'{out}: the folder is not empty and does not hold a run; choose another --out')


def _require_run(
    out: Path, description: Mapping[str, Any], *, resume: bool, is_early: bool = False
) -> tuple[Mapping[str, Any], Sequence[str]]:
    """Checks that the existing run is to be resumed and matches the description, as far as known.

    Returns:
        Its own description, and which settings hold other paths now.
    """
    if not resume:
        raise InputError(f'{out}: already holds a run; add --resume to resume it, or choose another --out')
    found = _described(out / RUN_FILE)
    return found, require_same_run(out, found, description, is_early=is_early)


def _described(run_file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(run_file.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(part, {}), dict) for part in ('stages', *SOURCES)):
        raise InputError(f'{run_file} is damaged: it does not describe a run; restore it, or choose another --out')
    return found
