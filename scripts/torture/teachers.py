"""The tiny teachers of the tortured extractions, and what `mtpd-extract` is told of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtpd.detectors.models import build_detector, load_config

# With proposals and a RoI head; the other kind of teacher has neither.
TWO_STAGE = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'faster_rcnn_tiny.py'
NUM_ROIS = 32
# Untrained, it would say the same of all RoIs; and propose as many as it may on every image.
FACTORS = {
    'roi_head.bbox_head.fc_cls.weight': 100,
    'roi_head.bbox_head.fc_reg.weight': 100,
    'rpn_head.rpn_reg.weight': 10_000,
}
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
# The second differs by a bias alone: most of its int8 codes, and the sizes of its shards, are those of the first.
TEACHERS = {'mine': {'seed': 0, 'shift': 0.0}, 'shifted': {'seed': 0, 'shift': 1.0}, 'other': {'seed': 1, 'shift': 0.0}}


@dataclass(frozen=True)
class Subject:
    """What is extracted.

    Attributes:
        folder: for all files: `coco` is the data set, `<teacher>.pth` are the checkpoints of `TEACHERS`.
        teacher: what --teacher gets.
        options: what goes with it.
    """

    folder: Path
    teacher: str
    options: tuple[str, ...]

    def command_line(self, out: Path, *options: str, teacher: str = 'mine') -> list[str]:
        """The arguments of `mtpd-extract`."""
        arguments = ['--teacher', self.teacher, '--checkpoint', str(self.folder / f'{teacher}.pth')]
        return [*arguments, '--coco', str(self.folder / 'coco'), '--out', str(out), *self.options, *options]


def only_maps(folder: Path) -> Subject:
    """Teachers with two levels and nothing else."""
    (folder / 'teacher.py').write_text(ONLY_MAPS)
    for name, content in TEACHERS.items():
        torch.save(content, folder / f'{name}.pth')
    return Subject(folder, f'{folder / "teacher.py"}:build', ('--codec', 'lean', '--shard-mb', '0.0015'))


def two_stage(folder: Path) -> Subject:
    """Teachers whose best `NUM_ROIS` proposals are stored beside two levels."""
    for name, content in TEACHERS.items():
        torch.save({'state_dict': _two_stage_weights(**content)}, folder / f'{name}.pth')
    stored = ('--levels', 'p3,p4', '--rois', str(NUM_ROIS))
    return Subject(folder, str(TWO_STAGE), ('--codec', 'lean', '--shard-mb', '0.003', *stored))


def _two_stage_weights(seed: float, shift: float) -> dict[str, Any]:
    torch.manual_seed(int(seed))
    state: dict[str, Any] = build_detector(load_config(str(TWO_STAGE))).state_dict()
    for name in state:
        if name.startswith('neck.') and name.endswith('.bias'):
            state[name] += shift
        state[name] *= FACTORS.get(name, 1)
    return state
