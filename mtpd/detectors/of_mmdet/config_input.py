"""Input geometry and normalisation from a detector's own config.

Nothing is assumed: RetinaNet subtracts ImageNet means, swaps to RGB and pads with zeros after that; YOLOX takes raw BGR
values and pads with 114 before. Both are read from the config's test pipeline and data preprocessor; every argument is
understood as mmdet does, or refused by name.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mtpd.detectors.of_mmdet.pipeline_steps import Entry, find_steps, is_number, is_whole, plain_type, read_steps
from mtpd.detectors.preprocessing import RGB, Normalisation, Preprocessing, resize_notes, rgb
from mtpd.detectors.samples import INTERPOLATIONS
from mtpd.errors import InputError
from mtpd.geometry import Geometry, Size

# Known arguments. Files are read by mtpd itself, so where mmengine would fetch them from does not matter.
_LOAD = ('to_float32', 'color_type', 'imdecode_backend', 'backend_args', 'file_client_args', 'ignore_empty')
_RESIZE = ('scale', 'scale_factor', 'keep_ratio', 'clip_object_border', 'backend', 'interpolation')
_PAD = ('size', 'size_divisor', 'pad_to_square', 'pad_val', 'padding_mode')
# The second line is for training alone: masks and batches change nothing of an image in eval mode.
_PREPROCESSOR = (
    'mean', 'std', 'pad_size_divisor', 'pad_value', 'bgr_to_rgb', 'rgb_to_bgr', 'boxtype2tensor', 'non_blocking',
    'pad_mask', 'mask_pad_value', 'pad_seg', 'seg_pad_value', 'batch_augments',
)  # fmt: skip
_BOX_INST = ('mask_stride', 'pairwise_size', 'pairwise_dilation', 'pairwise_color_thresh', 'bottom_pixels_removed')
_PREPROCESSORS = {'DetDataPreprocessor': _PREPROCESSOR, 'BoxInstDataPreprocessor': (*_PREPROCESSOR, *_BOX_INST)}


def read_preprocessing(config: Any, *, scale: tuple[int, int] | None = None) -> Preprocessing:
    """A detector's preprocessing, from its config; `scale` replaces its resize scale, and a fixed pad size with it."""
    steps = read_steps(config)
    pad = steps.get('Pad')
    if 'Resize' in steps and steps['Resize'].values.get('scale') == scale:
        scale = None
    preprocessor = _data_preprocessor(config)
    normalisation = _normalisation(steps, preprocessor)
    geometry = _resize(steps, config.filename, scale)
    divisor = preprocessor.whole('pad_size_divisor', 1)
    if pad is None:
        return Preprocessing(replace(geometry, pad_divisor=divisor), normalisation)
    geometry = _padding(pad, geometry, divisor=divisor, is_scale_given=scale is not None)
    outer = preprocessor.number('pad_value', 0)
    if scale is None and any(value != outer for value in normalisation.padding):
        _require_one_padding(pad, geometry, divisor=divisor)
    return Preprocessing(geometry, normalisation)


def read_normalisation(config: Any, *, geometry: Geometry) -> tuple[Normalisation, tuple[str, ...]]:
    """A detector's normalisation at another geometry, and a line for each unused part of its test pipeline."""
    try:
        own = read_preprocessing(config)
    except InputError as error:
        notes = (f'{error} (not adopted: the resize and padding of the stage are used instead)',)
        steps: dict[str, Entry] = {}
        with suppress(InputError):  # Nothing is lost: all of it is replaced.
            steps = {entry.type: entry for entry in reversed(find_steps(config)) if entry.type == 'Normalize'}
        return _normalisation(steps, _data_preprocessor(config)), notes
    return own.normalisation, resize_notes(own.geometry, geometry, name=config.filename)


