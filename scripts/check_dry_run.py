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

from measuring import extract_options
from mtpd.system.text import format_bytes, format_duration
from mtpd_extract.estimate import Prediction, measure_rates, predict
from mtpd_extract.extraction import build_extraction
from mtpd_extract.options import ExtractOptions
from mtpd_extract.output_folder import folder_bytes
from mtpd_extract.run import extract


def main(arguments: Sequence[str]) -> None:
    if '-h' in arguments or '--help' in arguments:
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as folder:
        options = extract_options(['--out', f'{folder}/cache', *arguments])
        if options.out.exists():
            sys.exit(f'{options.out}: already exists, but a new cache is to be timed; give another --out')
        predicted, real = compare(options)
    print(f'{"":<12}{"predicted":>12}{"real":>12}{"ratio":>8}')
    rows = [
        ('bytes', format_bytes, predicted.num_bytes, real.num_bytes),
        ('time', format_duration, predicted.seconds, real.seconds),
    ]
    for name, text, before, after in rows:
        print(f'{name:<12}{text(before):>12}{text(after):>12}{before / after:>8.3f}')
    num_bytes, seconds = (before / after for _, _, before, after in rows)
    print(f'predicted/real bytes {num_bytes:.3f} time {seconds:.3f}')


def compare(options: ExtractOptions) -> tuple[Prediction, Prediction]:
    extraction = build_extraction(options)
    rates = measure_rates(extraction)
    predicted = predict(extraction, rates)
    print(f'by a trial on {rates.num_images} of {extraction.plan.num_images} images: {predicted}', flush=True)
    start = time.perf_counter()
    extract(extraction, options.out, rates=lambda: rates)
    seconds = time.perf_counter() - start
    return predicted, Prediction(extraction.plan.num_images, folder_bytes(options.out), seconds)


if __name__ == '__main__':
    main(sys.argv[1:])
