"""Losses that look at objects, and levels of other strides, in whole runs of `mtpd-train`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# A RetinaNet as the zoo has it, with levels p3 to p7, made tiny. The teachers of these tests have p2 to p5.
RETINANET = {
    'backbone.depth': 18,
    'backbone.base_channels': 8,
    'neck.in_channels': [8, 16, 32, 64],
    'neck.out_channels': 16,
    'bbox_head.in_channels': 16,
    'bbox_head.feat_channels': 16,
}
PKD = {'loss': 'pkd', 'levels': ['p3', 'p4', 'p5', 'p6'], 'teacher_levels': ['p2', 'p3', 'p4', 'p5']}


@pytest.fixture
def distilled(
    train: Callable[..., Any],
    write_stage: Callable[..., Path],
    records: Callable[..., list[dict[str, Any]]],
    caches: dict[int, Path],
    tmp_path: Path,
) -> Callable[..., list[dict[str, float]]]:
    """`distilled(entry, ..., key=value)` trains with these losses: those of each epoch."""

    def run(*distill: dict[str, Any], **changes: Any) -> list[dict[str, float]]:
        stage = write_stage(tmp_path / 'stage.yaml', cache=caches[24], distill=list(distill), **changes)
        train(stage, '--out', tmp_path / 'run')
        trained = records(tmp_path / 'run', 'train')
        assert all('not_finite' not in one for one in trained)
        weights = torch.load(tmp_path / 'run' / 'student.pth', weights_only=True)['state_dict']
        assert not [name for name in weights if 'losses' in name or 'anchors' in name]
        return [{name: loss for name, loss in one['losses'].items() if name.startswith('distill/')} for one in trained]

    return run


def test_all_losses_that_look_at_objects(distilled: Callable[..., list[dict[str, float]]]) -> None:
    first, last = distilled(
        {
            'loss': 'fine_grained',
            'scale': 'teacher_std',
            'weight': 1.0,
            'reference': 'pyramid',
            'levels': ['p2', 'p3', 'p4'],
        },
        {'loss': 'tar_feature', 'decay': {'kind': 'linear'}},
        {'loss': 'fgd', 'levels': ['p3', 'p4', 'p5']},
        optim={'epochs': 2},
    )
    levels = {'fine_grained': 'p2 p3 p4', 'tar_feature': 'p2 p3 p4 p5', 'fgd': 'p3 p4 p5'}
    assert first.keys() == last.keys()
    assert list(first) == [f'distill/{loss}/{level}' for loss, names in levels.items() for level in names.split()]
    assert all(0 < loss < math.inf for loss in first.values())
    # The adapters and the student learn: what is left of each loss, apart from its decay.
    assert all(last[name] < first[name] for name in first)


@pytest.mark.parametrize('resize', ['student', 'teacher'])
def test_levels_by_index_as_published_for_pkd(resize: str, distilled: Callable[..., list[dict[str, float]]]) -> None:
    (losses,) = distilled(
        PKD | {'resize': resize},
        {'loss': 'fgd', 'levels': ['p6'], 'teacher_levels': ['p5'], 'resize': resize},
        {'loss': 'mgd', 'levels': ['p3']},
        student='retinanet_r18_fpn_1x_coco',
        model=RETINANET,
        data={'val': None},
    )
    pairs = 'pkd/p3-p2 pkd/p4-p3 pkd/p5-p4 pkd/p6-p5 fgd/p6-p5 mgd/p3'
    assert list(losses) == [f'distill/{pair}' for pair in pairs.split()]
    assert all(0 < loss < math.inf for loss in losses.values())


def test_what_cannot_be_built_is_said_in_one_line(
    write_stage: Callable[..., Path], train_error: Callable[..., str], caches: dict[int, Path], tmp_path: Path
) -> None:
    changes = {'student': 'retinanet_r18_fpn_1x_coco', 'model': RETINANET, 'cache': caches[24], 'distill': [PKD]}
    line = train_error(write_stage(tmp_path / 'a.yaml', **changes), '--out', tmp_path / 'run')
    assert 'cannot distil p3 of the student (stride 8) from p2 of the teacher (stride 4)' in line
    assert 'set resize to student or teacher' in line
    free = {'student': 'fcos_r50-caffe_fpn_gn-head_1x_coco', 'model': {}, 'distill': [{'loss': 'fine_grained'}]}
    line = train_error(write_stage(tmp_path / 'b.yaml', **(changes | free)), '--out', tmp_path / 'run')
    assert 'fine_grained needs the anchors of the student, and FCOS has none' in line
    assert not (tmp_path / 'run').exists()


def test_only_the_levels_that_are_compared_are_read(build_stage: Callable[..., Any], caches: dict[int, Path]) -> None:
    one = {'loss': 'pkd', 'levels': ['p4'], 'teacher_levels': ['p2'], 'resize': 'teacher'}
    stage = build_stage(cache=caches[24], distill=[one, {'loss': 'cwd', 'levels': ['p5']}])
    assert [level.name for level in stage.teacher_levels] == ['p2', 'p5']


def test_a_neck_that_rounds_its_maps_down(distilled: Callable[..., list[dict[str, float]]]) -> None:
    """p6 of HRNet's neck has 2 x 2 cells where the grid of 128 x 160 px has 2 x 3."""
    (losses,) = distilled(
        {'loss': 'masked_mse'},
        {'loss': 'fgd', 'levels': ['p6'], 'teacher_levels': ['p5'], 'resize': 'teacher'},
        model={'neck.type': 'HRFPN', 'neck.num_outs': 5, 'bbox_head.anchor_generator.strides': [4, 8, 16, 32, 64]},
        data={'val': None},
    )
    assert list(losses) == [f'distill/{one}' for one in (*(f'masked_mse/p{n}' for n in range(2, 6)), 'fgd/p6-p5')]
    assert all(0 < loss < math.inf for loss in losses.values())
