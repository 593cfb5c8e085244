"""Caches that were made to hurt: every hash fits, so that only the checks themselves can refuse them.

They are refused in one line, before anything is allocated or run: reading happens in a process that may take 192 MiB.
"""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')

INDEX = 'index/{}/c/0'
SHARD = '64x96/plain/p3/c/0/0/0/0'


def test_an_untouched_cache_is_read(forgery: Any) -> None:
    assert forgery.read() == 'read'


def first_level(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content['description']['levels'][0].update(values)


def first_bucket(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content['buckets'][0].update(values)


def further_file(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content['files'].update({name: {'num_bytes': 1, 'sha256': '0' * 64}})


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        # Sizes that overflow, or that no memory holds.
        (first_bucket(num_images=10**12), 'buckets.0.num_images'),
        (first_bucket(num_images=10**4000), 'buckets.0.num_images'),
        (first_bucket(num_images=2**24), 'images, at most'),
        (first_bucket(num_images=0), 'buckets.0.num_images'),
        (first_bucket(num_images=True), 'buckets.0.num_images'),
        (first_bucket(num_images=2.0), 'buckets.0.num_images'),
        (first_bucket(rows_per_shard=10**9), 'buckets.0.rows_per_shard'),
        (first_bucket(rows_per_shard=2**23), 'a shard of 8388608 rows in a bucket of 7'),
        (first_bucket(padded=[2**16, 2**16]), 'contradicts the manifest'),
        (first_bucket(padded=[2**63, 1]), 'buckets.0.padded'),
        (first_level(channels=2**16), 'levels.0.channels'),
        (first_level(channels=2**14, stride=1), 'p3.scale/c/0/0/0: has 64 bytes, expected 262144'),
        (
            lambda content: (first_level(channels=2**14)(content), first_bucket(padded=[2**16, 2**16])(content)),
            'values, at',
        ),
        (first_level(stride=0), 'levels.0.stride'),
        (lambda content: content.update(buckets=[]), 'buckets'),
        (lambda content: content['files'][SHARD].update(num_bytes=10**30), 'num_bytes'),
        (lambda content: content['files'][SHARD].update(num_bytes=-1), 'num_bytes'),
        # Things that appear twice.
        (lambda content: content['buckets'].append(content['buckets'][0]), 'a bucket appears twice'),
        (first_level(name='p4'), 'a level appears twice'),
        (lambda content: content['description'].update(views=['plain', 'plain']), 'a view appears twice'),
        # Names that lead elsewhere.
        (first_level(name='..'), 'levels.0.name'),
        (first_level(name='image_id'), 'levels.0.name'),
        (first_level(name='p3.scale'), 'levels.0.name'),
        (first_level(name='/etc/passwd'), 'levels.0.name'),
        (first_level(name='p3\n'), 'levels.0.name'),
        (lambda content: content['description'].update(views=['../plain']), 'views.0'),
        (further_file('../../etc/passwd'), 'files'),
        (further_file('/etc/passwd'), 'files'),
        (further_file('index/../../x'), 'files'),
        (further_file('index//x'), 'files'),
        (further_file('a\0b'), 'files'),
        (further_file('\x1b[2J\n' * 1000), 'files'),
        # What cannot be understood.
        (lambda content: content['description'].update(codec='pickle'), 'codec'),
        (lambda content: content['description'].update(codec='blosc'), 'codec'),
        (lambda content: content.update(version=2), 'format version 2, this program supports version 1'),
        (lambda content: content.update(version=1.5), 'version'),
        (lambda content: content.update(version='9' * 10**6), 'format version 999'),
        (lambda content: content.update(version=nested(500)), 'format version [[['),
        (lambda content: content.update(files=[]), 'files'),
        (lambda content: content['description'].update(fingerprint=nested(3)), 'fingerprint'),
        (lambda content: content['description'].update(fingerprint={'a': nested(40)}), 'nested more than 32'),
        (lambda content: content['description'].update(provenance={'a': nested(900)}), 'nested'),
    ],
    ids=count(),
)
def test_a_signed_manifest(forgery: Any, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    forgery.sign(edit)
    forgery.require_refused(message)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'[' * 100_000, 'nested too deeply'),
        (b'{"a":' * 90_000, 'nested too deeply'),
        (b'[' + b'[],' * 20_000_000 + b'[]]', 'not written by an extraction'),
        (b'{"format": "mtpd-cache", "version": NaN}', 'NaN is not a JSON number'),
        (b'{"format": "mtpd-cache", "version": -Infinity}', '-Infinity is not a JSON number'),
        (b'{"format": "mtpd-cache", "version": 1e999}', 'the number 1e999 is too large'),
        (b'{"format": "mtpd-cache", "version": 1' + b'0' * 5000 + b'}', 'not valid JSON'),
        (b'{"format": "zip", "format": "mtpd-cache"}', "the key 'format' appears twice"),
        (b'{"format": "mtpd-cache", "version": 1, "digest": null}', 'digest'),
        (b'{"format": "mtpd-cache", "version": 1, "digest": "\\ud800"}', 'digest'),
        ('{"format": "mtpd-cache"}'.encode('utf-32'), 'format version None'),
        (b'\x80\x04\x95', 'not valid JSON'),
    ],
    ids=count(),
)
def test_a_manifest_of_other_content(forgery: Any, content: bytes, message: str) -> None:
    (forgery.root / 'manifest.json').write_bytes(content)
    forgery.require_refused(message)


