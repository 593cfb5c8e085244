"""The folder of a run: the names of its files, its lock, and whether a run may use it.

Data, caches and configs may move, and another machine has other paths. run.json records the content of each path: the
same content under another path can be resumed, other content under the same path cannot.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from mtpd.errors import InputError, UnavailableError
from mtpd.system.console import warn
from mtpd.system.environment import describe_device, versions
from mtpd.system.files import TEMPORARY, canonical_json, differences, require_writable, sha256_bytes, sha256_file
from mtpd.system.locks import LockHeldError, held
from mtpd_train.settings.stage_settings import StageSettings
from mtpd_train.stage import Stage
from mtpd_train.teachers.live_teacher import teacher_name
from mtpd_train.training.saving import write_file

STUDENT_FILE, INHERITANCE_FILE = 'student.pth', 'inheritance.txt'
PROGRESS_FILE, METRICS_FILE, RUN_FILE = 'progress.pth', 'metrics.jsonl', 'run.json'
DIVERGED_FILE, LOCK_FILE = 'diverged.jsonl', '.lock'
# A line for each file that mtpd-export has made of a student, which the report shows.
EXPORTS_FILE = 'exports.jsonl'
LIBRARIES = (
    'mtpd', 'torch', 'torchvision', 'mmdet', 'mmengine', 'numpy', 'opencv-python', 'simplejpeg', 'pycocotools'
)  # fmt: skip
# Sections of run.json that describe teachers, and the names of a stage's teachers in them; without one the name is
# 'None' or begins with it, which no section holds.
SOURCES: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    'caches': lambda stage: list(map(str, cache)) if isinstance(cache := stage.get('cache'), list) else [str(cache)],
    'teachers': lambda stage: [teacher_name(str(stage.get('teacher')), stage.get('checkpoint'))],
}
# Settings that do not change what is learned, and may differ when a run is resumed.
HARMLESS = (
    '.save.',
    '.data.workers.',
    '.data.read_threads.',
    '.data.read_ahead.',
    '.data.mirror.',
    '.data.mirror_gb.',
    '.evaluate.backend.',
)
# Key of a setting that holds a path -> keys of the contents of that path; `SOURCES` has those of caches and teachers.
CONTENTS: Mapping[str, tuple[str, ...]] = {
    'student': ('student',),
    'cache': (),
    'teacher': (),
    'checkpoint': (),
    'data.coco': ('data.train', 'data.val'),
    'data.train': ('data.train',),
    'data.val': ('data.val',),
    'init.checkpoint': ('init.checkpoint',),
    'init.fine_tune': ('init.fine_tune',),
    'init.backbone': ('init.backbone',),
}
MAX_SHOWN = 200  # characters of a value in a message


def stage_folder(out: Path, number: int) -> Path:
    """The folder of a stage's files."""
    return out / f'stage{number}'


def require_usable(out: Path, settings: Sequence[StageSettings], *, resume: bool) -> None:
    """Checks the folder before the stages are built, which takes long; `claim_folder` checks it completely."""
    _require_own(out)
    require_writable(out)
    if (out / RUN_FILE).exists():
        _require_run(out, {'stages': _described(settings)}, resume=resume)


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


def describe_run(settings: Sequence[StageSettings], stages: Sequence[Stage], device: torch.device) -> dict[str, Any]:
    """The content of run.json: all settings, hashes of the files they name, teachers, device, versions."""
    sources = [stage.source for stage in stages if stage.source is not None]
    return {
        'stages': _described(settings),
        'contents': {str(stage.number): _contents(stage) for stage in stages},
        **{
            kind: {name: one for source in sources if source.kind == kind for name, one in source.descriptions.items()}
            for kind in SOURCES
        },
        'not_taken_over': {str(stage.number): list(stage.not_taken_over) for stage in stages},
        'device': describe_device(device),
        'versions': versions(LIBRARIES),
    }


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


def _described(settings: Sequence[StageSettings]) -> dict[str, Any]:
    """Number of each stage -> its settings with all defaults, as JSON values."""
    return {str(number): stage.model_dump(mode='json') for number, stage in enumerate(settings, start=1)}


