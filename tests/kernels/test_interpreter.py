"""Without a GPU: the tests of the kernels in Triton's interpreter, in a process that has its environment to itself."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

FILES = [Path(__file__).resolve().with_name(name) for name in ('test_fused.py', 'test_operator.py')]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='the tests run compiled, on the GPU')
@pytest.mark.skipif(find_spec('triton') is None, reason='Triton is not installed')
def test_the_kernels_in_the_interpreter() -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith('PYTEST')}
    outcome = subprocess.run(
        [sys.executable, '-m', 'pytest', '-n', '0', '-q', '-p', 'no:cacheprovider', *FILES],
        timeout=240,
        env=variables | {'TRITON_INTERPRET': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert ' passed' in outcome.stdout
