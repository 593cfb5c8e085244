"""Tiny runs of `mtpd-train` in this process, and tiny teachers with their caches."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from mtpd.detectors.of_mmdet.runtime import known_warnings_ignored
from mtpd.errors import InputError
from mtpd_extract.cli import main as extract_main
from mtpd_train.cli import main as train_main
from mtpd_train.settings.stage_file import load_stages
from mtpd_train.settings.stage_settings import StageSettings
from mtpd_train.stage import Stage, build_stages

TINY = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'

Train = Callable[..., Result]
WriteStage = Callable[..., Path]
BuildStage = Callable[..., Stage]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """pytest resets the filters with which mmdet's own warnings are ignored."""
    with known_warnings_ignored():
        yield


def invoke(command: Any, arguments: Sequence[object]) -> Result:
    """Runs a command line in this process."""
    with known_warnings_ignored():
        return CliRunner().invoke(command, [str(argument) for argument in arguments])


def successful(result: Result) -> Result:
    """The same, if the command did not fail."""
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope='session')
def train() -> Train:
    """`train(stage_file, ..., '--out', run)` runs mtpd-train, which must succeed."""
    return lambda *arguments: successful(invoke(train_main, arguments))


@pytest.fixture(scope='session')
def extract() -> Train:
    """`extract(option, ...)` runs mtpd-extract, which must succeed."""
    return lambda *arguments: successful(invoke(extract_main, arguments))


@pytest.fixture(scope='session')
def train_error() -> Callable[..., str]:
    """`train_error(stage_file, ..., code=1)` runs mtpd-train, which must fail with one line of its own: that line."""

    def run(*arguments: object, code: int = 1) -> str:
        result = invoke(train_main, arguments)
        assert result.exit_code == code, result.output
        *_, line = result.stderr.splitlines()
        # A stop that the user asked for is no error.
        assert [one for one in result.stderr.splitlines() if one.startswith('Error: ')] == ([line] if code == 1 else [])
        assert 'this is a bug' not in line
        return line

    return run


@pytest.fixture(scope='session')
def records() -> Callable[..., list[dict[str, Any]]]:
    """`records(run, kind)` are the records of a run's metrics.jsonl that have this kind, or all."""

    def read(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
        return [record for record in found if kind in (None, record['kind'])]

    return read


@pytest.fixture(scope='session')
def head_commands() -> Callable[[Path], list[list[str]]]:
    """`head_commands(stage_file)` are the commands in the comments at its top, continued lines joined."""

    def read(path: Path) -> list[list[str]]:
        comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith('#')]
        text = '\n'.join(comments).replace('\\\n', ' ')
        return [shlex.split(line) for line in text.splitlines() if re.match(r'(mtpd-|scripts/)', line)]

    return read