def _contents(stage: Stage) -> dict[str, str]:
    """Hashes of the contents of a stage's paths; its cache or teacher is described elsewhere."""
    student = [stage.definition_sha256, asdict(stage.student.preprocessing), list(stage.classes)]
    contents = {'student': sha256_bytes(canonical_json(student)), 'data.train': stage.train_set.coco.sha256}
    if stage.val_set is not None:
        contents['data.val'] = stage.val_set.coco.sha256
    for key in ('checkpoint', 'fine_tune', 'backbone'):
        reference = getattr(stage.settings.init, key)
        if reference is not None:
            # A name of the zoo is recorded as it is.
            path = Path(reference)
            contents[f'init.{key}'] = sha256_file(path) if path.is_file() else str(reference)
    return contents


def _require_own(out: Path) -> None:
    """Checks that the folder holds a run, or at most the lock and temporary files of one that was killed."""
    is_taken = out.exists() and any(not path.name.startswith((LOCK_FILE, TEMPORARY)) for path in out.iterdir())
    if is_taken and not (out / RUN_FILE).exists():
        raise InputError(f'{out}: the folder is not empty and does not hold a run; choose another --out')


def _require_run(out: Path, wanted: Mapping[str, Any], *, resume: bool) -> tuple[Mapping[str, Any], Sequence[str]]:
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
    stages = found.get('stages', {})
    if len(stages) != len(wanted['stages']):
        raise InputError(
            f'{out}: --resume needs the same configuration, but the number of stages was {len(stages)} and is '
            f'{len(wanted["stages"])}; give the same stage files or choose another --out'
        )
    return found, [text for number in wanted['stages'] for text in _require_stage(out, found, wanted, number)]


def _require_stage(out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], number: str) -> list[str]:
    """Checks that a stage is the same in two descriptions; the InputError names the first key that differs.

    Device and versions may change during a run; its settings, data and teachers may not. The contents of paths may be
    missing in `wanted`, and are then left to a later check. Returns a text for each setting whose path has changed.
    """
    before, now = _with_defaults(found['stages'].get(number, {})), wanted['stages'][number]
    is_early, moved = 'contents' not in wanted, []
    for part, names_of in () if is_early else SOURCES.items():
        # Of another number of caches the settings below tell.
        for name_before, name in zip(names_of(before), names_of(now), strict=False):
            old, new = found.get(part, {}).get(name_before), wanted.get(part, {}).get(name)
            for field, was, is_now in differences(old, new):
                if '.provenance.' not in f'.{field}':
                    raise _refusal(out, f'{part}.{name}{"." if field else ""}{field}', was, is_now)
    old, new = (run.get('contents', {}).get(number) for run in (found, wanted))
    old, new = (one if isinstance(one, dict) and not is_early else {} for one in (old, new))
    for field, was, is_now in differences(before, now):
        if any(one in f'.{field}.' for one in HARMLESS):
            continue
        keys = next((keys for key, keys in CONTENTS.items() if f'{field}.'.startswith(f'{key}.')), None)
        place = f'stages.{number}.{field}'
        if keys is None or was is None or is_now is None:
            raise _refusal(out, place, was, is_now)
        if keys and not is_early and (not old or any(old.get(key) != new.get(key) for key in keys)):
            raise _refusal(out, place, was, is_now, reason=' (their contents differ)')
        moved.append(f'{place} was {_short(was)} and is {_short(is_now)}')
    for key, was, is_now in differences(old, new):
        value: Any = now
        for part in key.split('.'):
            value = value.get(part) if isinstance(value, dict) else None
        place = f'the content of stages.{number}.{key} ({_short(value)})'
        raise _refusal(out, place, f'sha256 {was}', f'sha256 {is_now}')
    return moved


def _refusal(out: Path, place: str, was: Any, now: Any, *, reason: str = '') -> InputError:
    return InputError(
        f'{out}: --resume needs the same configuration, but {place} was {_short(was)} and is {_short(now)}; restore it '
        f'or choose another --out{reason}'
    )


def _short(value: Any) -> str:
    # A whole stage or a list of losses may have changed.
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f'{text[: MAX_SHOWN - 3]}...'


def _with_defaults(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stage of run.json, completed with defaults of settings that an older version did not have."""
    try:
        return StageSettings.model_validate_json(json.dumps(stage)).model_dump(mode='json')
    except ValidationError:
        return stage  # The comparison names what this version does not know.
