"""A little of `scripts/bench_memory.py`: a cell is trained, and what does not fit is no number."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'bench_memory.py'
SMALL = ('--device', 'cpu', '--images', '4', '--size', '96x96', '--batch-sizes', '2', '--steps', '2')


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = spec_from_file_location('bench_memory', SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setitem(sys.modules, 'bench_memory', module)
    spec.loader.exec_module(module)
    return module


def test_a_cell(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', ['bench_memory', *SMALL])
    options = script._options()
    options.batch_size = 2
    files = script.prepare(tmp_path, options)
    # In its own process: memory that earlier tests have freed would count against it.
    cell = script._in_own_process(files['cached'], script.OPTIONS['both'], 2, options)
    assert cell.memory > 0
    assert cell.rate > 0


def test_the_table(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [script.Cell(3_000_000, 1.5), script.Cell(None)]
    script._report({('plain', 'both'): cells, ('cached', 'both'): [script.Cell(6_000_000, 1.0), cells[1]]}, [1, 4])
    head, plain, cached, last = capsys.readouterr().out.splitlines()
    assert head.split() == ['batch', '1', 'batch', '4']
    assert plain.split() == ['plain', 'both', '3', 'MB', '1.5/s', '-']
    assert cached.split() == ['cached', 'both', '6', 'MB', '1.0/s', '-']
    assert last == 'least-plain 3 MB least-cached 6 MB cached/plain 2.000'
    script._report({('plain', 'both'): cells, ('cached', 'both'): [cells[1], cells[1]]}, [1, 4])
    assert capsys.readouterr().out.splitlines()[-1] == 'a batch of 1 does not fit'


def test_a_share_of_the_gpu(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, 'argv', ['bench_memory', *SMALL, '--memory-limit', '12'])
    with pytest.raises(SystemExit):
        script._options()
    assert '--memory-limit is 12; expected a share of the GPU memory, above 0 and at most 1' in capsys.readouterr().err
