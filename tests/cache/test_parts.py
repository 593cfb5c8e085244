"""What parts of an extraction do to one folder: they start, write and publish at once, and none undoes another's."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

import mtpd.cache
from mtpd.cache.format.tensor_files import BASIS_FILE, load_basis, plan_of_basis, save_basis
from mtpd.cache.writing import journal
from mtpd.cache.writing.journal import append_entry, committed, journal_path, publish
from mtpd.cache.writing.parts import WHOLE, Part, cache_lock, gate
from mtpd.cache.writing.plan_file import read_plan_file
from mtpd.errors import CacheIncompleteError, CacheMismatchError

pytestmark = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')

FORK = multiprocessing.get_context('fork')


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob('*')
        if path.is_file() and not path.name.startswith('.lock')
    }


def run_at_once(work: Callable[[int], object], *, number: int) -> list[int | None]:
    """Exit codes of processes that do `work(0)`, `work(1)`, ... at the same moment."""
    barrier: Barrier = FORK.Barrier(number)

    def run(index: int) -> None:
        barrier.wait()
        work(index)

    processes = [FORK.Process(target=run, args=(index,)) for index in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.fixture
def complete(tmp_path: Path, make_recipe: Callable[..., Any]) -> dict[str, bytes]:
    """Every file of a cache that one process wrote."""
    make_recipe().write(tmp_path / 'complete')
    return contents(tmp_path / 'complete')


@pytest.mark.parametrize('count', [2, 3, 12])
def test_every_group_falls_to_one_part(recipe: Any, count: int) -> None:
    keys = recipe.plan().shard_keys()
    shares = [Part(number, count).share(keys) for number in range(1, count + 1)]
    assert sorted(key for share in shares for key in share) == sorted(keys)
    assert shares[0][0] == keys[0]


@pytest.mark.parametrize(('index', 'count'), [(0, 4), (5, 4), (1, 0)])
def test_parts_that_there_are_not(index: int, count: int) -> None:
    with pytest.raises(ValueError, match='numbered from 1'):
        Part(index, count)


def test_parts_start_and_finish_at_once(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes]
) -> None:
    for trial in range(4):
        root = tmp_path / f'cache{trial}'

        def write(index: int, root: Path = root) -> None:
            make_recipe().write(root, part=Part(index + 1, 4))

        assert run_at_once(write, number=4) == [0] * 4
        assert contents(root) == complete


def test_publishing_at_once_without_a_lock(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes]
) -> None:
    """As on a network file system whose locks do not work: whoever comes last changes nothing."""
    for trial in range(5):
        root = tmp_path / f'cache{trial}'
        make_recipe().write(root, num_groups=6)
        with make_recipe().writer(root, part=Part(1, 2)) as writer:
            assert not writer.pending()

        def finish(_: int, root: Path = root) -> None:
            assert publish(root) == []

        assert run_at_once(finish, number=4) == [0] * 4
        assert contents(root) == complete
        assert publish(root) == []
        assert contents(root) == complete


def test_what_is_missing_is_not_published(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    root = tmp_path / 'cache'
    make_recipe().write(root, part=Part(1, 2))
    assert publish(root) == Part(2, 2).share(make_recipe().plan().shard_keys())
    assert not (root / 'manifest.json').exists()
    with pytest.raises(CacheIncompleteError, match='no extraction here'):
        publish(tmp_path)


def test_two_parts_wrote_one_group_and_the_hashes_decide(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes]
) -> None:
    root = tmp_path / 'cache'
    make_recipe().write(root, num_groups=2)
    entry, plan = journal.recorded_entries(root)[0], read_plan_file(root)
    name, record = next(iter(entry.files.items()))
    other = entry.files | {name: replace(record, sha256='0' * 64)}
    append_entry(root, entry.model_copy(update={'files': other}), part=Part(1, 2))
    assert committed(root, plan)[entry.key] == entry.files
    (root / name).write_bytes(bytes(record.num_bytes))
    assert entry.key not in committed(root, plan)
    make_recipe().write(root)
    assert contents(root) == complete


def test_a_neighbour_may_be_in_the_middle_of_a_line(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    root = tmp_path / 'cache'
    make_recipe().write(root, part=Part(1, 2), num_groups=2)
    torn = journal_path(root, Part(1, 2))
    torn.write_bytes(torn.read_bytes()[:-20])
    before = torn.read_bytes()
    make_recipe().write(root, part=Part(2, 2), num_groups=1)
    assert torn.read_bytes() == before
    assert len(committed(root, read_plan_file(root))) == 2
    make_recipe().write(root, part=Part(1, 2), num_groups=1)
    assert len(committed(root, read_plan_file(root))) == 3


@pytest.mark.parametrize(
    ('part', 'kept'),
    [
        (Part(2, 4), {'.tmp-1-of-4-a-x'}),
        (Part(1, 3), set()),
        (WHOLE, set()),
    ],
)
def test_files_of_a_live_neighbour_stay(
    tmp_path: Path, make_recipe: Callable[..., Any], part: Part, kept: set[str]
) -> None:
    root = tmp_path / 'cache'
    make_recipe().write(root, part=part, num_groups=1)
    for label in ('1-of-4', '2-of-4', '12-of-14', '1-of-1'):
        (root / 'index' / f'.tmp-{label}-a-x').write_bytes(b'half')
    make_recipe().write(root, part=part, num_groups=1)
    assert {path.name for path in root.rglob('.tmp-*')} == kept


def test_a_finished_cache_is_tidied_up(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes]
) -> None:
    """As after a kill between the manifest and the end."""
    root = tmp_path / 'cache'
    make_recipe().write(root, num_groups=6)
    working = {path.name: path.read_bytes() for path in (root / 'plan.json', root / 'journal.jsonl')}
    make_recipe().write(root)
    for name, content in working.items():
        (root / name).write_bytes(content)
    with make_recipe().writer(root, part=Part(1, 3)) as writer:
        assert writer.is_finished
    assert contents(root) == complete


def test_a_line_that_names_other_files_does_not_count(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    root = tmp_path / 'cache'
    make_recipe().write(root, num_groups=6)
    entry, *others = journal.recorded_entries(root)
    name = next(iter(entry.files))
    (tmp_path / 'secret').write_bytes((root / name).read_bytes())
    (root / 'journal.jsonl').unlink()
    for one in [entry.model_copy(update={'files': entry.files | {'../secret': entry.files[name]}}), *others]:
        append_entry(root, one)
    assert publish(root) == [entry.key]


def test_nothing_is_written_into_a_folder_that_has_become_another_extraction(
    tmp_path: Path, make_recipe: Callable[..., Any]
) -> None:
    """As where locks do not work, or somebody deleted the folder."""
    root = tmp_path / 'cache'
    make_recipe(fingerprint={'weights': 'xyz'}).write(tmp_path / 'other', num_groups=1)
    make_recipe().write(root, num_groups=1)
    with make_recipe().writer(root, part=Part(1, 2)) as writer:
        key = writer.pending()[0]
        (root / 'plan.json').write_bytes((tmp_path / 'other' / 'plan.json').read_bytes())
        with pytest.raises(CacheMismatchError, match=r'fingerprint\.weights is xyz there and abc here'):
            writer.commit(writer.start_group(key))
        with pytest.raises(AssertionError):
            writer.finish()


def test_another_extraction_is_not_published(tmp_path: Path, recipe: Any, make_recipe: Callable[..., Any]) -> None:
    root = tmp_path / 'cache'
    make_recipe(fingerprint={'weights': 'xyz'}).write(tmp_path / 'other', num_groups=1)
    recipe.write(root, num_groups=len(recipe.plan().shard_keys()))
    with recipe.writer(root) as writer:
        (root / 'plan.json').write_bytes((tmp_path / 'other' / 'plan.json').read_bytes())
        with pytest.raises(CacheMismatchError, match=r'fingerprint\.weights is xyz there and abc here'):
            writer.finish()


def test_a_gate_that_is_held_for_long(
    tmp_path: Path,
    make_recipe: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is waited for as long as its holder lives, and the user reads of it."""
    monkeypatch.setattr('mtpd.cache.writing.parts.GATE_SECONDS', 0.1)
    root = tmp_path / 'cache'
    root.mkdir()
    is_free = threading.Event()

    def release() -> None:
        with cache_lock(root, part=Part(1, 2)), gate(root):
            is_held.set()
            is_free.wait(30)

    is_held = threading.Event()
    holder = threading.Thread(target=release)
    holder.start()
    assert is_held.wait(30)
    timer = threading.Timer(0.5, is_free.set)
    timer.start()
    try:
        make_recipe().write(root, part=Part(2, 2))
    finally:
        is_free.set()
        holder.join()
        timer.join()
    assert f'{root / ".lock.gate"}: waiting' in caplog.text


