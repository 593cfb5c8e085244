"""Which category of an annotation file a detector's label stands for."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from mtpd.detectors.class_names import checkpoint_classes, labels_to_categories, require_same_labels
from mtpd.detectors.of_mmdet.detector import num_classes_of
from mtpd.detectors.of_mmdet.family import MmdetDefinition
from mtpd.errors import InputError

CATEGORIES = [(3, 'cat'), (7, 'fire hydrant'), (20, 'dog')]


def categories_of(classes: list[str] | None, num_classes: int | None = 3) -> list[int]:
    return labels_to_categories(CATEGORIES, classes=classes, num_classes=num_classes, name='it')


def test_labels_follow_names() -> None:
    assert categories_of(['dog', 'fire_hydrant', 'Cat']) == [20, 7, 3]


def test_labels_without_names_follow_the_ids() -> None:
    assert categories_of(None) == [3, 7, 20]
    assert categories_of(None, num_classes=None) == [3, 7, 20]


def test_names_that_are_not_distinct_are_no_guide() -> None:
    categories = [(1, 'b'), (4, 'a'), (9, 'A')]

    def ids(classes: list[str] | None) -> list[int]:
        return labels_to_categories(categories, classes=classes, num_classes=3, name='it')

    assert ids(None) == ids(['b', 'a', 'a']) == [1, 4, 9]
    for others in (['x', 'y', 'z'], ['a', 'a', 'b'], ['b', 'a', 'c']):
        with pytest.raises(InputError, match="categories 4 and 9 are both named 'a'"):
            ids(others)


def test_another_number_of_classes() -> None:
    with pytest.raises(InputError, match='it has 80 classes, but the annotations have 3 categories'):
        categories_of(None, num_classes=80)


@pytest.mark.parametrize('theirs', [None, ['Cat', 'fire_hydrant'], ['cat']])
def test_same_labels(theirs: list[str] | None) -> None:
    """Of another number of classes nothing is taken over by number."""
    require_same_labels(['cat', 'fire hydrant'], theirs, name='it')


def test_other_labels() -> None:
    with pytest.raises(InputError, match="label 1 of it is 'dog', the student's is 'fire hydrant'; use a teacher"):
        require_same_labels(['cat', 'fire hydrant', 'dog'], ['cat', 'dog', 'fire hydrant'], name='it')


def test_other_classes() -> None:
    with pytest.raises(InputError, match='only the detector has bird, only the annotations have dog'):
        categories_of(['bird', 'cat', 'fire hydrant'])


@pytest.mark.parametrize(
    ('meta', 'classes'),
    [
        ({'dataset_meta': {'classes': ('a', 'b')}}, ('a', 'b')),
        ({'CLASSES': ['a', 'b']}, ('a', 'b')),
        ({'CLASSES': None}, None),
        ({'dataset_meta': {'classes': 7}}, None),
        ({'dataset_meta': {'classes': [1, 2]}}, None),
        ({}, None),
    ],
)
def test_checkpoint_classes(meta: dict[str, Any], classes: tuple[str, ...] | None) -> None:
    assert checkpoint_classes(meta) == classes


@pytest.mark.parametrize(
    ('config', 'classes'),
    [
        ({'test_dataloader': {'dataset': {'metainfo': {'classes': ('a',)}}}}, ('a',)),
        ({'test_dataloader': {'dataset': {'dataset': {'metainfo': {'classes': ('a',)}}}}}, ('a',)),
        ({'test_dataloader': {'dataset': {'type': 'CocoDataset'}}, 'metainfo': {'classes': ['a']}}, ('a',)),
        ({'test_dataloader': {'dataset': {'type': 'CocoDataset'}}}, None),
        ({}, None),
    ],
)
def test_config_classes(config: dict[str, Any], classes: tuple[str, ...] | None) -> None:
    assert MmdetDefinition('it', config).classes() == classes


def test_num_classes_of_one_stage_two_stages_and_cascades() -> None:
    class Head(nn.Module):
        num_classes = 5

    one, two, cascade, none = nn.Module(), nn.Module(), nn.Module(), nn.Module()
    one.bbox_head = Head()
    two.roi_head = SimpleNamespace(bbox_head=Head())  # type: ignore[assignment]
    cascade.roi_head = SimpleNamespace(bbox_head=nn.ModuleList([Head(), Head()]))  # type: ignore[assignment]
    assert [num_classes_of(model) for model in (one, two, cascade, none)] == [5, 5, 5, None]


def test_names_of_voc_are_cocos() -> None:
    """As published RT-DETRs have them."""
    categories = [(1, 'airplane'), (2, 'couch'), (3, 'potted plant'), (4, 'tv')]
    classes = ['pottedplant', 'tvmonitor', 'aeroplane', 'sofa']
    assert labels_to_categories(categories, classes=classes, num_classes=4, name='it') == [3, 4, 1, 2]