def test_a_manifest_of_a_gigabyte(forgery: Any) -> None:
    os.truncate(forgery.root / 'manifest.json', 2**30)
    forgery.require_refused('has 1073741824 bytes')


@pytest.mark.parametrize('file', [INDEX.format('image_id'), '64x96/plain/image_id/c/0', 'teacher.safetensors'])
def test_a_file_of_a_terabyte(forgery: Any, file: str) -> None:
    os.truncate(forgery.root / file, 2**40)
    forgery.sign(lambda content: content['files'][file].update(num_bytes=2**40))
    forgery.require_refused(Path(file).parts[-3] if 'c' in Path(file).parts else file)


def rle_frame(num_blocks: int, *, content_size: int | None) -> bytes:
    """A zstd frame (RFC 8878) of blocks that expand to 128 KiB each, which states `content_size`."""
    window = 10 << 3  # of 1 MiB
    if content_size is None:
        header = bytes([0, window])
    else:
        header = bytes([3 << 6, window]) + struct.pack('<Q', content_size)
    blocks = [struct.pack('<I', (2**17 << 3) | (1 << 1) | (number == num_blocks - 1))[:3] + b'\0'
              for number in range(num_blocks)]  # fmt: skip
    return b'\x28\xb5\x2f\xfd' + header + b''.join(blocks)


@pytest.mark.parametrize(
    ('num_blocks', 'content_size', 'message'),
    [
        (80, None, 'does not decompress to'),
        (80, 80 * 2**17, 'does not decompress to'),
        (80, 2**50, 'does not decompress to'),
        (80, 384, 'cannot be decompressed to 384 bytes'),
        (2**15, None, 'longer than 384 bytes can compress to'),  # 4 GiB
        (2**15, 384, 'longer than 384 bytes can compress to'),
    ],
)
def test_a_decompression_bomb(forgery: Any, num_blocks: int, content_size: int | None, message: str) -> None:
    forgery.replace_first_chunk(rle_frame(num_blocks, content_size=content_size))
    forgery.require_refused(message)


@pytest.mark.parametrize(
    'entry', [(2**64 - 1, 2**64 - 1), (2**64 - 1, 100), (0, 2**64 - 2), (2**63, 2**63), (10**9, 1)]
)
def test_a_shard_whose_index_lies(forgery: Any, entry: tuple[int, int]) -> None:
    forgery.replace_shard_index(entry)
    forgery.require_refused('lacks a chunk or points outside the file')


