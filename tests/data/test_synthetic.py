"""The generator of synthetic sets."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from mtpd.data.coco import missing_images, read_annotations
from mtpd.data.images import read_image
from mtpd.data.synthetic import SHAPES, SyntheticSpec, draw_image, make_synthetic_set, shape_mask
from mtpd.errors import InputError

SMALL = SyntheticSpec(num_train=6, num_val=3, sizes=((64, 96), (80, 64)))


def digest(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob('*') if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_and_annotations(synthetic_set: Path) -> None:
    ids: set[int] = set()
    for split, num_images in (('train2017', 24), ('val2017', 8)):
        coco_set = read_annotations(synthetic_set / 'annotations' / f'instances_{split}.json')
        assert len(coco_set.images) == num_images
        assert [category.name for category in coco_set.categories] == list(SHAPES)
        assert missing_images(coco_set.images, synthetic_set / split) == ()
        assert coco_set.annotations[coco_set.images[-1].id] == ()
        for image in coco_set.images:
            assert image.id not in ids
            ids.add(image.id)
            read_image(synthetic_set / split / image.file_name, size=(image.height, image.width))
            covered = np.zeros((image.height, image.width), int)
            for annotation in coco_set.annotations[image.id]:
                mask = rle.decode(annotation.segmentation)
                rows, columns = np.nonzero(mask)
                assert annotation.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert annotation.area == mask.sum() > 0
                covered += mask
            assert covered.max() <= 1, 'visible masks of two shapes overlap'
    assert {image.height for image in coco_set.images} <= {128, 96}


def test_annotation_ids_are_unique(synthetic_set: Path) -> None:
    documents = [json.loads(path.read_text()) for path in (synthetic_set / 'annotations').iterdir()]
    assert len(documents) == 2
    ids = [annotation['id'] for document in documents for annotation in document['annotations']]
    assert len(ids) == len(set(ids)) > 32


def test_masks_cover_the_shapes() -> None:
    """A mask is where the shape is painted: the colours inside vary less than those around it."""
    spec = SyntheticSpec(num_shapes=(1, 1), shape_px=(40, 52))
    for seed in range(5):
        image, [(_, mask)] = draw_image(np.random.default_rng(seed), spec)
        inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
        ring = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool) & ~mask
        assert np.linalg.norm(image[inner].mean(0) - image[ring].mean(0)) > 20
        assert 500 < mask.sum() < 52**2


def test_occlusion_and_overlap_happen() -> None:
    spec = SyntheticSpec(num_shapes=(5, 5))
    num_hidden = 0
    for seed in range(20):
        _, objects = draw_image(np.random.default_rng(seed), spec)
        union = np.sum([mask for _, mask in objects], axis=0)
        assert union.max() == 1
        dilated = [cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))) for _, mask in objects]
        num_hidden += int(np.sum(dilated, axis=0).max() > 1)
    assert num_hidden > 5


@pytest.mark.parametrize('name', SHAPES)
def test_shape_mask(name: str) -> None:
    """Areas from the formulas, of shapes whose corners lie on a circle of radius 40 px."""
    radius = 40.0
    star = 10 * 0.5 * 0.45 * np.sin(np.pi / 5)
    areas = {
        'circle': np.pi,
        'square': 2.0,
        'triangle': 3 * np.sqrt(3) / 4,
        'star': star,
        'cross': (0.6**2 + 4 * 0.6 * 0.7) / (1 + 0.3**2),
        'ring': np.pi * (1 - 0.55**2),
    }
    for angle in (0.0, 0.7):
        mask = shape_mask(name, (50.3, 52.8), radius, angle, (100, 110))
        assert mask.shape == (100, 110)
        assert mask.sum() / radius**2 == pytest.approx(areas[name], rel=0.08)  # cv2 fills the edge's pixels too
        rows, columns = np.nonzero(mask)
        assert np.hypot(columns - 50.3, rows - 52.8).max() < radius + 1.5


def test_same_seed_same_files(tmp_path: Path) -> None:
    assert make_synthetic_set(tmp_path / 'a', SMALL)
    make_synthetic_set(tmp_path / 'b', SMALL)
    make_synthetic_set(tmp_path / 'c', SyntheticSpec(num_train=6, num_val=3, sizes=SMALL.sizes, seed=1))
    assert digest(tmp_path / 'a') == digest(tmp_path / 'b')
    assert digest(tmp_path / 'a') != digest(tmp_path / 'c')


def test_made_once(tmp_path: Path) -> None:
    calls: list[None] = []
    assert make_synthetic_set(tmp_path / 'a', SMALL, on_image=lambda: calls.append(None))
    assert len(calls) == 9
    before = digest(tmp_path / 'a')
    assert not make_synthetic_set(tmp_path / 'a', SMALL)
    assert digest(tmp_path / 'a') == before
    assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_refuses_another_folder(tmp_path: Path) -> None:
    make_synthetic_set(tmp_path / 'a', SMALL)
    with pytest.raises(InputError, match='holds something other'):
        make_synthetic_set(tmp_path / 'a', SyntheticSpec(num_train=7, num_val=3))
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').touch()
    with pytest.raises(InputError, match='holds something other'):
        make_synthetic_set(tmp_path / 'mine', SMALL)
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='holds something other'):
        make_synthetic_set(tmp_path / 'file', SMALL)
    assert (tmp_path / 'mine' / 'thesis.txt').exists()


def test_interrupted(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_synthetic_set(tmp_path / 'a', SMALL, on_image=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'values',
    [{'shape_px': (14, 200)}, {'shape_px': (30, 20)}, {'num_shapes': (0, 3)}, {'num_val': 0}, {'sizes': ()}],
)
def test_spec__impossible(values: dict[str, object]) -> None:
    with pytest.raises(InputError):
        SyntheticSpec(**values)  # type: ignore[arg-type]
