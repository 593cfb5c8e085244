"""What a detector calls its classes: as its checkpoint says, or its config; and how many it tells apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mtpd.errors import InputError

NAMES_SHOWN = 3


def checkpoint_classes(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes that the `meta` of a checkpoint names, in the order of the outputs; None where it names none."""
    data_set = meta.get('dataset_meta')
    # mmdet 3 has `dataset_meta`, mmdet 2 had `CLASSES`.
    return _names(data_set.get('classes') if isinstance(data_set, Mapping) else meta.get('CLASSES'))


def config_classes(config: Any) -> tuple[str, ...] | None:
    """The classes that the test set of an mmengine Config names; None where it leaves them to mmdet's own data set."""
    dataset = (config.get('test_dataloader') or {}).get('dataset') or {}
    while 'metainfo' not in dataset and isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    metainfo = dataset.get('metainfo') or config.get('metainfo') or {}
    return _names(metainfo.get('classes')) if isinstance(metainfo, dict) else None


def num_classes_of(model: nn.Module) -> int | None:
    """How many classes the box head of an mmdet detector tells apart; None where that cannot be read off."""
    owner: Any = getattr(model, 'roi_head', model)
    head = getattr(owner, 'bbox_head', None)
    if isinstance(head, nn.ModuleList):
        head = head[-1]
    found = getattr(head, 'num_classes', None)
    return found if isinstance(found, int) else None


def labels_to_categories(
    categories: Sequence[tuple[int, str]], *, classes: Sequence[str] | None, num_classes: int | None, name: str
) -> list[int]:
    """The category id of each of a detector's labels.

    Args:
        categories: ids and names of a data set, by ascending id.
        classes: what the detector calls its classes; None: unknown, labels follow the ids.
        num_classes: how many it tells apart; None: unknown.
        name: of the detector, for messages.

    Raises:
        InputError: it was trained on other classes.
    """
    ids = [category_id for category_id, _ in categories]
    wanted = len(ids) if num_classes is None else num_classes
    if wanted != len(ids):
        raise InputError(
            f'{name} tells {wanted} classes apart, but the annotations have {len(ids)} categories; '
            'give annotations with the classes that it was trained on'
        )
    by_name = {_key(category): category_id for category_id, category in categories}
    if classes is None or len(by_name) < len(ids):
        return ids
    known = {_key(one) for one in classes}
    if known != set(by_name):
        raise InputError(
            f'{name} was trained on other classes than the annotations have: only it knows '
            f'{_some(known - set(by_name))}, only they have {_some(set(by_name) - known)}'
        )
    return [by_name[_key(one)] for one in classes]


def _key(name: str) -> str:
    # Checkpoints of the first mmdet spell COCO's names with underscores.
    return name.replace('_', ' ').casefold()


def _names(found: Any) -> tuple[str, ...] | None:
    if not isinstance(found, list | tuple) or not found or not all(isinstance(one, str) for one in found):
        return None
    return tuple(found)


def _some(names: set[str]) -> str:
    shown = ', '.join(sorted(names)[:NAMES_SHOWN])
    return f'{shown}{", ..." if len(names) > NAMES_SHOWN else ""}' if names else 'none'
