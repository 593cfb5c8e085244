"""`mtpd-cache fidelity` says what is true of the stored maps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import mtpd.cache

Run = Callable[..., Result]


def numbers(result: Result) -> dict[str, Any]:
    """The JSON object that was printed."""
    return dict(json.loads(result.stdout))


def test_errors_are_those_that_the_maps_were_stored_with(mtpd_cache: Run, whole: Path, synthetic_set: Path) -> None:
    report = numbers(mtpd_cache('fidelity', whole, '--coco', synthetic_set, '--no-ap', '--json'))
    cache = mtpd.cache.open(whole)
    assert report['images'] == len(cache)
    assert report['source'] == 'stored maps'
    assert [(row['view'], row['level']) for row in report['views']] == [
        (view, level.name) for view in cache.views for level in cache.levels
    ]
    for row in report['views']:
        errors = [cache.errors(image_id, row['view'])[row['level']] for image_id in cache.image_ids]
        assert row['mean_error'] == pytest.approx(sum(errors) / len(errors), rel=1e-3)
        assert row['worst_error'] == pytest.approx(max(errors), rel=1e-3)
        assert 0.9999 <= row['worst_cosine'] <= row['mean_cosine'] <= 1


def test_the_mirror_test(mtpd_cache: Run, whole: Path, synthetic_set: Path) -> None:
    report = numbers(mtpd_cache('fidelity', whole, '--coco', synthetic_set, '--no-ap', '--json'))
    cache = mtpd.cache.open(whole)
    for row in report['mirrored']:
        pairs = [
            (
                cache.read(image_id)[row['level']].flip(-1).flatten(),
                cache.read(image_id, 'flip')[row['level']].flatten(),
            )
            for image_id in cache.image_ids
        ]
        cosines = torch.stack([torch.cosine_similarity(first, second, dim=0) for first, second in pairs])
        assert row['mean_cosine'] == pytest.approx(cosines.mean().item(), abs=1e-4)
        assert row['worst_cosine'] == pytest.approx(cosines.min().item(), abs=1e-4)


def test_another_annotated_set_goes_through_the_codec(
    mtpd_cache: Run, command: Any, synthetic_set: Path, tmp_path: Path
) -> None:
    command.run(tmp_path / 'cache', '--codec', 'lean', '--error', 0.1)
    options = ('--coco', synthetic_set, '--split', 'val2017', '--num-images', 3, '--no-ap', '--json')
    report = numbers(mtpd_cache('fidelity', tmp_path / 'cache', *options))
    assert report['images'] == 3
    assert report['source'].startswith("the cache's codec (lean)")
    assert all(0.08 <= row['worst_error'] <= 0.1001 for row in report['views'])


def test_the_table(mtpd_cache: Run, whole: Path, synthetic_set: Path) -> None:
    text = mtpd_cache('fidelity', whole, '--coco', synthetic_set, '--num-images', 2, '--no-ap').stdout
    assert text.startswith('2 images, stored maps, against the live teacher\n')
    assert 'plain map, mirrored' in text
    assert 'AP' not in text


def test_an_mmdet_teacher_on_real_images(mtpd_cache: Run, make_command: Any, real_dir: Path, tmp_path: Path) -> None:
    config, checkpoint = (real_dir / 'teachers' / f'yolox_nano_mmdet.{suffix}' for suffix in ('py', 'pth'))
    coco = ('--coco', real_dir / 'coco_mini', '--split', 'val2017')
    make_command(config, real_dir / 'coco_mini').run(
        tmp_path / 'cache', '--checkpoint', checkpoint, '--split', 'val2017', '--limit', 16, '--views', 'plain'
    )
    report = numbers(mtpd_cache('fidelity', tmp_path / 'cache', '--checkpoint', checkpoint, *coco, '--json'))
    assert report['ap']['live'] > 20
    assert abs(report['ap']['live'] - report['ap']['stored']) < 1
    assert report['mirrored'] == []


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--no-ap', '--checkpoint', 'other.pth'), 'made by a teacher with different weights than'),
        (('--no-ap', '--pad-divisor', '64'), 'its geometry is'),
        ((), 'has no head to evaluate'),
    ],
)
def test_refusals(
    mtpd_cache: Run, whole: Path, synthetic_set: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    torch.save({'shift': 0.5}, tmp_path / 'other.pth')
    given = [str(tmp_path / one) if one == 'other.pth' else one for one in options]
    error = mtpd_cache('fidelity', whole, '--coco', synthetic_set, *given, code=1).stderr
    assert message in error
    assert len(error.splitlines()) == 1
