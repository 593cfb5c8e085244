"""Caches of format version 1 open and read exactly these values, forever.

What lies in `golden/v1` is never made again: a change that fails here has broken every cache there is.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import torch
import zarr
from zarr.storage import LocalStore

import mtpd.cache
from mtpd.cache.checking import read_state, verify
from mtpd.errors import CacheMismatchError
from mtpd.system.files import canonical_json, sha256_bytes

GOLDEN = Path(__file__).parent / 'golden' / 'v1'
CODECS = ('fp16', 'int8', 'lean')

Maps = dict[tuple[int, str, str], npt.NDArray[np.float32]]


def expected_maps(codec: str) -> Maps:
    content = json.loads((GOLDEN / f'{codec}.expected.json').read_bytes())
    return {
        (int(image_id), view, level): np.array(values, dtype=np.float32)
        for image_id, views in content.items()
        for view, levels in views.items()
        for level, values in levels.items()
    }


def read_by_the_text(root: Path) -> Maps:
    """Reads a cache by what mtpd/cache/FORMAT.md says alone, so that the text stays true."""
    manifest = json.loads((root / 'manifest.json').read_bytes())
    digest = manifest.pop('digest')
    canonical = json.dumps(manifest, sort_keys=True, separators=(',', ':')).encode()
    assert hashlib.sha256(canonical).hexdigest() == digest
    assert (manifest['format'], manifest['version']) == ('mtpd-cache', 1)
    description, codec = manifest['description'], manifest['description']['codec']
    levels = description['levels']
    files = {}
    for name, record in manifest['files'].items():
        files[name] = (root / name).read_bytes()
        assert len(files[name]) == record['num_bytes']
        assert hashlib.sha256(files[name]).hexdigest() == record['sha256']
    bases = safetensors.numpy.load(files['basis.safetensors']) if codec == 'lean' else {}
    columns = {
        'image_id': np.frombuffer(files['index/image_id/c/0'], '<i8'),
        'bucket': np.frombuffer(files['index/bucket/c/0'], '<i4'),
        'row': np.frombuffer(files['index/row/c/0'], '<i4'),
    }
    maps = {}
    for image_id, bucket_number, row in zip(*columns.values(), strict=True):
        bucket = manifest['buckets'][bucket_number]
        height, width = bucket['padded']
        capacity = bucket['rows_per_shard']
        shard, position = divmod(int(row), capacity)
        for view in description['views']:
            folder = f'{height}x{width}/{view}'
            assert np.frombuffer(files[f'{folder}/image_id/c/{shard}'], '<i8')[position] == image_id
            table = np.frombuffer(files[f'{folder}/crc32c/c/{shard}/0'], '<u4').reshape(capacity, len(levels))
            for number, level in enumerate(levels):
                name, channels = level['name'], level['channels']
                grid = -(-height // level['stride']), -(-width // level['stride'])
                content = files[f'{folder}/{name}/c/{shard}/0/0/0']
                pairs = np.frombuffer(content[-16 * capacity - 4 : -4], '<u8').reshape(capacity, 2)
                assert google_crc32c.value(content[-16 * capacity - 4 : -4]) == int.from_bytes(content[-4:], 'little')
                offset, length = map(int, pairs[position])
                chunk = content[offset : offset + length]
                assert (
                    google_crc32c.value(chunk[:-4]) == int.from_bytes(chunk[-4:], 'little') == table[position, number]
                )
                codes = np.frombuffer(numcodecs.Zstd().decode(chunk[:-4]), '<f2' if codec == 'fp16' else 'i1')
                values = codes.reshape(channels, *grid).astype(np.float32)
                if codec != 'fp16':
                    dtype = {'int8': '<f4', 'lean': '<f2'}[codec]
                    scale = np.frombuffer(files[f'{folder}/{name}.scale/c/{shard}/0/0'], dtype)
                    step, shift = scale.reshape(capacity, 2, channels)[position].astype(np.float32)
                    values = values * step[:, None, None] + shift[:, None, None]
                if codec == 'lean':
                    values = np.tensordot(bases[name], values, axes=1)
                maps[int(image_id), view, name] = values
    return maps


def read_rois_by_the_text(root: Path) -> dict[str, dict[str, Any]]:
    """The teacher's proposals by what mtpd/cache/FORMAT.md says alone."""
    manifest = json.loads((root / 'manifest.json').read_bytes())
    record = manifest['description']['rois']
    places, classes = record['num_rois'], record['num_classes']
    found = {}
    for bucket in manifest['buckets']:
        rows = bucket['rows_per_shard']
        folder = f'{bucket["padded"][0]}x{bucket["padded"][1]}'
        for shard in range(-(-bucket['num_images'] // rows)):
            shapes = {
                'image_id': ('<i8', ()),
                'num_rois': ('<i4', ()),
                'crc32c': ('<u4', ()),
                'boxes': ('<f4', (places, 4)),
                'probabilities': ('<f2', (places, classes + 1)),
                'labels': ('<i4', (places,)),
                'deltas': ('<f4', (places, 4)),
            }
            columns = {}
            for name, (dtype, shape) in shapes.items():
                file = '/'.join(['heads', folder, name, 'c', str(shard), *['0'] * len(shape)])
                content = (root / file).read_bytes()
                assert hashlib.sha256(content).hexdigest() == manifest['files'][file]['sha256']
                columns[name] = np.frombuffer(content, dtype).reshape(rows, *shape)
            for row in range(min(rows, bucket['num_images'] - shard * rows)):
                values = {name: columns[name][row] for name in ('boxes', 'probabilities', 'labels', 'deltas')}
                together = b''.join(one.tobytes() for one in values.values())
                assert google_crc32c.value(together) == columns['crc32c'][row]
                count = columns['num_rois'][row]
                assert not any(one[count:].any() for one in values.values())
                found[str(columns['image_id'][row])] = {name: one[:count].tolist() for name, one in values.items()}
    return found


def test_golden_rois() -> None:
    expected = json.loads((GOLDEN / 'rois.expected.json').read_bytes())
    assert read_rois_by_the_text(GOLDEN / 'rois') == expected
    cache = mtpd.cache.open(GOLDEN / 'rois')
    assert {len(rois['boxes']) for rois in expected.values()} == {0, 1, 2, 3}
    for image_id in cache.image_ids:
        rois = cache.rois(image_id)
        dtypes = [torch.float32, torch.float32, torch.int64, torch.float32]
        assert [one.dtype for one in rois] == dtypes
        assert rois.probabilities.shape[1] == 3
        assert {name: one.tolist() for name, one in rois._asdict().items()} == expected[str(image_id)]
    damages = verify(read_state(GOLDEN / 'rois'), num_threads=2, advance=lambda _: None)
    assert [damage for damage in damages if damage.kind != 'metadata'] == []


def test_rois_that_are_written_today_are_read_alike(tmp_path: Path, with_rois: Any) -> None:
    with_rois.write(tmp_path / 'cache')
    cache = mtpd.cache.open(tmp_path / 'cache')
    found = read_rois_by_the_text(tmp_path / 'cache')
    assert len(found) == len(with_rois.images)
    for image in with_rois.images:
        rois = {name: one.tolist() for name, one in cache.rois(image.image_id)._asdict().items()}
        assert found[str(image.image_id)] == rois
        assert rois == {name: one.tolist() for name, one in with_rois.rois_of(image)._asdict().items()}
    group: Any = zarr.open_group(LocalStore(tmp_path / 'cache', read_only=True), mode='r', zarr_format=3)
    assert group['heads/64x96/labels'].shape == (7, 5)


@pytest.mark.parametrize('codec', CODECS)
def test_golden(codec: str) -> None:
    cache = mtpd.cache.open(GOLDEN / codec)
    expected = expected_maps(codec)
    assert cache.manifest.description.codec == codec
    assert sorted(cache.image_ids) == [3, 5, 7, 9]
    assert [(level.name, level.stride, level.channels) for level in cache.levels] == [('p3', 8, 2), ('p4', 16, 4)]
    assert cache.sizes(5) == ((16, 30), (16, 30), (16, 32))
    found: dict[tuple[int, str, str], torch.Tensor] = {
        (image_id, view, name): maps
        for image_id in cache.image_ids
        for view in cache.views
        for name, maps in cache.read(image_id, view).items()
    }
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key].dtype == torch.float32
        assert np.array_equal(found[key].numpy(), values)
    assert cache.errors(7) == {'p3': 2.0**-7, 'p4': 2.0**-7}
    assert cache.teacher_weights()['neck.weight'].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize('codec', CODECS)
def test_the_text_says_enough(codec: str) -> None:
    expected, found = expected_maps(codec), read_by_the_text(GOLDEN / codec)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], values) for key, values in expected.items())


