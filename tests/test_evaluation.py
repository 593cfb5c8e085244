"""COCO average precision."""

import contextlib
import copy
import importlib.util
import io
import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mtpd.data.coco import CocoSet, read_annotations
from mtpd.errors import InputError, UnavailableError
from mtpd.evaluation import METRICS, Backend, Kind, evaluate

GOLDEN: dict[str, tuple[str, str, Kind]] = {
    'bbox': ('instances_val2014_100.json', 'instances_val2014_fakebbox100_results.json', 'bbox'),
    'segm': ('instances_val2014_100.json', 'instances_val2014_fakesegm100_results.json', 'segm'),
    'nanodet_m320_coco_small_val': (
        'instances_coco_small_val.json',
        'nanodet_m320_coco_small_val_bbox_results.json',
        'bbox',
    ),
}

BACKENDS: tuple[Backend, ...] = get_args(Backend)


def _require(backend: Backend) -> None:
    if backend == 'faster':
        pytest.importorskip('faster_coco_eval', reason='the extra `faster` is not installed')


@pytest.mark.real
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', GOLDEN)
def test_evaluate__golden(name: str, backend: Backend, real_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _require(backend)
    folder = real_dir / 'golden_eval'
    truth, results, kind = GOLDEN[name]
    expected = json.loads((folder / 'expected_pycocotools_2.0.11.json').read_text())[name]
    metrics = evaluate(
        read_annotations(folder / truth), json.loads((folder / results).read_text()), kind=kind, backend=backend
    ).metrics
    assert list(metrics) == list(METRICS)
    assert list(metrics.values()) == pytest.approx(expected, abs=1e-9)
    assert capfd.readouterr() == ('', '')


@pytest.mark.real
@pytest.mark.parametrize('name', GOLDEN)
def test_evaluate__backends_agree_on_every_class(name: str, real_dir: Path) -> None:
    _require('faster')
    truth, results, kind = GOLDEN[name]
    detections = json.loads((real_dir / 'golden_eval' / results).read_text())
    one, other = (
        evaluate(read_annotations(real_dir / 'golden_eval' / truth), detections, kind=kind, backend=backend).class_ap
        for backend in BACKENDS
    )
    assert list(one) == list(other)
    assert len(one) == 80
    assert one == pytest.approx(other, abs=1e-9)


@pytest.mark.real
def test_evaluate__ap_is_the_mean_over_classes(real_dir: Path) -> None:
    truth, results, kind = GOLDEN['nanodet_m320_coco_small_val']
    folder = real_dir / 'golden_eval'
    found = evaluate(read_annotations(folder / truth), json.loads((folder / results).read_text()), kind=kind)
    present = [value for value in found.class_ap.values() if value >= 0]
    assert sum(present) / len(present) == pytest.approx(found.metrics['AP'], abs=1e-9)


@pytest.fixture
def truth_file(tmp_path: Path) -> Path:
    """Two images, two categories, three objects of 40 x 40 px."""
    path = tmp_path / 'truth.json'
    objects = [(5, 1, 3), (5, 60, 9), (8, 20, 3)]
    annotations = [
        {
            'id': number, 'image_id': image, 'category_id': category, 'bbox': [x, 10, 40, 40], 'area': 1600,
            'iscrowd': 0, 'segmentation': [[x, 10, x + 40, 10, x + 40, 50, x, 50]],
        }
        for number, (image, x, category) in enumerate(objects, 1)
    ]  # fmt: skip
    images = [{'id': number, 'file_name': f'{number}.jpg', 'height': 100, 'width': 120} for number in (5, 8)]
    categories = [{'id': 3, 'name': 'a'}, {'id': 9, 'name': 'b'}]
    path.write_text(json.dumps({'images': images, 'categories': categories, 'annotations': annotations}))
    return path


@pytest.fixture
def truth(truth_file: Path) -> CocoSet:
    return read_annotations(truth_file)


def detection(image: int, category: int, x: float, score: float = 0.9) -> dict[str, Any]:
    return {'image_id': image, 'category_id': category, 'bbox': [x, 10, 40, 40], 'score': score}


ALL = [detection(5, 3, 1), detection(5, 9, 60), detection(8, 3, 20)]


def test_evaluate__perfect(truth: CocoSet) -> None:
    before = copy.deepcopy(ALL)
    metrics = evaluate(truth, ALL).metrics
    assert metrics['AP'] == metrics['AP50'] == metrics['APm'] == metrics['AR100'] == pytest.approx(1)
    assert metrics['APs'] == metrics['APl'] == -1  # no such object
    assert before == ALL


def test_evaluate__by_hand(truth: CocoSet) -> None:
    """One shifted box of IoU 30 / 50 = 0.6 counts at the thresholds 0.5, 0.55 and 0.6 only: category b has AP 0.3."""
    metrics = evaluate(truth, [ALL[0], detection(5, 9, 70), ALL[2]]).metrics
    assert metrics['AP'] == pytest.approx((1 + 0.3) / 2)
    assert metrics['AP50'] == pytest.approx(1)
    assert metrics['AP75'] == pytest.approx(0.5)


def test_evaluate__class_ap(truth: CocoSet) -> None:
    assert evaluate(truth, [ALL[0], detection(5, 9, 70), ALL[2]]).class_ap == pytest.approx({'a': 1, 'b': 0.3})
    assert evaluate(truth, [ALL[2]], image_ids=[8]).class_ap == pytest.approx({'a': 1, 'b': -1})  # no b there


def test_evaluate__two_categories_of_one_name(truth_file: Path) -> None:
    truth_file.write_text(truth_file.read_text().replace('"name": "b"', '"name": "a"'))
    assert evaluate(read_annotations(truth_file), ALL).class_ap == pytest.approx({'a (3)': 1, 'a (9)': 1})


def test_evaluate__backend_that_is_not_installed(truth: CocoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(
        UnavailableError, match=r'faster-coco-eval, which is not installed: pip install faster-coco-eval'
    ):
        evaluate(truth, ALL, backend='faster')


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_evaluate__nothing_detected(truth: CocoSet, kind: Kind, backend: Backend) -> None:
    _require(backend)
    metrics = evaluate(truth, [], kind=kind, backend=backend).metrics
    assert {metrics[name] for name in METRICS} == {0, -1}
    assert metrics['AP'] == metrics['AP50'] == metrics['AR100'] == 0


def test_evaluate__some_images(truth: CocoSet) -> None:
    assert evaluate(truth, [ALL[2]]).metrics['AR100'] == pytest.approx(0.25)  # half of category a, none of b
    assert evaluate(truth, [ALL[2]], image_ids=[8, 8]).metrics['AP'] == pytest.approx(1)
    assert evaluate(truth, ALL, image_ids=[8]).metrics['AP'] == pytest.approx(1)
    assert evaluate(truth, [ALL[2]], image_ids=[5]).metrics['AP'] == 0


def test_evaluate__unknown_image(truth: CocoSet) -> None:
    with pytest.raises(InputError, match='no image 6'):
        evaluate(truth, [detection(6, 3, 1)])
    with pytest.raises(InputError, match='no image 7'):
        evaluate(truth, ALL, image_ids=[5, 7])


def test_evaluate__mask_is_rated_by_its_own_size(truth: CocoSet) -> None:
    """A detection may carry a box beside its mask; with the box's size, the false mask would not count as medium."""
    records = []
    for record in [*ALL, detection(5, 3, 79, score=0.95)]:
        x = record['bbox'][0]
        (encoded,) = rle.frPyObjects([[x, 10, x + 40, 10, x + 40, 50, x, 50]], 100, 120)
        records.append({**record, 'bbox': [x, 10, 1, 1], 'segmentation': encoded})
    metrics = evaluate(truth, records, kind='segm').metrics
    # One false before two true ones: precision 2 / 3 at best for category a, 1 for b.
    assert metrics['AP'] == metrics['APm'] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('ids', ['missing', 'null', 'equal', 'from 0', 'of each image', 'text'])
def test_evaluate__any_annotation_ids(ids: str, kind: Kind, truth_file: Path) -> None:
    """No ids of the file reach pycocotools, which would take 0 for "not matched" and one of two records of one id."""
    document = json.loads(truth_file.read_text())
    given: dict[str, list[Any]] = {
        'null': [None] * 3,
        'equal': [7] * 3,
        'from 0': [0, 1, 2],
        'of each image': [1, 2, 1],
        'text': ['a'] * 3,
    }
    for number, record in enumerate(document['annotations']):
        del record['id']
        if ids != 'missing':
            record['id'] = given[ids][number]
    truth_file.write_text(json.dumps(document))
    assert evaluate(read_annotations(truth_file), _records(ALL, kind), kind=kind).metrics['AP'] == pytest.approx(1)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('value', [None, 'missing'])
@pytest.mark.parametrize('key', ['iscrowd', 'area', 'segmentation', 'ignore'])
def test_evaluate__what_the_reader_fills_in(
    key: str, value: object, kind: Kind, backend: Backend, truth_file: Path
) -> None:
    """Objects are boxes, so the outline of a box is its mask and the area of either that of the other."""
    _require(backend)
    document = json.loads(truth_file.read_text())
    for record in document['annotations']:
        record[key] = value
        if value == 'missing':
            del record[key]
    truth_file.write_text(json.dumps(document))
    metrics = evaluate(read_annotations(truth_file), _records(ALL, kind), kind=kind, backend=backend).metrics
    assert metrics['AP'] == metrics['APm'] == pytest.approx(1)


def _records(detections: list[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """Detections with what COCO's result format has for boxes or masks."""
    if kind == 'bbox':
        return detections
    records = []
    for one in detections:
        x, y, width, height = one['bbox']
        (encoded,) = rle.frPyObjects([[x, y, x + width, y, x + width, y + height, x, y + height]], 100, 120)
        records.append({key: value for key, value in one.items() if key != 'bbox'} | {'segmentation': encoded})
    return records


@given(st.integers(0, 2**32 - 1), st.sampled_from(['bbox', 'segm']), st.sampled_from(BACKENDS))
@settings(max_examples=40)
def test_evaluate__as_pycocotools_on_well_formed_files(seed: int, kind: Kind, backend: Backend) -> None:
    """Crowds, `ignore`, areas of any size, polygons, run lengths: every number is that of pycocotools on the file."""
    _require(backend)
    random = np.random.default_rng(seed)
    document, detections = _random_file(random)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'truth.json'
        path.write_text(json.dumps(document))
        found = evaluate(read_annotations(path), _records(detections, kind), kind=kind, backend=backend)
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(path))
            evaluator = COCOeval(truth, truth.loadRes(copy.deepcopy(_records(detections, kind))), kind)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
    assert list(found.metrics.values()) == pytest.approx(evaluator.stats.tolist(), abs=1e-9)


def _random_file(random: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An annotation file of three images of 100 x 120 px, and detections near its objects."""
    annotations: list[dict[str, Any]] = []
    detections = []
    ids = random.permutation(40) + 1
    for number in range(random.integers(1, 12)):
        x, y = random.uniform(0, 100), random.uniform(0, 80)
        width, height = random.uniform(1, 120 - x), random.uniform(1, 100 - y)
        polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
        segmentation: Any = [polygon]
        if random.random() < 0.4:
            mask = np.zeros((100, 120), np.uint8, order='F')
            mask[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1] = 1
            flat = mask.ravel(order='F')
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
            runs = np.diff([0, *edges, flat.size]).tolist()
            text = rle.encode(mask)['counts'].decode()
            segmentation = {'size': [100, 120], 'counts': runs if random.random() < 0.5 else text}
        where = {'image_id': int(random.integers(3)), 'category_id': int(random.choice([3, 9]))}
        annotation = {
            **where,
            'id': int(ids[number]),
            'bbox': [x, y, width, height],
            'area': float(random.choice([width * height, 0.5, 5000, 9e4])),
            'iscrowd': int(random.random() < 0.2),
            'segmentation': segmentation,
        }
        annotations.append(annotation | ({'ignore': 1} if random.random() < 0.2 else {}))
        for _ in range(random.integers(3)):
            moved = [*(random.normal([x, y], 4).clip(0, 90)), *random.uniform(0.7, 1.2, 2) * [width, height]]
            detections.append({**where, 'bbox': list(map(float, moved)), 'score': float(random.random())})
    detections = detections or [{**where, 'bbox': [1, 1, 9, 9], 'score': 0.5}]
    images = [{'id': number, 'file_name': f'{number}.jpg', 'height': 100, 'width': 120} for number in range(3)]
    categories = [{'id': number, 'name': str(number)} for number in (3, 9)]
    return {'images': images, 'categories': categories, 'annotations': annotations}, detections
