"""`scripts/bench_cache_read.py` at toy size."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'bench_cache_read.py'


@pytest.mark.slow
@pytest.mark.parametrize('given', [False, True])
def test_toy(given: bool, tmp_path: Path, cache_root: Path) -> None:
    """On maps of its own, and on a cache with buckets of two shapes."""
    options = ['--cache', cache_root, '--images', '11'] if given else ['--images', '5', '--scale', '96x64']
    result = subprocess.run(
        [sys.executable, SCRIPT, '--rounds', '1', '--folder', tmp_path, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(r'read/limit \d+\.\d{3} read/best-rival \d+\.\d{3}', lines[-1])
    rows = [line.split() for line in lines if line.startswith(('warm ', 'cold '))]
    assert [row[:3] for row in rows[:8]] == [
        [cache, order, threads] for cache in ('warm', 'cold') for order in ('random', 'shards') for threads in '12'
    ]
    assert len(rows) == 24
    for page_cache, order, _, *rates in rows[:8]:
        # Only of the tar files is there nothing to tell, where they would have to be searched.
        assert [rate == 'nan' for rate in rates[:7]] == [False] * 6 + [order == 'random'], page_cache
