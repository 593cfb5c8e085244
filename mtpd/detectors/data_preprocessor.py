"""The data preprocessor of a config, checked argument by argument."""

from collections.abc import Mapping
from typing import Any

from mtpd.detectors.config_values import Entry, is_number, plain_type
from mtpd.detectors.preprocessing import RGB
from mtpd.errors import InputError

# Those of training alone: masks and batches change nothing of an image in eval mode.
_TRAINING = ('pad_mask', 'mask_pad_value', 'pad_seg', 'seg_pad_value', 'batch_augments')
_KNOWN = (
    'mean', 'std', 'pad_size_divisor', 'pad_value', 'bgr_to_rgb', 'rgb_to_bgr', 'boxtype2tensor', 'non_blocking',
    *_TRAINING,
)  # fmt: skip
_BOX_INST = ('mask_stride', 'pairwise_size', 'pairwise_dilation', 'pairwise_color_thresh', 'bottom_pixels_removed')
_TYPES = {'DetDataPreprocessor': _KNOWN, 'BoxInstDataPreprocessor': (*_KNOWN, *_BOX_INST)}


def read_data_preprocessor(config: Any) -> Entry:
    """The arguments of a config's data preprocessor, with every one that concerns the input checked.

    Raises:
        InputError: it is missing, of another type than mmdet's for images, or has an argument that is not supported.
    """
    from mmdet.registry import MODELS

    name = f'{config.filename}: data_preprocessor'
    # As mmengine's Runner does: one beside the model counts only where the model says nothing, not even None.
    found = config.model.get('data_preprocessor', config.get('data_preprocessor'))
    # Semi-supervised models wrap the preprocessor of the detector.
    if isinstance(found, Mapping) and plain_type(found.get('type')) == 'MultiBranchDataPreprocessor':
        outer = Entry(name, found)
        outer.require_known(('data_preprocessor',))
        found = found.get('data_preprocessor')
    if not isinstance(found, Mapping):
        raise InputError(f'{name} is {found!r:.80}, expected a dict; add one of type DetDataPreprocessor to a copy')
    entry = Entry(name, found)
    if entry.type not in _TYPES:
        entry.refuse('type', ' or '.join(_TYPES))
    entry.require_plain_class(MODELS)
    entry.require_known(_TYPES[entry.type])
    if entry.flag('bgr_to_rgb', False) and entry.flag('rgb_to_bgr', False):
        entry.refuse('rgb_to_bgr', 'False with bgr_to_rgb')
    entry.flag('rgb_to_bgr', False)
    entry.flag('non_blocking', False)
    if not entry.flag('boxtype2tensor', True):
        entry.refuse('boxtype2tensor', 'True')
    entry.whole('pad_size_divisor', 1)
    entry.number('pad_value', 0)
    return entry


def read_channels(entry: Entry, key: str) -> RGB:
    """Three numbers, or one for all channels; those of `std` are above 0."""
    values = entry.values.get(key)
    wanted = 'a list of three numbers' + (' above 0' if key == 'std' else '')
    if not isinstance(values, list | tuple) or not all(map(is_number, values)):
        entry.refuse(key, wanted)
    if len(values) == 1 and entry.type != 'Normalize':
        values = [values[0]] * 3
    if len(values) != 3 or (key == 'std' and min(values) <= 0):
        entry.refuse(key, wanted)
    first, second, third = map(float, values)
    return first, second, third
