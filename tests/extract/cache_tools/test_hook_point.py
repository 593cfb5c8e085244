"""A cache knows where its teacher's maps were taken: no others go into it, and the teacher's head understands them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import mtpd.cache
from mtpd.detectors.of_mmdet.models import build_detector, load_config

CHANNELS = ('bbox_head.in_channels', 'bbox_head.feat_channels', 'bbox_head.point_feat_channels')
CHANGES = {
    'backbone.depth': 18,
    'backbone.base_channels': 8,
    'neck.in_channels': [8, 16, 32, 64],
    'neck.out_channels': 16,
    'neck.norm_cfg.num_groups': 4,
    'bbox_head.norm_cfg.num_groups': 4,
    'bbox_head.num_classes': 6,
    'test_cfg.score_thr': 0.0,
    **dict.fromkeys(CHANNELS, 16),
}


@pytest.fixture(scope='module')
def reppoints(tmp_path_factory: pytest.TempPathFactory, make_command: Any, synthetic_set: Path) -> Any:
    """Extracts a RepPoints of random weights, whose neck ends in norms."""
    folder = tmp_path_factory.mktemp('reppoints')
    config = load_config('reppoints-moment_r50_fpn-gn_head-gn_1x_coco')
    config.merge_from_dict({f'model.{key}': value for key, value in CHANGES.items()})
    config.dump(folder / 'reppoints.py')
    torch.manual_seed(0)
    state = build_detector(config).state_dict()
    # A fresh norm leaves its maps at one scale for all channels.
    scales = {name: value * torch.rand_like(value) for name, value in state.items() if name.endswith('gn.weight')}
    torch.save(state | scales, folder / 'reppoints.pth')
    options = ('--checkpoint', folder / 'reppoints.pth', '--scale', '64x64', '--limit', 6, '--codec', 'fp16')
    return make_command(folder / 'reppoints.py', synthetic_set, options)


@pytest.fixture(scope='module')
def caches(tmp_path_factory: pytest.TempPathFactory, reppoints: Any) -> dict[str, Path]:
    """Caches by what --hook said."""
    folder = tmp_path_factory.mktemp('caches')
    found = {}
    for hook in ('auto', 'before-norm', 'neck'):
        found[hook] = folder / hook
        reppoints.run(found[hook], '--hook', hook)
    return found


def hook_point(cache: Path) -> Any:
    teacher: Any = mtpd.cache.open(cache).manifest.description.fingerprint['teacher']
    return teacher['hook_point']


def test_the_cache_of_a_neck_with_norms(caches: dict[str, Path]) -> None:
    assert {hook: hook_point(cache) for hook, cache in caches.items()} == {
        'auto': 'neck.fpn_convs.conv',
        'before-norm': 'neck.fpn_convs.conv',
        'neck': 'neck',
    }
    auto, before, behind = (mtpd.cache.open(cache).read(1) for cache in caches.values())
    assert all(torch.equal(auto[name], before[name]) for name in auto)
    assert not any(torch.allclose(auto[name], behind[name], atol=0.1) for name in auto)


@pytest.mark.parametrize('hook', ['auto', 'neck'])
def test_fidelity_takes_the_live_maps_at_the_hook_point_of_the_cache(
    hook: str, caches: dict[str, Path], mtpd_cache: Callable[..., Result], reppoints: Any, synthetic_set: Path
) -> None:
    options = ('--coco', synthetic_set, *reppoints.options[:2])
    report = json.loads(mtpd_cache('fidelity', caches[hook], *options, '--json').stdout)
    assert all(row['worst_error'] < 1e-6 for row in report['views'])
    assert report['ap']['live'] == pytest.approx(report['ap']['stored'], abs=0.1)


def test_an_extraction_does_not_go_on_at_another_hook_point(caches: dict[str, Path], reppoints: Any) -> None:
    error = reppoints.error(caches['auto'], '--hook', 'neck')
    assert 'fingerprint.teacher.hook_point is neck.fpn_convs.conv there and neck here' in error
    error = reppoints.error(caches['neck'])
    assert 'fingerprint.teacher.hook_point is neck there and neck.fpn_convs.conv here' in error
    assert 'nothing to do' in reppoints.run(caches['auto']).output


def test_teachers_without_norms(command: Any, tmp_path: Path) -> None:
    error = command.error(tmp_path / 'cache', '--hook', 'before-norm')
    assert 'hook before-norm' in error
    assert 'remove the option' in error
