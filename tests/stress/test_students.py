"""Trains a student of every family of mmdet's zoo for two steps, alone and from a cache, and compares it with mmdet.

    MTPD_STRESS_ZOO=all python -m pytest tests/stress/test_students.py -n 2 -rx -o faulthandler_timeout=600
    MTPD_STRESS_ZOO=ssd,pvt python -m pytest tests/stress/test_students.py

A student works when plain and distilled training end, `mtpd-eval` finds what training's own evaluation found, and
mmdet's `init_detector` predicts the same boxes, scores and masks from the files that training left. Images are tiny and
weights random. The last line counts those that work as passed, and as xfailed those that are refused by one line with
the text that the table of families expects. With `-n` a crash of a process is one failure.
"""

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy as np
import pycocotools.mask
import pytest
import torch
from click.testing import CliRunner, Result

from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd.detectors.of_mmdet.runtime import known_warnings_ignored
from mtpd.detectors.of_mmdet.zoo import find_model
from mtpd.errors import MtpdError
from mtpd_extract.cli import main as mtpd_extract
from mtpd_train.cli import main as mtpd_train
from mtpd_train.evaluator.cli import main as mtpd_eval
from stress.zoo import FAMILIES, Family, selected

DEMO = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
NUM_IMAGES = 4  # of each split
# Wider ones leave rows of the deep levels that a floor would lose.
IMAGE_SIZES = ((128, 128), (96, 128))
STRIDES = (4, 8, 16, 32, 64, 128)
# SSD's levels from a stride of 100 px on have no counterpart.
TEACHER = """
_base_ = {base!r}
model = dict(
    data_preprocessor=dict(pad_size_divisor={pad_divisor}),
    neck=dict(num_outs=6),
    bbox_head=dict(num_classes={num_classes}, anchor_generator=dict(strides={strides})),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=({side}, {side}), keep_ratio={keep_ratio}),
    dict(type='PackDetInputs'),
]
"""
TOLERANCE = 1e-4  # px of boxes, and of scores
MASK_TOLERANCE = 1e-3  # share of the pixels
# Untrained detectors are sure of nothing, neither of objects nor of pixels.
LEAST = {'score_thr': 1e-5, 'filter_thr': 1e-5, 'mask_thr': 1e-2}
MOST = {'max_per_img': 20, 'nms_pre': 100}


def test_every_family_is_in_the_zoo_and_tried_once() -> None:
    assert len(FAMILIES) == len({family.config for family in FAMILIES.values()}) == 96
    assert [name for name, family in FAMILIES.items() if find_model(family.config) is None] == []


@pytest.fixture(scope='module')
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the data sets and caches of all families."""
    return tmp_path_factory.mktemp('students')


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings('default')
@pytest.mark.parametrize('name', selected(list(FAMILIES), 'retinanet', 'htc'))
def test_student(name: str, shared: Path, tmp_path: Path) -> None:
    family, plain, taught = FAMILIES[name], tmp_path / 'plain', tmp_path / 'taught'
    coco = make_set(shared, num_classes=family.num_classes)
    cache = make_cache(shared, coco, family)
    try:
        geometry = {'scale': [family.side] * 2, 'keep_ratio': family.keep_ratio, 'pad_divisor': family.pad_divisor}
        result = train(family, plain, coco, data={'geometry': geometry})
        if family.refusal is not None and not family.plain_works:
            require_refused(result, family.refusal)
        require_done(result)
        result = train(family, taught, coco, cache=str(cache), distill=[{'loss': 'masked_mse'}])
        if family.refusal is not None:
            compare(plain)
            require_refused(result, family.refusal)
        require_done(result)
        require_distilled(taught)
        assert compare(taught), 'nothing was detected, so there is nothing to compare'
    finally:
        for checkpoint in tmp_path.rglob('*.pth'):  # up to 2 GB
            checkpoint.unlink()


def make_set(folder: Path, *, num_classes: int) -> Path:
    """A COCO-format set of so many classes; made unless it is there."""
    coco = folder / f'shapes{num_classes}'
    if coco.is_dir():
        return coco
    make_synthetic_set(coco, SyntheticSpec(num_train=NUM_IMAGES, num_val=NUM_IMAGES, num_empty=0, sizes=IMAGE_SIZES))
    for path in (coco / 'annotations').glob('instances_*.json'):
        content = json.loads(path.read_text())
        content['categories'] = [{'id': number + 1, 'name': f'class{number}'} for number in range(num_classes)]
        for one in content['annotations']:
            one['category_id'] = 1 + one['id'] % num_classes
        path.write_text(json.dumps(content))
    return coco


def make_cache(folder: Path, coco: Path, family: Family) -> Path:
    """The cache of a teacher that takes images as a family does; made unless it is there."""
    geometry = f'{family.side}_{family.pad_divisor}_{"fit" if family.keep_ratio else "square"}'
    cache = folder / f'cache{family.num_classes}_{geometry}'
    if cache.is_dir():
        return cache
    config, weights = cache.with_suffix('.py'), cache.with_suffix('.pth')
    values = {name: getattr(family, name) for name in ('side', 'pad_divisor', 'num_classes', 'keep_ratio')}
    config.write_text(TEACHER.format(base=str(DEMO), strides=list(STRIDES), **values))
    torch.manual_seed(0)
    torch.save({'state_dict': build_detector(load_config(str(config))).state_dict()}, weights)
    options = ['--coco', coco, '--out', cache, '--codec', 'fp16', '--views', 'plain', '--device', 'cpu']
    require_done(invoke(mtpd_extract, '--teacher', config, '--checkpoint', weights, *options))
    return cache


def train(family: Family, run: Path, coco: Path, **changes: Any) -> Result:
    stage: dict[str, Any] = {
        'student': family.config,
        'model': dict(family.changes) | few_detections(family),
        'init': {'backbone': 'none'},
        'data': {'coco': str(coco), 'batch_size': 2, 'workers': 0, 'flip': 0.0},
        # Small, so that no untrained network diverges.
        'optim': {'type': 'adamw', 'lr': 1e-5, 'epochs': 1, 'grad_clip': 1.0},
    }
    for key, value in changes.items():
        stage[key] = stage[key] | value if key in stage else value
    path = run.with_suffix('.yaml')
    path.write_text(json.dumps(stage))
    return invoke(mtpd_train, path, '--out', run, '--device', 'cpu', '-v')


def invoke(command: click.Command, *arguments: object) -> Result:
    """Runs a program; its output is shown if the test fails."""
    with known_warnings_ignored():
        result = CliRunner().invoke(command, [str(one) for one in arguments])
    print(result.output)
    return result


def few_detections(family: Family) -> dict[str, Any]:
    try:
        model = load_config(family.config).model
    except MtpdError:  # which the run will say
        return {}
    return dict(lowered(model, ''))


def lowered(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in LEAST and isinstance(value, float):
                yield path + key, LEAST[key]
            elif key in MOST and isinstance(value, int):
                yield path + key, min(MOST[key], value)
            else:
                yield from lowered(value, f'{path}{key}.')


def error_of(result: Result) -> str:
    """The program's one line, or what it raised."""
    lines = [line for line in result.stderr.splitlines() if line.startswith('Error: ')]
    return lines[-1].removeprefix('Error: ') if lines else repr(result.exception)


