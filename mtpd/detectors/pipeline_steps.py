"""The steps of a config's test pipeline: which there are, in which order, with which arguments.

What is not understood is refused by name, down to arguments and their values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtpd.detectors.config_values import Entry, plain_type
from mtpd.errors import InputError

# Files are read by mtpd itself, so where mmengine would fetch them from does not matter.
_FILE_ARGUMENTS = frozenset({'backend_args', 'file_client_args', 'ignore_empty'})
# Annotations are not an input of the network.
_ANNOTATION_ARGUMENTS = frozenset(
    {
        'with_bbox', 'with_label', 'with_mask', 'with_seg', 'with_keypoints', 'poly2mask', 'box_type',
        'reduce_zero_label', 'ignore_index', 'imdecode_backend', 'backend_args', 'file_client_args',
    }
)  # fmt: skip
_WITHOUT_EFFECT = {
    'LoadAnnotations': _ANNOTATION_ARGUMENTS,
    'LoadPanopticAnnotations': _ANNOTATION_ARGUMENTS,
    'LoadTextAnnotations': frozenset[str](),
    'PackDetInputs': frozenset({'meta_keys'}),
}
_LOAD, _RESIZES = 'LoadImageFromFile', ('Resize', 'FixScaleResize')
# Each at most once, in this order: a resize of padded or normalised pixels gives other pixels. The place of a Pad
# beside Normalize says what its value means.
_ORDER = {_LOAD: 0, 'RandomFlip': 1, 'Resize': 1, 'FixScaleResize': 1, 'Pad': 2, 'Normalize': 2, 'PackDetInputs': 3}

_CENTRED = (
    'it centres the image in the input, but mtpd pads at the right and the bottom; for a teacher, use a copy of the '
    'config with Resize and Pad instead (its head cannot predict then); as '
    'a student, use another detector'
)
_OLD = 'it is a step of mmdet 2; use the config of the same name in mmdet 3, or its pipeline'
_REASONS = {
    'RandomCenterCropPad': _CENTRED,
    'TransformBroadcaster': 'it is for video; use the config of the detector in the tracker',
    'ProposalBroadcaster': 'it is for detectors that read their proposals from a file; use one with an RPN',
    'PackReIDInputs': 'it is for re-identification networks; use the config of a detector',
    'MultiScaleFlipAug': _OLD,
    'ImageToTensor': _OLD,
    'DefaultFormatBundle': _OLD,
    'Collect': _OLD,
    'LoadProposals': 'it is for detectors that read their proposals from a file; use one with an RPN',
}
_OTHERWISE = 'keep one Resize and at most one Pad and one Normalize in a copy of the config'


@dataclass(frozen=True)
class Steps:
    """The steps that change pixels; None: not there."""

    load: Entry | None
    resize: Entry | None
    pad: Entry | None
    normalize: Entry | None
    pad_is_last: bool = False


def read_steps(config: Any) -> Steps:
    """The steps of a config's test pipeline, checked for their names, order and names of arguments.

    Raises:
        InputError: there is no test pipeline, or it holds something unsupported.
    """
    from mmdet.registry import TRANSFORMS

    entries = find_steps(config)
    found: dict[str, Entry] = {}
    reached = 0
    for entry in entries:
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
        key = 'Resize' if name in _RESIZES else name
        if key in found and name != 'RandomFlip':
            raise InputError(f'{entry.place}: a second {key} is not supported; {_OTHERWISE}')
        found[key] = entry
    pad, normalize = found.get('Pad'), found.get('Normalize')
    return Steps(
        load=found.get(_LOAD),
        resize=found.get('Resize'),
        pad=pad,
        normalize=normalize,
        pad_is_last=pad is not None and normalize is not None and entries.index(pad) > entries.index(normalize),
    )


def find_steps(config: Any) -> list[Entry]:
    """The dicts of a config's test pipeline with their places.

    Raises:
        InputError: there is no test pipeline, or it is not a list of dicts with a `type`.
    """
    name = config.filename
    dataset = _mapping(config.get('test_dataloader'), f'{name}: test_dataloader').get('dataset')
    pipeline = _pipeline_of(dataset, name)
    if pipeline is None:
        pipeline = config.get('test_pipeline')
    if pipeline is None or (isinstance(pipeline, Sequence) and not len(pipeline)):
        raise InputError(f'{name}: has no test_dataloader or test_pipeline with resize and padding; add one in a copy')
    if not isinstance(pipeline, list | tuple):
        raise InputError(f'{name}: its test pipeline is {pipeline!r:.80}, expected a list of steps')
    entries = []
    for number, step in enumerate(pipeline, 1):
        if not isinstance(step, Mapping) or not isinstance(step.get('type'), str | type):
            raise InputError(f'{name}: step {number} of its test pipeline is {step!r:.80}, expected a dict with a type')
        entries.append(Entry(f'{name}: test pipeline, {plain_type(step["type"])}', step))
    return entries


def _pipeline_of(dataset: Any, name: str) -> Any:
    """The pipeline of a data set or of those that it wraps; None if none is defined."""
    place = f'{name}: test_dataloader.dataset'
    for _ in range(10):
        dataset = _mapping(dataset, place)
        if dataset.get('pipeline') is not None:
            _require_no_inner(dataset, place, name=name)
            return dataset['pipeline']
        parts = dataset.get('datasets')
        if parts is not None:
            if not isinstance(parts, list | tuple):
                raise InputError(f'{place}: datasets is {parts!r:.80}, expected a list of data sets')
            pipelines = [_pipeline_of(part, name) for part in parts]
            if any(one != pipelines[0] for one in pipelines):
                raise InputError(f'{place}: its data sets have different pipelines; keep only one in a copy')
            return pipelines[0] if pipelines else None
        if dataset.get('dataset') is None:
            return None
        dataset = dataset['dataset']
    raise InputError(f'{place}: data sets are nested more than ten deep')


def _require_no_inner(dataset: Mapping[str, Any], place: str, *, name: str) -> None:
    """Refuses a second pipeline in the data sets that this one wraps: it would run before that of the wrapper."""
    inner = {key: dataset[key] for key in ('dataset', 'datasets') if dataset.get(key) is not None}
    if inner and _pipeline_of(inner, name):
        raise InputError(f'{place}: the wrapped data set has a pipeline too; keep only one in a copy')


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f'{place} is {value!r:.80}, expected a dict')
    return value
