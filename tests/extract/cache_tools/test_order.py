"""`mtpd-cache order` on caches of tiny teachers whose relation is known."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

import mtpd.cache
from mtpd.ordering import Sampling, adaptation_costs

Run = Callable[..., Result]

# Three levels as the tiny teacher's: its own maps, linearly mixed, with noise of the size that the checkpoint says.
RELATIVE = """
import torch
from torch import nn

from tiny import Tiny


class Relative(nn.Module):
    scale, mean, std, pad_value = Tiny.scale, Tiny.mean, Tiny.std, Tiny.pad_value

    def __init__(self, noise):
        super().__init__()
        self.tiny, self.noise = Tiny(0.0), noise
        self.mixes = nn.ModuleList(nn.Conv2d(count, 9, 1) for count in (12, 16, 8))

    def features(self, images):
        maps = []
        for map, mix in zip(self.tiny.features(images), self.mixes):
            mixed = mix(map)
            seeds = [int(1000 * image.abs().mean() + 10 * self.noise) for image in images]
            noise = [torch.randn(mixed.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            maps.append(100 * (mixed + self.noise * mixed.std((2, 3), keepdim=True) * torch.stack(noise)))
        return maps


def build(checkpoint):
    torch.manual_seed(5)
    return Relative(torch.load(checkpoint, weights_only=True)['noise'])
"""


@pytest.fixture(scope='module')
def caches(
    tmp_path_factory: pytest.TempPathFactory, teacher_file: Path, make_command: Any, synthetic_set: Path, whole: Path
) -> Path:
    """A folder of caches: `tiny`, and `near` and `far` whose maps are its own with little and much noise."""
    folder = tmp_path_factory.mktemp('order')
    shutil.copytree(whole, folder / 'tiny')
    code = RELATIVE.replace('from tiny import Tiny', teacher_file.read_text().split('def build')[0])
    (folder / 'relative.py').write_text(code)
    command = make_command(f'{folder / "relative.py"}:build', synthetic_set)
    for name, noise in (('near', 0.1), ('far', 1.0)):
        torch.save({'noise': noise}, folder / f'{name}.pth')
        command.run(folder / name, '--checkpoint', folder / f'{name}.pth')
    return folder


def report(result: Result) -> dict[str, Any]:
    """The JSON object that was printed."""
    return dict(json.loads(result.stdout))


def cost(found: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    (entry,) = [one for one in found['costs'] if (one['from'], one['to']) == (source, target)]
    return dict(entry)


def test_the_order(mtpd_cache: Run, caches: Path) -> None:
    names = ['near', 'far', 'tiny']
    found = report(mtpd_cache('order', *[caches / name for name in names], '--last', 'far', '--json'))
    assert found['teachers'] == names
    assert found['images'] == 24
    assert found['views'] == ['plain', 'flip']
    assert [level['level'] for level in found['levels']] == ['p3', 'p4', 'p5']
    # The noise is all that a linear map cannot give.
    assert cost(found, 'tiny', 'near')['cost'] < 0.1
    assert 0.3 < cost(found, 'tiny', 'far')['cost'] < 0.9
    assert cost(found, 'near', 'far')['cost'] != cost(found, 'far', 'near')['cost']
    for one in found['costs']:
        assert one['cost'] == pytest.approx(sum(one['levels'].values()) / 3)
        assert 0 < one['error'] < 0.1
    assert found['order'] == ['near', 'tiny', 'far']
    assert len(found['reasons']) == 3
    assert 0.5 < found['same_order'] <= 1


def test_only_cells_of_the_image_count(mtpd_cache: Run, caches: Path) -> None:
    cache = mtpd.cache.open(caches / 'tiny')
    cells = 0
    for image_id in cache.image_ids:
        height, width = cache.sizes(image_id).resized
        cells += 2 * -(-height // 8) * -(-width // 8)
    assert any(cache.sizes(image_id).resized != cache.sizes(image_id).padded for image_id in cache.image_ids)
    found = report(mtpd_cache('order', caches / 'tiny', caches / 'near', '--json', '--resamples', 0))
    assert found['levels'][0]['cells'] == cells
    assert cost(found, 'tiny', 'near')['error'] is None
    few = report(mtpd_cache('order', caches / 'tiny', caches / 'near', '--json', '--num-images', 5, '--num-cells', 3))
    assert [level['cells'] for level in few['levels']] == [30, 30, 30]
    assert few['thin_levels'] == ['p3', 'p4', 'p5']


def test_a_student_leaves_out_what_is_no_step(mtpd_cache: Run, caches: Path, tmp_path: Path) -> None:
    teachers = [caches / 'far', caches / 'near']
    plot = tmp_path / 'order.png'
    text = mtpd_cache('order', *teachers, '--student-cache', caches / 'tiny', '--plot', plot).stdout
    assert text.splitlines()[-1] == 'order: tiny -> near'
    assert 'far is not a candidate before near: the student reaches near' in text
    assert text.count('+-') == 4
    text = mtpd_cache('order', *teachers, '--student-cache', caches / 'tiny', '--rule', 'all').stdout
    assert text.splitlines()[-1] == 'order: tiny -> far -> near'
    with Image.open(plot) as picture:
        assert picture.format == 'PNG'
        assert len(np.unique(np.asarray(picture).reshape(-1, 4), axis=0)) > 50


def test_the_most_accurate_is_last(mtpd_cache: Run, caches: Path) -> None:
    options = ['--ap', 'near=41', '--ap', 'far=40', '--ap', 'tiny=39.5']
    found = report(mtpd_cache('order', *[caches / name for name in ('near', 'far', 'tiny')], *options, '--json'))
    assert found['order'][-1] == 'near'
    found = report(
        mtpd_cache('order', *[caches / name for name in ('near', 'tiny')], '--ap', 'near=1', '--last', 'tiny', '--json')
    )
    assert found['order'] == ['near', 'tiny']


def test_a_seed_gives_the_same_errors(caches: Path) -> None:
    opened = [mtpd.cache.open(caches / name) for name in ('tiny', 'near')]
    first, again, other = (
        adaptation_costs(opened, opened[0].image_ids, sampling=Sampling(num_resamples=10, seed=seed)).resampled
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    one_image = adaptation_costs(opened, opened[0].image_ids[:1])
    assert one_image.deviations is None


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--limit', 20], 'hold different images (24 and 20): image'),
        (['--scale', '96x96'], 'at different sizes: resized 128x'),
        (['--split', 'val2017'], 'hold different images (24 and 8)'),
        (['--levels', 'p3', '--views', 'plain'], None),
    ],
)
def test_caches_that_do_not_fit(
    mtpd_cache: Run, command: Any, caches: Path, tmp_path: Path, options: list[object], message: str | None
) -> None:
    command.run(tmp_path / 'other', *options)
    if message is None:
        found = report(mtpd_cache('order', caches / 'near', tmp_path / 'other', '--json'))
        assert [level['level'] for level in found['levels']] == ['p3']
        assert found['views'] == ['plain']
        return
    error = mtpd_cache('order', caches / 'near', tmp_path / 'other', code=1).stderr
    assert message in error
    assert len(error.splitlines()) == 1


def test_caches_without_a_common_level(mtpd_cache: Run, command: Any, tmp_path: Path) -> None:
    for level in ('p3', 'p4'):
        command.run(tmp_path / level, '--levels', level)
    error = mtpd_cache('order', tmp_path / 'p3', tmp_path / 'p4', code=1).stderr
    assert 'the caches have no common level' in error


def test_another_annotation_file(
    mtpd_cache: Run, command: Any, caches: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    content = json.loads((synthetic_set / 'annotations' / 'instances_train2017.json').read_text())
    (tmp_path / 'other.json').write_text(json.dumps(content | {'info': {'description': 'another'}}))
    images = ('--images', synthetic_set / 'train2017', '--annotations', tmp_path / 'other.json')
    command.run(tmp_path / 'other', *images)
    error = mtpd_cache('order', caches / 'near', tmp_path / 'other', code=1).stderr
    assert 'were extracted with different annotation files' in error


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--last', 'x101'], '--last x101: is not one of the teachers; give one of near, far'),
        (['--ap', 'x101=40'], '--ap x101=40: does not name any of the caches'),
        (['--ap', 'near=high'], "--ap near=high: 'high' is not a number"),
        (['--ap', 'near=40'], '--ap: missing for far, so the strongest teacher is not known'),
        (['--plot', '{}/order.jpg'], 'the picture is a PNG file'),
        (['--plot', '/dev/null/order.png'], 'cannot be written'),
        (['--student-cache', '{}/near'], 'a cache is given twice'),
    ],
)
def test_refusals(mtpd_cache: Run, caches: Path, options: list[str], message: str) -> None:
    given = [option.format(caches) for option in options]
    error = mtpd_cache('order', caches / 'near', caches / 'far', *given, code=1).stderr
    assert message in error
    assert len(error.splitlines()) == 1


def test_one_cache_has_no_order(mtpd_cache: Run, caches: Path) -> None:
    assert 'an order needs at least two caches' in mtpd_cache('order', caches / 'near', code=2).stderr
