"""`metrics.jsonl` holds valid JSON whatever happens, and each record once after a resume."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mtpd.errors import InputError
from mtpd_train.records.metrics import EvaluationRecord, TrainRecord, append_record, truncate_metrics


def train_record(stage: int, step: int, loss: float = 1.5) -> TrainRecord:
    losses = {'loss_cls': loss, 'distill/mgd/p3': 0.25}
    return TrainRecord(stage, step, 1, losses, lr=0.01, decay={}, images_per_second=40.0, data_wait=0.1, peak_memory=7)


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        pytest.fail(f'{constant} is no JSON')

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    """A log of two stages, with steps 10, 20, 30 and an evaluation at 20 in each."""
    path = tmp_path / 'metrics.jsonl'
    for stage in (1, 2):
        for step in (10, 20, 30):
            append_record(path, train_record(stage, step))
            if step == 20:
                append_record(path, EvaluationRecord(stage, step, epoch=1, metrics={'box/AP': 0.41}, seconds=3.0))
    return path


def places(path: Path) -> list[tuple[int, int, str]]:
    return [(record['stage'], record['step'], record['kind']) for record in read(path)]


def test_records_are_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / 'run' / 'metrics.jsonl'
    append_record(path, train_record(1, 10))
    assert read(path) == [
        {
            'kind': 'train', 'stage': 1, 'step': 10, 'epoch': 1, 'losses': {'loss_cls': 1.5, 'distill/mgd/p3': 0.25},
            'lr': 0.01, 'decay': {}, 'images_per_second': 40.0, 'data_wait': 0.1, 'peak_memory': 7, 'seconds': None,
            'grad_norm': None,
        }
    ]  # fmt: skip


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks(tmp_path: Path, value: float) -> None:
    path = tmp_path / 'metrics.jsonl'
    append_record(path, train_record(1, 10, loss=value))
    (record,) = read(path)
    assert record['losses'] == {'loss_cls': None, 'distill/mgd/p3': 0.25}
    assert record['not_finite'] == ['losses.loss_cls']


def test_finite_records_have_no_flag(log_path: Path) -> None:
    assert all('not_finite' not in record for record in read(log_path))


def test_truncation_keeps_the_checkpoints_own_records(log_path: Path) -> None:
    before = places(log_path)
    truncate_metrics(log_path, stage=2, step=20, epoch=1)
    assert places(log_path) == before[:-1]
    append_record(log_path, train_record(2, 30))
    assert places(log_path) == before


def test_an_evaluation_of_an_epoch_that_is_not_finished_goes(log_path: Path) -> None:
    before = places(log_path)
    truncate_metrics(log_path, stage=2, step=20, epoch=0)
    assert places(log_path) == before[:-2]


def test_truncation_to_an_earlier_stage(log_path: Path) -> None:
    truncate_metrics(log_path, stage=1, step=10, epoch=0)
    assert places(log_path) == [(1, 10, 'train')]


def test_a_torn_last_line_goes(log_path: Path) -> None:
    before = places(log_path)
    whole = log_path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for missing in (1, 2, last // 2, last - 1):
        log_path.write_bytes(whole[:-missing])
        truncate_metrics(log_path, stage=2, step=30, epoch=1)
        assert places(log_path) == before[:-1]


def test_nothing_to_drop_leaves_the_file_alone(log_path: Path) -> None:
    before = log_path.stat()
    truncate_metrics(log_path, stage=2, step=30, epoch=1)
    assert log_path.stat().st_ino == before.st_ino


def test_a_missing_log_stays_missing(tmp_path: Path) -> None:
    truncate_metrics(tmp_path / 'metrics.jsonl', stage=1, step=10, epoch=0)
    assert list(tmp_path.iterdir()) == []


def test_something_else_in_the_file(log_path: Path) -> None:
    """Text is no number, and neither is a truth value."""
    records = log_path.read_text()
    evaluation = {'kind': 'evaluation', 'stage': 1, 'step': 20, 'epoch': 1}
    wrong = ({'step': '20'}, {'stage': True}, {'step': None}, {'epoch': '1'}, {'step': 20.5})
    for line in ('hello', '[' * 10**5, *(json.dumps(evaluation | one) for one in wrong)):
        log_path.write_text(f'{line}\n{records}')
        with pytest.raises(InputError, match=r'metrics\.jsonl line 1 is not a metrics record'):
            truncate_metrics(log_path, stage=1, step=10, epoch=0)
