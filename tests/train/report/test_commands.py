"""`mtpd-report compare` and `mtpd-report tensorboard`, and the examples of the help."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mtpd_train.report import cli

WriteRun = Callable[..., Path]


def report(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(one) for one in arguments])


@pytest.fixture
def runs(write_run: WriteRun, tmp_path: Path) -> list[Path]:
    """A finished run of two stages, one that goes on, and one that has recorded nothing."""
    return [
        write_run(tmp_path / 'a'),
        write_run(tmp_path / 'b', begun=1, finished=0),
        write_run(tmp_path / 'c', begun=0, finished=0),
    ]


def test_compare__text(runs: list[Path]) -> None:
    lines = report('compare', *runs).stdout.splitlines()
    headings = lines[0].split()
    assert headings[:4] == ['run', 'stage', 'teacher', 'codec']
    assert 'APl' not in headings  # no run has large objects
    assert 'mask' not in headings
    first = lines[1].split()
    assert first[:4] == [str(runs[0]), '1', 'r101', 'lean']
    assert {'10.0', '15.0', '20.0', '1.00'} <= set(first)
    assert lines[2].split()[0] == '2'
    assert lines[3].startswith(str(runs[1]))
    assert 'nothing recorded yet' in lines[4]
    assert len(lines) == 5


def test_compare__stages_that_have_not_finished(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run(tmp_path / 'run', planned=1, begun=1, finished=0)
    log = run / 'metrics.jsonl'
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    assert '  1 of 2  ' in report('compare', run).stdout
    (run / 'stage1').mkdir()
    (run / 'stage1' / 'diverged.jsonl').write_text('')
    assert '  1 of 2, diverged  ' in report('compare', run).stdout
    log.unlink()
    assert 'diverged before its first record' in report('compare', run).stdout
    (run / 'stage1' / 'student.pth').write_bytes(b'')
    assert 'finished, but its metrics.jsonl is missing or empty' in report('compare', run).stdout


def test_compare__json(runs: list[Path]) -> None:
    found = json.loads(report('compare', '--json', *runs).stdout)
    assert [one['run'] for one in found] == [str(run) for run in runs]
    assert [one['finished'] for one in found] == [True, False, False]
    assert [len(one['stages']) for one in found] == [2, 1, 0]
    stage = found[0]['stages'][1]
    assert stage['metrics']['box/AP'] == pytest.approx(0.2)
    assert stage['metrics']['box/APl'] is None
    assert stage['class_ap']['box']['dog'] == pytest.approx(0.8)


def test_compare__html(runs: list[Path], tmp_path: Path) -> None:
    result = report('compare', *runs, '--html', tmp_path / 'compare.html')
    assert result.exit_code == 0, result.output
    text = (tmp_path / 'compare.html').read_text()
    assert text.count('<img ') == 1
    assert text.count('<tr>') == 5
    assert 'nothing recorded yet' in text


def test_compare__runs_without_a_record(runs: list[Path], tmp_path: Path) -> None:
    result = report('compare', runs[2], '--html', tmp_path / 'compare.html')
    assert result.exit_code == 0, result.output
    assert 'nothing recorded yet' in result.stdout


def test_compare__one_is_no_run(runs: list[Path], tmp_path: Path) -> None:
    result = report('compare', runs[0], tmp_path)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f'Error: {tmp_path}: is not a run folder (run.json is missing); give the --out of mtpd-train'
    ]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of the packages that tensorboard is made of
def test_tensorboard(runs: list[Path]) -> None:
    pytest.importorskip('tensorboard', reason='the extra `tensorboard` is not installed')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # a second export takes the place of the first
        result = report('tensorboard', runs[0])
        assert result.exit_code == 0, result.output
    events = EventAccumulator(str(runs[0] / 'tensorboard')).Reload()
    tags = set(events.Tags()['scalars'])
    assert {'loss/total', 'loss/distill/mgd/p3', 'train/lr', 'evaluation/box/AP', 'class/box/dog'} <= tags
    assert 'evaluation/box/APl' not in tags
    ap = [(one.step, round(one.value, 6)) for one in events.Scalars('evaluation/box/AP')]
    assert ap == [(10, 0.15), (20, 0.1), (30, 0.25), (40, 0.2)]
    assert [one.step for one in events.Scalars('loss/total')] == [5, 10, 15, 20, 25, 30, 35, 40]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_tensorboard__a_folder_with_other_files(runs: list[Path]) -> None:
    pytest.importorskip('tensorboard', reason='the extra `tensorboard` is not installed')
    result = report('tensorboard', runs[0], '--out', runs[0])
    assert result.exit_code == 1
    assert 'holds files other than TensorBoard events' in result.stderr
    assert 'nothing to export yet' in report('tensorboard', runs[2]).stdout
    assert (runs[0] / 'metrics.jsonl').exists()


def test_tensorboard__not_installed(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.split('.')[0] == 'tensorboard' or name.startswith('torch.utils.tensorboard'):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    result = report('tensorboard', runs[0])
    assert result.exit_code == 1
    assert 'pip install tensorboard' in result.stderr
    assert importlib.util.find_spec('torch') is not None


def test_examples_are_accepted() -> None:
    lines = [
        line.strip()
        for text in (cli.EXAMPLES, cli.PAGE_EXAMPLES, cli.COMPARE_EXAMPLES, cli.TENSORBOARD_EXAMPLES)
        for line in text.splitlines()
        if line.strip().startswith('mtpd-report ')
    ]
    assert len(lines) == 10
    for line in lines:
        name, *arguments = line.split(' && ')[0].split()[1:]
        command = cli.main.commands.get(name, cli.page)
        arguments = arguments if name in cli.main.commands else [name, *arguments]
        # A command remembers the help options of the first context that it was in.
        command.make_context('mtpd-report', arguments, parent=cli.main.make_context('mtpd-report', [*lines]))
