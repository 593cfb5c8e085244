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
from mtpd.cache.format.codecs import encode
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.format.tensor_files import BASIS_FILE, load_basis, plan_of_basis, save_basis
from mtpd.cache.object_store import ObjectStore
from mtpd.cache.writing import lease
from mtpd.cache.writing.journal import entry_line, parse_line
from mtpd.cache.writing.parts import WHOLE, Part
from mtpd.cache.writing.remote_destination import RemoteDestination, RemoteEntry, destination_of
from mtpd.cache.writing.writer import CacheWriter, ShardGroup
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


@pytest.fixture(params=[pytest.param('int8', marks=pytest.mark.slow), 'lean'])
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


@pytest.mark.parametrize('seed', [0, 1, *(pytest.param(one, marks=pytest.mark.slow) for one in range(2, 6))])
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


def filled(recipe: Any, writer: CacheWriter, key: ShardKey) -> ShardGroup:
    group = writer.start_group(key)
    for view in recipe.views:
        for image in writer.plan.images(key):
            maps = recipe.maps(image, view)
            group.append(view, {name: encode(one[None], recipe.codec) for name, one in maps.items()})
    return group


class Stopped:
    """A writer in a thread that is stopped before it writes an object, as by SIGSTOP, and goes on later."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, recipe: Any, url: str, file: str, *, part: Part = WHOLE
    ) -> None:
        self._reached, self._goes_on, self.errors = threading.Event(), threading.Event(), list[Exception]()
        attempted, slow = ObjectStore._attempted, self

        def request(self: ObjectStore, name: str, call: Callable[[], Any]) -> Any:
            is_put = call.__name__ in ('put', 'create')
            if self is slow.store and is_put and file in name and not slow._goes_on.is_set():
                slow._reached.set()
                slow._goes_on.wait()
            return attempted(self, name, call)

        monkeypatch.setattr(ObjectStore, '_attempted', request)
        writer = recipe.writer(url, part=part)
        self.store = writer.destination._store

        def run() -> None:
            try:
                with writer:
                    for key in writer.pending():
                        writer.commit(filled(recipe, writer, key))
                    writer.finish()
            except Exception as error:
                self.errors.append(error)

        self._thread = threading.Thread(target=run)
        self._thread.start()
        self._reached.wait()

    def go_on(self) -> None:
        self._goes_on.set()
        self._thread.join()


def damages(url: str) -> list[tuple[str, str]]:
    return [(one.kind, one.file) for one in verify(read_state(url), num_threads=2, advance=lambda _: None)]


def leftovers(url: str) -> list[str]:
    return [file for file in ObjectStore(url).objects() if file.startswith(('.', 'journal', 'plan'))]


@pytest.mark.usefixtures('mute')
@pytest.mark.parametrize(
    'file',
    ['/plain/p3/c/', 'journal', *(pytest.param(one, marks=pytest.mark.slow) for one in ('index/row', '.lock'))],
)
def test_a_writer_that_was_taken_for_dead_writes_no_more(
    file: str, make_recipe: Callable[..., Any], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped among the files of a group, before its entry, or before it has the right; the other one publishes."""
    slow, other = make_recipe(bias=1.0), make_recipe(bias=1.5)
    stopped = Stopped(monkeypatch, slow, url, file)
    other.write(url)
    before = objects(url)
    stopped.go_on()
    assert stopped.errors or file in ('index/row', '.lock')  # it finds a complete cache
    assert all(isinstance(error, MtpdError) for error in stopped.errors)
    assert objects(url) == before
    assert damages(url) == []
    assert leftovers(url) == []


