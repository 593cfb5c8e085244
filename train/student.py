"""The student: an mmdet detector with the values that training needs to know about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.checkpoint import load_checkpoint, load_into
from mtpd.detectors.features import levels_of, neck_features
from mtpd.detectors.models import backbone_pretrained, build_detector, load_config
from mtpd.detectors.preprocessing import Preprocessing, read_preprocessing
from mtpd.detectors.weights import backbone_weights
from mtpd.errors import InputError
from mtpd.geometry import Size
from mtpd.pyramid import Level

PROBE_SIZE: Size = (256, 320)


@dataclass(frozen=True)
class Student:
    """A detector to be trained.

    Attributes:
        model: the network.
        config: its mmdet config with the changes of the stage file.
        preprocessing: what its config says about its input.
        levels: what its neck gives.
        has_masks: whether it predicts masks.
        num_classes: classes of its heads.
    """

    model: nn.Module
    config: Any
    preprocessing: Preprocessing
    levels: tuple[Level, ...]
    has_masks: bool
    num_classes: int


def build_student(reference: str, *, changes: Mapping[str, Any], num_classes: int, seed: int) -> Student:
    """A student with random weights.

    Args:
        reference: zoo name or config path.
        changes: replaces entries of the config's `model`.
        num_classes: of the data set; every head is built for them.
        seed: of the random weights.

    Raises:
        InputError: the name, the config or a change does not work.
    """
    config = load_config(reference)
    if changes:
        config.merge_from_dict({'model': dict(changes)})
    torch.manual_seed(seed)
    model = build_detector(config, num_classes=num_classes, init_weights=True)
    device = next(model.parameters()).device
    return Student(
        model=model,
        config=config,
        preprocessing=read_preprocessing(config),
        levels=levels_of(lambda images: neck_features(model, images), input_size=PROBE_SIZE, device=device),
        has_masks=bool(getattr(model, 'with_mask', False)),
        num_classes=num_classes,
    )


def load_backbone(student: Student, choice: str) -> str:
    """Gives the backbone its first weights and says which.

    Args:
        student: fresh.
        choice: `pretrained` (what the config names), `none`, or a file.

    Raises:
        InputError: the weights do not fit, or the config names none.
        UnavailableError: they cannot be fetched.
    """
    if choice == 'none':
        return 'random backbone, as init.backbone: none asks'
    reference = backbone_pretrained(student.config) if choice == 'pretrained' else choice
    if reference is None:
        raise InputError(
            "init.backbone is pretrained, but the student's config names no pretrained weights; "
            'set it to none or to a file'
        )
    state = backbone_weights(reference)
    own = student.model.backbone.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    missing = [name for name in own if name not in fitting and not name.endswith('num_batches_tracked')]
    if missing:
        raise InputError(
            f'init.backbone: {reference} lacks {len(missing)} of {len(own)} tensors of the backbone, the first is '
            f'{missing[0]}; take weights of the same network, or set init.backbone to none'
        )
    student.model.backbone.load_state_dict(fitting, strict=False)
    return f'backbone from {reference}, {len(fitting)} tensors'


def load_student(student: Student, checkpoint: Path) -> str:
    """Loads a whole student, strictly, and says so."""
    load_into(student.model, load_checkpoint(checkpoint), name=f'init.checkpoint {checkpoint}')
    return f'student from {checkpoint}'


def inherit(student: Student, teacher_weights: Mapping[str, Tensor], parts: Sequence[str]) -> str:
    """Copies neck or head tensors of the teacher that the student has under the same name and in the same shape.

    MTPD's inheritance (Cao et al., ICML 2023, released code) for detectors of one kind. Raises an InputError when
    nothing fits, since a silent no-op would pass for an inherited start.
    """
    own = student.model.state_dict()
    wanted = {
        name: value
        for name, value in teacher_weights.items()
        if ('neck' if name.startswith('neck.') else 'head') in parts and name in own
    }
    fitting = {name: value for name, value in wanted.items() if own[name].shape == value.shape}
    if not fitting:
        raise InputError(
            f"init.inherit: none of the teacher's {len(teacher_weights)} neck and head tensors has a counterpart of its "
            'name and shape in the student; remove init.inherit'
        )
    student.model.load_state_dict(fitting, strict=False)
    return f'inherited {len(fitting)} tensors from the teacher, {len(wanted) - len(fitting)} skipped for their shape'
