"""The first weights of a stage's student: where they come from, and which parts of it have none but random ones."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from mtpd.detectors.frozen import BACKBONE, PARTS
from mtpd_train.settings.stage_settings import InitSettings
from mtpd_train.student import load_backbone, load_for_other_classes, load_student


def first_weights(model: nn.Module, init: InitSettings, *, config: Any, is_first: bool) -> str | None:
    """Gives a student its first weights and says where they come from; None: they come from the stage before."""
    if init.checkpoint is not None:
        return load_student(model, init.checkpoint, name='init.checkpoint')
    if init.fine_tune is not None:
        return load_for_other_classes(model, init.fine_tune)
    return load_backbone(model, init.backbone, config=config) if is_first else None


def loaded_parts(init: InitSettings, *, before: frozenset[str] | None) -> frozenset[str]:
    """The parts of a student, of `mtpd.detectors.frozen.PARTS`, whose training starts from weights of another network.

    Args:
        init: of its stage.
        before: of the student of the previous stage, which stays as it is; None: this is the first stage.
    """
    if init.checkpoint is not None or init.fine_tune is not None:
        return PARTS
    if before is not None:
        return before
    return frozenset({*init.inherit, *([] if init.backbone == 'none' else [BACKBONE])})


def changed_keys(changes: Mapping[str, Any], path: str = '') -> set[str]:
    """Dotted keys of all that `model` in a stage file sets, of nested entries too."""
    keys = set()
    for key, value in changes.items():
        place = f'{path}.{key}' if path else key
        keys |= {place} | (changed_keys(value, place) if isinstance(value, Mapping) else set())
    return keys
