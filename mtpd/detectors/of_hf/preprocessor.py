"""How images become inputs, from a `preprocessor_config.json`: every value is understood, or refused by name."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mtpd.detectors.preprocessing import Normalisation, Preprocessing, rgb
from mtpd.errors import InputError
from mtpd.geometry import Geometry

# What its feature pyramid needs: each map is half as large as the one before.
STRIDE = 32
# Those of RTDetrImageProcessor, whose defaults all three families have.
DEFAULTS: dict[str, Any] = {
    'do_resize': True, 'size': {'height': 640, 'width': 640}, 'resample': 2, 'do_rescale': True,
    'rescale_factor': 1 / 255, 'do_normalize': False, 'image_mean': [0.485, 0.456, 0.406],
    'image_std': [0.229, 0.224, 0.225], 'do_pad': False, 'pad_size': None,
}  # fmt: skip
# Numbers of PIL.Image.Resampling.
RESAMPLE = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic', 4: 'box', 5: 'hamming'}
# They say nothing about the pixels: annotations, types of outputs, and names of classes.
_IGNORED = (
    'annotation_format', 'data_format', 'default_to_square', 'device', 'disable_grouping', 'do_convert_annotations',
    'do_convert_rgb', 'feature_extractor_type', 'format', 'image_processor_type', 'input_data_format', 'masks_path',
    'model_input_names', 'processor_class', 'return_segmentation_masks', 'return_tensors',
)  # fmt: skip


def read_preprocessor(values: Mapping[str, Any] | None, *, name: str) -> Preprocessing:
    """The preprocessing of the `values` of a preprocessor_config.json; None: of the family's defaults."""
    found = DEFAULTS | {key: value for key, value in (values or {}).items() if value is not None}

    def refuse(key: str, wanted: str) -> NoReturn:
        raise InputError(
            f'{name}: its {key} is {found[key]!r:.80}, expected {wanted}; change it in a copy of the folder'
        )

    def number(key: str) -> float:
        if isinstance(found[key], bool) or not isinstance(found[key], int | float) or not 0 < found[key] < math.inf:
            refuse(key, 'a number above 0')
        return float(found[key])

    def channels(key: str, least: float) -> tuple[float, float, float]:
        items = found[key]
        if not isinstance(items, Sequence) or len(items) != 3 or not all(_is_number(one, least) for one in items):
            refuse(key, 'three finite numbers' + (' above 0' if least == 0 else ''))
        return rgb(items)

    def size(key: str) -> tuple[int, int]:
        sides = found[key]
        is_size = isinstance(sides, Mapping) and sides.keys() == {'height', 'width'}
        if not is_size or not all(type(one) is int and one >= 1 for one in sides.values()):
            refuse(key, 'a height and a width in px, such as {"height": 640, "width": 640}')
        return sides['height'], sides['width']

    for key, value in found.items():
        if key in DEFAULTS or key in _IGNORED:
            if key.startswith('do_') and not isinstance(value, bool):
                refuse(key, 'true or false')
        elif value is not False:  # Steps that are switched off do nothing.
            refuse(key, 'no such setting')
    for key in ('do_resize', 'do_rescale'):
        if not found[key]:
            refuse(key, 'true')
    if found['resample'] not in RESAMPLE:
        refuse('resample', f'a number of a filter from 0 to {max(RESAMPLE)}')
    height, width = size('size')
    factor = number('rescale_factor')
    mean, std = rgb((0, 0, 0)), rgb((1, 1, 1))
    if found['do_normalize']:
        mean, std = channels('image_mean', -math.inf), channels('image_std', 0)
    pad_size = size('pad_size') if found['do_pad'] and found['pad_size'] is not None else None
    return Preprocessing(
        Geometry(
            (width, height), keep_ratio=False, pad_divisor=STRIDE, pad_size=pad_size,
            interpolation=RESAMPLE[found['resample']], backend='pillow',
        ),
        # (factor * pixel - mean) / std
        Normalisation(rgb(one / factor for one in mean), rgb(one / factor for one in std), to_rgb=True),
    )  # fmt: skip


def write_preprocessor(preprocessing: Preprocessing) -> tuple[dict[str, Any] | None, str | None]:
    """The values of a preprocessor_config.json, and how it differs; None for a way that transformers has not."""
    geometry, normalisation = preprocessing.geometry, preprocessing.normalisation
    height, width = geometry.padded((1, 1))
    if geometry.keep_ratio or (height, width) != geometry.resized((1, 1)) or not normalisation.to_rgb:
        return None, 'transformers has no such resize, padding or order of channels'
    numbers = {name: value for value, name in RESAMPLE.items()}
    is_exact = geometry.backend == 'pillow' and not geometry.float_pixels and geometry.interpolation in numbers
    is_plain = set(normalisation.mean) == {0.0} and all(math.isclose(one, 255) for one in normalisation.std)
    values: dict[str, Any] = {
        'image_processor_type': 'RTDetrImageProcessor', 'do_resize': True, 'size': {'height': height, 'width': width},
        'resample': numbers.get(geometry.interpolation, 2), 'do_rescale': True, 'rescale_factor': 1 / 255,
        'do_normalize': not is_plain, 'image_mean': [one / 255 for one in normalisation.mean],
        'image_std': [one / 255 for one in normalisation.std], 'do_pad': False, 'do_convert_annotations': True,
    }  # fmt: skip
    name = RESAMPLE[values['resample']]
    return values, None if is_exact else f'its resize is {name} of pillow, not {geometry.interpolation} of cv2'


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least < value < math.inf
