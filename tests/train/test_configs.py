"""Every stage file that the project ships can be used as its head says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mtpd.losses.mgd import MgdOptions
from mtpd.losses.pkd import PkdOptions
from mtpd_train.settings.stage_file import load_stages

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / 'configs').rglob('*.yaml'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_loads(path: Path) -> None:
    (stage,) = load_stages([path])
    assert stage.student


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_its_head_names_a_command_that_works(
    path: Path, head_commands: Callable[[Path], list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
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
        ('retinanet_r50_from_swin_t', 2e-5, 0.65, 'p3 p4 p5 p6 p7', 0.01),
        ('retinanet_r50_from_swin_s', 2e-5, 0.65, 'p3 p4 p5 p6 p7', 0.01),
        ('reppoints_r50_from_r101', 2e-5, 0.65, 'p3 p4 p5 p6 p7', 0.01),
        ('reppoints_r50_from_x101_dcn', 2e-5, 0.65, 'p3 p4 p5 p6 p7', 0.01),
        ('mask_rcnn_r50_from_cascade_r50_dcn', 5e-7, 0.45, 'p2 p3 p4 p5', 0.02),
        ('mask_rcnn_r50_from_cascade_x101_dcn', 5e-7, 0.45, 'p2 p3 p4 p5', 0.02),
        ('mask_rcnn_r50_from_swin_t', 5e-7, 0.45, 'p2 p3 p4 p5', 0.02),
        ('mask_rcnn_r50_from_swin_s', 5e-7, 0.45, 'p2 p3 p4 p5', 0.02),
    ],
)
def test_published_numbers(name: str, weight: float, mask_ratio: float, levels: str, lr: float) -> None:
    (stage,) = load_stages([ROOT / 'configs' / 'coco' / f'{name}.yaml'])
    assert stage.distill == (
        MgdOptions(loss='mgd', levels=tuple(levels.split()), weight=weight, mask_ratio=mask_ratio),
    )
    optim = stage.optim
    assert (optim.type, optim.lr, optim.momentum, optim.weight_decay) == ('sgd', lr, 0.9, 1e-4)
    assert (optim.epochs, optim.milestones, optim.grad_clip, stage.data.batch_size) == (12, (8, 11), 35, 16)


def test_the_published_numbers_of_pkd() -> None:
    (stage,) = load_stages([ROOT / 'configs' / 'coco' / 'retinanet_r50_pkd_from_swin_s.yaml'])
    (loss,) = stage.distill
    assert isinstance(loss, PkdOptions)
    assert list(zip(loss.levels or (), loss.teacher_levels or (), strict=True)) == [
        ('p3', 'p2'), ('p4', 'p3'), ('p5', 'p4'), ('p6', 'p5')
    ]  # fmt: skip
    assert (loss.weight, loss.resize) == (6.0, 'student')
    assert (stage.optim.epochs, stage.optim.milestones, stage.optim.lr) == (24, (16, 22), 0.01)
