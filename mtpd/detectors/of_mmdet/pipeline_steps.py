"""The steps of a config's test pipeline: which there are, in which order, with which arguments.

Configs may hold any value, so every entry is read with checks. What is not understood is refused by name, down to
arguments and their values.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from mtpd.detectors.preprocessing import RGB, rgb
from mtpd.errors import InputError

# Packages whose classes are the plain ones of that name, whether named by class, with a scope or without.
_PLAIN_PACKAGES = frozenset({'mmdet', 'mmcv', 'mmengine'})
# Annotations are not an input of the network, and files are read by mtpd itself.
_ANNOTATION_ARGUMENTS = (
    'with_bbox', 'with_label', 'with_mask', 'with_seg', 'with_keypoints', 'poly2mask', 'box_type',
    'reduce_zero_label', 'ignore_index', 'imdecode_backend', 'backend_args', 'file_client_args',
)  # fmt: skip
_WITHOUT_EFFECT: Mapping[str, tuple[str, ...]] = {
    'LoadAnnotations': _ANNOTATION_ARGUMENTS,
    'LoadPanopticAnnotations': _ANNOTATION_ARGUMENTS,
    'LoadTextAnnotations': (),
    'PackDetInputs': ('meta_keys',),
}
_LOAD = 'LoadImageFromFile'
# Each at most once, in this order: a resize of padded or normalised pixels gives other pixels. Whether a Pad
# is before or after Normalize decides what its value means.
_ORDER = {_LOAD: 0, 'RandomFlip': 1, 'Resize': 1, 'FixScaleResize': 1, 'Pad': 2, 'Normalize': 2, 'PackDetInputs': 3}

_CENTRED = (
    'it centres the image in the input, but mtpd pads at the right and the bottom; for a teacher, use a copy of the '
    'config with Resize and Pad instead (its head cannot predict then); as a student, use another detector'
)
_OLD = 'it is a step of mmdet 2; use the config of the same name in mmdet 3, or its pipeline'
_PROPOSALS = 'it is for detectors that read their proposals from a file; use one with an RPN'
_REASONS = {
    'RandomCenterCropPad': _CENTRED,
    'TransformBroadcaster': 'it is for video; use the config of the detector in the tracker',
    'ProposalBroadcaster': _PROPOSALS,
    'LoadProposals': _PROPOSALS,
    'PackReIDInputs': 'it is for re-identification networks; use the config of a detector',
    'MultiScaleFlipAug': _OLD,
    'ImageToTensor': _OLD,
    'DefaultFormatBundle': _OLD,
    'Collect': _OLD,
}
_OTHERWISE = 'keep one Resize and at most one Pad and one Normalize in a copy of the config'


def plain_type(value: Any) -> str:
    """The name of a config's `type`: `Resize` for 'Resize', 'mmdet.Resize', its full path and the class alike.

    Other scopes and classes of other packages keep their full names; what names no type becomes its repr.
    """
    if isinstance(value, str):
        scope, _, name = value.rpartition('.')
        return name if scope.partition('.')[0] in _PLAIN_PACKAGES else value
    if isinstance(value, type):
        is_plain = value.__module__.partition('.')[0] in _PLAIN_PACKAGES
        return value.__name__ if is_plain else f'{value.__module__}.{value.__qualname__}'
    return f'{value!r:.80}'


def is_whole(value: Any) -> bool:
    """Whether it is an int, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite real number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Entry:
    """A dict of a config, with its place for messages. All methods but `has` raise InputError for a wrong value."""

    place: str
    values: Mapping[str, Any]

    @property
    def type(self) -> str:
        """Its `type` by `plain_type`."""
        return plain_type(self.values.get('type'))

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than None."""
        return self.values.get(key) is not None

    def refuse(self, key: str, wanted: str) -> NoReturn:
        """Raises InputError with place, key, value and what was wanted."""
        raise InputError(
            f'{self.place}: {key} is {self.values.get(key)!r:.80}, expected {wanted}; change it in a copy of the config'
        )

    def require_plain_class(self, registry: Any) -> None:
        """Refuses a class of the user's that is registered under the name of a plain one."""
        name = self.values['type']
        found = registry.get(name) if isinstance(name, str) else name
        if found is None or plain_type(found) != self.type:
            what = 'is not a known class' if found is None else f'is the class {plain_type(found)}'
            raise InputError(
                f'{self.place}: type {name!r:.80} {what}, not the class of mmdet; use that of mmdet in a copy '
                'of the config'
            )

    def require_known(self, known: Collection[str]) -> None:
        """Refuses keys that are not in `known` (`type` and `_scope_` always are)."""
        if self.values.get('_scope_', 'mmdet') not in _PLAIN_PACKAGES:
            self.refuse('_scope_', ' or '.join(sorted(_PLAIN_PACKAGES)))
        for key, value in self.values.items():
            if key not in (*known, 'type', '_scope_'):
                raise InputError(
                    f'{self.place}: has {key}={value!r:.80}, which is not supported; supported are '
                    f'{", ".join(sorted(known)) or "no arguments"}; remove it in a copy of the config'
                )

    def flag(self, key: str, default: bool) -> bool:
        """A truth value; None, 0 and 1 count as such."""
        value = self.values.get(key, default)
        if value is not None and (not isinstance(value, bool | int) or value not in (0, 1)):
            self.refuse(key, 'True or False')
        return bool(value)

    def whole(self, key: str, default: int) -> int:
        """An int of at least 1."""
        value = self.values.get(key, default)
        if not is_whole(value) or value < 1:
            self.refuse(key, 'a whole number of at least 1')
        return int(value)

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.values.get(key, default)
        if not is_number(value):
            self.refuse(key, 'a finite number')
        return float(value)

    def choice(self, key: str, default: str, choices: Collection[str]) -> str:
        """One of the strings."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in choices:
            self.refuse(key, ' or '.join(map(repr, sorted(choices))))
        return value

    def size(self, key: str, *, also_list: bool) -> tuple[int, int]:
        """Two whole numbers from 1; a list of them only where mmcv takes lists."""
        value = self.values.get(key)
        kinds = (tuple, list) if also_list else (tuple,)
        if not isinstance(value, kinds) or len(value) != 2 or not all(is_whole(one) and one >= 1 for one in value):
            self.refuse(key, 'a tuple of two whole numbers of at least 1')
        first, second = value
        return int(first), int(second)

    def channels(self, key: str) -> RGB:
        """Three numbers, or but for `Normalize` one for all channels; those of `std` are above 0."""
        found = self.values.get(key)
        values = found if isinstance(found, list | tuple) else ()
        if len(values) == 1 and self.type != 'Normalize':
            values = (*values,) * 3
        if len(values) != 3 or not all(map(is_number, values)) or (key == 'std' and min(values) <= 0):
            self.refuse(key, 'a list of three numbers' + (' above 0' if key == 'std' else ''))
        return rgb(values)


def read_steps(config: Any) -> dict[str, Entry]:
    """The steps of a config's test pipeline in order, by type ('Resize' of both), checked for names and order."""
    from mmdet.registry import TRANSFORMS

    found: dict[str, Entry] = {}
    reached = 0
    for entry in find_steps(config):
        name = entry.type
        if name not in _ORDER and name not in _WITHOUT_EFFECT:
            raise InputError(f'{entry.place}: this step is not supported; {_REASONS.get(name, _OTHERWISE)}')
        entry.require_plain_class(TRANSFORMS)
        if name in _WITHOUT_EFFECT:
            entry.require_known(_WITHOUT_EFFECT[name])
        if name == 'RandomFlip' and (entry.values.get('prob') not in (0, 0.0) or not entry.has('prob')):
            entry.refuse('prob', '0: --views makes the flip view of a cache')
        if name not in _ORDER:
            continue
        if _ORDER[name] < reached:
            raise InputError(
                f'{entry.place}: is in the wrong order; the order must be {_LOAD}, Resize, Pad or Normalize'
            )
        reached = _ORDER[name]
        key = 'Resize' if name == 'FixScaleResize' else name
        if key in found and name != 'RandomFlip':
            raise InputError(f'{entry.place}: a second {key} is not supported; {_OTHERWISE}')
        found[key] = entry
    return found


