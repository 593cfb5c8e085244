"""Edits of a model's config (nested dicts and lists, in place) before mmdet builds it."""

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtpd.detectors.language import NoLanguageModel
from mtpd.errors import InputError

SYNCHRONISED_NORMS = {'SyncBN', 'MMSyncBN', 'NaiveSyncBN'}
BN_EPSILON = 1e-5  # PyTorch's default
# These classify something else than the data set's classes: object or not, or the classes of a stuff map.
OTHER_HEADS = {'rpn_head', 'semantic_head'}
CLASSIFYING_HEADS = ('bbox_head', 'mask_head', 'point_head', 'mask_iou_head', 'glbctx_head', 'segm_head')


def make_buildable(config: Any, *, zoo_folder: Path) -> None:
    """Works around what stops models of the zoo from being built in one process on today's PyTorch."""
    for node in _dicts(config):
        if node.get('type') in SYNCHRONISED_NORMS:
            node['type'] = 'BN'
        # BatchNorm without an epsilon (NAS-FCOS) is refused by PyTorch in training.
        if node.get('type') == 'BN' and node.get('eps') == 0:
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
        InputError: the model's heads mix objects with stuff, so that one number does not say what is meant.
    """
    if 'panoptic_head' in config:
        raise InputError(
            f'{config["type"]}: the number of classes of a panoptic head cannot be set to {num_classes}; '
            f'choose another model or write a config for it'
        )
    _set_num_classes(config, num_classes)


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


def _dicts(config: Any) -> Iterator[Any]:
    """Every dict in a nested config, outermost first."""
    if isinstance(config, dict):
        yield config
        for value in list(config.values()):
            yield from _dicts(value)
    elif isinstance(config, list | tuple):
        for item in config:
            yield from _dicts(item)
