"""A detector made ready to be evaluated on a set."""

from pathlib import Path

import torch

from mtpd.data.coco import CocoSet
from mtpd.detectors.checkpoint import checkpoint_meta, load_checkpoint, load_into
from mtpd.detectors.class_names import checkpoint_classes, config_classes, labels_to_categories, num_classes_of
from mtpd.detectors.config_input import read_preprocessing
from mtpd.detectors.detection import predicts_masks
from mtpd.detectors.models import build_detector
from mtpd.detectors.preprocessing import at_geometry
from mtpd.errors import InputError
from mtpd_train.evaluator.target import Target
from mtpd_train.student import Student


def build_target(
    target: Target, *, scale: tuple[int, int] | None, trust_checkpoint: bool, device: torch.device
) -> Student:
    """The detector with its weights, in eval mode.

    Args:
        target: which.
        scale: replaces the resize of its config.
        trust_checkpoint: unpickle a checkpoint that holds more than tensors and plain values.
        device: where it runs.

    Raises:
        InputError: the checkpoint does not fit the config, or the config says no resize.
    """
    own = read_preprocessing(target.config, scale=scale)
    model = build_detector(target.config, init_weights=False)
    state = load_checkpoint(target.checkpoint, allow_pickle=trust_checkpoint, network=model)
    load_into(model, state, name=_name(target.name, target.checkpoint))
    return Student(
        name=_name(target.name, target.checkpoint),
        model=model.to(device).eval().requires_grad_(False),
        preprocessing=at_geometry(own, own.geometry),
        levels=(),  # Only losses on maps ask for them.
        has_masks=predicts_masks(model),
    )


def category_ids(target: Target, student: Student, coco: CocoSet, *, trust_checkpoint: bool) -> list[int]:
    """The category id of each of the detector's labels: by name where names are known, else in the order of the ids.

    Raises:
        InputError: the detector was trained on other classes.
    """
    in_file = checkpoint_classes(checkpoint_meta(target.checkpoint, allow_pickle=trust_checkpoint))
    in_config = config_classes(target.config)
    if in_file is not None and in_config is not None and in_file != in_config:
        raise InputError(
            f'{target.checkpoint}: was trained on {len(in_file)} classes ({in_file[0]}, ...), but its config has '
            f'{len(in_config)} ({in_config[0]}, ...); give the checkpoint of this config'
        )
    return labels_to_categories(
        [(one.id, one.name) for one in coco.categories],
        classes=in_file or in_config,
        num_classes=num_classes_of(student.model),
        name=_name(target.name, target.checkpoint),
    )


def _name(name: str, checkpoint: Path) -> str:
    return name if checkpoint.is_relative_to(name) else f'{name} from {checkpoint}'
