"""The extraction under stress: a synthetic data set, tiny teachers, undisturbed caches, runs in forked processes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import torch
from click.testing import CliRunner

from mtpd.cache.format.arrays import file_place
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.writing.journal import JOURNAL_FILE
from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd_extract.cache_tools.cli import main as mtpd_cache
from mtpd_extract.cli import main as mtpd_extract
from stress.damages import contents
from stress.judge import Truth, Verdict, judge, read_all
from stress.processes import Child, forked

NUM_IMAGES = 24
SIZES = ((128, 128), (96, 128), (128, 80))
# The second differs by a bias alone: most of its int8 codes, and the sizes of its shards, are those of the first.
TEACHERS = {'mine': {'seed': 0, 'shift': 0.0}, 'shifted': {'seed': 0, 'shift': 1.0}, 'other': {'seed': 1, 'shift': 0.0}}
ONLY_MAPS = """
import time

import torch
from torch import nn


class Tiny(nn.Module):
    scale, mean, std = (128, 128), (110.0, 115.0, 120.0), (60.0, 55.0, 50.0)

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.p3 = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.p4 = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def features(self, images):
        time.sleep(0.005 * len(images))
        p3 = self.p3(images)
        return [p3, self.p4(p3.relu())]


def build(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    model = Tiny(content['seed'])
    with torch.no_grad():
        model.p3.bias += content['shift']
    return model
"""
TWO_STAGE = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'faster_rcnn_tiny.py'
# Untrained, it would say the same of all RoIs; and propose as many as it may on every image.
FACTORS = {
    'roi_head.bbox_head.fc_cls.weight': 100,
    'roi_head.bbox_head.fc_reg.weight': 100,
    'rpn_head.rpn_reg.weight': 10_000,
}


@dataclass(frozen=True)
class Extraction:
    """An extraction to disturb.

    Attributes:
        folder: for all files: `coco` is the data set, `<teacher>.pth` are the checkpoints of `TEACHERS`.
        options: of `mtpd-extract`, except the checkpoint and the output.
        random: of the moments and the places of harm.
    """

    folder: Path
    options: Sequence[str]
    random: Random
    _numbers: Iterator[int] = field(default_factory=count)

    def fresh(self, *, below: Path | None = None) -> Path:
        """A path for a new cache."""
        return (below or self.folder / 'trials') / f'cache{next(self._numbers)}'

    def extracting(
        self, out: Path, *options: str, teacher: str = 'mine', file_size_limit: int | None = None
    ) -> AbstractContextManager[Child]:
        """A process that runs `mtpd-extract`."""
        checkpoint = str(self.folder / f'{teacher}.pth')
        arguments = [*self.options, '--checkpoint', checkpoint, '--out', str(out), *options]
        return forked(partial(mtpd_extract, arguments), self._log(), file_size_limit=file_size_limit)

    def merging(self, parts: Sequence[Path], out: Path) -> AbstractContextManager[Child]:
        """A process that runs `mtpd-cache merge`."""
        return forked(partial(mtpd_cache, ['merge', *map(str, parts), '--out', str(out)]), self._log())

    def extract(self, out: Path, *options: str, teacher: str = 'mine') -> tuple[int | None, str]:
        """Runs `mtpd-extract` to its end: exit code and last line of stderr."""
        with self.extracting(out, *options, teacher=teacher) as run:
            return ended(run)

    def _log(self) -> Path:
        return self.folder / 'stderr' / str(time.monotonic_ns())


@dataclass(frozen=True)
class Setting:
    """An extraction, and what it gives undisturbed.

    Attributes:
        extraction: what is disturbed.
        reference: undisturbed caches of the same data set and plan by teacher; every trial must end in that of `mine`.
        truth: all that can be read from that.
        files: its contents.
        seconds: duration of an extraction.
    """

    extraction: Extraction
    reference: dict[str, Path]
    truth: Truth
    files: dict[str, bytes]
    seconds: float

    @property
    def random(self) -> Random:
        """The generator of moments and places of harm."""
        return self.extraction.random

    @property
    def others(self) -> list[Path]:
        """The caches of the other teachers."""
        return [path for name, path in self.reference.items() if name != 'mine']

    @property
    def groups(self) -> dict[ShardKey, list[str]]:
        """The files of each shard group, by path below the cache."""
        groups: dict[ShardKey, list[str]] = {}
        for file in self.files:
            if place := file_place(file):
                groups.setdefault(place.key, []).append(file)
        return groups

    def judge(self, root: Path, what: str) -> Verdict:
        """Reads all of a cache; fails the test if a read was wrong. The reads of the verdict are right or refused."""
        verdict = judge(root, self.truth)
        assert not verdict.wrong, f'{what}: {verdict.wrong[0]} (and {len(verdict.wrong) - 1} more)'
        return verdict

    def require_resumable(self, out: Path, what: str) -> None:
        """Runs the same command again, which must give the undisturbed cache."""
        before = self.judge(out, what)
        assert (out / 'manifest.json').exists() == before.is_right, f'{what}, before the resume: {before}'
        code, line = self.extraction.extract(out)
        assert code == 0, f'{what}: the resume ended with {code}: {line}'
        assert contents(out) == self.files, f'{what}: the resumed cache has other files'
        assert self.judge(out, what).is_right, what


def make_setting(folder: Path, *, seed: int, has_rois: bool) -> Setting:
    """Draws the images and extracts the undisturbed caches."""
    make_synthetic_set(folder / 'coco', SyntheticSpec(num_train=NUM_IMAGES, num_val=1, sizes=SIZES))
    for name, content in TEACHERS.items():
        torch.save({'state_dict': _two_stage_weights(**content)} if has_rois else content, folder / f'{name}.pth')
    (folder / 'teacher.py').write_text(ONLY_MAPS)
    if has_rois:
        options = [str(TWO_STAGE), '--shard-mb', '0.003', '--levels', 'p3,p4', '--rois', '32']
    else:
        options = [f'{folder / "teacher.py"}:build', '--shard-mb', '0.0015']
    options = ['--coco', str(folder / 'coco'), '--codec', 'lean', '--teacher', *options]
    (folder / 'trials').mkdir()
    (folder / 'stderr').mkdir()
    extraction = Extraction(folder, options, Random(seed))
    # In this process, so that it imports everything and the forked ones need not.
    first = [*options, '--checkpoint', str(folder / 'mine.pth'), '--out', str(folder / 'first')]
    assert CliRunner().invoke(mtpd_extract, first).exit_code == 0
    reference = {name: folder / f'reference-{name}' for name in TEACHERS}
    seconds = max(undisturbed_seconds(extraction, out, teacher=name) for name, out in reference.items())
    return Setting(extraction, reference, read_all(reference['mine']), contents(reference['mine']), seconds)


def _two_stage_weights(seed: float, shift: float) -> dict[str, Any]:
    torch.manual_seed(int(seed))
    state: dict[str, Any] = build_detector(load_config(str(TWO_STAGE))).state_dict()
    for name in state:
        if name.startswith('neck.') and name.endswith('.bias'):
            state[name] += shift
        state[name] *= FACTORS.get(name, 1)
    return state


def undisturbed_seconds(extraction: Extraction, out: Path, *, teacher: str = 'mine') -> float:
    """The duration of an undisturbed extraction, whose cache is left in `out`."""
    start = time.monotonic()
    code, line = extraction.extract(out, teacher=teacher)
    assert code == 0, line
    return time.monotonic() - start


def ended(run: Child) -> tuple[int | None, str]:
    """Exit code and last line of stderr of a process."""
    code, stderr = run.wait()
    return code, stderr.splitlines()[-1] if stderr else ''


def wait_until(condition: Callable[[], bool], run: Child) -> None:
    """Waits for something that an extraction does, or for its end."""
    while not condition() and run.process.is_alive():
        time.sleep(0.0005)


def num_committed(out: Path) -> int:
    """Lines of a cache's journal."""
    try:
        return (out / JOURNAL_FILE).read_bytes().count(b'\n')
    except OSError:
        return 0