@pytest.mark.usefixtures('mute')
def test_a_late_entry_of_a_part_that_was_taken_over(
    make_recipe: Callable[..., Any], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part that took over must not write over what the other part has published meanwhile."""
    slow, other = make_recipe(bias=1.0), make_recipe(bias=1.5)
    slow.write(url, num_groups=len(Part(1, 2).share(slow.plan().shard_keys())) - 1, part=Part(1, 2))
    require = RemoteDestination._require_right
    with monkeypatch.context() as patch:
        # As if it had been stopped after it looked whether it has the right.
        patch.setattr(RemoteDestination, '_require_right', lambda self: None)
        stopped = Stopped(patch, slow, url, 'journal', part=Part(1, 2))
        patch.setattr(RemoteDestination, '_require_right', require)
        with other.writer(url, part=Part(1, 2)) as writer:
            group = filled(other, writer, writer.pending()[0])
            stopped.go_on()
            slow.write(url, part=Part(2, 2))
            assert writer.is_finished
            with pytest.raises(CacheMismatchError, match='another process has finished this cache'):
                writer.commit(group)
    assert damages(url) == []
    assert leftovers(url) == []


@pytest.mark.usefixtures('mute')
def test_a_number_that_is_used_again(recipe: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped just after its lock was made; one takes over and ends, and the next one gets the number."""
    others, late = lease.Lease._others, recipe.writer(url)
    third = recipe.writer(url)
    calls = 0

    def stopped_once(self: lease.Lease) -> Any:
        nonlocal calls
        found = others(self)
        if self is late.destination._lease:
            calls += 1
            if calls == 2:
                with recipe.writer(url):
                    pass
                third.__enter__()
        return found

    monkeypatch.setattr(lease.Lease, '_others', stopped_once)
    with pytest.raises(UnavailableError, match='another process has taken over'):
        late.__enter__()
    third.destination._lease.require()
    third.__exit__()
    assert not ObjectStore(url).objects('.lock')


def test_a_lock_that_somebody_deletes(recipe: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = lease.Lease._others

    def deleting(self: lease.Lease) -> Any:
        found = others(self)
        self._store.delete([self._path])
        return found

    monkeypatch.setattr(lease.Lease, '_others', deleting)
    with pytest.raises(UnavailableError, match='another process has taken over'):
        recipe.write(url)


def test_an_object_that_goes_while_it_is_asked_for(url: str) -> None:
    store = ObjectStore(url)
    store.put('x', b'old')

    class Deleting:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def get(self, file: str) -> Any:
            self._inner.delete(file)
            return self._inner.get(file)

    store._store = Deleting(store._store)
    assert store.create('x', b'new')[0] == b'new'


def test_what_it_was_made_on_may_change(
    make_recipe: Callable[..., Any], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts and resumed runs on other machines: as in a folder, what the first one wrote stands."""
    recipe, machine = make_recipe(), 'one'
    described = type(recipe).description
    monkeypatch.setattr(
        type(recipe),
        'description',
        lambda self: described(self).model_copy(update={'provenance': {'device': machine}}),
    )
    for out in (url, tmp_path / 'cache'):
        machine = 'one'
        recipe.write(out, part=Part(1, 2))
        machine = 'two'
        recipe.write(out, part=Part(2, 2))
    assert objects(url) == contents(tmp_path / 'cache')


def test_a_part_that_starts_while_the_last_one_publishes(
    recipe: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.write(url, part=Part(1, 2))
    create, is_done = ObjectStore.create, False

    def late(self: ObjectStore, file: str, content: bytes) -> Any:
        nonlocal is_done
        if file == 'plan.json' and not is_done:
            is_done = True
            recipe.write(url, part=Part(2, 2))
        return create(self, file, content)

    monkeypatch.setattr(ObjectStore, 'create', late)
    with recipe.writer(url, part=Part(1, 2)) as writer:
        assert writer.is_finished
    assert leftovers(url) == []


@pytest.mark.parametrize('file', ['index/image_id/c/0', 'teacher.safetensors'])
def test_damaged_heads_are_repaired(file: str, recipe: Any, url: str, tmp_path: Path) -> None:
    recipe.write(url, num_groups=1)
    store = ObjectStore(url)
    content = store.read(file)
    store.put(file, bytes([content[0] ^ 1]) + content[1:])
    recipe.write(url)
    recipe.write(tmp_path / 'cache')
    assert objects(url) == contents(tmp_path / 'cache')


@pytest.mark.parametrize('what', ['basis', 'plan'])
def test_entries_of_another_basis_or_plan_do_not_count(
    what: str, make_recipe: Callable[..., Any], url: str, tmp_path: Path
) -> None:
    """As after objects were copied from another place."""
    recipe = make_recipe(codec='lean')
    recipe.write(url, num_groups=2)
    store = ObjectStore(url)
    if what == 'basis':
        levels = [level.to_level() for level in recipe.description().levels]
        bases = load_basis(store.read(BASIS_FILE), levels, name='basis')
        plan = plan_of_basis(store.read(BASIS_FILE))
        store.put(BASIS_FILE, save_basis({name: one.flip(1) for name, one in bases.items()}, plan=plan or ''))
    else:
        for path in store.objects('journal'):
            entry = parse_line(store.read(path), RemoteEntry)
            assert entry is not None
            store.put(path, entry_line(entry.model_copy(update={'plan': '0' * 64})))
    with recipe.writer(url) as writer:
        assert writer.pending() == writer.share()


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
    some_recipe.write(url, num_groups=3)
    state = read_state(url)
    assert not state.is_finished
    assert len(state.committed) == 3
    assert damages(url) == []
    some_recipe.write(url)
    assert read_state(url).is_finished
    assert damages(url) == []
    store = ObjectStore(url)
    cut, changed = [file for file in store.objects() if '/plain/p3/c/' in file][:2]
    store.put(cut, store.read(cut)[:-1])
    store.put(changed, bytes([store.read(changed)[0] ^ 1]) + store.read(changed)[1:])
    store.put('index/more', b'')
    store.delete(['index/zarr.json'])
    assert sorted(damages(url)) == sorted(
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
