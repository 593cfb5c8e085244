"""A config with which mmdet's own tools run a trained student as we evaluated it."""

import copy
from typing import Any

from mtpd.detectors.model_config import set_num_classes
from mtpd.geometry import Geometry


def export_config(config: Any, *, num_classes: int, geometry: Geometry) -> str:
    """The text of a self-contained mmdet config: `init_detector(<this>, 'student.pth')` predicts what we evaluated.

    Args:
        config: the student's mmengine Config, with the changes that were made to it.
        num_classes: of the data set that it was trained on.
        geometry: of the inputs it was trained and evaluated on.
    """
    exported = copy.deepcopy(config)
    set_num_classes(exported.model, num_classes)
    pipeline = _pipeline(exported, geometry)
    exported.model.setdefault('data_preprocessor', {'type': 'DetDataPreprocessor'})
    exported.model.data_preprocessor.pad_size_divisor = geometry.pad_divisor
    exported.test_pipeline = pipeline
    for name in ('val_dataloader', 'test_dataloader'):
        if isinstance(exported.get(name), dict) and 'pipeline' in exported[name].get('dataset', {}):
            exported[name]['dataset']['pipeline'] = pipeline
    if not isinstance(exported.get('test_dataloader'), dict):
        exported.test_dataloader = {'dataset': {'pipeline': pipeline}}
    text: str = exported.pretty_text
    return text


def _pipeline(config: Any, geometry: Geometry) -> list[dict[str, Any]]:
    """The student's test pipeline at `geometry`; the value of its padding stays the config's."""
    steps: list[dict[str, Any]] = [
        {'type': 'LoadImageFromFile'},
        {'type': 'Resize', 'scale': geometry.scale, 'keep_ratio': geometry.keep_ratio},
    ]
    if geometry.pad_size is not None:
        pad: dict[str, Any] = {'type': 'Pad', 'size': (geometry.pad_size[1], geometry.pad_size[0])}
        found = [step for step in config.get('test_pipeline', []) if step['type'] == 'Pad' and 'pad_val' in step]
        steps.append(pad | ({'pad_val': found[0]['pad_val']} if found else {}))
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    return [*steps, {'type': 'LoadAnnotations', 'with_bbox': True}, {'type': 'PackDetInputs', 'meta_keys': keys}]
