"""Class names of a detector, from its checkpoint or its config, and their number."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtpd.errors import InputError
from mtpd.system.text import listed


def checkpoint_classes(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes that the `meta` of a checkpoint names, in the order of the outputs; None where it names none."""
    data_set = meta.get('dataset_meta')
    # mmdet 3 has `dataset_meta`, mmdet 2 had `CLASSES`.
    return class_list(data_set.get('classes') if isinstance(data_set, Mapping) else meta.get('CLASSES'))


def labels_to_categories(
    categories: Sequence[tuple[int, str]], *, classes: Sequence[str] | None, num_classes: int | None, name: str
) -> list[int]:
    """The category id of each label of the detector `name`; refuses one of other classes, and ambiguous names.

    `categories` are ids and names by ascending id, which labels follow where the detector's `classes` are unknown.
    """
    ids = [category_id for category_id, _ in categories]
    if num_classes not in (None, len(ids)):
        raise InputError(
            f'{name} has {num_classes} classes, but the annotations have {len(ids)} categories; '
            'give annotations with the classes it was trained on'
        )
    if classes is None:
        return ids
    own, others = [_key(one) for one in classes], [_key(category) for _, category in categories]
    if own == others:
        return ids
    # Repeated names cannot be matched, so their order must be that of the detector.
    for second, key in zip(ids, others, strict=True):
        first, named = categories[others.index(key)]
        if first != second:
            raise InputError(
                f"categories {first} and {second} are both named '{named}', so the classes that {name} was trained on "
                'are ambiguous; rename one'
            )
    if set(own) != set(others):
        raise InputError(
            f'the classes of {name} and of the annotations differ: only the detector has '
            f'{listed(sorted(set(own) - set(others))) or "none"}, only the annotations have '
            f'{listed(sorted(set(others) - set(own))) or "none"}'
        )
    return [ids[others.index(one)] for one in own]


def require_same_labels(ours: Sequence[str], theirs: Sequence[str] | None, *, name: str) -> None:
    """Refuses a teacher `name` whose labels mean other classes than those of a student that takes them by number."""
    if theirs is None or len(theirs) != len(ours):  # unknown, or not comparable one by one
        return
    for label, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if _key(own) != _key(other):
            raise InputError(
                f"label {label} of {name} is '{other}', the student's is '{own}'; use a teacher trained on "
                'the classes of data.train, in the order of their category ids'
            )


# COCO's classes by the names of Pascal VOC, as darknet and published RT-DETRs have them.
_OF_VOC = {
    'aeroplane': 'airplane', 'diningtable': 'dining table', 'motorbike': 'motorcycle', 'pottedplant': 'potted plant',
    'sofa': 'couch', 'tvmonitor': 'tv',
}  # fmt: skip


def _key(name: str) -> str:
    # Checkpoints of the first mmdet spell COCO's names with underscores.
    plain = name.replace('_', ' ').casefold()
    return _OF_VOC.get(plain, plain)


def class_list(found: Any) -> tuple[str, ...] | None:
    """Names that a file lists; None where it lists none, or something else."""
    if not isinstance(found, list | tuple) or not found or not all(isinstance(one, str) for one in found):
        return None
    return tuple(found)
