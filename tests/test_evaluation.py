"""COCO average precision."""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any, get_args

import pytest

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
    metrics = evaluate(folder / truth, json.loads((folder / results).read_text()), kind=kind, backend=backend).metrics
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
        evaluate(real_dir / 'golden_eval' / truth, detections, kind=kind, backend=backend).class_ap
        for backend in BACKENDS
    )
    assert list(one) == list(other)
    assert len(one) == 80
    assert one == pytest.approx(other, abs=1e-9)


@pytest.mark.real
def test_evaluate__ap_is_the_mean_over_classes(real_dir: Path) -> None:
    truth, results, kind = GOLDEN['nanodet_m320_coco_small_val']
    folder = real_dir / 'golden_eval'
    found = evaluate(folder / truth, json.loads((folder / results).read_text()), kind=kind)
    present = [value for value in found.class_ap.values() if value >= 0]
    assert sum(present) / len(present) == pytest.approx(found.metrics['AP'], abs=1e-9)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
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


def detection(image: int, category: int, x: float, score: float = 0.9) -> dict[str, Any]:
    return {'image_id': image, 'category_id': category, 'bbox': [x, 10, 40, 40], 'score': score}


ALL = [detection(5, 3, 1), detection(5, 9, 60), detection(8, 3, 20)]


def test_evaluate__perfect(truth: Path) -> None:
    before = copy.deepcopy(ALL)
    metrics = evaluate(truth, ALL).metrics
    assert metrics['AP'] == metrics['AP50'] == metrics['APm'] == metrics['AR100'] == pytest.approx(1)
    assert metrics['APs'] == metrics['APl'] == -1  # no such object
    assert before == ALL


def test_evaluate__by_hand(truth: Path) -> None:
    """One shifted box of IoU 30 / 50 = 0.6 counts at the thresholds 0.5, 0.55 and 0.6 only: category b has AP 0.3."""
    metrics = evaluate(truth, [ALL[0], detection(5, 9, 70), ALL[2]]).metrics
    assert metrics['AP'] == pytest.approx((1 + 0.3) / 2)
    assert metrics['AP50'] == pytest.approx(1)
    assert metrics['AP75'] == pytest.approx(0.5)


def test_evaluate__class_ap(truth: Path) -> None:
    assert evaluate(truth, [ALL[0], detection(5, 9, 70), ALL[2]]).class_ap == pytest.approx({'a': 1, 'b': 0.3})
    assert evaluate(truth, [ALL[2]], image_ids=[8]).class_ap == pytest.approx({'a': 1, 'b': -1})  # no b there


def test_evaluate__two_categories_of_one_name(truth: Path) -> None:
    truth.write_text(truth.read_text().replace('"name": "b"', '"name": "a"'))
    assert evaluate(truth, ALL).class_ap == pytest.approx({'a (3)': 1, 'a (9)': 1})


def test_evaluate__backend_that_is_not_installed(truth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UnavailableError, match=r'faster-coco-eval, which is not installed: pip install "mtpd\[faster'):
        evaluate(truth, ALL, backend='faster')


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_evaluate__nothing_detected(truth: Path, kind: Kind, backend: Backend) -> None:
    _require(backend)
    metrics = evaluate(truth, [], kind=kind, backend=backend).metrics
    assert {metrics[name] for name in METRICS} == {0, -1}
    assert metrics['AP'] == metrics['AP50'] == metrics['AR100'] == 0


def test_evaluate__some_images(truth: Path) -> None:
    assert evaluate(truth, [ALL[2]]).metrics['AR100'] == pytest.approx(0.25)  # half of category a, none of b
    assert evaluate(truth, [ALL[2]], image_ids=[8, 8]).metrics['AP'] == pytest.approx(1)
    assert evaluate(truth, ALL, image_ids=[8]).metrics['AP'] == pytest.approx(1)
    assert evaluate(truth, [ALL[2]], image_ids=[5]).metrics['AP'] == 0


def test_evaluate__unknown_image(truth: Path) -> None:
    with pytest.raises(InputError, match='no image 6'):
        evaluate(truth, [detection(6, 3, 1)])
    with pytest.raises(InputError, match='no image 7'):
        evaluate(truth, ALL, image_ids=[5, 7])


def test_evaluate__mask_is_rated_by_its_own_size(truth: Path) -> None:
    """A detection may carry a box beside its mask; with the box's size, the false mask would not count as medium."""
    from pycocotools import mask as rle

    records = []
    for record in [*ALL, detection(5, 3, 79, score=0.95)]:
        x = record['bbox'][0]
        (encoded,) = rle.frPyObjects([[x, 10, x + 40, 10, x + 40, 50, x, 50]], 100, 120)
        records.append({**record, 'bbox': [x, 10, 1, 1], 'segmentation': encoded})
    metrics = evaluate(truth, records, kind='segm').metrics
    # One false before two true ones: precision 2 / 3 at best for category a, 1 for b.
    assert metrics['AP'] == metrics['APm'] == pytest.approx((2 / 3 + 1) / 2)
