"""The numbers of a stage, worked out by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mtpd_train.records.metrics import EvaluationRecord, TrainRecord, append_record
from mtpd_train.report.page import cache_facts, class_rows
from mtpd_train.report.run_log import read_run, summarise

WriteRun = Callable[..., Path]


def test_numbers(write_run: WriteRun, tmp_path: Path) -> None:
    first, second = summarise(read_run(write_run(tmp_path / 'run', finished=1)))
    assert (first.teacher, first.codec, first.losses) == ('r101', 'lean 0.03', ('mgd',))
    assert (first.epoch, first.epochs, first.is_finished, second.is_finished) == (2, 2, True, False)
    assert first.metrics['box/AP'] == pytest.approx(0.1)  # of the last evaluation, which is not the best
    assert first.best_ap == pytest.approx(0.15)
    assert first.best_epoch == 1
    assert first.metrics['box/APl'] is None  # -1: nothing to find
    assert (first.images_per_second, first.peak_memory) == (20.0, 10**9)
    assert first.data_wait == pytest.approx(0.1)
    # Four records of 2.5 seconds, and two evaluations of 3.
    assert first.seconds == pytest.approx(4 * 2.5 + 2 * 3)
    assert first.final_losses['total'] == pytest.approx(0.8)


def test_records_that_differ(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / 'run', planned=1, begun=0)
    for step, (speed, wait, memory) in enumerate([(10.0, 0.1, 3), (20.0, 0.2, 5), (90.0, 0.6, 4)], start=1):
        record = TrainRecord(1, step, 1, {'total': 1.0}, 0.01, {}, speed, wait, memory)
        append_record(folder / 'metrics.jsonl', record)
    append_record(folder / 'metrics.jsonl', EvaluationRecord(1, 3, 1, {'box/AP': 0.0}, 1.0))
    (one,) = summarise(read_run(folder))
    assert (one.images_per_second, one.peak_memory) == (20.0, 5)
    assert one.data_wait == pytest.approx(0.3)
    assert (one.metrics['box/AP'], one.best_ap, one.best_epoch) == (0.0, 0.0, 1)  # nothing found is not unknown


def test_records_of_an_older_version_say_nothing_of_time(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / 'run')
    log = folder / 'metrics.jsonl'
    log.write_text(log.read_text().replace('"seconds": 2.5, ', ''))
    first, _ = summarise(read_run(folder))
    assert first.seconds is None
    assert first.images_per_second == 20.0


def test_classes_are_sorted_by_what_they_gained_last(write_run: WriteRun, tmp_path: Path) -> None:
    rows = class_rows(summarise(read_run(write_run(tmp_path / 'run'))), kind='box')
    assert [row.name for row in rows] == ['dog', 'cat']
    assert rows[0].values == pytest.approx((20, 80))
    assert rows[0].changes[0] is None
    assert rows[0].changes[1] == pytest.approx(60)


def test_what_gained_more_stands_above_what_is_better(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / 'run')
    log = folder / 'metrics.jsonl'
    log.write_text(log.read_text().replace('"dog": 0.2', '"dog": 0.75'))  # so that it gains 5, and cat 30
    rows = class_rows(summarise(read_run(folder)), kind='box')
    assert [row.name for row in rows] == ['cat', 'dog']
    assert rows[1].values[1] == pytest.approx(80)


def test_a_class_that_is_unknown_comes_last(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / 'run')
    log = folder / 'metrics.jsonl'
    log.write_text(log.read_text().replace('"dog": 0.8', '"dog": -1'))
    rows = class_rows(summarise(read_run(folder)), kind='box')
    assert [row.name for row in rows] == ['cat', 'dog']
    assert rows[1].changes == (None, None)


def test_plain_training_and_a_teacher_in_the_loop(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / 'run', planned=1, begun=1)
    facts = (folder / 'run.json').read_text()
    (folder / 'run.json').write_text(facts.replace('"cache": "cache/r101"', '"cache": null'))
    (one,) = summarise(read_run(folder))
    assert (one.teacher, one.codec) == ('none', '-')
    live = facts.replace('"cache": "cache/r101"', '"cache": null, "teacher": "r50", "checkpoint": "a.pth"')
    (folder / 'run.json').write_text(live.replace('"teachers": {}', '"teachers": {"r50 from a.pth": {"levels": []}}'))
    (stage,) = read_run(folder).stages
    assert stage.teachings == ({'levels': []},)
    (one,) = summarise(read_run(folder))
    assert (one.teacher, one.codec) == ('r50', 'in the loop')


def test_provenance(write_run: WriteRun, tmp_path: Path) -> None:
    ((name, facts),) = cache_facts(read_run(write_run(tmp_path / 'run')))
    assert name == 'cache/r101'
    assert facts['teacher'] == 'r101'
    assert facts['weights (sha256)'] == 'ab' * 32
    assert facts['levels'] == 'p3 (256 channels, stride 8)'
    assert facts['input'] == '1333x800, aspect ratio kept, padded to multiples of 32 px'
    assert len(facts['fingerprint (sha256)']) == 64


def test_provenance_of_any_form(write_run: WriteRun, tmp_path: Path) -> None:
    """What stands in run.json is shown as far as it can be understood, never a reason to fail."""
    folder = write_run(tmp_path / 'run')
    text = (folder / 'run.json').read_text()
    for part in (
        '"levels": [{"name": "p3", "stride": 8, "channels": 256}]',
        '"views": ["plain", "flip"]',
        '"scale": [1333, 800]',
        '"versions": {"torch": "2.11"}',
        '"distill": [{"loss": "mgd", "levels": ["p3", "p4"]}]',
    ):
        key = part.split(':')[0]
        for other in ('null', '7', '"text"', '[7]', '{"a": 1}'):
            (folder / 'run.json').write_text(text.replace(part, f'{key}: {other}'))
            run = read_run(folder)
            cache_facts(run)
            summarise(run)
