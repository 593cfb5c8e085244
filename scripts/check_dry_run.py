#!/usr/bin/env python3
"""Predicts an extraction by a trial, as `mtpd-extract --dry-run` does, then runs it and compares bytes and time.

    scripts/check_dry_run.py --teacher my_config.py --checkpoint my.pth --coco data/coco --split val2017

Takes the options of mtpd-extract; without --out the cache goes into a temporary folder. The time is from the first
image to the manifest, without loading the teacher. Last line: `predicted/real bytes B time T`.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mtpd.system.text import format_duration
from mtpd_extract.build import build_extraction
from mtpd_extract.cli import main as mtpd_extract
from mtpd_extract.estimate import gigabytes
from mtpd_extract.extraction import Loading
from mtpd_extract.prediction import Prediction, predict
from mtpd_extract.run import extract
from mtpd_extract.target import present_bytes
from mtpd_extract.trial import run_trial


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    if '-h' in arguments or '--help' in arguments:
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as folder:
        options = mtpd_extract.make_context('mtpd-extract', ['--out', f'{folder}/cache', *arguments]).params
        out: Path = options['out']
        if out.exists():
            sys.exit(f'{out}: already exists, but a new cache is to be timed; give another --out')
        predicted, real = compare({**options, 'local_rank': None}, out)
    print(f'{"":<12}{"predicted":>12}{"real":>12}{"ratio":>8}')
    rows = [
        ('bytes', gigabytes(predicted.num_bytes), gigabytes(real.num_bytes), predicted.num_bytes / real.num_bytes),
        ('time', format_duration(predicted.seconds), format_duration(real.seconds), predicted.seconds / real.seconds),
    ]
    for name, before, after, ratio in rows:
        print(f'{name:<12}{before:>12}{after:>12}{ratio:>8.3f}')
    print(f'predicted/real bytes {rows[0][3]:.3f} time {rows[1][3]:.3f}')


def compare(options: dict[str, object], out: Path) -> tuple[Prediction, Prediction]:
    """What was predicted, and what came of it."""
    extraction = build_extraction(options)
    loading = Loading(batch_size=int(str(options['batch_size'])), num_threads=int(str(options['workers'])))
    trial = run_trial(extraction, loading)
    predicted = predict(extraction, trial)
    print(f'by a trial on {trial.num_images} of {extraction.plan.num_images} images: {predicted}', flush=True)
    start = time.perf_counter()
    extract(extraction, out, loading, trial=lambda: trial)
    seconds = time.perf_counter() - start
    return predicted, Prediction(extraction.plan.num_images, present_bytes(out), seconds)


if __name__ == '__main__':
    main(sys.argv[1:])
