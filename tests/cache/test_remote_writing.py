"""Caches that are written into an object store: the same bytes as in a folder, whatever ends or disturbs a writer."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import mtpd.cache
from mtpd.cache import object_store
from mtpd.cache.checking import read_state, verify
from mtpd.cache.copying import Selection, copy_groups, copy_writer
from mtpd.cache.format.arrays import RoisRecord
from mtpd.cache.object_store import ObjectStore
from mtpd.cache.writing import lease
from mtpd.cache.writing.parts import Part
from mtpd.cache.writing.remote_destination import RemoteDestination, destination_of
from mtpd.errors import CacheIncompleteError, CacheMismatchError, MtpdError, UnavailableError
from stress.damages import contents
from stress.web_server import WebServer

pytest.importorskip('obstore')
pytestmark = pytest.mark.filterwarnings('ignore:datetime.datetime.utcnow:DeprecationWarning')


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, 'FIRST_WAIT', 0.001)
    monkeypatch.setattr(lease, 'SILENCE_SECONDS', 0.8)


@pytest.fixture
def url(bucket: str, request: pytest.FixtureRequest) -> str:
    """A place that nothing has been written to."""
    return f'{bucket}/{abs(hash(request.node.name))}'


@pytest.fixture(params=['int8', 'lean'])
def some_recipe(request: pytest.FixtureRequest, make_recipe: Callable[..., Any]) -> Any:
    return make_recipe(codec=request.param, rois=RoisRecord(num_rois=5, num_classes=3))


def objects(url: str) -> dict[str, bytes]:
    store = ObjectStore(url)
    return {file: store.read(file) for file in store.objects()}


def test_the_same_bytes_as_in_a_folder(some_recipe: Any, url: str, tmp_path: Path) -> None:
    some_recipe.write(url)
    some_recipe.write(tmp_path / 'cache')
    assert objects(url) == contents(tmp_path / 'cache')
    before = objects(url)
    with some_recipe.writer(url) as writer:
        assert writer.is_finished
        assert writer.pending() == []
    assert objects(url) == before


def test_it_opens_when_it_is_complete(some_recipe: Any, url: str, tmp_path: Path) -> None:
    some_recipe.write(url, num_groups=3)
    with pytest.raises(CacheIncompleteError):
        mtpd.cache.open(url)
    with some_recipe.writer(url) as writer:
        assert len(writer.pending()) == len(writer.share()) - 3
    some_recipe.write(url)
    some_recipe.write(tmp_path / 'cache')
    assert objects(url) == contents(tmp_path / 'cache')


class Dead(MtpdError):
    """What every request of a process that was killed gives here."""


@pytest.mark.parametrize('seed', range(6))
def test_a_writer_that_was_killed_at_any_request(
    seed: int, make_recipe: Callable[..., Any], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(codec=('int8', 'lean')[seed % 2])
    recipe.write(tmp_path / 'cache')
    num_requests, attempted = 0, ObjectStore._attempted
    monkeypatch.setattr(lease, 'SILENCE_SECONDS', 0.2)
    rng = random.Random(seed)
    for last in (rng.randrange(3, 60), rng.randrange(3, 90), rng.randrange(3, 120)):

        def request(self: ObjectStore, file: str, call: Callable[[], Any], last: int = last) -> Any:
            nonlocal num_requests
            num_requests += 1
            if num_requests > last:
                raise Dead(file)
            return attempted(self, file, call)

        num_requests = 0
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, '_attempted', request)
            with pytest.raises(Dead):
                recipe.write(url)
        try:
            assert len(mtpd.cache.open(url)) == len(recipe.images)
        except CacheIncompleteError:
            continue
    recipe.write(url)
    assert objects(url) == contents(tmp_path / 'cache')


class Flaky:
    """A store whose requests fail, some of them after they had their effect."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._random = random.Random(0)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            from obstore import exceptions

            when = self._random.random()
            if when < 0.15:
                raise exceptions.GenericError('busy')
            result = method(*args, **kwargs)
            if when > 0.85:
                raise exceptions.GenericError('the answer was lost')
            return result

        return call


