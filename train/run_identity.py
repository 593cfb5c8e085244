"""Whether a run is the one that its run.json describes: compares the contents of files, not their paths.

Data, caches and configs may move, and another machine has other paths. run.json records the content of each path: the
same content under another path can be resumed, other content under the same path cannot.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from mtpd.errors import InputError
from mtpd.system.environment import describe_device, versions
from mtpd.system.files import canonical_json, differences, sha256_bytes, sha256_file
from mtpd_train.settings.stage_settings import StageSettings
from mtpd_train.stage import Stage
from mtpd_train.teachers.live_teacher import teacher_name

LIBRARIES = (
    'mtpd', 'torch', 'torchvision', 'mmdet', 'mmengine', 'numpy', 'opencv-python', 'simplejpeg', 'pycocotools'
)  # fmt: skip
# Sections of run.json that describe teachers, and the name of a stage's teacher in them; without one the name is
# 'None' or begins with it, which no section holds.
SOURCES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    'caches': lambda stage: str(stage.get('cache')),
    'teachers': lambda stage: teacher_name(str(stage.get('teacher')), stage.get('checkpoint')),
}
# Settings that do not change what is learned, and may differ when a run is resumed.
HARMLESS = ('.save.', '.data.workers.', '.evaluate.backend.')
# Key of a setting that holds a path -> keys of the contents of that path.
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


def describe_run(settings: Sequence[StageSettings], stages: Sequence[Stage], device: torch.device) -> dict[str, Any]:
    """The content of run.json: all settings, hashes of the files they name, teachers, device, versions."""
    sources = [stage.source for stage in stages if stage.source is not None]
    return {
        'stages': described_stages(settings),
        'contents': {str(stage.number): _contents(stage) for stage in stages},
        **{kind: {one.name: one.description for one in sources if one.kind == kind} for kind in SOURCES},
        'not_taken_over': {str(stage.number): list(stage.not_taken_over) for stage in stages},
        'device': describe_device(device),
        'versions': versions(LIBRARIES),
    }


def require_same_run(
    out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], *, is_early: bool = False
) -> list[str]:
    """Checks that two descriptions, `found` in the run.json of `out` and this run's, are of one run.

    Device and versions may change during a run; its settings, data and teachers may not. `is_early`: the contents of
    paths are not known yet, and left to a later check. The InputError names the first key that differs, and both
    values.

    Returns a text for each setting whose path has changed and whose content is the same.
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
        old, new = ({} if is_early else _as_mapping(run.get('contents', {}).get(number)) for run in (found, wanted))
        if not is_early:
            _require_same_source(out, (found, before), (wanted, stage))
        for field, was, now in differences(before, stage):
            if any(one in f'.{field}.' for one in HARMLESS):
                continue
            keys = next((keys for key, keys in CONTENTS.items() if f'{field}.'.startswith(f'{key}.')), None)
            place = f'stages.{number}.{field}'
            if keys is None or was is None or now is None:
                raise _refusal(out, place, was, now)
            known = [key for key in keys if key != 'source']  # The content of a source was compared before.
            if known and not is_early and (not old or any(old.get(key) != new.get(key) for key in known)):
                raise _refusal(out, place, was, now, reason='their contents differ')
            moved.append(f'{place} was {_short(was)} and is {_short(now)}')
        for key, was, now in differences(old, new):
            place = f'stages.{number}.{key}'
            raise _refusal(out, f'the content of {place} ({_at(stage, key)})', f'sha256 {was}', f'sha256 {now}')
    return moved


def _require_same_source(
    out: Path,
    before: tuple[Mapping[str, Any], Mapping[str, Any]],
    now: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> None:
    """Compares the caches or teachers of a stage; `before` and `now` are a description of a run and its stage."""
    for part, name_of in SOURCES.items():
        old, new = (run.get(part, {}).get(name_of(stage)) for run, stage in (before, now))
        for field, was, is_now in differences(old, new):
            if '.provenance.' not in f'.{field}':
                raise _refusal(out, f'{part}.{name_of(now[1])}{"." if field else ""}{field}', was, is_now)


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
    """A stage of run.json, completed with defaults of settings that an older version did not have."""
    try:
        return StageSettings.model_validate_json(json.dumps(stage)).model_dump(mode='json')
    except ValidationError:
        return stage  # The comparison names what this version does not know.
