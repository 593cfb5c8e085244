"""The folder of a run: the names of its files, its lock, and whether a run may use it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtpd.errors import InputError, UnavailableError
from mtpd.system.console import warn
from mtpd.system.files import TEMPORARY, require_writable
from mtpd.system.locks import LockHeldError, held
from mtpd_train.run_identity import SOURCES, described_stages, require_same_run
from mtpd_train.settings.stage_settings import StageSettings
from mtpd_train.training.saving import write_file

STUDENT_FILE, CONFIG_FILE, INHERITANCE_FILE = 'student.pth', 'student_config.py', 'inheritance.txt'
PROGRESS_FILE, METRICS_FILE, RUN_FILE = 'progress.pth', 'metrics.jsonl', 'run.json'
DIVERGED_FILE, LOCK_FILE = 'diverged.jsonl', '.lock'


def stage_folder(out: Path, number: int) -> Path:
    """The folder of a stage's files."""
    return out / f'stage{number}'


def require_usable(out: Path, settings: Sequence[StageSettings], *, resume: bool) -> None:
    """Checks the folder before the stages are built, which takes long; `claim_folder` checks it completely."""
    _require_own(out)
    require_writable(out)
    if (out / RUN_FILE).exists():
        _require_run(out, {'stages': described_stages(settings)}, resume=resume, is_early=True)


@contextmanager
def held_folder(out: Path) -> Iterator[None]:
    """Creates and locks the run's folder; deletes temporary files of a process that was killed."""
    _require_own(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with held(out / LOCK_FILE):
            for half_written in out.rglob(f'{TEMPORARY}*'):
                half_written.unlink()
            yield
    except LockHeldError as error:
        raise UnavailableError(f'{out}: {error} is writing this run; wait for it, or choose another --out') from None


def claim_folder(out: Path, description: Mapping[str, Any], *, resume: bool) -> None:
    """Writes run.json, or checks that the one there describes this run. The folder must be locked by `held_folder`.

    Changed paths with the same content are reported and recorded.
    """
    run_file = out / RUN_FILE
    if not run_file.exists():
        write_file(run_file, json.dumps(description, indent=1).encode())
        return
    found, moved = _require_run(out, description, resume=resume)
    if moved:
        compared = 'the same content (image files are not compared)'
        warn(f'{out}: resumed with different paths to {compared}: {"; ".join(moved)}')
        # Programs that read the run find its caches and data by these paths.
        changes = {key: value for key, value in description.items() if key in ('stages', 'contents', *SOURCES)}
        write_file(run_file, json.dumps({**found, **changes}, indent=1).encode())


def _require_own(out: Path) -> None:
    """Checks that the folder holds a run, or at most the lock and temporary files of one that was killed."""
    is_taken = out.exists() and any(not path.name.startswith((LOCK_FILE, TEMPORARY)) for path in out.iterdir())
    if is_taken and not (out / RUN_FILE).exists():
        raise InputError(f'{out}: the folder is not empty and does not hold a run; choose another --out')


def _require_run(
    out: Path, description: Mapping[str, Any], *, resume: bool, is_early: bool = False
) -> tuple[Mapping[str, Any], Sequence[str]]:
    """Checks that the run is to be resumed and fits; returns its own description, and settings with changed paths."""
    if not resume:
        raise InputError(f'{out}: already holds a run; add --resume to resume it, or choose another --out')
    try:
        found = json.loads((out / RUN_FILE).read_bytes())
    except (ValueError, RecursionError):
        found = None
    parts = ('stages', 'contents', *SOURCES)
    if not isinstance(found, dict) or not all(isinstance(found.get(part, {}), dict) for part in parts):
        raise InputError(
            f'{out / RUN_FILE} is damaged: it does not describe a run; restore it, or choose another --out'
        )
    return found, require_same_run(out, found, description, is_early=is_early)
