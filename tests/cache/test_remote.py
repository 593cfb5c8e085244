"""Caches by URL: the same maps as from the folder, whatever the network does, or a refusal that names the file."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mtpd.cache
from mtpd.cache import CacheReader, object_store
from mtpd.cache.object_store import ObjectStore
from mtpd.cache.reading import mirror as mirrors
from mtpd.errors import (
    CacheDamagedError,
    CacheIncompleteError,
    InputError,
    MtpdError,
    UnavailableError,
)
from stress.web_server import PASSING, Fault, WebServer

obstore = pytest.importorskip('obstore')

GOLDEN = Path(__file__).parent / 'golden' / 'v1'
pytestmark = pytest.mark.filterwarnings('ignore:datetime.datetime.utcnow:DeprecationWarning')


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    """A server of caches of every codec, which a test may change."""
    shutil.copytree(GOLDEN, tmp_path / 'served')
    with WebServer(tmp_path / 'served').running() as server:
        yield server


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, 'FIRST_WAIT', 0.001)


@pytest.fixture(scope='module')
def s3(bucket: str) -> str:
    """URL of the golden caches in a bucket."""
    store = ObjectStore(bucket)
    for path in GOLDEN.rglob('*'):
        if path.is_file():
            store.put(f'v1/{path.relative_to(GOLDEN)}', path.read_bytes())
    return f'{bucket}/v1'


def read_all(cache: CacheReader) -> dict[tuple[int, str], dict[str, torch.Tensor]]:
    return {(one, view): cache.read(one, view) for one in cache.image_ids for view in cache.views}


def require_same(cache: CacheReader, codec: str) -> None:
    local = mtpd.cache.open(GOLDEN / codec)
    torch.testing.assert_close(read_all(cache), read_all(local), rtol=0, atol=0)
    assert cache.manifest == local.manifest
    assert cache.teacher_file() == local.teacher_file()


@pytest.mark.parametrize('codec', ['fp16', 'int8', 'lean'])
@pytest.mark.parametrize('is_mirrored', [False, True])
def test_from_s3(codec: str, is_mirrored: bool, s3: str, tmp_path: Path) -> None:
    require_same(mtpd.cache.open(f'{s3}/{codec}/', mirror=tmp_path if is_mirrored else None), codec)


@pytest.mark.parametrize('codec', ['fp16', 'lean'])
def test_from_a_web_server(codec: str, web: WebServer) -> None:
    require_same(mtpd.cache.open(f'{web.url}/{codec}'), codec)


def test_the_mirror_saves_the_requests(web: WebServer, tmp_path: Path) -> None:
    url, folder = f'{web.url}/int8', tmp_path / 'mirror'
    require_same(mtpd.cache.open(url, mirror=folder), 'int8')
    before = web.num_requests
    require_same(mtpd.cache.open(url, mirror=folder), 'int8')
    assert web.num_requests == before + 1  # the manifest


def test_a_mirrored_file_that_was_changed_is_fetched_again(web: WebServer, tmp_path: Path) -> None:
    url, folder = f'{web.url}/int8', tmp_path / 'mirror'
    read_all(mtpd.cache.open(url, mirror=folder))
    for path in (folder / mirrors.FOLDER).iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if content else b'x')
    require_same(mtpd.cache.open(url, mirror=folder), 'int8')


def test_the_mirror_is_bounded_and_deletes_only_its_own(web: WebServer, tmp_path: Path) -> None:
    url, folder = f'{web.url}/fp16', tmp_path / 'mirror'
    sizes = {one.sha256: one.num_bytes for one in mtpd.cache.open(url).manifest.files.values()}
    bound = sum(sizes.values()) // 2
    (folder / mirrors.FOLDER).mkdir(parents=True)
    strangers = [folder / 'mine.txt', folder / mirrors.FOLDER / 'mine.txt', folder / ('a' * 64)]
    for path in strangers:
        path.write_text('keep')
    left = folder / mirrors.FOLDER / '.tmp--abc-x'
    left.write_bytes(b'half')
    for _ in range(2):
        require_same(mtpd.cache.open(url, mirror=folder, mirror_bytes=bound), 'fp16')
    kept = [path for path in (folder / mirrors.FOLDER).iterdir() if path.name in sizes]
    assert 0 < sum(path.stat().st_size for path in kept) <= bound
    assert all(path.read_text() == 'keep' for path in strangers)
    assert not left.exists()


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    from mtpd.cache.format.manifest import FileRecord
    from mtpd.system.files import sha256_bytes

    contents = [bytes([number]) * 100 for number in range(4)]
    records = [FileRecord(num_bytes=100, sha256=sha256_bytes(one)) for one in contents]
    mirror = mirrors.Mirror(tmp_path, 320)
    for number in (0, 1, 2):
        mirror.keep(records[number], contents[number], name='x')
    assert mirror.read_range(records[0], offset=3, length=5) == bytes(5)
    mirror.keep(records[3], contents[3], name='x')
    is_there = [mirror.read_range(one, offset=0, length=1) is not None for one in records]
    assert is_there[0]
    assert is_there[3]
    assert not is_there[1]
    with pytest.raises(CacheDamagedError, match='x: its content differs'):
        mirror.keep(records[1], contents[2], name='x')


@pytest.mark.parametrize('fault', PASSING)
@pytest.mark.parametrize('is_mirrored', [False, True])
def test_faults_that_pass(fault: Fault, is_mirrored: bool, web: WebServer, tmp_path: Path) -> None:
    """A third of all requests fail, and everything is read in the end."""
    web.faults, web.rate = (fault,), 0.3
    require_same(mtpd.cache.open(f'{web.url}/lean', mirror=tmp_path / 'mirror' if is_mirrored else None), 'lean')


@pytest.mark.parametrize('is_mirrored', [False, True])
def test_bytes_that_are_wrong_are_never_returned(is_mirrored: bool, web: WebServer, tmp_path: Path) -> None:
    """Those of another place, or changed ones: every read is right or refused."""
    truth, num_refused = read_all(mtpd.cache.open(GOLDEN / 'int8')), 0
    cache = mtpd.cache.open(f'{web.url}/int8', mirror=tmp_path / 'mirror' if is_mirrored else None)
    web.faults, web.rate = ('shifted', 'changed', *PASSING), 0.4
    for _ in range(4):
        for (image_id, view), wanted in truth.items():
            try:
                maps = cache.read(image_id, view)  # type: ignore[arg-type]
            except MtpdError:
                num_refused += 1
            else:
                torch.testing.assert_close(maps, wanted, rtol=0, atol=0)
    assert num_refused


def test_a_server_that_stays_away(web: WebServer) -> None:
    cache = mtpd.cache.open(f'{web.url}/int8')
    web.faults, web.rate = ('busy',), 1.0
    with pytest.raises(
        UnavailableError, match=r'/int8/.* \d requests failed .*; check URL, credentials and network'
    ) as one:
        cache.read(cache.image_ids[0])
    assert '\n' not in str(one.value)


def change(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == 'missing':
        path.unlink()
    else:
        path.write_bytes({'cut': content[: len(content) // 2], 'bit': content[:-9] + b'x' + content[-8:]}[how])


@pytest.mark.parametrize('how', ['missing', 'cut', 'bit'])
@pytest.mark.parametrize('array', ['p3', 'p3.scale', 'crc32c'])
@pytest.mark.parametrize('is_mirrored', [False, True])
def test_objects_that_are_not_what_was_written(
    how: str, array: str, is_mirrored: bool, web: WebServer, tmp_path: Path
) -> None:
    cache = mtpd.cache.open(f'{web.url}/int8', mirror=tmp_path / 'mirror' if is_mirrored else None)
    file = next(name for name in cache.manifest.files if f'/plain/{array}/' in name)
    change(web.root / 'int8' / file, how)
    truth = read_all(mtpd.cache.open(GOLDEN / 'int8'))
    problems = []
    for image_id in cache.image_ids:
        try:
            torch.testing.assert_close(cache.read(image_id), truth[image_id, 'plain'], rtol=0, atol=0)
        except MtpdError as error:
            problems.append(str(error))
    assert problems
    assert all(file in one for one in problems)


def test_what_cannot_be_opened(web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CacheIncompleteError, match='no cache here'):
        mtpd.cache.open(f'{web.url}/nothing')
    for url in ('ftp://host/cache', '://x'):
        with pytest.raises(InputError, match='expected one of s3'):
            mtpd.cache.open(url)
    for url in ('s3://b/q?x=1', 's3://b/a#x', 's3://b/a/../c', 's3://b//c', 's3:///x', 's3://', 's3:/b/c'):
        with pytest.raises(InputError, match=r'expected the scheme, a bucket or host, and folders|expected one of s3'):
            mtpd.cache.open(url)
    (web.root / 'int8' / 'manifest.json').write_text('{"format": "mtpd-cache", "version": 1}')
    with pytest.raises(CacheDamagedError, match=r'int8.*does not match its digest'):
        mtpd.cache.open(f'{web.url}/int8')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UnavailableError, match=r'mirror .*choose another'):
        mtpd.cache.open(f'{web.url}/fp16', mirror=tmp_path / 'file')
    monkeypatch.setitem(__import__('sys').modules, 'obstore', None)
    with pytest.raises(UnavailableError, match='pip install'):
        mtpd.cache.open(f'{web.url}/fp16')


def test_threads_fetch_a_mirrored_file_once(web: WebServer, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    cache = mtpd.cache.open(f'{web.url}/fp16', mirror=tmp_path / 'mirror')
    opened = web.num_requests
    web.faults, web.rate = ('slow',), 1.0
    ids = [cache.image_ids[0]] * 8
    read: Callable[[int], Any] = cache.read
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, ids))
    files = [name for name in cache.manifest.files if '/plain/' in name]
    assert web.num_requests - opened <= len(files)