@pytest.mark.parametrize('codec', CODECS)
def test_verified(codec: str) -> None:
    damages = verify(read_state(GOLDEN / codec), num_threads=2, advance=lambda _: None)
    # zarr.json files are kept with one of them only.
    assert [damage for damage in damages if codec == 'fp16' or damage.kind != 'metadata'] == []


def test_other_programs_read_it() -> None:
    group: Any = zarr.open_group(LocalStore(GOLDEN / 'fp16', read_only=True), mode='r', zarr_format=3)
    expected = expected_maps('fp16')
    for bucket in ('16x32', '32x16'):
        plain = group[f'{bucket}/plain']
        for row, image_id in enumerate(plain['image_id'][:]):
            for level in ('p3', 'p4'):
                assert np.array_equal(plain[level][row].astype(np.float32), expected[int(image_id), 'plain', level])


@pytest.mark.parametrize('version', [0, 2, 17, '1', None])
def test_another_version_is_refused(tmp_path: Path, version: object) -> None:
    shutil.copytree(GOLDEN / 'int8', tmp_path / 'cache')
    content = json.loads((tmp_path / 'cache/manifest.json').read_bytes())
    del content['digest']
    content['version'] = version
    content['digest'] = sha256_bytes(canonical_json(content))
    (tmp_path / 'cache/manifest.json').write_text(json.dumps(content))
    with pytest.raises(CacheMismatchError) as caught:
        mtpd.cache.open(tmp_path / 'cache')
    sentence = f'format version {version}, this program supports version 1; install a newer mtpd'
    assert str(caught.value) == f'{tmp_path}/cache/manifest.json: {sentence}'


def test_what_is_written_today_is_read_alike(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    """The text holds for today's writer too, and not just for the caches that were made once."""
    for codec in CODECS:
        make_recipe(codec=codec).write(tmp_path / codec)
        cache = mtpd.cache.open(tmp_path / codec)
        for (image_id, view, name), values in read_by_the_text(tmp_path / codec).items():
            torch.testing.assert_close(cache.read(image_id, view)[name], torch.from_numpy(values))  # type: ignore[arg-type]
