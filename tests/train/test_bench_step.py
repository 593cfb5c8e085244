"""A little of `scripts/bench_step.py`: it trains all three ways, and tells their parts and memory apart."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'bench_step.py'


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = spec_from_file_location('bench_step', SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setitem(sys.modules, 'bench_step', module)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_the_three_ways(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, 'argv', ['bench_step', *['--device', 'cpu', '--images', '8', '--size', '128x96', '--loss', 'mgd']]
    )
    options = script._options()
    files = script.prepare(tmp_path, options)
    assert list(files) == ['plain', 'cached', 'online']
    turns = {way: script.Trainer(file, torch.device('cpu')).turn(4) for way, file in files.items()}
    for way, turn in turns.items():
        assert turn.rate > 0
        assert all(turn.parts[part] > 0 for part in ('wait', 'copy', 'forward', 'backward', 'update'))
        # No more than what lies between the clocks of a plain stage, where nothing is done.
        assert (turn.parts['teacher'] > 0.1) == (turn.parts['loss'] > 0.1) == (way != 'plain')
    script._report([turns, turns])
    *_, last = capsys.readouterr().out.splitlines()
    words = last.split()
    assert words[::2] == ['cached/plain', 'cached/online', 'memory-cached/plain']
    assert float(words[1]) == pytest.approx(turns['cached'].rate / turns['plain'].rate, abs=1e-3)
    assert float(words[3]) == pytest.approx(turns['cached'].rate / turns['online'].rate, abs=1e-3)
