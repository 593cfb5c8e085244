"""A little of `scripts/bench_memory.py`: its cells are trained, and what does not fit is no number."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'bench_memory.py'


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_a_table() -> None:
    small = ('--device', 'cpu', '--images', '4', '--size', '96x96', '--steps', '2')
    result = run(*small, '--batch-sizes', '2', '--options', 'both', '--accumulate', '2')
    assert result.returncode == 0, result.stderr
    *_, head, plain, cached, last = result.stdout.splitlines()
    assert head.split() == ['batch', '2']
    assert [one.split()[:2] for one in (plain, cached)] == [['plain', 'both'], ['cached', 'both']]
    assert all(one.count(' MB ') == 1 for one in (plain, cached))
    words = last.split()
    assert words[::3][:2] == ['least-plain', 'least-cached']
    assert float(words[-1]) > 0


def test_a_share_of_the_gpu() -> None:
    result = run('--device', 'cpu', '--memory-limit', '12')
    assert result.returncode == 2
    assert '--memory-limit is 12; it is a share of the GPU, above 0 and at most 1' in result.stderr
