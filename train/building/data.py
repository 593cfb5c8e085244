"""The data sets of a stage."""

from collections.abc import Callable
from pathlib import Path

from mtpd.data.coco import CocoSet
from mtpd.errors import InputError
from mtpd.geometry import Geometry
from mtpd_train.dataset import DetectionDataset
from mtpd_train.settings.data_settings import DataSettings, FilesSettings


def split_paths(data: DataSettings, split: str | FilesSettings) -> tuple[Path, Path]:
    """Image folder and annotation file of a split."""
    if isinstance(split, str):
        return data.coco / split, data.coco / 'annotations' / f'instances_{split}.json'
    return split.images, split.annotations


def build_sets(
    data: DataSettings, *, geometry: Geometry, with_masks: bool, read: Callable[[Path], CocoSet]
) -> tuple[DetectionDataset, DetectionDataset | None]:
    """The images to train on, and those to evaluate on, if any.

    Args:
        data: what the stage file says.
        geometry: resize of the images.
        with_masks: whether the student wants masks.
        read: reads annotation files.

    Raises:
        InputError: images are missing, there is nothing to train on, or the two sets have different categories.
    """
    folder, annotations = split_paths(data, data.train)
    coco = read(annotations)
    train_set = DetectionDataset(coco, folder, geometry=geometry, for_training=True, with_masks=with_masks)
    if not train_set.sizes(with_objects=True):
        raise InputError(f'{annotations}: no image has an object to train on; choose another training set')
    if data.val is None:
        return train_set, None
    val_folder, val_annotations = split_paths(data, data.val)
    val_coco = read(val_annotations)
    if val_coco.categories != coco.categories:
        raise InputError(
            f'{val_annotations}: its categories differ from those of {annotations}; '
            'choose another data.val, or null for no evaluation'
        )
    val_set = DetectionDataset(val_coco, val_folder, geometry=geometry, for_training=False, with_masks=False)
    return train_set, val_set