def require_refused(result: Result, refusal: str) -> None:
    line = error_of(result)
    assert result.exit_code == 1, f'expected a refusal with {refusal!r}, but it ended with {result.exit_code}'
    assert refusal in line, line
    assert 'this is a bug' not in line, line
    pytest.xfail(f'refused: {line}')


def require_done(result: Result) -> None:
    assert result.exit_code == 0, error_of(result)


def require_distilled(run: Path) -> None:
    assert any(name.startswith('distill/') for record in records_of(run) for name in record.get('losses', {}))
    assert not any('not_finite' in record for record in records_of(run)), 'a loss was not finite'


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]


def compare(run: Path) -> int:
    """Compares the student as trained, as mtpd-eval loads it, and as mmdet does; gives the number of detections."""
    results, numbers = run / 'results.json', run / 'numbers.json'
    options = ['--results', results, '--json', numbers, '--batch-size', 1, '--workers', 0, '--device', 'cpu', '-v']
    require_done(invoke(mtpd_eval, run, *options))
    trained = [record['metrics'] for record in records_of(run) if 'metrics' in record][-1]
    assert json.loads(numbers.read_text())['metrics'] == pytest.approx(trained, abs=TOLERANCE)
    ours = json.loads(results.read_text())
    for image_id, theirs in found_by_mmdet(run).items():
        require_equal([one for one in ours if one['image_id'] == image_id], theirs, image_id=image_id)
    return len(ours)


def found_by_mmdet(run: Path) -> dict[int, list[dict[str, Any]]]:
    """What mmdet's own functions find in each image, as COCO results."""
    from mmdet.apis import inference_detector, init_detector
    from mmengine.logging import MMLogger

    with known_warnings_ignored(), redirect_stdout(io.StringIO()):
        model = init_detector(str(run / 'student_config.py'), str(run / 'student.pth'), device='cpu')
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    dataset = model.cfg.test_dataloader.dataset
    found = {}
    for image in json.loads(Path(dataset.ann_file).read_text())['images']:
        with known_warnings_ignored():
            instances = inference_detector(model, str(Path(dataset.data_prefix['img']) / image['file_name']))
        instances = instances.pred_instances.cpu().numpy()
        boxes = zip(instances.labels, instances.scores, instances.bboxes.tolist(), strict=True)
        records = [
            {'category_id': int(label) + 1, 'score': float(score), 'bbox': [x1, y1, x2 - x1, y2 - y1]}
            for label, score, (x1, y1, x2, y2) in boxes
        ]
        for record, mask in zip(records, instances.get('masks', []), strict=False):
            record['mask'] = mask
        found[image['id']] = records
    return found


def require_equal(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], *, image_id: int) -> None:
    """Each of our detections must be one of mmdet's; ties may be ordered in any way."""
    assert len(ours) == len(theirs), f'detections in image {image_id}'
    for one in ours:
        distances = [distance(one, other) for other in theirs]
        assert min(distances) <= TOLERANCE, f'a detection in image {image_id} is off what mmdet finds'
        assert ('segmentation' in one) == ('mask' in theirs[0]), f'image {image_id}: one predicts masks, one does not'
        if 'segmentation' in one:
            mask = pycocotools.mask.decode(one['segmentation']).astype(bool)
            near = [other['mask'] for other, off in zip(theirs, distances, strict=True) if off <= TOLERANCE]
            different = min(np.mean(mask != other) for other in near)
            assert different <= MASK_TOLERANCE, f'a mask in image {image_id} is another one than mmdet finds'


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    if one['category_id'] != other['category_id']:
        return np.inf
    pairs = zip([one['score'], *one['bbox']], [other['score'], *other['bbox']], strict=True)
    return float(max(abs(a - b) for a, b in pairs))