def find_steps(config: Any) -> list[Entry]:
    """The dicts of a config's test pipeline with their places."""
    name = config.filename
    dataset = _mapping(config.get('test_dataloader'), f'{name}: test_dataloader').get('dataset')
    pipeline = _pipeline_of(dataset, f'{name}: test_dataloader.dataset')
    if pipeline is None:
        pipeline = config.get('test_pipeline')
    if pipeline is None or (isinstance(pipeline, Sequence) and not len(pipeline)):
        raise InputError(f'{name}: has no test_dataloader or test_pipeline with resize and padding; add one in a copy')
    if not isinstance(pipeline, list | tuple):
        raise InputError(f'{name}: its test pipeline is {pipeline!r:.80}, expected a list of steps')
    for number, step in enumerate(pipeline, 1):
        if not isinstance(step, Mapping) or not isinstance(step.get('type'), str | type):
            raise InputError(f'{name}: step {number} of its test pipeline is {step!r:.80}, expected a dict with a type')
    return [Entry(f'{name}: test pipeline, {plain_type(step["type"])}', step) for step in pipeline]


def _pipeline_of(dataset: Any, place: str) -> Any:
    """The pipeline of a data set or of those that it wraps; None if none is defined."""
    for _ in range(10):
        dataset = _mapping(dataset, place)
        if dataset.get('pipeline') is not None:
            # A second pipeline in the data sets that this one wraps would run before that of the wrapper.
            inner = {key: dataset[key] for key in ('dataset', 'datasets') if dataset.get(key) is not None}
            if inner and _pipeline_of(inner, place):
                raise InputError(f'{place}: the wrapped data set has a pipeline too; keep only one in a copy')
            return dataset['pipeline']
        parts = dataset.get('datasets')
        if parts is not None:
            if not isinstance(parts, list | tuple):
                raise InputError(f'{place}: datasets is {parts!r:.80}, expected a list of data sets')
            pipelines = [_pipeline_of(part, place) for part in parts]
            if any(one != pipelines[0] for one in pipelines):
                raise InputError(f'{place}: its data sets have different pipelines; keep only one in a copy')
            return pipelines[0] if pipelines else None
        if dataset.get('dataset') is None:
            return None
        dataset = dataset['dataset']
    raise InputError(f'{place}: data sets are nested more than ten deep')


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f'{place} is {value!r:.80}, expected a dict')
    return value or {}