def test_a_network_that_fails(some_recipe: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some_recipe.write(tmp_path / 'cache')
    with monkeypatch.context() as patch:
        opened = object_store._store
        patch.setattr(object_store, '_store', lambda url: Flaky(opened(url)))
        patch.setattr(object_store, 'NUM_ATTEMPTS', 20)
        some_recipe.write(url, num_groups=2)
        some_recipe.write(url)
    assert objects(url) == contents(tmp_path / 'cache')


def test_two_writers(recipe: Any, url: str) -> None:
    with recipe.writer(url), pytest.raises(UnavailableError, match=r'process \d+ on .* is writing this cache'):
        recipe.writer(url).__enter__()
    recipe.write(url)
    mtpd.cache.open(url)


@pytest.mark.parametrize('other', [Part(1, 2), Part(2, 3)])
def test_parts_of_another_count_wait(other: Part, recipe: Any, url: str) -> None:
    with recipe.writer(url, part=Part(1, 3)):
        if other.count == 3:
            with recipe.writer(url, part=other) as writer:
                assert writer.pending()
        else:
            with pytest.raises(UnavailableError, match='is writing this cache'):
                recipe.writer(url, part=other).__enter__()
    assert not ObjectStore(url).objects('.lock')


def test_writers_that_start_at_once(recipe: Any, url: str, tmp_path: Path) -> None:
    """At most one of them writes, and what it writes is right."""
    barrier = threading.Barrier(4)

    def write(_: int) -> bool:
        barrier.wait()
        try:
            recipe.write(url)
        except UnavailableError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    recipe.write(url)
    recipe.write(tmp_path / 'cache')
    assert objects(url) == contents(tmp_path / 'cache')


def test_parts_at_once(some_recipe: Any, url: str, tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    def write(index: int) -> None:
        barrier.wait()
        some_recipe.write(url, part=Part(index + 1, 4))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    some_recipe.write(tmp_path / 'cache')
    assert objects(url) == contents(tmp_path / 'cache')


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers that give no sign of life."""
    monkeypatch.setattr(lease.Lease, '_beat', lambda self: None)
    monkeypatch.setattr(lease, 'SILENCE_SECONDS', 0.2)


@pytest.mark.usefixtures('mute')
def test_a_writer_that_was_taken_for_dead_commits_no_more(recipe: Any, url: str, tmp_path: Path) -> None:
    slow = recipe.writer(url)
    with slow:
        filled = slow.start_group(slow.pending()[0])
        with recipe.writer(url) as writer:
            filled._rows = {path: [] for path in filled._rows}
            with pytest.raises(UnavailableError, match='another process has taken over'):
                slow.commit(filled)
            assert writer.pending()
    recipe.write(url)
    recipe.write(tmp_path / 'cache')
    assert objects(url) == contents(tmp_path / 'cache')


def test_a_file_that_was_written_over_is_not_published(recipe: Any, url: str, tmp_path: Path) -> None:
    """By a writer that was taken for dead, in the moment before it finds that."""
    recipe.write(url, num_groups=len(recipe.plan().shard_keys()))
    store = ObjectStore(url)
    changed = next(file for file in store.objects() if '/plain/p3/c/' in file)
    store.put(changed, store.read(changed)[:-1] + b'x')
    with recipe.writer(url) as writer:
        assert len(writer.pending()) == 1
    recipe.write(url)
    recipe.write(tmp_path / 'cache')
    assert objects(url) == contents(tmp_path / 'cache')


def test_places_that_hold_something_else(make_recipe: Callable[..., Any], url: str, tmp_path: Path) -> None:
    ObjectStore(url).put('mine.txt', b'keep')
    with pytest.raises(CacheMismatchError, match='is not empty'):
        make_recipe().write(url)
    assert objects(url) == {'mine.txt': b'keep'}
    make_recipe().write(f'{url}/a', num_groups=1)
    make_recipe().write(f'{url}/b')
    other = make_recipe(fingerprint={'teacher': 'another'})
    for place in ('a', 'b'):
        before = objects(f'{url}/{place}')
        with pytest.raises(CacheMismatchError, match=r'holds another extraction: fingerprint\.'):
            other.write(f'{url}/{place}')
        assert objects(f'{url}/{place}') == before
    with WebServer(tmp_path).running() as web, pytest.raises(MtpdError, match='or the URL of a bucket'):
        make_recipe().write(f'{web.url}/new')


def copied(source: str | Path, out: str, selection: Selection) -> None:
    cache = mtpd.cache.open(source)
    with copy_writer(cache, destination_of(out), selection) as writer:
        assert copy_groups(cache, writer, advance=lambda _: None, stop=lambda: False)


def test_copies_between_any_two_places(some_recipe: Any, url: str, tmp_path: Path) -> None:
    some_recipe.write(tmp_path / 'cache')
    copied(tmp_path / 'cache', f'{url}/a', Selection())
    copied(f'{url}/a', f'{url}/b', Selection())
    assert objects(f'{url}/a') == objects(f'{url}/b') == contents(tmp_path / 'cache')
    copied(f'{url}/b', f'{url}/part', Selection(levels=('p4',), views=('flip',), image_ids=(90, 93)))
    part = mtpd.cache.open(f'{url}/part')
    assert set(part.image_ids) == {90, 93}
    assert part.views == ('flip',)


def test_it_is_verified_by_url(some_recipe: Any, url: str) -> None:
    def damages() -> list[tuple[str, str]]:
        return [(one.kind, one.file) for one in verify(read_state(url), num_threads=2, advance=lambda _: None)]

    some_recipe.write(url, num_groups=3)
    state = read_state(url)
    assert not state.is_finished
    assert len(state.committed) == 3
    assert damages() == []
    some_recipe.write(url)
    assert read_state(url).is_finished
    assert damages() == []
    store = ObjectStore(url)
    cut, changed = [file for file in store.objects() if '/plain/p3/c/' in file][:2]
    store.put(cut, store.read(cut)[:-1])
    store.put(changed, bytes([store.read(changed)[0] ^ 1]) + store.read(changed)[1:])
    store.put('index/more', b'')
    store.delete(['index/zarr.json'])
    assert sorted(damages()) == sorted(
        [('shard', cut), ('shard', changed), ('stray', 'index/more'), ('metadata', 'index/zarr.json')]
    )
    with pytest.raises(CacheIncompleteError):
        read_state(f'{url}/nothing')


def test_entries_that_were_not_written_by_a_writer_do_not_count(recipe: Any, url: str) -> None:
    recipe.write(url, num_groups=1)
    store = ObjectStore(url)
    (path,) = store.objects('journal')
    line = store.read(path)
    for number, forged in enumerate([b'', b'{}', line[:-5], line.replace(b'"tags"', b'"tabs"'), b'[1]\n']):
        store.put(f'journal/x{number}', forged)
    assert len(list(RemoteDestination(url).entries())) == 1
    recipe.write(url)
    assert not store.objects('journal')
