"""Whether a run is the one that its run.json describes: by what its files hold, and not by where they are.

Data, caches and configs move, and another machine has other paths. What a path stood for is recorded beside it: under
another path the same content resumes, and under the same path other content does not.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mtpd.errors import InputError
from mtpd.system.files import canonical_json, differences, sha256_bytes, sha256_file
from mtpd_train.settings.stage_settings import InitSettings, StageSettings
from mtpd_train.stage import Stage
from mtpd_train.teachers.live_teacher import teacher_name

SOURCES = ('caches', 'teachers')
# Settings that change nothing in what is learned, so that they may change under a run.
HARMLESS = ('.save.', '.data.workers.', '.evaluate.backend.')
# The key of a setting that holds a path, and the keys of the contents that it stands for.
CONTENTS = {
    'student': ('student',),
    'cache': ('source',),
    'teacher': ('source',),
    'checkpoint': ('source',),
    'data.coco': ('data.train', 'data.val'),
    'data.train': ('data.train',),
    'data.val': ('data.val',),
    'init.checkpoint': ('init.checkpoint',),
    'init.fine_tune': ('init.fine_tune',),
    'init.backbone': ('init.backbone',),
}
MAX_SHOWN = 200  # characters of a value in a message


def described_stages(settings: Sequence[StageSettings]) -> dict[str, Any]:
    """Number of each stage -> its settings with all defaults, as JSON values."""
    return {str(number): stage.model_dump(mode='json') for number, stage in enumerate(settings, start=1)}


def described_contents(settings: Sequence[StageSettings], stages: Sequence[Stage]) -> dict[str, Any]:
    """Number of each stage -> hashes of the contents of its paths; its cache or teacher is described elsewhere."""
    return {str(stage.number): _contents(one, stage) for one, stage in zip(settings, stages, strict=True)}


def require_same_run(
    out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], *, is_early: bool = False
) -> list[str]:
    """Checks that two descriptions are of one run.

    Device and versions may change during a run; its settings, data and teachers may not.

    Args:
        out: the folder of the run, for messages.
        found: content of its run.json.
        wanted: this run's description.
        is_early: whether the contents of paths are not known yet, and left to a later check.

    Returns:
        The settings that hold other paths now to the same content, each with both.

    Raises:
        InputError: names the first key that differs, and both values.
    """
    num_before, num_now = len(found.get('stages', {})), len(wanted['stages'])
    if num_before != num_now:
        raise InputError(
            f'{out}: --resume needs the same configuration, but the number of stages was {num_before} and is '
            f'{num_now}; give the same stage files or choose another --out'
        )
    moved: list[str] = []
    for number, stage in wanted['stages'].items():
        before = _with_defaults(found['stages'].get(number, {}))
        if not is_early:
            _require_same_source(out, (found, before), (wanted, stage))
        old = _as_mapping(_as_mapping(found.get('contents')).get(number))
        new = None if is_early else _as_mapping(_as_mapping(wanted.get('contents')).get(number))
        moved += _moved(out, number, differences(before, stage), old, new)
        for key, was, now in differences(old, new) if old and new else []:
            place = f'stages.{number}.{key}'
            raise _refusal(out, f'the content of {place} ({_at(stage, key)})', f'sha256 {was}', f'sha256 {now}')
    return moved


def _moved(
    out: Path,
    number: str,
    rows: Sequence[tuple[str, Any, Any]],
    old: Mapping[str, Any],
    new: Mapping[str, Any] | None,
) -> list[str]:
    """The settings of a stage that hold another path to the same content."""
    moved = []
    for field, was, now in rows:
        if any(one in f'.{field}.' for one in HARMLESS):
            continue
        keys = next((keys for key, keys in CONTENTS.items() if f'{field}.'.startswith(f'{key}.')), None)
        place = f'stages.{number}.{field}'
        if keys is None or was is None or now is None:
            raise _refusal(out, place, was, now)
        if new is None:
            continue
        # Of a source the content was compared before.
        known = [key for key in keys if key != 'source']
        if known and not old:
            raise _refusal(out, place, was, now, reason='the mtpd version that started the run recorded no content')
        if any(old.get(key) != new.get(key) for key in known):
            raise _refusal(out, place, was, now, reason='their contents differ')
        moved.append(f'{place} was {_short(was)} and is {_short(now)}')
    return moved


def _require_same_source(
    out: Path,
    before: tuple[Mapping[str, Any], Mapping[str, Any]],
    now: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> None:
    """Compares the caches or teachers of a stage, each given by the description of its run and its settings."""
    for part in SOURCES:
        (_, old), (name, new) = (_source(run, stage, part) for run, stage in (before, now))
        for field, was, is_now in differences(old, new):
            if '.provenance.' not in f'.{field}':
                raise _refusal(out, f'{part}.{name}{"." if field else ""}{field}', was, is_now)


def _source(run: Mapping[str, Any], stage: Mapping[str, Any], part: str) -> tuple[str, Any]:
    """Name and description of what a stage learns from, where it is of this kind."""
    if part == 'caches':
        name = stage.get('cache')
    else:
        name = teacher_name(stage.get('teacher'), stage.get('checkpoint'))
    return str(name), None if name is None else _as_mapping(run.get(part)).get(name)


def _contents(settings: StageSettings, stage: Stage) -> dict[str, str]:
    student = [stage.definition_sha256, asdict(stage.student.preprocessing), list(stage.classes)]
    contents = {
        'student': sha256_bytes(canonical_json(student)),
        'data.train': stage.train_set.coco.sha256,
        **({} if stage.val_set is None else {'data.val': stage.val_set.coco.sha256}),
    }
    return contents | {f'init.{key}': _file_content(one) for key, one in _init_files(settings.init).items()}


def _init_files(init: InitSettings) -> dict[str, str | Path]:
    files = {'checkpoint': init.checkpoint, 'fine_tune': init.fine_tune, 'backbone': init.backbone}
    return {key: one for key, one in files.items() if one is not None}


def _file_content(reference: str | Path) -> str:
    """Hash of a file; what is none, such as a name of the zoo, stands for itself."""
    path = Path(reference)
    return sha256_file(path) if path.is_file() else str(reference)


def _refusal(out: Path, place: str, was: Any, now: Any, *, reason: str = '') -> InputError:
    return InputError(
        f'{out}: --resume needs the same configuration, but {place} was {_short(was)} and is {_short(now)}; restore it '
        f'or choose another --out{f" ({reason})" if reason else ""}'
    )


def _short(value: Any) -> str:
    # A whole stage or a list of losses may have changed.
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f'{text[: MAX_SHOWN - 3]}...'


def _at(stage: Mapping[str, Any], key: str) -> str:
    value: Any = stage
    for part in key.split('.'):
        value = value.get(part) if isinstance(value, Mapping) else None
    return _short(value)


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _with_defaults(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stage of run.json with the settings that the version which wrote it did not have."""
    try:
        return StageSettings.model_validate_json(json.dumps(stage)).model_dump(mode='json')
    except ValidationError:
        return stage  # The comparison names what this version does not know.
