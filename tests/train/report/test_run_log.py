"""Reading runs: what is torn, damaged, older, newer or not finished."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtpd.errors import InputError
from mtpd_train.records.metrics import EvaluationRecord, TrainRecord, read_records
from mtpd_train.report.run_log import read_run

WriteRun = Callable[..., Path]


@pytest.fixture
def log(write_run: WriteRun, tmp_path: Path) -> Path:
    return write_run(tmp_path / 'run') / 'metrics.jsonl'


def change_line(path: Path, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    lines = path.read_text().splitlines()
    record = json.loads(lines[number])
    change(record)
    lines[number] = json.dumps(record)
    path.write_text('\n'.join(lines) + '\n')


def test_all_records_come_back(log: Path) -> None:
    records = read_records(log)
    assert [type(record) for record in records[:3]] == [TrainRecord, TrainRecord, EvaluationRecord]
    assert len(records) == 12
    first = records[0]
    assert isinstance(first, TrainRecord)
    assert (first.stage, first.step, first.lr, first.grad_norm) == (1, 5, 0.01, None)
    last = records[-1]
    assert isinstance(last, EvaluationRecord)
    assert last.class_ap['box']['dog'] == pytest.approx(0.8)


def test_a_torn_last_line_is_left_out(log: Path) -> None:
    whole = log.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for missing in (2, last // 2, last - 1):
        log.write_bytes(whole[:-missing])
        assert len(read_records(log)) == 11


def test_a_damaged_line_is_named(log: Path) -> None:
    lines = log.read_text().splitlines()
    wrong = ({'stage': 'one'}, {'step': None}, {'epoch': True}, {'peak_memory': 1.5}, {'lr': '0.1'})
    changed = [json.dumps(json.loads(lines[0]) | one) for one in wrong]
    for damage in ('hello', '[1]', '{"kind": "train"}', '{}', *changed):
        log.write_text('\n'.join([*lines[:2], damage, *lines[3:]]))
        with pytest.raises(InputError, match=r'metrics\.jsonl line 3 is not a metrics record'):
            read_records(log)


def test_older_records_have_no_class_ap(log: Path) -> None:
    change_line(log, 2, lambda record: record.pop('class_ap'))
    record = read_records(log)[2]
    assert isinstance(record, EvaluationRecord)
    assert record.class_ap == {}


def test_newer_records_and_fields_are_passed_over(log: Path) -> None:
    change_line(log, 0, lambda record: record.update(kind='note'))
    change_line(log, 1, lambda record: record.update(temperature=31))
    assert len(read_records(log)) == 11


def test_null_is_not_a_number(log: Path) -> None:
    change_line(log, 0, lambda record: record['losses'].update(loss_cls=None))
    change_line(log, 0, lambda record: record.update(lr=None))
    record = read_records(log)[0]
    assert isinstance(record, TrainRecord)
    assert math.isnan(record.losses['loss_cls'])
    assert math.isnan(record.lr)
    assert record.grad_norm is None


def test_stages(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / 'run', planned=3, begun=2, finished=1))
    assert [stage.number for stage in run.stages] == [1, 2, 3]
    assert [stage.number for stage in run.begun] == [1, 2]
    assert [stage.first_step for stage in run.stages] == [0, 20, 40]
    assert [stage.is_finished for stage in run.stages] == [True, False, False]
    assert not run.is_finished


def test_stages_are_in_the_order_of_their_numbers(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / 'run', planned=11))
    assert [stage.number for stage in run.stages] == list(range(1, 12))


def test_a_run_without_records(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / 'run', begun=0, finished=0))
    assert run.begun == ()


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        (None, 'is not a run folder'),
        ('{', 'is not valid JSON'),
        ('[]', 'lists no stages'),
        ('{"stages": {"a": {}}}', 'lists no stages'),
    ],
)
def test_no_run(content: str | None, problem: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / 'run.json').write_text(content)
    with pytest.raises(InputError, match=problem):
        read_run(tmp_path)
