"""Several processes fill one cache: it equals the one of a single process, whoever dies, comes back or is last."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd.cache.writing.journal import journal_paths

pytestmark = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')

Contents = Callable[[Path], dict[str, bytes]]
ReadMaps = Callable[[Path], dict[tuple[int, str, str], torch.Tensor]]


def num_committed(out: Path, journal: str) -> int:
    path = out / journal
    return path.read_bytes().count(b'\n') if path.exists() else 0


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory: pytest.TempPathFactory, command: Any, many_shards: tuple[str, str]) -> Path:
    """The cache of a single process."""
    out = tmp_path_factory.mktemp('undisturbed') / 'cache'
    command.run(out, *many_shards)
    return out


def test_four_processes_one_killed_and_started_again(
    command: Any,
    slow: Path,
    many_shards: tuple[str, str],
    undisturbed: Path,
    tmp_path: Path,
    contents: Contents,
    read_maps: ReadMaps,
) -> None:
    out, options = tmp_path / 'cache', ('--checkpoint', slow, *many_shards)
    with ExitStack() as stack:
        children = {
            number: stack.enter_context(command.forked(out, *options, '--part', f'{number}/4', log=f'{number}'))
            for number in (1, 2, 3, 4)
        }
        while num_committed(out, 'journal.2-of-4.jsonl') < 1:
            children[2].require_running()
            time.sleep(0.002)
        children[2].signal(signal.SIGKILL)
        assert children[2].wait()[0] == -signal.SIGKILL
        (out / '128x128' / 'plain' / '.tmp-2-of-4-0-0').write_bytes(b'half a shard')
        for number in (1, 3, 4):
            code, errors = children[number].wait()
            assert code == 0, errors
        assert not (out / 'manifest.json').exists()
        again = stack.enter_context(command.forked(out, *options, '--part', '2/4', log='again'))
        code, errors = again.wait()
        assert code == 0, errors
    found, wanted = read_maps(out), read_maps(undisturbed)
    assert found.keys() == wanted.keys()
    assert {view for _, view, _ in found} == {'plain', 'flip'}
    assert {level for _, _, level in found} == {'p3', 'p4', 'p5'}
    assert all(torch.equal(maps, wanted[key]) for key, maps in found.items())
    assert contents(out) == contents(undisturbed)


def test_parts_one_after_another_say_what_is_left(
    command: Any, many_shards: tuple[str, str], undisturbed: Path, tmp_path: Path, contents: Contents
) -> None:
    out = tmp_path / 'cache'
    first = command.run(out, *many_shards, '--part', '3/3')
    assert re.search('^part     3/3: [0-9]+ images, 2 shards$', first.stdout, re.MULTILINE)
    line = f'{out}: part 3/3 is done; 6 of 8 shards are still missing from parts 1/3, 2/3'
    assert first.stdout.splitlines()[-1] == line
    again = command.run(out, *many_shards, '--part', '3/3')
    assert again.stdout.splitlines()[-1] == line
    assert command.run(out, *many_shards, '--part', '1/3').stdout.splitlines()[-1].endswith('from part 2/3')
    last = command.run(out, *many_shards, '--part', '2/3')
    assert last.stdout.splitlines()[-1].startswith(f'{out}: 24 images, ')
    assert contents(out) == contents(undisturbed)
    assert 'is already complete' in command.run(out, *many_shards, '--part', '1/3').stdout


@pytest.mark.parametrize('then', [('--part', '1/2'), ()], ids=['in other parts', 'in one'])
def test_a_resume_in_other_numbers(
    command: Any,
    many_shards: tuple[str, str],
    undisturbed: Path,
    tmp_path: Path,
    contents: Contents,
    then: tuple[str, ...],
) -> None:
    out = tmp_path / 'cache'
    command.run(out, *many_shards, '--part', '2/3')
    (out / '.tmp-1-of-3-0-zarr.json').write_bytes(b'of a dead process')
    written = {path: path.stat().st_mtime_ns for path in out.rglob('c/**/*') if path.is_file()}
    command.run(out, *many_shards, *then)
    if then:
        command.run(out, *many_shards, '--part', '2/2')
    assert contents(out) == contents(undisturbed)
    assert all(path.stat().st_mtime_ns == before for path, before in written.items()), 'a shard was made again'


def test_other_numbers_are_refused_while_a_part_is_alive(
    command: Any, many_shards: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / 'cache'
    torch.save({'sleep': 60.0}, tmp_path / 'very_slow.pth')
    options = ('--checkpoint', tmp_path / 'very_slow.pth', *many_shards)
    with command.forked(out, *options, '--part', '2/4') as child:
        while 'at work' not in child.stderr.read_text():
            child.require_running()
            time.sleep(0.01)
        holder = f'{out}: process {child.process.pid} on '
        for others, advice in (
            (('--part', '2/4'), ' as part 2/4 is writing this cache; wait for it, or choose another --out'),
            (('--part', '1/3'), ' as part 2/4 is writing this cache; give --part I/4, or wait for it'),
            ((), ' as part 2/4 is writing this cache; wait for it'),
            (('--overwrite',), ' as part 2/4 is writing this cache; wait for it'),
        ):
            error = command.error(out, *options, *others)
            assert holder in error
            assert advice in error
        child.signal(signal.SIGKILL)
        child.wait()
    # A dead one blocks nobody.
    command.run(out, *many_shards, '--part', '1/3')
    assert not list(out.glob('.lock.*-of-4*'))


def test_a_single_process_keeps_parts_out(command: Any, many_shards: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / 'cache'
    torch.save({'sleep': 60.0}, tmp_path / 'very_slow.pth')
    options = ('--checkpoint', tmp_path / 'very_slow.pth', *many_shards)
    with command.forked(out, *options) as child:
        while 'at work' not in child.stderr.read_text():
            child.require_running()
            time.sleep(0.01)
        error = command.error(out, *options, '--part', '1/4')
        assert f'process {child.process.pid} on ' in error
        assert 'is writing this cache' in error


def test_an_interrupted_part_says_what_it_has_saved(
    command: Any, slow: Path, many_shards: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / 'cache'
    with command.forked(out, '--checkpoint', slow, *many_shards, '--part', '1/2') as child:
        while num_committed(out, 'journal.1-of-2.jsonl') < 1:
            child.require_running()
            time.sleep(0.002)
        child.signal(signal.SIGINT)
        code, errors = child.wait()
    assert code == 130
    saved = num_committed(out, 'journal.1-of-2.jsonl')
    line = f'stopped with {saved} of 4 shards of part 1/2 saved; run the same command again to resume'
    assert errors.splitlines()[-1] == line


def test_another_extraction_is_not_mixed_in(
    command: Any, many_shards: tuple[str, str], tmp_path: Path, contents: Contents
) -> None:
    out = tmp_path / 'cache'
    command.run(out, *many_shards, '--part', '1/2')
    before = contents(out)
    error = command.error(out, *many_shards, '--part', '2/2', '--codec', 'fp16')
    assert 'codec is int8 there and fp16 here' in error
    assert contents(out) == before


def test_more_parts_than_shards(command: Any, whole: Path, tmp_path: Path, contents: Contents) -> None:
    out = tmp_path / 'cache'
    for number in (5, 4, 3, 2, 1):
        command.run(out, '--part', f'{number}/5')
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_torchrun(
    command: Any, many_shards: tuple[str, str], undisturbed: Path, tmp_path: Path, contents: Contents
) -> None:
    out, bin_folder = tmp_path / 'cache', Path(sys.executable).parent
    if not (bin_folder / 'mtpd-extract').is_file():
        pytest.skip('mtpd-extract is not installed')
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--no-python']
    program = [str(bin_folder / 'mtpd-extract'), *command.arguments(out, *many_shards)]
    process = subprocess.run(
        [*torchrun, *program], capture_output=True, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'}, check=False
    )
    assert process.returncode == 0, process.stderr
    assert 'part     1/2: ' in process.stdout
    assert 'part     2/2: ' in process.stdout
    assert contents(out) == contents(undisturbed)


def test_the_part_of_the_environment_and_an_explicit_one(
    command: Any, many_shards: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '4')
    command.run(tmp_path / 'cache', *many_shards)
    command.run(tmp_path / 'cache', *many_shards, '--part', '3/4')
    names = [path.name for path in journal_paths(tmp_path / 'cache')]
    assert names == ['journal.2-of-4.jsonl', 'journal.3-of-4.jsonl']
    shutil.rmtree(tmp_path / 'cache')
    monkeypatch.setenv('WORLD_SIZE', '1')
    monkeypatch.setenv('RANK', '0')
    command.run(tmp_path / 'cache', *many_shards)
    assert (tmp_path / 'cache' / 'manifest.json').exists()
