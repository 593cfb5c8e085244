"""The extraction that is tortured: a synthetic set, tiny teachers, undisturbed caches, runs in their own processes."""

import multiprocessing
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

import cv2
import torch

from mtpd.cache.writing.journal import JOURNAL_FILE
from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd_extract.cli import main
from torture.judge import Maps, read_maps

NUM_IMAGES = 24
TEACHER = """
import time

import torch
from torch import nn


class Tiny(nn.Module):
    scale, mean, std = (128, 128), (110.0, 115.0, 120.0), (60.0, 55.0, 50.0)

    def __init__(self, seed, sleep):
        super().__init__()
        torch.manual_seed(seed)
        self.sleep = sleep
        self.p3 = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.p4 = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def features(self, images):
        if images.any():  # mtpd asks for the levels with a black image
            time.sleep(self.sleep * len(images))
        p3 = self.p3(images)
        return [p3, self.p4(p3.relu())]


def build(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    model = Tiny(content['seed'], content['sleep'])
    with torch.no_grad():
        model.p3.bias += content['shift']
    return model
"""
# The second differs by a bias alone: most of its int8 codes, and the sizes of its shards, are those of the first.
TEACHERS = {
    'mine': {'seed': 0, 'sleep': 0.005, 'shift': 0.0},
    'shifted': {'seed': 0, 'sleep': 0.0, 'shift': 1.0},
    'other': {'seed': 1, 'sleep': 0.0, 'shift': 0.0},
    'slow': {'seed': 0, 'sleep': 5.0, 'shift': 0.0},
}


@dataclass(frozen=True)
class Setting:
    """Where everything is.

    Attributes:
        folder: for all files.
        reference: undisturbed caches of the same data set and plan by teacher; `mine` is what every trial must end in.
        truth: the maps of `mine`.
        seconds: how long its extraction takes.
        random: of the moments and the places of harm.
    """

    folder: Path
    reference: dict[str, Path]
    truth: Maps
    seconds: float
    random: random.Random

    def fresh(self, name: str, *, below: Path | None = None) -> Path:
        """A path for a new cache."""
        number = self.random.getrandbits(48)
        return (below or self.folder / 'trials') / f'{name}-{number:012x}'


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

    def wait(self) -> tuple[int | None, str]:
        """Exit code and the last line of stderr."""
        self.process.join()
        lines = self.stderr.read_text().splitlines()
        return self.process.exitcode, lines[-1] if lines else ''


def make_setting(folder: Path, *, seed: int) -> Setting:
    """Draws the images and extracts the undisturbed caches."""
    sizes = ((128, 128), (96, 128), (128, 80))
    make_synthetic_set(folder / 'coco', SyntheticSpec(num_train=NUM_IMAGES, num_val=1, sizes=sizes))
    (folder / 'teacher.py').write_text(TEACHER)
    (folder / 'trials').mkdir()
    (folder / 'stderr').mkdir()
    for name, content in TEACHERS.items():
        torch.save(content, folder / f'{name}.pth')
    reference = {name: folder / f'reference-{name}' for name in ('mine', 'shifted', 'other')}
    # In this process, so that it imports everything and the forked ones need not.
    with redirect_stdout(None):
        main(command_line(folder, folder / 'first'), standalone_mode=False)
    for name, out in reference.items():
        require_done(extract(folder, out, teacher=name))
    return Setting(folder, reference, read_maps(reference['mine']), duration(folder), random.Random(seed))


def duration(folder: Path, *, below: Path | None = None) -> float:
    """Seconds of an undisturbed extraction: the longer one of two."""
    seconds = []
    for number in range(2):
        start = time.monotonic()
        require_done(extract(folder, (below or folder) / f'timing-{number}'))
        seconds.append(time.monotonic() - start)
    return max(seconds)


def extract(folder: Path, out: Path, *options: str, teacher: str = 'mine') -> tuple[int | None, str]:
    """Runs `mtpd-extract` to its end: exit code and last line of stderr."""
    with extracting(folder, out, *options, teacher=teacher) as run:
        return run.wait()


def require_done(result: tuple[int | None, str]) -> None:
    """Ends the program if an extraction that nothing disturbed has failed."""
    if result[0] != 0:
        raise SystemExit(f'an undisturbed extraction failed: {result[1]}')


def command_line(folder: Path, out: Path, *options: str, teacher: str = 'mine') -> list[str]:
    """The arguments of `mtpd-extract`."""
    arguments = ['--teacher', f'{folder / "teacher.py"}:build', '--checkpoint', str(folder / f'{teacher}.pth')]
    cache = ['--out', str(out), '--codec', 'lean', '--shard-mb', '0.0015']
    return [*arguments, '--coco', str(folder / 'coco'), *cache, *options]


@contextmanager
def extracting(
    folder: Path, out: Path, *options: str, teacher: str = 'mine', file_size_limit: int | None = None
) -> Iterator[Run]:
    """A process that runs `mtpd-extract`, forked because importing everything anew costs seconds."""
    stderr = folder / 'stderr' / f'{out.name}-{time.monotonic_ns()}'
    arguments = command_line(folder, out, *options, teacher=teacher)

    def run() -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        if file_size_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
        with stderr.open('w') as sys.stderr, Path(os.devnull).open('w') as sys.stdout:
            main(arguments)

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
