"""The folder of a run: what lies where in it, and whether a new run may use it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from mtpd.differences import differences
from mtpd.environment import describe_device, versions
from mtpd.errors import InputError, UnavailableError
from mtpd.files import TEMPORARY, require_writable
from mtpd.locks import HolderLock, LockHeldError
from mtpd_train.saving.checkpoint import write_file
from mtpd_train.settings.stage_settings import StageSettings
from mtpd_train.stage import Stage

STUDENT_FILE, CONFIG_FILE, INHERITANCE_FILE = 'student.pth', 'student_config.py', 'inheritance.txt'
PROGRESS_FILE, METRICS_FILE, RUN_FILE = 'progress.pth', 'metrics.jsonl', 'run.json'
DIVERGED_FILE, LOCK_FILE = 'diverged.jsonl', '.lock'
SOURCES = ('caches', 'teachers')
# Settings that change nothing in what is learned, so that they may change under a run.
HARMLESS = ('.save.', '.data.workers.', '.evaluate.backend.')
MAX_SHOWN = 200  # characters of a value in a message
LIBRARIES = ('mtpd', 'torch', 'torchvision', 'mmdet', 'mmengine', 'numpy', 'opencv-python', 'pycocotools')


def stage_folder(out: Path, number: int) -> Path:
    """Where the files of a stage are."""
    return out / f'stage{number}'


def describe_run(settings: Sequence[StageSettings], stages: Sequence[Stage], device: torch.device) -> dict[str, Any]:
    """The content of run.json: stage files with all defaults, caches and teachers, what of the students' own
    recipes is not taken over, device, versions."""
    sources = [stage.source for stage in stages if stage.source is not None]
    return {
        'stages': _described_stages(settings),
        **{kind: {one.name: one.description for one in sources if one.kind == kind} for kind in SOURCES},
        'not_taken_over': {str(stage.number): list(stage.not_taken_over) for stage in stages},
        'device': describe_device(device),
        'versions': versions(LIBRARIES),
    }


def require_usable(out: Path, settings: Sequence[StageSettings], *, resume: bool) -> None:
    """Says what can be said before the stages are built, which takes long; `claim_folder` has the last word.

    Raises:
        InputError: the folder holds something else, another run, or one that was not asked to go on.
        UnavailableError: it cannot be written.
    """
    _require_own(out)
    require_writable(out)
    if (out / RUN_FILE).exists():
        _require_run(out, {'stages': _described_stages(settings)}, resume=resume)


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

    Raises:
        InputError: the folder holds another run, or one that was not asked to go on.
    """
    run_file = out / RUN_FILE
    if run_file.exists():
        _require_run(out, description, resume=resume)
    else:
        write_file(run_file, json.dumps(description, indent=1).encode())


def _described_stages(settings: Sequence[StageSettings]) -> dict[str, Any]:
    return {str(number): stage.model_dump(mode='json') for number, stage in enumerate(settings, start=1)}


def _require_own(out: Path) -> None:
    """Checks that the folder holds a run, or nothing but what one that was killed may have left before."""
    is_taken = out.exists() and any(not path.name.startswith((LOCK_FILE, TEMPORARY)) for path in out.iterdir())
    if is_taken and not (out / RUN_FILE).exists():
        raise InputError(f'{out}: the folder is not empty and holds no run; choose another --out')


def _require_run(out: Path, description: Mapping[str, Any], *, resume: bool) -> None:
    """Checks that the run which is there is to go on, and is the one that is described, as far as that goes."""
    if not resume:
        raise InputError(f'{out}: already holds a run; add --resume to go on with it, or choose another --out')
    _require_same(out, _described(out / RUN_FILE), description)


def _described(run_file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(run_file.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(part, {}), dict) for part in ('stages', *SOURCES)):
        raise InputError(f'{run_file} describes no run: it was damaged; restore it, or choose another --out')
    return found


def _require_same(out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Device and versions may change under a run; what it was told to do, and its teachers, may not."""
    num_before, num_now = len(found.get('stages', {})), len(wanted['stages'])
    if num_before != num_now:
        raise InputError(
            f'{out}: --resume needs the same configuration, but the number of stages was {num_before} and is '
            f'{num_now}; give the same stage files or choose another --out'
        )
    stages = {number: _with_defaults(stage) for number, stage in found.get('stages', {}).items()}
    found = {**found, 'stages': stages}
    for part in [one for one in ('stages', *SOURCES) if one in wanted]:
        for field, before, now in differences(found.get(part, {}), wanted[part]):
            if part in SOURCES and '.provenance.' in field:
                continue
            if part == 'stages' and any(one in f'.{field}.' for one in HARMLESS):
                continue
            raise InputError(
                f'{out}: --resume needs the same configuration, but {part}.{field} was {_short(before)} and is '
                f'{_short(now)}; restore it or choose another --out'
            )


def _short(value: Any) -> str:
    # A whole stage or a list of losses may have changed.
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f'{text[: MAX_SHOWN - 3]}...'


def _with_defaults(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stage of run.json with the settings that the version which wrote it did not have."""
    try:
        return StageSettings.model_validate_json(json.dumps(stage)).model_dump(mode='json')
    except ValidationError:
        return stage  # The comparison names what this version does not know.
