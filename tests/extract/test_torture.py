"""A little of `scripts/torture_cache.py`, which has the rest: each kind of harm a few times."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'torture_cache.py'


@pytest.mark.slow
def test_each_kind_of_harm(tmp_path: Path) -> None:
    numbers = {'kills': 2, 'publishing': 1, 'full': 1, 'limit': 1, 'read-only': 1, 'frozen': 1}
    numbers |= {'damages': 16, 'journals': 2, 'writers': 1}
    options = [f'--{name}={number}' for name, number in numbers.items()]
    process = subprocess.run(
        [sys.executable, SCRIPT, *options, '--seed', '1'],
        capture_output=True,
        text=True,
        check=False,
        env={'PATH': '/usr/bin:/bin:/usr/sbin:/sbin', 'OMP_NUM_THREADS': '1', 'TMPDIR': str(tmp_path)},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    name, trials, *_, failed = process.stdout.splitlines()[-1].replace(',', '').split()
    assert name == 'trials'
    assert int(trials) > 25
    assert failed == '0'
