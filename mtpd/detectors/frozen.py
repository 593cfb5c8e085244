"""Parts of a detector, and those that its config freezes, which makes sense of pretrained weights alone."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from mtpd.detectors.model_config import class_parameters, config_items, type_name
from mtpd.detectors.runtime import prepare

# The parts that weights come for: `head` is all but the first two, a detector's RoI head and RPN too.
BACKBONE, NECK, HEAD = 'backbone', 'neck', 'head'
PARTS = frozenset({BACKBONE, NECK, HEAD})
FROZEN_STAGES, NORM_EVAL, NORM_CFG, REQUIRES_GRAD = 'frozen_stages', 'norm_eval', 'norm_cfg', 'requires_grad'


def unfreeze(model: Any, *, loaded: Collection[str], kept: Collection[str]) -> Mapping[str, Any]:
    """Changes a model's config so that what starts from random weights is trained, batch statistics included.

    Configs freeze the first stages of a backbone (`frozen_stages`), its batch statistics (`norm_eval`), and its norms'
    scales and shifts (`norm_cfg.requires_grad`); some do by the defaults of their class. A network that learns itself
    (`teacher`), the PARTS whose weights are `loaded`, and the dotted keys in `kept` stay as they are.

    Returns:
        dotted key -> new value.
    """
    prepare()
    changes: dict[str, Any] = {}
    for path, _, node in config_items(model):
        is_built = isinstance(node, dict) and 'type' in node
        if not is_built or part_of(path) in loaded or 'teacher' in path:
            continue
        for key, value in _unfreezing(node):
            place = f'{path}.{key}'
            if place in kept:
                continue
            owner, name = (node[NORM_CFG], REQUIRES_GRAD) if key.startswith(NORM_CFG) else (node, key)
            owner[name] = changes[place] = value
    return changes


def frozen_parameters(model: nn.Module, *, loaded: Collection[str]) -> tuple[str, ...]:
    """Names of the parameters that never learn though they start from random weights. Puts `model` in training mode."""
    model.train()  # Some backbones freeze their stages here.
    return tuple(
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and part_of(name) not in loaded
    )


def part_of(path: str) -> str:
    """Which of PARTS a dotted key of a config, or the name of a tensor, belongs to."""
    first = path.split('.')[0]
    return first if first in (BACKBONE, NECK) else HEAD


def _unfreezing(node: Any) -> Iterator[tuple[str, Any]]:
    """The keys of one part of a model that freeze something, each with a value that does not."""
    parameters = class_parameters(node).items()
    defaults = {name: one.default for name, one in parameters if one.default is not inspect.Parameter.empty}
    norm = node.get(NORM_CFG, defaults.get(NORM_CFG))
    norm_name = 'BN' if norm is None else type_name(norm)
    stages, default = node.get(FROZEN_STAGES, defaults.get(FROZEN_STAGES)), defaults.get(FROZEN_STAGES, -1)
    # -1 mostly; EfficientNet counts from 0 and refuses -1.
    none = default if isinstance(default, int) and default <= 0 else -1
    if isinstance(stages, int) and stages > none:
        yield FROZEN_STAGES, none
    if node.get(NORM_EVAL, defaults.get(NORM_EVAL)) is True and any(one in norm_name for one in ('BN', 'Batch')):
        yield NORM_EVAL, False
    if isinstance(node.get(NORM_CFG), dict) and node[NORM_CFG].get(REQUIRES_GRAD) is False:
        yield f'{NORM_CFG}.{REQUIRES_GRAD}', True
