"""A damaged cache is refused on the first read of what the damage touches; no wrong map ever comes back."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mtpd.cache
from mtpd.errors import CacheDamagedError, CacheError, CacheMismatchError
from stress.damages import DAMAGES, Damage, contents, sign, signed_again
from stress.judge import judge, read_all


def read_rois(root: Path) -> dict[int, tuple[torch.Tensor, ...]]:
    cache = mtpd.cache.open(root)
    return {image_id: cache.rois(image_id) for image_id in cache.image_ids}


@pytest.fixture(scope='module')
def others(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., Any]) -> list[Path]:
    """A cache, one of another teacher, and one of another teacher whose images are in other rows."""
    folder = tmp_path_factory.mktemp('others')
    images = list(make_recipe().images)
    images[1], images[2] = images[2], images[1]
    changes: dict[str, dict[str, Any]] = {
        'mine': {}, 'teacher': {'fingerprint': {'weights': 'xyz'}, 'bias': 2.0}, 'rows': {'images': images},
    }  # fmt: skip
    for name, change in changes.items():
        make_recipe(**change).write(folder / name)
    return [folder / name for name in changes]


@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')
@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_random_damage_is_never_read(tmp_path: Path, others: list[Path], damage: Damage) -> None:
    """Every read is right or refused, and some are refused whenever anything is another that reads depend on."""
    sound, *others = others
    truth, files = read_all(sound), contents(sound)
    for seed in range(3):
        root = Path(shutil.copytree(sound, tmp_path / f'{seed}'))
        what = damage(root, random.Random(seed), others)
        verdict = judge(root, truth)
        assert verdict.wrong == [], what
        # Even a damaged byte that no map depends on (padding rows of a small array) is caught by the hash of the file.
        changed = {name for name, _ in files.items() ^ contents(root).items() if not name.endswith('zarr.json')}
        assert verdict.is_right == (not changed or damage is signed_again), what


@pytest.mark.parametrize('kind', ['bit', 'cut', 'missing', 'swapped'])
@pytest.mark.parametrize('array', ['image_id', 'num_rois', 'crc32c', 'boxes', 'probabilities', 'labels', 'deltas'])
def test_damaged_rois_are_never_read(tmp_path: Path, sound_with_rois: Path, array: str, kind: str) -> None:
    root = Path(shutil.copytree(sound_with_rois, tmp_path / 'cache'))
    truth = read_rois(root)
    files = sorted(path for path in (root / 'heads/64x96' / array).rglob('*') if path.is_file() and '/c/' in str(path))
    path, other = files[0], files[1]
    content = path.read_bytes()
    if kind == 'bit':
        # In the first row, whose image has RoIs: a place beyond these is covered too.
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif kind == 'cut':
        path.write_bytes(content[:-1])
    elif kind == 'missing':
        path.unlink()
    else:
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    cache = mtpd.cache.open(root)
    refused = 0
    for image_id, rois in truth.items():
        try:
            assert all(torch.equal(one, two) for one, two in zip(cache.rois(image_id), rois, strict=True))
        except CacheDamagedError:
            refused += 1
    assert refused > 0
    # The maps are as they were.
    for image_id in cache.image_ids:
        for view in cache.views:
            cache.read(image_id, view)


@pytest.mark.parametrize('name', ['p3', 'image_id', 'crc32c', 'p3.scale'])
def test_shards_of_another_extraction_are_refused(tmp_path: Path, make_recipe: Callable[..., Any], name: str) -> None:
    make_recipe().write(tmp_path / 'mine')
    images = list(make_recipe().images)
    images[1], images[2] = images[2], images[1]
    make_recipe(images=images).write(tmp_path / 'other')
    shutil.rmtree(tmp_path / 'mine/64x96/plain' / name)
    shutil.copytree(tmp_path / 'other/64x96/plain' / name, tmp_path / 'mine/64x96/plain' / name)
    with pytest.raises(CacheDamagedError):
        read_all(tmp_path / 'mine')


def edit_manifest(root: Path, edit: Callable[[dict[str, Any]], None], *, signed: bool) -> None:
    content = json.loads((root / 'manifest.json').read_bytes())
    edit(content)
    (root / 'manifest.json').write_text(json.dumps(sign(content) if signed else content))


def test_an_edited_manifest_is_refused(cache_root: Path) -> None:
    edit_manifest(cache_root, lambda content: content['description'].update(codec='fp16'), signed=False)
    with pytest.raises(CacheDamagedError, match='digest'):
        mtpd.cache.open(cache_root)


@pytest.mark.parametrize(
    ('edit', 'error', 'message'),
    [
        (lambda c: c.update(version=2), CacheMismatchError, 'format version 2, this program supports version 1'),
        (lambda c: c.update(format='zip'), CacheMismatchError, 'not a feature cache'),
        (lambda c: c.update(extra=1), CacheDamagedError, 'extra'),
        (lambda c: c['description']['levels'][0].update(name='../../etc'), CacheDamagedError, 'levels.0.name'),
        (lambda c: c['description']['levels'][0].update(channels=-1), CacheDamagedError, 'channels'),
        (lambda c: c['buckets'][0].update(padded=[10**9, 10**9]), CacheDamagedError, 'padded'),
        (lambda c: c['description'].update(codec='pickle'), CacheDamagedError, 'codec'),
        (lambda c: c['buckets'][0].update(num_images=10**15), CacheDamagedError, 'num_images'),
        (lambda c: c['files'].pop('index/row/c/0'), CacheDamagedError, 'not in the manifest'),
        (lambda c: c['description'].update(rois={'num_rois': 10**9, 'num_classes': 3}), CacheDamagedError, 'rois'),
        (lambda c: c['description'].update(rois={'num_rois': 5}), CacheDamagedError, 'rois.num_classes'),
    ],
)
def test_a_hostile_manifest_is_refused(
    cache_root: Path, edit: Callable[[dict[str, Any]], None], error: type[CacheError], message: str
) -> None:
    edit_manifest(cache_root, edit, signed=True)
    with pytest.raises(error, match=message):
        mtpd.cache.open(cache_root)


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'null', b'\xff\xfe', b'{"format": "mtpd-cache"'])
def test_a_broken_manifest_is_refused(cache_root: Path, content: bytes) -> None:
    (cache_root / 'manifest.json').write_bytes(content)
    with pytest.raises(CacheError, match=r'manifest\.json'):
        mtpd.cache.open(cache_root)


@pytest.mark.parametrize('num_groups', [1, None], ids=['unfinished', 'finished'])
def test_a_damaged_basis(tmp_path: Path, make_recipe: Callable[..., Any], num_groups: int | None) -> None:
    root = tmp_path / 'cache'
    make_recipe(codec='lean').write(root, num_groups=num_groups)
    content = bytearray((root / 'basis.safetensors').read_bytes())
    content[-1] ^= 1
    (root / 'basis.safetensors').write_bytes(content)
    touch = mtpd.cache.open if num_groups is None else make_recipe(codec='lean').write
    with pytest.raises(CacheDamagedError, match='basis'):
        touch(root)


@pytest.mark.parametrize('codec', ['int8', 'lean'])
def test_a_scale_that_changes_while_the_cache_is_open(
    codec: str, tmp_path: Path, make_recipe: Callable[..., Any]
) -> None:
    """The table of a shard is verified once, each row of its scales whenever it is read."""
    root = tmp_path / 'cache'
    make_recipe(codec=codec).write(root)
    cache = mtpd.cache.open(root)
    changed, other = make_recipe().plan().images(make_recipe().plan().shard_keys()[0])
    truth = {one.image_id: cache.read(one.image_id) for one in (changed, other)}
    key = cache.shard(changed.image_id)
    file = root / key.bucket / 'plain' / 'p4.scale' / 'c' / str(key.shard) / '0' / '0'
    content = bytearray(file.read_bytes())
    content[1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheDamagedError, match=r'p4\.scale/c/.*row 0: checksum mismatch'):
        cache.read(changed.image_id)
    torch.testing.assert_close(cache.read(other.image_id), truth[other.image_id], rtol=0, atol=0)
    torch.testing.assert_close(
        cache.read(changed.image_id, levels=['p3'])['p3'], truth[changed.image_id]['p3'], rtol=0, atol=0
    )
