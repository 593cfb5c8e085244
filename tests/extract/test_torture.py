"""A little of `scripts/torture_cache.py`, which has the rest: each kind of harm a few times."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'torture_cache.py'


FEW = {'kills': 1, 'between': 1, 'publishing': 1, 'full': 1, 'limit': 1, 'read-only': 1, 'frozen': 1}
FEW |= {'damages': 16, 'journals': 1, 'merges': 1, 'writers': 1}


def torture(folder: Path, *options: str) -> int:
    """Runs it, which must find nothing: how many trials there were."""
    process = subprocess.run(
        [sys.executable, SCRIPT, *options, '--seed', '1'],
        capture_output=True,
        text=True,
        check=False,
        env={'PATH': '/usr/bin:/bin:/usr/sbin:/sbin', 'OMP_NUM_THREADS': '1', 'TMPDIR': str(folder)},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    name, trials, *_, failed = process.stdout.splitlines()[-1].replace(',', '').split()
    assert name == 'trials'
    assert failed == '0'
    return int(trials)


@pytest.mark.slow
def test_each_kind_of_harm(tmp_path: Path) -> None:
    assert torture(tmp_path, *[f'--{name}={number}' for name, number in FEW.items()]) > 25


@pytest.mark.slow
def test_with_proposals(tmp_path: Path) -> None:
    """Their own kinds of damage come first."""
    options = ['--only=between', '--between=1', '--only=damages', '--damages=4']
    assert torture(tmp_path, '--rois', *options) == 5
