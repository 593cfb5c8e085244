"""The weights that a model's config names: found, and taken out, however they are spelled."""

import re
from collections.abc import Iterator
from typing import Any

from mtpd.detectors.type_names import type_name

# `checkpoint`, `pretrained`, `teacher_ckpt`, `checkpoint_path`, ...
_KEY = re.compile(r'(^|_)(checkpoints?|ckpt|pretrain(ed|ing)?)(_|$)|^weights$')
_ADDRESS = re.compile(r'[a-z][a-z0-9+.-]*://', re.IGNORECASE)
_PRETRAINED = {'Pretrained', 'PretrainedInit'}


def weight_references(config: Any, path: str = '') -> Iterator[tuple[str, str]]:
    """Every reference to weights in a nested config: its dotted key and what it names ('True' of `pretrained=True`).

    Args:
        config: nested dicts, lists and tuples.
        path: dotted key of `config` itself.
    """
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in items:
        place = f'{path}.{key}' if path else str(key)
        if _is_reference(key, value):
            yield place, str(value)
        elif isinstance(value, dict | list | tuple):
            yield from weight_references(value, place)


def drop_weight_references(config: Any) -> None:
    """Takes them out, in place: an `init_cfg` that names weights goes as a whole, other keys become None or False."""
    for key, value in list(config.items()) if isinstance(config, dict) else list(enumerate(config)):
        if key == 'init_cfg':
            kept = [one for one in (value if isinstance(value, list | tuple) else [value]) if not _names_weights(one)]
            if not kept:
                del config[key]
            elif isinstance(value, list | tuple):
                config[key] = kept
        elif _is_reference(key, value):
            config[key] = False if value is True else None
        elif isinstance(value, tuple) and any(True for _ in weight_references(value)):
            config[key] = changed = list(value)
            drop_weight_references(changed)
        elif isinstance(value, dict | list):
            drop_weight_references(value)


def backbone_reference(model: Any) -> str | None:
    """Where a model's config takes its backbone's weights from, such as 'torchvision://resnet50'; None: nowhere."""
    backbone = model.get('backbone') or {}
    init = backbone.get('init_cfg') or []
    for one in init if isinstance(init, list | tuple) else [init]:
        if _names_weights(one) and isinstance(one.get('checkpoint'), str):
            return str(one['checkpoint'])
    # The older spellings.
    for value in (backbone.get('pretrained'), model.get('pretrained')):
        if isinstance(value, str):
            return value
    return None


def _names_weights(init: Any) -> bool:
    return isinstance(init, dict) and (
        type_name(init) in _PRETRAINED or any(_is_reference(key, value) for key, value in init.items())
    )


def _is_reference(key: Any, value: Any) -> bool:
    named = isinstance(key, str) and _KEY.search(key) is not None
    if value is True:
        return named and 'pretrain' in key
    return isinstance(value, str) and bool(value) and (named or _ADDRESS.match(value) is not None)
