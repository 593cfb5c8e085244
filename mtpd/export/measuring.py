"""Latency and memory of a call, without PyTorch in the process."""

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Measured:
    """Seconds of a call, and the peak resident memory of its process."""

    median: float
    p90: float
    peak_bytes: int


def measure(call: Callable[[], object], num_warm: int, num_runs: int) -> Measured:
    """Calls a function so many times, after `num_warm` calls that do not count."""
    for _ in range(num_warm):
        call()
    seconds = []
    for _ in range(num_runs):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    p90 = statistics.quantiles(seconds, n=10)[-1] if num_runs > 1 else seconds[0]
    return Measured(statistics.median(seconds), p90, _peak_bytes())


def measure_onnx(
    file: Path, images: np.ndarray, sizes: np.ndarray, threads: int, num_warm: int, num_runs: int
) -> Measured:
    """Of an exported file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    names = [one.name for one in session.get_inputs()]
    return measure(lambda: session.run(None, dict(zip(names, (images, sizes), strict=True))), num_warm, num_runs)


def _peak_bytes() -> int:
    """Of this program: `getrusage` counts what its process held before it began, as a copy of another one."""
    found = re.search(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())
    return 1024 * int(found[1]) if found else 0
