"""Every stage file that the project ships can be used as its head says."""

import re
import shlex
from pathlib import Path

import pytest

from mtpd_train.loss_settings import MgdSettings
from mtpd_train.stage_file import load_stages

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / 'configs').rglob('*.yaml'))


def head_commands(path: Path) -> list[list[str]]:
    """The commands in the comments at the top of a file, continued lines joined."""
    comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith('#')]
    text = '\n'.join(comments).replace('\\\n', ' ')
    return [shlex.split(line) for line in text.splitlines() if re.match(r'(mtpd-|scripts/)', line)]


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_loads(path: Path) -> None:
    (stage,) = load_stages([path])
    assert stage.student


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_its_head_names_a_command_that_works(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = head_commands(path)
    assert commands
    trainings = [[Path(word) for word in command if word.endswith('.yaml')] for command in commands]
    trainings = [files for files in trainings if files]
    for files in trainings:
        load_stages(files)
    assert not trainings or path.relative_to(ROOT) in [file for files in trainings for file in files]


@pytest.mark.parametrize(
    ('name', 'weight', 'mask_ratio', 'levels', 'lr'),
    [
        ('retinanet_r50_from_r101', 2e-5, 0.65, 'p3 p4 p5 p6 p7', 0.01),
        ('retinanet_r50_from_x101', 2e-5, 0.65, 'p3 p4 p5 p6 p7', 0.01),
        ('mask_rcnn_r50_from_cascade_r50_dcn', 5e-7, 0.45, 'p2 p3 p4 p5', 0.02),
        ('mask_rcnn_r50_from_cascade_x101_dcn', 5e-7, 0.45, 'p2 p3 p4 p5', 0.02),
    ],
)
def test_published_numbers(name: str, weight: float, mask_ratio: float, levels: str, lr: float) -> None:
    (stage,) = load_stages([ROOT / 'configs' / 'coco' / f'{name}.yaml'])
    assert stage.distill == (
        MgdSettings(loss='mgd', levels=tuple(levels.split()), weight=weight, mask_ratio=mask_ratio),
    )
    optim = stage.optim
    assert (optim.type, optim.lr, optim.momentum, optim.weight_decay) == ('sgd', lr, 0.9, 1e-4)
    assert (optim.epochs, optim.milestones, optim.grad_clip, stage.data.batch_size) == (12, (8, 11), 35, 16)