def _data_preprocessor(config: Any) -> Entry:
    """The arguments of a config's data preprocessor, with every one that concerns the input checked."""
    from mmdet.registry import MODELS

    name = f'{config.filename}: data_preprocessor'
    # As mmengine's Runner does: one next to the model counts only where the model has no such key, not even None.
    found = config.model.get('data_preprocessor', config.get('data_preprocessor'))
    # Semi-supervised models wrap the preprocessor of the detector.
    if isinstance(found, Mapping) and plain_type(found.get('type')) == 'MultiBranchDataPreprocessor':
        Entry(name, found).require_known(('data_preprocessor',))
        found = found.get('data_preprocessor')
    if not isinstance(found, Mapping):
        raise InputError(f'{name} is {found!r:.80}, expected a dict; add one of type DetDataPreprocessor to a copy')
    entry = Entry(name, found)
    if entry.type not in _PREPROCESSORS:
        entry.refuse('type', ' or '.join(_PREPROCESSORS))
    entry.require_plain_class(MODELS)
    entry.require_known(_PREPROCESSORS[entry.type])
    to_rgb, to_bgr, _ = (entry.flag(key, False) for key in ('bgr_to_rgb', 'rgb_to_bgr', 'non_blocking'))
    if to_rgb and to_bgr:
        entry.refuse('rgb_to_bgr', 'False with bgr_to_rgb')
    if not entry.flag('boxtype2tensor', True):
        entry.refuse('boxtype2tensor', 'True')
    entry.whole('pad_size_divisor', 1)
    return entry


def _resize(steps: Mapping[str, Entry], name: str, scale: tuple[int, int] | None) -> Geometry:
    """The geometry without padding."""
    load, resize = steps.get('LoadImageFromFile', Entry('', {})), steps.get('Resize')
    load.require_known(_LOAD)
    float_pixels = load.flag('to_float32', False)
    load.choice('color_type', 'color', ('color',))
    if load.has('imdecode_backend'):
        load.choice('imdecode_backend', 'cv2', ('cv2',))
    if resize is None:
        if scale is None:
            raise InputError(
                f'{name}: the test pipeline has no Resize with a scale: give one (--scale, or data.geometry in a stage '
                'file)'
            )
        return Geometry(scale, pad_divisor=1, float_pixels=float_pixels)
    if 'img_scale' in resize.values:
        resize.refuse('img_scale', 'no such argument (mmdet 3 uses scale)')
    resize.require_known(_RESIZE)
    keep_ratio = resize.flag('keep_ratio', False)
    resize.flag('clip_object_border', True)
    backend = resize.choice('backend', 'cv2', tuple(INTERPOLATIONS)) if resize.has('backend') else 'cv2'
    if backend == 'pillow' and float_pixels:
        resize.refuse('backend', 'cv2 with to_float32: pillow resizes only integer pixel values')
    return Geometry(
        scale or _scale(resize, keep_ratio=keep_ratio),
        keep_ratio,
        pad_divisor=1,
        interpolation=resize.choice('interpolation', 'bilinear', INTERPOLATIONS[backend]),
        backend=backend,
        rounds_down=keep_ratio and resize.type == 'FixScaleResize',
        float_pixels=float_pixels,
    )


def _scale(resize: Entry, *, keep_ratio: bool) -> Size:
    """(width, height) as mmcv reads it: one number is a square."""
    value: Any = resize.values.get('scale')
    if resize.has('scale_factor'):
        resize.refuse('scale_factor', 'a scale instead, or --scale: images are resized to fit a size')
    if is_whole(value) and value >= 1:
        return int(value), int(value)
    return resize.size('scale', also_list=not keep_ratio)


