"""`scripts/bench_kernel.py` at toy size: it needs a GPU for figures, but not to be tried."""

import csv
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'bench_kernel.py'


@pytest.mark.slow
@pytest.mark.skipif(find_spec('triton') is None, reason='Triton is not installed')
def test_toy(tmp_path: Path) -> None:
    options = ['--toy', '--pyramids', 'p3-p7', '--batches', '2', '--dtypes', 'bfloat16/int8', 'float16/lean']
    result = subprocess.run(
        [sys.executable, SCRIPT, *options, '--csv', tmp_path / 'kernel.csv'],
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    number = r'\d+\.\d+'
    assert re.fullmatch(
        f'kernel/copy {number} kernel/compile {number} eager/kernel {number}', result.stdout.splitlines()[-1]
    )
    with (tmp_path / 'kernel.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    # The interpreter has no bfloat16.
    assert [(row['dtypes'], row['layout']) for row in rows] == [
        ('float16/lean', 'contiguous'),
        ('float16/lean', 'channels_last'),
    ]
    for row in rows:
        assert 'CPU' in row['device']
        assert all(float(row[f'{method} ms']) > 0 for method in ('kernel', 'compile', 'eager'))
