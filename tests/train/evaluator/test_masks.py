"""`mtpd-eval` on a student that gives masks."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mtpd.detectors.of_mmdet.runtime import known_warnings_ignored
from mtpd_train.evaluator.cli import main

Records = Callable[..., list[dict[str, Any]]]
TINY_MASK_RCNN: dict[str, Any] = {
    'student': 'mask-rcnn_r50_fpn_1x_coco',
    'model': {
        'backbone.depth': 18,
        'backbone.base_channels': 8,
        'neck.in_channels': [8, 16, 32, 64],
        'neck.out_channels': 16,
        'rpn_head.in_channels': 16,
        'rpn_head.feat_channels': 16,
        'roi_head.bbox_roi_extractor.out_channels': 16,
        'roi_head.bbox_head.in_channels': 16,
        'roi_head.bbox_head.fc_out_channels': 32,
        'roi_head.mask_roi_extractor.out_channels': 16,
        'roi_head.mask_head.in_channels': 16,
        'roi_head.mask_head.conv_out_channels': 16,
        'roi_head.mask_head.num_convs': 1,
        'test_cfg.rpn.max_per_img': 20,
        'test_cfg.rcnn.score_thr': 0.01,
    },
}


def evaluated(*arguments: object) -> Result:
    with known_warnings_ignored():
        return CliRunner().invoke(main, [str(one) for one in arguments] + ['--workers', '0', '-q'])


def spoil(path: Path) -> None:
    """Makes every other object one of an odd kind, in turns."""
    document = json.loads(path.read_text())
    sizes = {one['id']: [one['height'], one['width']] for one in document['images']}
    for number, one in enumerate(document['annotations'][::2]):
        height, width = sizes[one['image_id']]
        kinds: list[dict[str, Any]] = [
            {'segmentation': None, 'iscrowd': None, 'area': None},
            {'segmentation': [], 'bbox': [-1e8, -1e8, 1e9, 1e9], 'area': 1e18},
            {'segmentation': [[5, 5, 9, 9]], 'id': 0},
            {'segmentation': [[5, 5, 30, 5, 30, 30], [1, 2, 3, 4]], 'ignore': None},
            {'segmentation': {'size': [height, width], 'counts': [9, 200, height * width - 209]}, 'iscrowd': 1},
            {'segmentation': {}, 'iscrowd': True},
        ]
        one.update(kinds[number % len(kinds)])
    path.write_text(json.dumps(document))


def test_masks(
    train: Callable[..., Any],
    write_stage: Callable[..., Path],
    records: Records,
    synthetic_set: Path,
    tmp_path: Path,
) -> None:
    """Boxes and masks, of objects with all kinds of masks and without; on a set without masks, boxes alone."""
    coco = tmp_path / 'coco'
    shutil.copytree(synthetic_set, coco)
    for split in ('train2017', 'val2017'):
        spoil(coco / 'annotations' / f'instances_{split}.json')
    stage = write_stage(tmp_path / 'stage.yaml', **TINY_MASK_RCNN, data={'coco': str(coco)})
    result = train(stage, '--out', tmp_path / 'run')
    assert re.search(r'instances_val2017.json: of \d+ objects \d+ without a mask', result.stdout)
    recorded = records(tmp_path / 'run', 'evaluation')[-1]['metrics']
    out, results = tmp_path / 'scores.json', tmp_path / 'results.json'
    assert evaluated(tmp_path / 'run', '--json', out, '--results', results).exit_code == 0
    assert json.loads(out.read_text())['metrics'] == pytest.approx(recorded, abs=1e-6)
    detections = json.loads(results.read_text())
    assert detections
    assert all({'bbox', 'segmentation'} <= record.keys() for record in detections)
    assert 'mask/AP' in recorded

    document = json.loads((synthetic_set / 'annotations' / 'instances_val2017.json').read_text())
    for one in document['annotations']:
        del one['segmentation']
    boxes_only = tmp_path / 'boxes.json'
    boxes_only.write_text(json.dumps(document))
    result = evaluated(tmp_path / 'run', '--images', synthetic_set / 'val2017', '--annotations', boxes_only)
    assert result.exit_code == 0, result.output
    assert 'masks are not evaluated' in result.stdout
