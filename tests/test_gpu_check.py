"""`scripts/gpu_check.sh`: parts that fail or hang do not stop the others, and all is in the file."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / 'scripts'))
    yield import_module('gpu_check')
    del sys.modules['gpu_check']


def test_every_part_has_its_turn(
    check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hangs = 'import subprocess, time; print("begun"); subprocess.run(["sleep", "600"])'
    codes = {
        'good': 'print("a/b 1.50 c-d 20 MB")',
        'bad': 'print("wrong 1"); exit(3)',
        'slow': hangs,
        'last': 'print()',
    }
    parts = [check.Part(name, ['-c', code], 2 if name == 'slow' else 60) for name, code in codes.items()]
    parts += [check.Part('tests', ['-m', 'this'], 60)]
    monkeypatch.setattr(check, 'parts_for_gpu', lambda: parts)
    monkeypatch.setattr(check, 'parts_for_cpu', lambda: parts)
    monkeypatch.setattr(sys, 'argv', ['gpu_check.py', '--json', str(tmp_path / 'check.json')])
    assert check.main() == 1
    record = json.loads((tmp_path / 'check.json').read_text())
    assert record['torch'] == torch.__version__
    assert {one['name']: one['state'] for one in record['parts']} == {
        'good': 'passed', 'bad': 'failed (3)', 'slow': 'out of time', 'last': 'passed', 'tests': 'passed',
    }  # fmt: skip
    assert [one['figures'] for one in record['parts']][:3] == [{'a/b': 1.5, 'c-d': 20.0}, {}, {}]
    assert record['parts'][2]['last_line'] == 'begun'
    table = capfd.readouterr().out
    assert all(name in table for name in codes)
    monkeypatch.setattr(sys, 'argv', ['gpu_check.py', '--json', str(tmp_path / 'check.json'), '--budget', '0'])
    assert check.main() == 1
    record = json.loads((tmp_path / 'check.json').read_text())
    assert {one['state'] for one in record['parts']} == {'no time left'}


def test_an_interrupt_ends_the_part(check: Any, tmp_path: Path) -> None:
    begun = tmp_path / 'begun'
    code = f'import os, time; open({str(begun)!r}, "w").write(str(os.getpid())); time.sleep(600)'

    def interrupt() -> None:
        while not (begun.is_file() and begun.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell's background jobs ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            check.run(check.Part('endless', ['-c', code], 60), limit=60, packages=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not Path('/proc', begun.read_text()).exists()


def test_the_parts_for_a_gpu_name_what_there_is(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda _: SimpleNamespace(total_memory=80e9))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    parts = check.parts_for_gpu()
    assert [part.name for part in parts][:3] == ['kernels', 'bandwidth', 'stream']
    assert {'step-2', 'step-8', 'step-16', 'extraction', 'scaler', 'memory', 'cards'} < {part.name for part in parts}
    for part in parts:
        paths = [
            ROOT / word for word in part.command if '/' in word and not word.startswith('-') and 'int8' not in word
        ]
        assert all(path.exists() for path in paths if path.suffix == '.py' or 'tests' in path.parts), part
        script = Path(part.command[0])
        if script.suffix == '.py':
            known = script.read_text() + (ROOT / 'scripts' / 'bench_step.py').read_text()
            known += (ROOT / 'extract' / 'cli.py').read_text()
            assert all(f"'{word}'" in known for word in part.command if word.startswith('--')), part


def test_unknown_parts_are_refused() -> None:
    command = [str(ROOT / 'scripts' / 'gpu_check.sh'), '--parts', 'kernals']
    result = subprocess.run(
        command, env=os.environ | {'PYTHON': sys.executable}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert 'kernals; expected some of kernels, ' in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='the sizes are real ones on a GPU')
def test_at_toy_size(tmp_path: Path) -> None:
    """The parts whose tests and scripts run nowhere else."""
    command = [str(ROOT / 'scripts' / 'gpu_check.sh'), '--json', str(tmp_path / 'check.json')]
    variables = os.environ | {'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    parts = ['--parts', 'bandwidth', 'extraction', 'scaler']
    result = subprocess.run([*command, *parts], env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-5000:]
    record = json.loads((tmp_path / 'check.json').read_text())
    assert 'CPU' in record['device']
    assert {one['name']: list(one['figures']) for one in record['parts']} == {
        'bandwidth': ['kernel/copy', 'kernel/compile', 'eager/kernel'],
        'extraction': ['extract/forward', 'bytes', 'time'],
        'scaler': [],
    }
