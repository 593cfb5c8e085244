"""Copies of caches: everything is the same bytes, a part is a cache of its own with the same maps."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mtpd.cache
from mtpd.cache.checking import read_state, verify
from mtpd.cache.copying import Selection, copy_groups, copy_writer, require_room
from mtpd.cache.format.arrays import RoisRecord
from mtpd.cache.writing.remote_destination import destination_of
from mtpd.errors import CacheDamagedError, CacheIncompleteError, CacheMismatchError, InputError, UnavailableError
from stress.damages import contents

EVERYTHING = Selection()
ROIS = RoisRecord(num_rois=5, num_classes=3)


def copied(root: Path | str, out: Path | str, selection: Selection = EVERYTHING, *, num_groups: int = 99) -> list[int]:
    """Copies up to `num_groups` groups; returns the numbers of images that were reported."""
    source = mtpd.cache.open(root)
    told: list[int] = []
    with copy_writer(source, destination_of(out), selection) as writer:
        copy_groups(source, writer, advance=told.append, stop=lambda: len(told) >= num_groups)
    return told


@pytest.fixture(params=['fp16', 'int8', 'lean'])
def recipe_with_rois(request: pytest.FixtureRequest, make_recipe: Callable[..., Any]) -> Any:
    return make_recipe(codec=request.param, rois=ROIS)


def test_everything_is_the_same_bytes(recipe_with_rois: Any, tmp_path: Path) -> None:
    recipe_with_rois.write(tmp_path / 'cache')
    assert sum(copied(tmp_path / 'cache', tmp_path / 'copy')) == len(recipe_with_rois.images)
    assert contents(tmp_path / 'copy') == contents(tmp_path / 'cache')
    assert copied(tmp_path / 'cache', tmp_path / 'copy') == []  # complete already


PARTS = {
    'a level': Selection(levels=('p4',)),
    'a view': Selection(views=('flip',)),
    'images': Selection(image_ids=(100, 93, 95, 90), data={'annotations': 'abc'}, provenance={'annotations': 'b.json'}),
    'all three': Selection(levels=('p3',), views=('plain',), image_ids=(97,)),
}


@pytest.mark.parametrize('selection', PARTS.values(), ids=PARTS.keys())
def test_a_part_is_a_cache_of_its_own(selection: Selection, recipe_with_rois: Any, tmp_path: Path) -> None:
    recipe_with_rois.write(tmp_path / 'cache')
    copied(tmp_path / 'cache', tmp_path / 'copy', selection)
    source, copy = mtpd.cache.open(tmp_path / 'cache'), mtpd.cache.open(tmp_path / 'copy')
    assert set(copy.image_ids) == set(selection.image_ids or source.image_ids)
    assert [one.name for one in copy.levels] == list(selection.levels or ('p3', 'p4'))
    assert copy.views == (selection.views or source.views)
    for image_id in copy.image_ids:
        assert copy.sizes(image_id) == source.sizes(image_id)
        for view in copy.views:
            maps, wanted = copy.read(image_id, view), source.read(image_id, view, levels=selection.levels)
            torch.testing.assert_close(maps, wanted, rtol=0, atol=0)
            errors = source.errors(image_id, view)
            assert copy.errors(image_id, view) == {name: errors[name] for name in maps}
        for one, other in zip(copy.rois(image_id), source.rois(image_id), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(copy.teacher_weights()['neck.weight'], source.teacher_weights()['neck.weight'])
    assert not list(verify(read_state(tmp_path / 'copy'), num_threads=1, advance=lambda _: None))
    before, after = (one.manifest.description for one in (source, copy))
    assert after.fingerprint['copied_from'] != before.fingerprint
    assert after.fingerprint.get('data', {}) == dict(selection.data or {})
    assert after.provenance == before.provenance | dict(selection.provenance or {})


def test_a_copy_that_was_stopped_resumes(recipe_with_rois: Any, tmp_path: Path) -> None:
    recipe_with_rois.write(tmp_path / 'cache')
    first = copied(tmp_path / 'cache', tmp_path / 'copy', num_groups=3)
    with pytest.raises(CacheIncompleteError):
        mtpd.cache.open(tmp_path / 'copy')
    assert len(first) + len(copied(tmp_path / 'cache', tmp_path / 'copy')) == len(recipe_with_rois.plan().shard_keys())
    assert contents(tmp_path / 'copy') == contents(tmp_path / 'cache')


def test_another_part_does_not_go_into_the_same_folder(recipe: Any, tmp_path: Path) -> None:
    recipe.write(tmp_path / 'cache')
    copied(tmp_path / 'cache', tmp_path / 'copy', PARTS['a level'], num_groups=1)
    with pytest.raises(CacheMismatchError, match='holds another extraction'):
        copied(tmp_path / 'cache', tmp_path / 'copy')


@pytest.mark.parametrize('array', ['p3', 'p4.scale', 'crc32c'])
def test_damage_is_not_copied(array: str, recipe: Any, tmp_path: Path) -> None:
    root = tmp_path / 'cache'
    recipe.write(root)
    file = sorted((root / '64x96' / 'plain' / array).rglob('c/**/0' if array != 'crc32c' else 'c/0/0'))[-1]
    content = bytearray(file.read_bytes())
    content[2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheDamagedError, match=re.escape(array)):
        copied(root, tmp_path / 'copy')
    with pytest.raises(CacheIncompleteError):
        mtpd.cache.open(tmp_path / 'copy')


@pytest.mark.parametrize(
    ('selection', 'problem', 'kind'),
    [
        (Selection(levels=('p9',)), 'has the levels p3, p4, not p9', CacheMismatchError),
        (Selection(views=('plain', 'other')), 'has the views plain, flip, not other', CacheMismatchError),  # type: ignore[arg-type]
        (Selection(image_ids=(100, 5)), 'lacks 1 of the 2 images to copy, the first is 5', CacheMismatchError),
        (Selection(image_ids=()), 'no image to copy', InputError),
    ],
)
def test_what_is_not_there(selection: Selection, problem: str, kind: type, recipe: Any, tmp_path: Path) -> None:
    recipe.write(tmp_path / 'cache')
    with pytest.raises(kind, match=problem):
        copied(tmp_path / 'cache', tmp_path / 'copy', selection)
    assert not (tmp_path / 'copy').exists()


def test_no_room(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.write(tmp_path / 'cache')
    source = mtpd.cache.open(tmp_path / 'cache')
    out = tmp_path / 'copy'
    size = sum(record.num_bytes for record in source.manifest.files.values())
    everything, part = (copy_writer(source, destination_of(out), one) for one in (Selection(), PARTS['a level']))
    monkeypatch.setattr('mtpd.cache.copying.free_bytes', lambda _: size - 1)
    with pytest.raises(UnavailableError, match='the copy needs'):
        require_room(source, everything, out)
    require_room(source, part, out)
    monkeypatch.setattr('mtpd.cache.copying.free_bytes', lambda _: size)
    require_room(source, everything, out)
