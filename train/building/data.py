"""The data sets of a stage."""

from collections.abc import Callable
from pathlib import Path

from mtpd.data.account import nothing_to_train_on
from mtpd.data.coco import CocoSet, coco_paths
from mtpd.errors import InputError
from mtpd.geometry import Geometry
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.settings.stage_settings import DataSettings, FilesSettings


def split_paths(data: DataSettings, split: str | FilesSettings) -> tuple[Path, Path]:
    """Image folder and annotation file of a split."""
    if isinstance(split, str):
        return coco_paths(data.coco, split)
    return split.images, split.annotations


def read_train_annotations(data: DataSettings, *, read: Callable[[Path], CocoSet]) -> CocoSet:
    """The annotations of the images to train on, whose categories make the student's classes.

    Args:
        data: what the stage file says.
        read: reads annotation files.

    Raises:
        InputError: there are no categories, or two have the same name.
    """
    coco = read(split_paths(data, data.train)[1])
    if not coco.categories:
        raise InputError(f"{coco.path}: 'categories' is empty, so there are no classes to learn; list the categories")
    ids: dict[str, int] = {}
    for category in coco.categories:
        if category.name in ids:
            raise InputError(
                f'{coco.path}: categories {ids[category.name]} and {category.id} are both named {category.name!r:.80}; '
                'class names must be unique, rename one'
            )
        ids[category.name] = category.id
    return coco


def build_train_set(data: DataSettings, coco: CocoSet, *, geometry: Geometry, with_masks: bool) -> DetectionDataset:
    """The images to train on.

    Args:
        data: what the stage file says.
        coco: the annotations.
        geometry: resize of the images.
        with_masks: whether the student needs masks.

    Raises:
        InputError: images are missing, or there is nothing to train on.
    """
    folder, annotations = split_paths(data, data.train)
    train_set = DetectionDataset(coco, folder, geometry=geometry, for_training=True, with_masks=with_masks)
    if not train_set.sizes(with_objects=True):
        raise InputError(
            f'{annotations}: no image has a usable object: {nothing_to_train_on(coco)}; correct the file or '
            'choose another training set'
        )
    return train_set


def build_val_set(
    data: DataSettings, train_coco: CocoSet, *, geometry: Geometry, read: Callable[[Path], CocoSet]
) -> DetectionDataset | None:
    """The images to evaluate on, if any.

    Args:
        data: what the stage file says.
        train_coco: the annotations of the images to train on.
        geometry: resize of the images.
        read: reads annotation files.

    Raises:
        InputError: there are no images, or some are missing, or the categories are not those of the training set.
    """
    if data.val is None:
        return None
    folder, annotations = split_paths(data, data.val)
    coco = read(annotations)
    if coco.categories != train_coco.categories:
        raise InputError(
            f'{annotations}: its categories differ from those of {train_coco.path}: '
            f'{_first_difference(coco, train_coco)}; choose another data.val, or set it to null'
        )
    if not coco.images:
        raise InputError(f'{annotations}: lists no images; choose another data.val, or set it to null')
    return DetectionDataset(coco, folder, geometry=geometry, for_training=False, with_masks=False)


def _first_difference(coco: CocoSet, train_coco: CocoSet) -> str:
    """The first category that differs, with both names."""
    here, there = ({one.id: one.name for one in several.categories} for several in (coco, train_coco))
    number = next(one for one in sorted(here | there) if here.get(one) != there.get(one))
    names = (f'{one[number]!r:.80}' if number in one else 'missing' for one in (here, there))
    return 'id {} is {} here and {} there'.format(number, *names)
