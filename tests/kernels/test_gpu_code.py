"""The kernels compiled for GPUs without one: what the interpreter accepts the compiler may refuse, or make slow."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent / 'gpu_code.py'


@pytest.mark.slow
@pytest.mark.skipif(find_spec('triton') is None, reason='Triton is not installed')
def test_maps_are_read_and_written_in_vectors(tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith('TRITON')}
    result = subprocess.run(
        [sys.executable, '-W', 'error', SCRIPT, '80'],
        env=variables | {'TRITON_CACHE_DIR': str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    contiguous, channels_last, *others, variance = [json.loads(line) for line in result.stdout.splitlines()]
    for forward, backward in (contiguous, channels_last):
        # 32 elements for a thread: 4 loads of 8 halves, and 2 of 16 codes; nothing of the maps one by one.
        assert forward['ld.global.v4.b32'] >= 6
        assert backward['ld.global.v4.b32'] >= 6
        assert backward['st.global.v4.b32'] == 4
        assert not {'ld.global.b16', 'st.global.b16'} & (forward.keys() | backward.keys())
    assert len(others) == 3
    # The codes; nothing else is as large.
    assert variance['ld.global.v4.b32'] == 2
