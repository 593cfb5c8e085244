"""A config with which mmdet's own tools run a trained student as we evaluated it."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtpd.detectors.of_mmdet import zoo
from mtpd.detectors.of_mmdet.model_config import make_buildable, set_num_classes
from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.detectors.preprocessing import Preprocessing, padding_pixel, pads_pixels

_META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')


def export_config(
    config: Any,
    *,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    has_masks: bool,
    evaluated_on: tuple[Path, Path] | None,
) -> str:
    """The text of a self-contained mmdet config: `init_detector(<this>, 'student.pth')` predicts what we evaluated.

    `config` is the student's as it was built. `evaluated_on` are image folder and annotation file.
    """
    prepare()
    from mmengine.config import Config

    model = copy.deepcopy(config.model)
    make_buildable(model, zoo_folder=zoo.configs_folder())  # As it was built: SyncBN needs several processes.
    set_num_classes(model, len(classes))
    normalisation = preprocessing.normalisation
    model.data_preprocessor = {
        'type': 'DetDataPreprocessor',
        'mean': list(normalisation.mean),
        'std': list(normalisation.std),
        'bgr_to_rgb': normalisation.to_rgb,
        'pad_mask': has_masks,
        'pad_size_divisor': preprocessing.geometry.pad_divisor,
        'pad_value': normalisation.padding[0],
    }
    dataset: dict[str, Any] = {
        'type': 'CocoDataset',
        'metainfo': {'classes': tuple(classes)},
        'test_mode': True,
        'pipeline': _pipeline(preprocessing),
    }
    exported: dict[str, Any] = {'default_scope': 'mmdet', 'model': model}
    if config.get('custom_imports'):
        exported['custom_imports'] = config.custom_imports
    if evaluated_on is not None:
        images, annotations = (str(path.resolve()) for path in evaluated_on)
        dataset |= {'ann_file': annotations, 'data_prefix': {'img': images}}
        metric = ['bbox', 'segm'] if has_masks else ['bbox']
        exported['test_evaluator'] = {'type': 'CocoMetric', 'ann_file': annotations, 'metric': metric}
        exported['test_cfg'] = {'type': 'TestLoop'}
    exported['test_dataloader'] = {
        'batch_size': 1,
        'num_workers': 2,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'dataset': dataset,
    }
    text: str = Config(exported).pretty_text
    return text


def _pipeline(preprocessing: Preprocessing) -> list[dict[str, Any]]:
    geometry = preprocessing.geometry
    stated = geometry.to_dict()
    resize: dict[str, Any] = {
        'type': 'FixScaleResize' if geometry.rounds_down else 'Resize',
        **{name: stated[name] for name in ('scale', 'keep_ratio', 'backend', 'interpolation') if name in stated},
    }
    load: dict[str, Any] = {'type': 'LoadImageFromFile'}
    if geometry.float_pixels:
        load['to_float32'] = True
    steps = [load, resize]
    if pads_pixels(preprocessing):
        pad: dict[str, Any] = {'type': 'Pad', 'pad_val': {'img': padding_pixel(preprocessing.normalisation)}}
        if geometry.pad_size is None:
            pad |= {'pad_to_square': True} if geometry.pad_square else {}
            pad['size_divisor'] = geometry.pad_divisor
        else:
            # Rounded up here, because what the data preprocessor adds is one number for all channels.
            height, width = (-(-side // geometry.pad_divisor) * geometry.pad_divisor for side in geometry.pad_size)
            pad['size'] = width, height
        steps.append(pad)
    return [*steps, {'type': 'PackDetInputs', 'meta_keys': _META_KEYS}]