def test_a_part_that_is_not_the_last_does_not_wait_for_the_gate(
    tmp_path: Path, make_recipe: Callable[..., Any]
) -> None:
    root = tmp_path / 'cache'
    recipe = make_recipe()
    recipe.write(root, part=Part(1, 2), num_groups=99)
    with recipe.writer(root, part=Part(1, 2)) as writer, gate(root):
        assert writer.finish() == Part(2, 2).share(recipe.plan().shard_keys())


def test_a_killed_part_leaves_the_gate_open(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    root = tmp_path / 'cache'
    root.mkdir()

    def die_inside(_: int) -> None:
        with cache_lock(root, part=Part(1, 2)), gate(root):
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_at_once(die_inside, number=1) == [-signal.SIGKILL]
    make_recipe().write(root)
    mtpd.cache.open(root)


def test_parts_of_a_lean_cache_share_one_basis(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    lean = make_recipe(codec='lean')
    lean.write(tmp_path / 'complete')
    root = tmp_path / 'cache'

    def write(index: int) -> None:
        lean.write(root, part=Part(index + 1, 3))

    assert run_at_once(write, number=3) == [0] * 3
    assert contents(root) == contents(tmp_path / 'complete')


def test_shards_of_a_lost_basis_are_written_again(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    lean = make_recipe(codec='lean')
    lean.write(tmp_path / 'complete')
    root = tmp_path / 'cache'
    lean.write(root, num_groups=3)
    with lean.writer(root) as writer:
        assert len(writer.pending()) == 3
    levels = [level.to_level() for level in lean.description().levels]
    content = (root / BASIS_FILE).read_bytes()
    basis, plan = load_basis(content, levels, name='basis'), plan_of_basis(content)
    assert plan is not None
    (root / BASIS_FILE).write_bytes(save_basis({name: -one for name, one in basis.items()}, plan=plan))
    with lean.writer(root) as writer:
        assert len(writer.pending()) == 6
    (root / BASIS_FILE).unlink()
    lean.write(root)
    assert contents(root) == contents(tmp_path / 'complete')


def test_the_basis_of_another_extraction_is_not_taken_over(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    lean, root = make_recipe(codec='lean'), tmp_path / 'cache'
    lean.write(tmp_path / 'complete')
    lean.write(root, num_groups=3)
    levels = [level.to_level() for level in lean.description().levels]
    content = (root / BASIS_FILE).read_bytes()
    other = {name: -one for name, one in load_basis(content, levels, name='basis').items()}
    (root / BASIS_FILE).write_bytes(save_basis(other, plan='0' * 64))
    lean.write(root)
    assert (root / BASIS_FILE).read_bytes() == content
    assert contents(root) == contents(tmp_path / 'complete')


def test_groups_of_another_basis_do_not_count(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    """Their codes would come back rotated, with no other sign of it."""
    lean, root = make_recipe(codec='lean'), tmp_path / 'cache'
    lean.write(root, num_groups=3)
    plan, content = read_plan_file(root), (root / BASIS_FILE).read_bytes()
    assert len(committed(root, plan)) == 3
    levels = [level.to_level() for level in lean.description().levels]
    other = {name: -one for name, one in load_basis(content, levels, name='basis').items()}
    (root / BASIS_FILE).write_bytes(save_basis(other, plan=plan.sha256))
    assert (root / BASIS_FILE).stat().st_size == len(content)
    assert committed(root, plan) == {}
