"""The study of progressive distillation: what it plans, and that it claims no more than its seeds can tell."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from study_progressive import planned_runs
from study_report import Result, report, save_plot, verdict


def test_every_run_has_equally_many_epochs_and_is_planned_once() -> None:
    runs = planned_runs(losses=['masked_mse', 'pkd'], codecs=['fp16', 'lean-0.03'], seeds=[0, 1], epochs=10)
    assert {sum(epochs for _, epochs in run.stages) for run in runs} == {10}
    assert len({run.name for run in runs}) == len(runs) == 2 * (1 + 2 * 4 + 1)
    orders = {run.method: [teacher for teacher, _ in run.stages] for run in runs}
    assert orders['progressive'] == ['weak', 'strong']
    assert orders['wrong order'] == ['strong', 'weak']


@pytest.mark.parametrize(
    ('first', 'second', 'wanted'),
    [
        ({0: 52.0, 1: 53.1, 2: 54.0}, {0: 50.0, 1: 51.0, 2: 52.0}, r'\+2.0 AP .*: better$'),
        ({0: 50.0, 1: 51.0, 2: 52.0}, {0: 52.0, 1: 53.1, 2: 54.0}, r'-2.0 AP .*: worse$'),
        ({0: 55.0, 1: 45.0, 2: 53.0}, {0: 50.0, 1: 51.0, 2: 49.0}, 'no difference that these seeds could tell$'),
        ({0: 55.0}, {0: 50.0}, r'^\+5.0 AP in one seed, which says little$'),
        ({}, {0: 50.0}, '^not measured$'),
    ],
)
def test_verdict(first: dict[int, float], second: dict[int, float], wanted: str) -> None:
    assert re.search(wanted, verdict(first, second))


def test_report_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = planned_runs(losses=['pkd', 'masked_mse'], codecs=['fp16', 'lean-0.03'], seeds=[0, 1], epochs=10)
    results = [Result(run.method, run.loss, run.codec, run.seed, 50 + run.seed) for run in runs]
    bits = {'fp16': 14.0, 'lean-0.03': 1.5}
    report(results, bits=bits, usual_codec='lean-0.03')
    printed = capsys.readouterr().out
    assert 'pkd         progressive' in printed
    assert 'codecs: lean-0.03 (1.50 bits) against fp16 (14.00 bits): +0.0 AP' in printed
    save_plot(results, bits=bits, usual_codec='lean-0.03', teachers={'weak': 55.0}, out=tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').stat().st_size > 10_000
