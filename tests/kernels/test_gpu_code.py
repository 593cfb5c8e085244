"""The kernels compiled for GPUs without one: what the interpreter accepts the compiler may refuse, or make slow."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().with_name('gpu_code.py')
HAS_TOOLS = (found := find_spec('triton')) is not None and found.origin is not None and all(
    (Path(found.origin).parent / 'backends' / 'nvidia' / 'bin' / tool).is_file() for tool in ('cuobjdump', 'nvdisasm')
)  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_TOOLS, reason='Triton, or its cuobjdump and nvdisasm, are not installed'),
]
# What may be asked of forward and backward by level and layout of the student: instructions for each element, barriers,
# and loads of less than 64 bits, among them those of weights, steps and offsets. Triton 3.6 needs more than 3.9.
BOUNDS = {
    'P2 contiguous': ((12.5, 5, 0), (14.5, 7, 2)),
    'P3 contiguous': ((12.5, 13, 0), (14.5, 31, 2)),
    'P4 contiguous': ((12.5, 5, 0), (14.5, 0, 2)),
    # 1050 cells: every second row begins at an odd multiple of 4 bytes; of 273 and 77 at any byte.
    'P5 contiguous': ((14.0, 5, 72), (17.0, 0, 74)),
    'P6 contiguous': ((16.5, 5, 130), (19.5, 0, 132)),
    'P2 channels_last': ((16.5, 17, 9), (16.5, 7, 11)),
    'P3 channels_last': ((17.5, 19, 9), (17.5, 11, 11)),
    'P4 channels_last': ((16.5, 17, 17), (16.5, 7, 19)),
    'P5 channels_last': ((18.0, 19, 97), (20.4, 11, 99)),
    'P6 channels_last': ((18.0, 16, 65), (20.4, 15, 67)),
    'variance': ((10.0, 5, 1), (14.5, 31, 3)),
    'live teacher': ((13.0, 14, 1), (14.5, 11, 3)),
    'weights': ((14.5, 11, 0), (16.0, 5, 2)),
}


def output(*arguments: str, cache: Path) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith('TRITON')}
    result = subprocess.run(
        [sys.executable, '-W', 'error', SCRIPT, *arguments],
        env=variables | {'TRITON_CACHE_DIR': str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize('capability', [75, 80, 86, 89, 90, 100, 120])
def test_code_of_every_specialisation(capability: int, tmp_path: Path) -> None:
    kernels = [json.loads(line) for line in output(str(capability), cache=tmp_path).splitlines()]
    # P2 to P7: those of P3 are those of P2, those of P7 those of P6. One finish kernel serves all.
    assert len(kernels) == 2 * (2 * 4 + 2 * 11 + 7) + 1
    for kernel in kernels:
        if capability == 75 and 'bfloat16' in kernel['case']:
            continue  # Turing has no bfloat16: each conversion takes several instructions
        assert kernel['spilled'] == 0, kernel
        # Two programs of four warps, at least, have room on every card.
        assert kernel['registers'] <= 192, kernel
        assert_bounds(kernel)


def assert_bounds(kernel: dict[str, Any]) -> None:
    bounds = next((one for name, one in BOUNDS.items() if kernel['case'].startswith(name)), None)
    if bounds is None or kernel['kernel'] == 'finish_kernel':
        return
    instructions, barriers, narrow = bounds[kernel['kernel'] == 'backward_kernel']
    assert kernel['instructions'] <= instructions, kernel
    assert kernel['barriers'] <= barriers, kernel
    assert sum(number for bits, number in kernel['loads'].items() if int(bits) < 64) <= narrow, kernel


def test_images_of_other_sizes_seldom_compile(tmp_path: Path) -> None:
    assert int(output('90', '--sizes', cache=tmp_path)) <= 13