@pytest.fixture(scope='session')
def uniform_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images that differ in pixels and classes, with objects in the same places.

    A RetinaNet divides its losses by the number of matched anchors in the batch; here that is the same in every image.
    """
    folder = tmp_path_factory.mktemp('uniform')
    (folder / 'train2017').mkdir()
    (folder / 'annotations').mkdir()
    random = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(8):
        pixels = random.integers(0, 256, (96, 96, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / 'train2017' / f'{number}.png'), pixels)
        images.append({'id': number, 'file_name': f'{number}.png', 'height': 96, 'width': 96})
        for index, box in enumerate(([10, 10, 30, 30], [50, 40, 24, 36])):
            annotations.append(
                {'id': 2 * number + index, 'image_id': number, 'category_id': 1 + (number + index) % 2, 'bbox': box}
            )
    document = {
        'images': images, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'b'}]
    }  # fmt: skip
    (folder / 'annotations' / 'instances_train2017.json').write_text(json.dumps(document))
    return folder


@pytest.fixture(scope='session')
def write_stage(synthetic_set: Path) -> WriteStage:
    """`write_stage(path, key=value, ...)` writes a stage file: a tiny student, one epoch, and what differs from that.

    A mapping is merged into the default's, anything else replaces it.
    """

    def write(path: Path, **changes: Any) -> Path:
        stage: dict[str, Any] = {
            'student': str(TINY),
            'model': {},
            'init': {'backbone': 'none'},
            'data': {'coco': str(synthetic_set), 'batch_size': 8, 'workers': 0},
            'optim': {'type': 'adamw', 'lr': 2e-3, 'epochs': 1, 'grad_clip': 10.0},
        }
        for key, value in changes.items():
            stage[key] = stage.get(key, {}) | value if isinstance(value, dict) else value
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(stage, default=str))
        return path

    return write


@pytest.fixture
def build_stage(write_stage: WriteStage, tmp_path: Path) -> BuildStage:
    """`build_stage(key=value, ...)` is the stage that `write_stage` writes, built."""

    def build(**changes: Any) -> Stage:
        (stage,) = build_stages(load_stages([write_stage(tmp_path / 'built.yaml', **changes)]))
        return stage

    return build


@pytest.fixture(scope='session')
def teachers(tmp_path_factory: pytest.TempPathFactory, train: Train, write_stage: WriteStage) -> dict[int, Path]:
    """Runs of plain training that make teachers: channels of their neck -> RUN.

    The first pads its inputs to multiples of 32, the second to a fixed size, as YOLOX does.
    """
    folder = tmp_path_factory.mktemp('teachers')
    runs = {}
    for channels, geometry in ((16, None), (24, {'scale': '128x128', 'pad_size': [128, 160]})):
        runs[channels] = folder / str(channels)
        widths = ('neck.out_channels', 'bbox_head.in_channels', 'bbox_head.feat_channels')
        model = dict.fromkeys(widths, channels)
        stage = write_stage(folder / f'{channels}.yaml', model=model, data={'val': None, 'geometry': geometry})
        train(stage, '--out', runs[channels])
    return runs


@pytest.fixture(scope='session')
def extract_teacher(extract: Train, teachers: dict[int, Path], synthetic_set: Path) -> Callable[..., Path]:
    """`extract_teacher(channels, out, option, ...)` makes the cache of a teacher."""

    def make(channels: int, out: Path, *options: object) -> Path:
        run = teachers[channels]
        source = ('--teacher', run / 'student_config.py', '--checkpoint', run / 'student.pth', '--coco', synthetic_set)
        extract(*source, '--out', out, *options)
        return out

    return make


@pytest.fixture(scope='session')
def live(teachers: dict[int, Path]) -> Callable[[int], dict[str, str]]:
    """`live(channels)` are the settings of a stage with that teacher in the loop."""
    return lambda channels: {
        'teacher': str(teachers[channels] / 'student_config.py'),
        'checkpoint': str(teachers[channels] / 'student.pth'),
    }


@pytest.fixture(scope='session')
def caches(tmp_path_factory: pytest.TempPathFactory, extract_teacher: Callable[..., Path]) -> dict[int, Path]:
    """Caches of the teachers: channels of their neck -> cache."""
    folder = tmp_path_factory.mktemp('caches')
    return {channels: extract_teacher(channels, folder / str(channels)) for channels in (16, 24)}


@pytest.fixture(scope='session')
def extract_two_stage(
    extract: Train, synthetic_set: Path, tiny_two_stage: Path, random_weights: Callable[..., Path]
) -> Callable[..., Path]:
    """`extract_two_stage(out, option, ..., num_classes=6, norms=False)` makes the cache of a tiny Faster R-CNN."""

    def make(out: Path, *options: object, num_classes: int = 6, norms: bool = False) -> Path:
        text = tiny_two_stage.read_text().replace("'num_classes': 6", f"'num_classes': {num_classes}")
        if norms:
            text = text.replace("'FPN',", "'FPN', 'norm_cfg': {'type': 'GN', 'num_groups': 4},")
        config = out.with_suffix('.py')
        config.write_text(text)
        weights = random_weights(config, num_classes=num_classes)
        source = ('--teacher', config, '--checkpoint', weights, '--coco', synthetic_set, '--codec', 'fp16')
        extract(*source, '--out', out, *options)
        return out

    return make


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., StageSettings]:
    """`load(text, override, ...)` reads a text as a stage file."""

    def read(text: str, *overrides: str) -> StageSettings:
        path = tmp_path / 'stage.yaml'
        path.write_text(text)
        (stage,) = load_stages([path], overrides=overrides)
        return stage

    return read


@pytest.fixture
def problems(load: Callable[..., StageSettings], tmp_path: Path) -> Callable[..., str]:
    """`problems(text, override, ...)` is the error's text, without the folder, columns squeezed to single spaces."""

    def read(text: str, *overrides: str) -> str:
        with pytest.raises(InputError) as caught:
            load(text, *overrides)
        lines = str(caught.value).replace(str(tmp_path / 'stage.yaml'), 'stage.yaml').splitlines()
        return '\n'.join(' '.join(line.split()) for line in lines)

    return read