def _padding(pad: Entry, geometry: Geometry, *, divisor: int, is_scale_given: bool) -> Geometry:
    """The geometry with the padding of `Pad` and of the data preprocessor's divisor."""
    pad.require_known(_PAD)
    pad.choice('padding_mode', 'constant', ('constant',))
    is_square, has_divisor = pad.flag('pad_to_square', False), pad.has('size_divisor')
    if pad.has('size') and (is_square or has_divisor):
        pad.refuse('size', 'None with pad_to_square or size_divisor')
    own = pad.whole('size_divisor', 1) if has_divisor else 1
    if own % divisor and divisor % own:
        pad.refuse('size_divisor', f"a multiple or divisor of the data preprocessor's pad_size_divisor {divisor}")
    both = max(own, divisor)
    if is_square:
        # The longer side is that of the scale, always, unless the ratio is kept and the scale is not square.
        is_fixed = not geometry.keep_ratio or (len(set(geometry.scale)) == 1 and not geometry.rounds_down)
        if not is_fixed:
            return replace(geometry, pad_divisor=both, pad_square=True)
        side = -(-max(geometry.scale) // own) * own
        return replace(geometry, pad_divisor=divisor, pad_size=(side, side))
    if has_divisor:
        return replace(geometry, pad_divisor=both)
    stated = pad.size('size', also_list=True)
    width, height = geometry.scale if is_scale_given else stated
    return replace(geometry, pad_divisor=divisor, pad_size=(height, width))


def _require_one_padding(pad: Entry, geometry: Geometry, *, divisor: int) -> None:
    """Refuses a `Pad` after which the data preprocessor pads further, with another value."""
    if geometry.pad_size is not None:
        width, height = geometry.scale
        longest = (max(width, height),) * 2 if geometry.keep_ratio else (height, width)
        is_complete = all(
            side % divisor == 0 and side >= most for side, most in zip(geometry.pad_size, longest, strict=True)
        )
    else:
        is_complete = (pad.values.get('size_divisor') or 1) % divisor == 0
    if not is_complete:
        stated = [f'{key}={pad.values[key]}' for key in ('size', 'size_divisor', 'pad_to_square') if pad.has(key)]
        raise InputError(
            f'{pad.place}: pads to {", ".join(stated)}, and the data preprocessor then to its pad_size_divisor '
            f'{divisor}, with another value; in a copy of the config pad to a multiple of it that holds all images'
        )


def _normalisation(steps: Mapping[str, Entry], preprocessor: Entry) -> Normalisation:
    outer = preprocessor.number('pad_value', 0)
    normalize, pad = steps.get('Normalize'), steps.get('Pad')
    if normalize is not None:
        normalize.require_known(('mean', 'std', 'to_rgb'))
        for key in ('mean', 'std'):
            if preprocessor.has(key):
                preprocessor.refuse(key, 'None with a Normalize step: the values would be normalised twice')
        for key in ('bgr_to_rgb', 'rgb_to_bgr'):
            if preprocessor.values.get(key):
                preprocessor.refuse(key, 'False with a Normalize step, which has to_rgb')
        mean, std = normalize.channels('mean'), normalize.channels('std')
        found = Normalisation(mean, std, normalize.flag('to_rgb', True), (outer,) * 3)
    else:
        to_rgb = bool(preprocessor.values.get('bgr_to_rgb') or preprocessor.values.get('rgb_to_bgr'))
        found = Normalisation(to_rgb=to_rgb, padding=(outer,) * 3)
        has_mean = preprocessor.has('mean')
        if has_mean != preprocessor.has('std'):
            preprocessor.refuse(
                'std' if has_mean else 'mean', 'a value, since the other of mean and std is set, or both None'
            )
        if has_mean:
            found = replace(found, mean=preprocessor.channels('mean'), std=preprocessor.channels('std'))
    if pad is None:
        return found
    is_normalised = normalize is not None and list(steps).index('Pad') > list(steps).index('Normalize')
    values = _pad_value(pad, is_normalised=is_normalised)
    # A Pad before the normalisation holds pixel values in BGR order.
    return replace(found, padding=values if is_normalised else found.of_pixel(values))


def _pad_value(pad: Entry, *, is_normalised: bool) -> RGB:
    """The value of `pad_val` for the image, a number for each channel."""
    wanted = 'a whole number from 0 to 255, or a dict with such an img or a tuple of three'
    if is_normalised:
        wanted = 'a whole number, or a dict with such an img or a tuple of three finite numbers'
    value = pad.values.get('pad_val', 0)
    values: Any = ()
    if isinstance(value, dict):
        if value.keys() - {'img', 'seg', 'masks'}:
            pad.refuse('pad_val', f'{wanted}, and no keys but img, seg and masks')
        value = value.get('img', 0)
        values = value if isinstance(value, tuple) else ()
    # With one float, mmcv pads the first channel alone.
    if is_whole(value):
        values = (value,) * 3
    is_right = len(values) == 3 and all(map(is_number, values))
    if not is_right or not (is_normalised or all(0 <= one <= 255 and float(one).is_integer() for one in values)):
        pad.refuse('pad_val', wanted)
    return rgb(values)