@pytest.mark.parametrize(
    ('column', 'position', 'value', 'message'),
    [
        ('image_id', 0, 98, 'lists an image twice'),
        ('bucket', 0, 1, 'differ in the number of images'),
        ('bucket', 0, -1, 'differ in the number of images'),
        ('bucket', 0, 2**31 - 1, 'differ in the number of images'),
        ('row', 0, -1, 'every row'),
        ('row', 0, 1, 'every row'),
        ('row', 0, 2**31 - 1, 'every row'),
        ('original', 0, 0, 'below 1 px'),
        ('original', 0, -64, 'below 1 px'),
        ('original', 0, 2**31 - 1, 'contradicts the manifest'),
        ('resized', 0, 65, 'contradicts the manifest'),
        ('padded', 0, 32, 'contradicts the manifest'),
    ],
)
def test_an_index_that_contradicts_itself(forgery: Any, column: str, position: int, value: int, message: str) -> None:
    dtype = '<i8' if column == 'image_id' else '<i4'
    file = INDEX.format(column) + ('/0' if column in ('original', 'resized', 'padded') else '')
    forgery.edit_array(file, dtype, lambda values: values.__setitem__(position, value))
    forgery.require_refused(message)


def test_row_tables_of_other_images(forgery: Any) -> None:
    file = '64x96/plain/image_id/c/0'
    forgery.edit_array(file, '<i8', lambda values: values.__setitem__(slice(None), values[::-1].copy()))
    forgery.require_refused('64x96/plain')


@pytest.mark.parametrize('place', ['64x96/plain/p3/c/0/0/0/0', 'teacher.safetensors', '64x96/plain', 'index'])
def test_links_that_lead_out_of_the_cache(forgery: Any, tmp_path: Path, place: str) -> None:
    shutil.move(forgery.root / place, tmp_path / 'outside')
    (forgery.root / place).symlink_to(tmp_path / 'outside')
    forgery.require_refused('is a link to a place outside the cache')


def test_a_link_to_the_cache_itself_is_followed(forgery: Any, tmp_path: Path) -> None:
    (tmp_path / 'link').symlink_to(forgery.root)
    assert forgery.read(tmp_path / 'link') == 'read'


@pytest.mark.parametrize('kind', ['circle', 'pipe', 'device', 'folder'])
def test_no_file_where_one_should_be(forgery: Any, kind: str) -> None:
    for path in (forgery.root / SHARD, forgery.root / 'teacher.safetensors'):
        path.unlink()
        if kind == 'circle':
            path.symlink_to(path)
        elif kind == 'pipe':
            os.mkfifo(path)
        elif kind == 'device':
            path.symlink_to('/dev/zero')
        else:
            path.mkdir()
    forgery.require_refused('is missing')


def tensors_file(header: bytes, data: bytes = b'', *, length: int | None = None) -> bytes:
    return struct.pack('<Q', len(header) if length is None else length) + header + data


def one_tensor(dtype: str, shape: list[int], num_bytes: int) -> bytes:
    header = {'a': {'dtype': dtype, 'shape': shape, 'data_offsets': [0, num_bytes]}}
    return tensors_file(json.dumps(header).encode(), bytes(num_bytes))


@pytest.mark.parametrize(
    'content',
    [
        b'',
        tensors_file(b'{}', length=2**63),
        tensors_file(b'{}', length=10**9),
        tensors_file(b'{]'),
        tensors_file(b'{"a":' + b'[' * 100_000),
        one_tensor('F4', [2], 1),
        one_tensor('F8_E8M0', [1], 1)[:-1],
        one_tensor('F32', [2**62], 4),
        one_tensor('F32', [2**40, 2**40], 4),
        one_tensor('F32', [0, 2**62, 2**62], 0),
        pickle.dumps(print),
    ],
    ids=count(),
)
def test_teacher_weights_that_are_none(forgery: Any, content: bytes) -> None:
    forgery.replace('teacher.safetensors', content)
    forgery.require_refused('teacher.safetensors: holds no tensors')
