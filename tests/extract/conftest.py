"""Runs of `mtpd-extract` over the synthetic set with tiny teachers, in this process and in others."""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import mtpd.cache
from mtpd_extract.cli import main
from stress import damages
from stress.processes import Child, forked

# A teacher file as a user would write it: three levels, and all that is to be said about its input.
# Its checkpoint can slow it down (`sleep` seconds an image) and change its weights (`shift` of a bias).
TINY_TEACHER = """
import sys
import time

import torch
from torch import nn


class Tiny(nn.Module):
    scale, mean, std, pad_value = (128, 128), (110.0, 115.0, 120.0), (60.0, 55.0, 50.0), 20.0

    def __init__(self, sleep):
        super().__init__()
        torch.manual_seed(0)
        self.sleep = sleep
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.SiLU())
        self.p3 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.p4 = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.p5 = nn.Conv2d(16, 8, 3, stride=2, padding=1)

    def features(self, images):
        if self.sleep and images[0].any():  # mtpd looks at the teacher with a black image first
            print('at work', file=sys.stderr, flush=True)
            time.sleep(self.sleep * len(images))
        p3 = self.p3(self.backbone(images))
        p4 = self.p4(p3.relu())
        return [p3, p4, self.p5(p4.relu())]


def build(checkpoint):
    content = {} if checkpoint is None else torch.load(checkpoint, weights_only=True)
    model = Tiny(content.get('sleep', 0.0))
    with torch.no_grad():
        model.p3.bias += content.get('shift', 0.0)
    return model
"""

# Large maps from little work, of values that hardly compress.
NOISE_TEACHER = """
import torch
from torch import nn


class Noise(nn.Module):
    scale, mean, std = (256, 256), (120.0, 120.0, 120.0), (60.0, 60.0, 60.0)

    def __init__(self):
        super().__init__()
        self.noise = nn.Parameter(torch.rand(384, 32, 40, generator=torch.Generator().manual_seed(0)))

    def features(self, images):
        return [self.noise[:, : images.shape[2] // 8, : images.shape[3] // 8] + images.mean((1, 2, 3), keepdim=True)]


def build(checkpoint):
    return Noise()
"""

Maps = dict[tuple[int, str, str], torch.Tensor]


@dataclass(frozen=True)
class Command:
    """An `mtpd-extract` command line.

    Attributes:
        teacher: what --teacher gets.
        coco: what --coco gets.
        options: what precedes the options of a call.
    """

    teacher: object
    coco: Path
    options: Sequence[object] = field(default_factory=list)

    def arguments(self, out: Path, *options: object) -> list[str]:
        """The command line for one cache."""
        # Not the default: most tests want maps that are close and a cache that needs no calibration.
        base = ['--teacher', self.teacher, '--coco', self.coco, '--out', out, '--codec', 'int8']
        return [str(argument) for argument in [*base, *self.options, *options]]

    def run(self, out: Path, *options: object) -> Result:
        """Runs it in this process, which must succeed."""
        result = self.invoke(out, *options)
        assert result.exit_code == 0, result.output
        return result

    def invoke(self, out: Path, *options: object) -> Result:
        """Runs it in this process."""
        return CliRunner().invoke(main, self.arguments(out, *options))

    def error(self, out: Path, *options: object, code: int = 1) -> str:
        """Runs it in this process, which must fail with one line of its own as the last: that line."""
        result = self.invoke(out, *options)
        assert result.exit_code == code, result.output
        (line,) = [line for line in result.stderr.splitlines() if line.startswith('Error: ')]
        assert result.stderr.endswith(line + '\n')
        assert 'this is a bug' not in line
        return line

    def forked(self, out: Path, *options: object, log: str = '') -> AbstractContextManager[Child]:
        """A forked process that runs it, killed on leaving; `log` tells the logs of several apart."""
        return forked(partial(main, self.arguments(out, *options)), out.with_name(f'{out.name}{log}.stderr'))


@pytest.fixture(scope='session')
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the tiny teacher, for `FILE:build`."""
    path = tmp_path_factory.mktemp('teacher') / 'tiny.py'
    path.write_text(TINY_TEACHER)
    return path


@pytest.fixture(scope='session')
def command(teacher_file: Path, synthetic_set: Path) -> Command:
    """Extracts the tiny teacher over the synthetic set."""
    return Command(f'{teacher_file}:build', synthetic_set)


@pytest.fixture(scope='session')
def noise_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher with 393 kB of int8 codes for a view of 256 x 256 px."""
    path = tmp_path_factory.mktemp('noise') / 'noise.py'
    path.write_text(NOISE_TEACHER)
    return f'{path}:build'


@pytest.fixture(scope='session')
def make_command() -> type[Command]:
    """Makes commands for other teachers and sets."""
    return Command


@pytest.fixture(scope='session')
def many_shards() -> tuple[str, str]:
    """Options that cut the tiny teacher's cache of the synthetic set into eight shards."""
    return '--shard-mb', '0.01'


@pytest.fixture(scope='session')
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that slows the tiny teacher down, so that a signal meets it at work; its maps are the same."""
    path = tmp_path_factory.mktemp('slow') / 'slow.pth'
    torch.save({'sleep': 0.02}, path)
    return path


@pytest.fixture(scope='session')
def whole(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """The cache of an undisturbed run, in one shard for each of three shapes. Not to be changed."""
    out = tmp_path_factory.mktemp('whole') / 'cache'
    command.run(out)
    return out


@pytest.fixture(scope='session')
def read_maps() -> Callable[[Path], Maps]:
    """`read_maps(cache)` are all maps of a cache by image, view and level, read in a shuffled order."""

    def read(path: Path) -> Maps:
        cache = mtpd.cache.open(path)
        keys = [(image_id, view) for image_id in cache.image_ids for view in cache.views]
        random.Random(1).shuffle(keys)
        return {
            (image_id, view, name): maps for image_id, view in keys for name, maps in cache.read(image_id, view).items()
        }

    return read


@pytest.fixture(scope='session')
def contents() -> Callable[[Path], dict[str, bytes]]:
    """`contents(folder)` are all files below a folder, but for the traces of who has locked it."""
    return damages.contents
