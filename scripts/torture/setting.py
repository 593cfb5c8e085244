"""The extraction that is tortured: a synthetic set, undisturbed caches, runs in processes of their own."""

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

import cv2
import torch
from click import Command

from mtpd.cache.format.arrays import file_place
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.writing.journal import JOURNAL_FILE
from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd_extract.cli import main
from torture.judge import Truth, read_all
from torture.teachers import TEACHERS, Subject, only_maps, two_stage

NUM_IMAGES = 24


@dataclass(frozen=True)
class Setting:
    """Where everything is.

    Attributes:
        subject: what is extracted.
        reference: undisturbed caches of the same data set and plan by teacher; `mine` is what every trial must end in.
        truth: all that can be read from `mine`.
        seconds: how long an extraction takes.
        random: of the moments and the places of harm.
    """

    subject: Subject
    reference: dict[str, Path]
    truth: Truth
    seconds: float
    random: random.Random

    def fresh(self, name: str, *, below: Path | None = None) -> Path:
        """A path for a new cache."""
        number = self.random.getrandbits(48)
        return (below or self.subject.folder / 'trials') / f'{name}-{number:012x}'


@dataclass(frozen=True)
class Run:
    """An extraction in a process of its own, and the file that gets what it says."""

    process: ForkProcess
    stderr: Path

    def kill(self) -> bool:
        """Kills it with signal 9; whether it was still running."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -9

    def pause(self) -> None:
        """Stops it, alive and with all that it holds, until it is killed."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def wait(self) -> tuple[int | None, str]:
        """Exit code and the last line of stderr."""
        self.process.join()
        lines = self.stderr.read_text().splitlines()
        return self.process.exitcode, lines[-1] if lines else ''


def make_setting(folder: Path, *, seed: int, has_rois: bool) -> Setting:
    """Draws the images and extracts the undisturbed caches."""
    sizes = ((128, 128), (96, 128), (128, 80))
    make_synthetic_set(folder / 'coco', SyntheticSpec(num_train=NUM_IMAGES, num_val=1, sizes=sizes))
    subject = two_stage(folder) if has_rois else only_maps(folder)
    (folder / 'trials').mkdir()
    (folder / 'stderr').mkdir()
    reference = {name: folder / f'reference-{name}' for name in TEACHERS}
    # In this process, so that it imports everything and the forked ones need not.
    with redirect_stdout(None):
        main(subject.command_line(folder / 'first'), standalone_mode=False)
    seconds = max(duration(subject, out, teacher=name) for name, out in reference.items())
    return Setting(subject, reference, read_all(reference['mine']), seconds, random.Random(seed))


def duration(subject: Subject, out: Path, *, teacher: str = 'mine') -> float:
    """Seconds of an undisturbed extraction, whose cache is left in `out`."""
    start = time.monotonic()
    require_done(extract(subject, out, teacher=teacher))
    return time.monotonic() - start


def extract(subject: Subject, out: Path, *options: str, teacher: str = 'mine') -> tuple[int | None, str]:
    """Runs `mtpd-extract` to its end: exit code and last line of stderr."""
    with extracting(subject, out, *options, teacher=teacher) as run:
        return run.wait()


def require_done(result: tuple[int | None, str]) -> None:
    """Ends the program if a command that nothing disturbed has failed."""
    if result[0] != 0:
        raise SystemExit(f'an undisturbed run failed: {result[1]}')


def extracting(
    subject: Subject, out: Path, *options: str, teacher: str = 'mine', file_size_limit: int | None = None
) -> AbstractContextManager[Run]:
    """A process that runs `mtpd-extract`."""
    arguments = subject.command_line(out, *options, teacher=teacher)
    return running(main, arguments, subject.folder / 'stderr' / out.name, file_size_limit=file_size_limit)


@contextmanager
def running(
    program: Command, arguments: Sequence[str], log: Path, *, file_size_limit: int | None = None
) -> Iterator[Run]:
    """A process that runs a command line, forked because importing everything anew costs seconds.

    What it says on stderr goes into a file whose name begins like that of `log`.
    """
    stderr = log.with_name(f'{log.name}-{time.monotonic_ns()}')

    def run() -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        if file_size_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
        with stderr.open('w') as sys.stderr, Path(os.devnull).open('w') as sys.stdout:
            program(list(arguments))

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    try:
        yield Run(process, stderr)
    finally:
        process.kill()
        process.join()
        process.close()


def wait_until(condition: Callable[[], bool], run: Run) -> None:
    """Waits for something that an extraction does, or for its end."""
    while not condition() and run.process.is_alive():
        time.sleep(0.0005)


def group_files(root: Path) -> dict[ShardKey, list[str]]:
    """The files of each shard group of a finished cache, by path below it."""
    groups: dict[ShardKey, list[str]] = {}
    for file in contents(root):
        if place := file_place(file):
            groups.setdefault(place.key, []).append(file)
    return groups


def num_committed(out: Path) -> int:
    """Lines of a cache's journal."""
    try:
        return (out / JOURNAL_FILE).read_bytes().count(b'\n')
    except OSError:
        return 0


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a cache, but for the traces of who has locked it."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob('*')
        if path.is_file() and not path.name.startswith('.lock')
    }
