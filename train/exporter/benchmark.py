"""Latency and memory of an exported file against its detector in PyTorch, on this machine's CPU.

Each is measured in a process of its own, so that the memory is its own too: that of the file has no PyTorch in it.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mtpd.detectors.detector import Detector
from mtpd.detectors.preprocessing import Preprocessing
from mtpd.detectors.samples import Sample
from mtpd.export.exported import batch_of
from mtpd.export.measuring import Measured, measure, measure_onnx
from mtpd.export.record import ExportRecord
from mtpd.system.console import say
from mtpd.system.text import format_bytes, table
from mtpd_train.evaluator.detector import SavedDetector, build_student

NUM_RUNS, NUM_WARM = 30, 5


def benchmark(
    saved: SavedDetector,
    detector: Detector,
    sample: Sample,
    file: Path,
    record: ExportRecord,
    *,
    trust_checkpoint: bool,
) -> dict[str, Any]:
    """Prints a table, and returns its numbers: seconds and bytes by runtime and threads.

    With `trust_checkpoint` the file of the weights may hold more than tensors.
    """
    images, sizes = batch_of([sample], record=record, name=str(file))
    num_cores = len(os.sched_getaffinity(0))
    found: dict[tuple[str, int], Measured] = {}
    # By turns, so that what else the machine does meets both.
    for threads in sorted({1, num_cores}):
        say(f'measuring {NUM_RUNS} images with {threads} thread{"s" if threads > 1 else ""}')
        found['PyTorch', threads] = _alone(
            _measure_torch, saved, detector.preprocessing, sample, threads, trust_checkpoint
        )
        found['ONNX Runtime', threads] = _alone(measure_onnx, file, images, sizes, threads, NUM_WARM, NUM_RUNS)
    parameters = sum(one.numel() for one in detector.module.parameters())
    with FlopCounterMode(display=False) as counter:
        detector.find([sample])
    flops = int(counter.get_total_flops())
    height, width = sample.resized
    rows = [
        [runtime, str(threads), f'{1000 * one.median:.1f}', f'{1000 * one.p90:.1f}', format_bytes(one.peak_bytes)]
        for (runtime, threads), one in found.items()
    ]
    print(
        f'{parameters / 1e6:.2f} million parameters, {flops / 1e9:.2f} GFLOPs (2 for a multiplication with its '
        f'addition) for an image of {width} x {height} px (width x height), batch 1, {NUM_RUNS} runs'
    )
    print('\n'.join(table(['runtime', 'threads', 'median, ms', 'p90, ms', 'peak memory'], rows)))
    ratio = found['PyTorch', num_cores].median / found['ONNX Runtime', num_cores].median
    print(f'ONNX Runtime takes 1 / {ratio:.2f} of the time of PyTorch with {num_cores} threads')
    return {
        'parameters': parameters, 'flops': flops, 'width': width, 'height': height,
        'runs': [
            {'runtime': runtime, 'threads': threads, 'median': one.median, 'p90': one.p90, 'peak_bytes': one.peak_bytes}
            for (runtime, threads), one in found.items()
        ],
    }  # fmt: skip


def _alone(function: Callable[..., Measured], *arguments: Any) -> Measured:
    """Runs a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *arguments).result()


def _measure_torch(
    saved: SavedDetector, preprocessing: Preprocessing, sample: Sample, threads: int, trust_checkpoint: bool
) -> Measured:
    torch.set_num_threads(threads)
    detector, _ = build_student(
        saved,
        torch.device('cpu'),
        preprocessing=preprocessing,
        trust_checkpoint=trust_checkpoint,
        with_levels=True,
    )
    return measure(lambda: detector.find([sample]), NUM_WARM, NUM_RUNS)
