"""Edits of a model's config (nested dicts and lists, in place) before mmdet builds it."""

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtpd.detectors.language import NoLanguageModel
from mtpd.detectors.type_names import type_name
from mtpd.errors import InputError

# By their names in registries and as classes.
SYNCHRONISED_NORMS = {'SyncBN', 'MMSyncBN', 'NaiveSyncBN', 'SyncBatchNorm', 'NaiveSyncBatchNorm'}
BATCH_NORMS = {'BN', 'BN2d', 'BatchNorm2d'}
BN_EPSILON = 1e-5  # PyTorch's default
# These classify something else than the data set's classes: object or not, or the classes of a stuff map.
OTHER_HEADS = {'rpn_head', 'semantic_head'}
# CrowdDet, whose head fails in mmdet 3.3 on more, and detectors that propose objects of no class.
ONE_CLASS = {'MultiInstanceBBoxHead', 'RPN'}
CLASSIFYING_HEADS = ('bbox_head', 'mask_head', 'point_head', 'mask_iou_head', 'glbctx_head', 'segm_head')


def make_buildable(config: Any, *, zoo_folder: Path) -> None:
    """Works around what stops models of the zoo from being built in one process on today's PyTorch."""
    for node in config_dicts(config):
        if type_name(node) in SYNCHRONISED_NORMS:
            node['type'] = 'BN'
        # BatchNorm without an epsilon (NAS-FCOS) is refused by PyTorch in training.
        if type_name(node) in BATCH_NORMS and node.get('eps') == 0:
            node['eps'] = BN_EPSILON
        # Only saves memory in training, by way of a package that is seldom installed.
        if 'num_cp' in node and importlib.util.find_spec('fairscale') is None:
            node['num_cp'] = 0
        if 'language_model' in node:
            node['language_model'] = {'type': NoLanguageModel}
        # mmdet resolves this against the working directory.
        teacher = node.get('teacher_config')
        if isinstance(teacher, str) and not Path(teacher).is_file():
            node['teacher_config'] = str(zoo_folder.parent / teacher)


def set_num_classes(config: Any, num_classes: int) -> None:
    """Sets the number of classes of every head that classifies objects.

    Raises:
        InputError: a head tells other things apart than so many classes of objects.
    """
    if 'panoptic_head' in config:
        _set_num_things(config, num_classes)
    if num_classes != 1 and any(type_name(node) in ONE_CLASS for node in config_dicts(config)):
        raise InputError(
            f'{type_name(config)} detects objects of one class, but the data has {num_classes} '
            'classes; use data of one class, or a detector such as faster-rcnn_r50_fpn_1x_coco'
        )
    _set_num_classes(config, num_classes)


def _set_num_things(config: Any, num_classes: int) -> None:
    """Sets the classes of MaskFormer and its like, which count things (objects) and stuff apart."""
    heads = [config[name] for name in ('panoptic_head', 'panoptic_fusion_head') if name in config]
    # mmdet's default is that of COCO panoptic.
    num_stuff = max(head.get('num_stuff_classes', 53) for head in heads)
    predicts_instances = (config.get('test_cfg') or {}).get('instance_on', False)
    if num_stuff or not predicts_instances:
        raise InputError(
            f'{type_name(config)}: its heads predict {num_stuff} stuff classes, and '
            f'{"" if predicts_instances else "its test_cfg predicts no instances, but "}students detect objects only; '
            'choose mask2former_r50_8xb2-lsj-50e_coco, or set `model: {panoptic_head.num_stuff_classes: 0, '
            'panoptic_fusion_head.num_stuff_classes: 0, test_cfg.panoptic_on: false, test_cfg.instance_on: true}`'
        )
    for head in heads:
        head['num_things_classes'] = num_classes
    loss = config['panoptic_head'].get('loss_cls') or {}
    weights = loss.get('class_weight')
    if not isinstance(weights, list | tuple) or len(set(weights[:-1])) != 1:
        raise InputError(
            f'{type_name(config)}: panoptic_head.loss_cls.class_weight is {weights!r}, expected a list with one weight '
            'per class and one for the background at its end; change it'
        )
    loss['class_weight'] = [weights[0]] * num_classes + [weights[-1]]


def _set_num_classes(config: Any, num_classes: int) -> None:
    if isinstance(config, list | tuple):
        for item in config:
            _set_num_classes(item, num_classes)
    elif isinstance(config, dict):
        if 'num_classes' in config:
            config['num_classes'] = num_classes
        for key, value in config.items():
            if key in OTHER_HEADS:
                continue
            if key in CLASSIFYING_HEADS:
                for head in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(head, dict) and _takes_num_classes(head):
                        head['num_classes'] = num_classes
            _set_num_classes(value, num_classes)


def _takes_num_classes(head: dict[str, Any]) -> bool:
    from mmdet.registry import MODELS

    cls = MODELS.get(head['type']) if isinstance(head.get('type'), str) else head.get('type')
    if not inspect.isclass(cls):
        return False
    # Subclasses often pass their arguments on as **kwargs.
    own = [vars(base)['__init__'] for base in inspect.getmro(cls)[:-1] if '__init__' in vars(base)]
    return any('num_classes' in inspect.signature(init).parameters for init in own)


def config_dicts(config: Any) -> Iterator[Any]:
    """Every dict in a nested config, outermost first."""
    if isinstance(config, dict):
        yield config
        for value in list(config.values()):
            yield from config_dicts(value)
    elif isinstance(config, list | tuple):
        for item in config:
            yield from config_dicts(item)
