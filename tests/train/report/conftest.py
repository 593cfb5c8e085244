"""Runs made of records alone, without any training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtpd_train.records.metrics import EvaluationRecord, TrainRecord, append_record

CLASSES = ('cat', 'dog')
WriteRun = Callable[..., Path]


@pytest.fixture
def write_run() -> WriteRun:
    """`write_run(folder, planned=2, begun=2, finished=2, ...)` writes a run of two epochs of 10 steps a stage."""

    def write(
        folder: Path,
        *,
        planned: int = 2,
        begun: int = 2,
        finished: int = 2,
        classes: tuple[str, ...] = CLASSES,
        cache: str = 'cache/r101',
        teacher: str = 'r101',
    ) -> Path:
        folder.mkdir(parents=True)
        stage: dict[str, Any] = {
            'student': 'retinanet_r50_fpn_1x_coco',
            'cache': cache,
            'distill': [{'loss': 'mgd', 'levels': ['p3', 'p4']}],
            'data': {'coco': 'nowhere', 'train': 'train2017', 'val': 'val2017', 'batch_size': 4},
            'optim': {'epochs': 2, 'accumulate': 2},
        }
        teaching = {
            'fingerprint': {'teacher': {'weights': 'ab' * 32, 'hook_point': 'neck'}},
            'provenance': {'teacher': teacher, 'device': 'a card', 'versions': {'torch': '2.11'}},
            'levels': [{'name': 'p3', 'stride': 8, 'channels': 256}],
            'codec': 'lean',
            'target_error': 0.03,
            'views': ['plain', 'flip'],
            'geometry': {'scale': [1333, 800], 'keep_ratio': True, 'pad_divisor': 32, 'pad_size': None},
        }
        facts = {
            'stages': {str(number): stage for number in range(1, planned + 1)},
            'caches': {cache: teaching},
            'teachers': {},
            'device': 'a machine',
            'versions': {'mtpd': '0.1.0'},
        }
        (folder / 'run.json').write_text(json.dumps(facts))
        for number in range(1, begun + 1):
            for epoch in (1, 2):
                for step in (10 * epoch - 5, 10 * epoch):
                    append_record(folder / 'metrics.jsonl', train_record(number, step, epoch))
                append_record(folder / 'metrics.jsonl', evaluation_record(number, epoch, classes))
        for number in range(1, finished + 1):
            (folder / f'stage{number}').mkdir()
            (folder / f'stage{number}' / 'student.pth').write_bytes(b'')
        return folder

    return write


def train_record(stage: int, step: int, epoch: int) -> TrainRecord:
    """A record of 5 steps at 20 images a second, in 2.5 seconds as two batches were smaller."""
    losses = {'loss_cls': 1.0 / step, 'distill/mgd/p3': 0.5, 'distill/mgd/p4': 0.25, 'total': 0.75 + 1.0 / step}
    return TrainRecord(
        stage, step, epoch, losses, lr=0.01, decay={}, images_per_second=20.0, data_wait=0.1 * stage,
        peak_memory=stage * 10**9, seconds=2.5,
    )  # fmt: skip


def evaluation_record(stage: int, epoch: int, classes: tuple[str, ...]) -> EvaluationRecord:
    """AP rises from stage to stage, and falls in the second epoch; there are no large objects."""
    ap = 0.1 * stage + (0.05 if epoch == 1 else 0.0)
    metrics = {'box/AP': ap, 'box/AP50': 2 * ap, 'box/AP75': ap, 'box/APs': ap / 2, 'box/APm': ap, 'box/APl': -1.0}
    class_ap = {'box': {name: ap * (index + 1) * stage for index, name in enumerate(classes)}}
    return EvaluationRecord(stage, 10 * epoch, epoch, metrics, 3.0, class_ap)
