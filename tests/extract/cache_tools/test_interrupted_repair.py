"""A repair excludes an extraction, and may die at any moment."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

from mtpd_extract.cache_tools.cli import main

Run = Callable[..., Result]
Contents = Callable[[Path], dict[str, bytes]]


P3 = '128x128/plain/p3/c/0/0/0/0'


def test_a_repair_waits_for_no_extraction(
    mtpd_cache: Run, command: Any, many_shards: Any, tmp_path: Path, slow: Path
) -> None:
    out = tmp_path / 'cache'
    with command.forked(out, '--checkpoint', slow, *many_shards) as child:
        while not (out / 'journal.jsonl').exists():
            child.require_running()
        assert 'writing this cache' in mtpd_cache('verify', out, '--repair', code=1).stderr
        # Looking on does no harm.
        assert 'shards are committed' in mtpd_cache('verify', out).stdout
        assert child.wait()[0] == 0
    assert 'sound; 24 images' in mtpd_cache('verify', out).stdout


def repair_and_die(root: Path, moment: int) -> bool:
    """Repairs in a process that kills itself at the n-th change of the disk; returns whether it lived."""

    def run() -> None:
        count = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for owner, name in ((os, 'fsync'), (Path, 'replace'), (Path, 'unlink'), (os, 'truncate')):
            setattr(owner, name, counted(getattr(owner, name)))
        main(['verify', str(root), '--repair'])

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def test_killed_in_the_middle(
    mtpd_cache: Run, command: Any, many_shards: Any, cache: Path, sharded: Path, contents: Contents, tmp_path: Path
) -> None:
    content = bytearray((cache / P3).read_bytes())
    content[10] ^= 4
    (cache / P3).write_bytes(content)
    moment, lived = 0, False
    states = set()
    while not lived:
        moment += 1
        root = tmp_path / f'killed{moment}'
        shutil.copytree(cache, root)
        lived = repair_and_die(root, moment)
        is_finished = (root / 'manifest.json').exists()
        states.add(is_finished)
        if is_finished:
            # As before: the damage is still named.
            assert mtpd_cache('verify', root, '--repair').exit_code == 0
        command.run(root, *many_shards)
        assert contents(root) == contents(sharded)
    assert moment > 5
    assert states == {True, False}
