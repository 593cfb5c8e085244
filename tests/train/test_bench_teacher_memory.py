"""`scripts/bench_teacher_memory.py` at toy size: its figures are sizes of tensors, which can be foretold."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'bench_teacher_memory.py'


def test_toy() -> None:
    options = ['--batches', '2', '3', '--channels', '40', '--padded', '256', '384']
    result = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    header, *rows, last = result.stdout.splitlines()
    assert header.split()[:2] == ['codec', 'batch']
    assert len(rows) == 12
    # Cells of an image on all levels, and its float32 maps in MB.
    cells = sum(-(-256 // stride) * -(-384 // stride) for stride in (8, 16, 32, 64, 128))
    decoded = cells * 40 * 4 / 1e6
    for row in rows:
        codec, batch, *figures = row.replace('mixed', '').split()
        stream, held, held_decoded, peak, peak_decoded = map(float, figures)
        share = 0.5 if codec == 'fp16' else 0.25
        assert held_decoded == pytest.approx(int(batch) * decoded, abs=0.02)
        assert held <= peak <= peak_decoded >= held_decoded
        if 'mixed' in row:
            assert held == pytest.approx(share * int(batch) * decoded, abs=0.02)
        else:
            assert stream == pytest.approx(share * int(batch) * decoded, abs=0.02)
            assert held < 0.02
    ratio = float(last.removeprefix('codes/decoded '))
    assert 0.2 <= ratio < 0.22
