#!/usr/bin/env python3
"""Throughput of an extraction relative to the bare forward pass of the teacher, and to what a dry run predicts.

    scripts/bench_extract.py --teacher my_config.py --checkpoint my.pth --coco data/coco --split val2017 --limit 200
    scripts/bench_extract.py --teacher r101 --codec lean --batch-size 8 --workers 8 --device cuda --repeats 5
    scripts/bench_extract.py --teacher r101 --synthetic 1333x800 --scale 1333x800

Options: those of mtpd-extract except --out, --repeats, and --synthetic, which creates 64 images of a size, and random
weights for the teacher, in place of --coco and --checkpoint. The bare pass has its input ready: resized, padded and
normalised, on the device, in batches of the same images; its maps are thrown away. The extraction reads the image
files, encodes, compresses and writes to a temporary folder (TMPDIR names one on another disk), up to the last shard;
one-time work (loading, zarr metadata, the statistics of `lean`) is not timed. Both alternate, after one warm-up
round; medians. In the end a trial predicts the extraction, as `mtpd-extract --dry-run` does, and a whole one is run,
timed from the first image to the manifest. Last line: `extract/forward R predicted/real bytes B time T`, of throughputs
and of the prediction.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench_step import make_source
from measuring import described_parser, interleaved, median_ratio
from mtpd.cache.writing.destination import FolderDestination
from mtpd.cache.writing.writer import CacheWriter
from mtpd.detectors.preprocessing import normalise
from mtpd.system.console import progress_bar
from mtpd.system.environment import describe_device
from mtpd.system.interrupt import StopFlag
from mtpd_extract.cli import main as mtpd_extract
from mtpd_extract.estimate import Prediction, measure_rates, predict
from mtpd_extract.extraction import Extraction, batches, build_extraction, compute_bases, extract_groups, load_images
from mtpd_extract.options import ExtractOptions
from mtpd_extract.output_folder import folder_bytes
from mtpd_extract.run import extract


def main(arguments: Sequence[str]) -> None:
    parser = described_parser(__doc__)
    parser.add_argument('--teacher', required=True, help='as of mtpd-extract')
    parser.add_argument('--repeats', type=int, default=5, help='measured rounds (default 5)')
    parser.add_argument('--synthetic', metavar='WxH', help='size of images to create, px')
    own, others = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        source = {'--teacher': own.teacher}
        if own.synthetic:
            source = make_source(Path(name), own.teacher, size=own.synthetic, num_images=64)
        measure([*others, *(word for pair in source.items() for word in pair)], num_rounds=own.repeats)


def measure(options_of_extract: Sequence[str], *, num_rounds: int) -> None:
    given = mtpd_extract.make_context('mtpd-extract', ['--out', 'unused', *options_of_extract]).params
    options = ExtractOptions(**{name: value for name, value in given.items() if name not in ('verbose', 'quiet')})
    extraction = build_extraction(options)
    inputs = prepare(extraction)
    num_images = extraction.plan.num_images
    description = extraction.description
    print(
        f'{extraction.teacher.name} on {describe_device(extraction.device)}, {num_images} images, '
        f'{", ".join(description.views)} as {description.codec}, batches of {extraction.batch_size}, '
        f'{extraction.num_threads} reader threads, {torch.get_num_threads()} network threads'
    )
    ways = {'forward': partial(time_forward, extraction, inputs), 'extract': partial(time_extract, extraction)}
    rounds = interleaved(ways, num_rounds)
    times = {name: [one[name] for one in rounds] for name in ways}
    print(f'{"":<10}{"median s":>10}{"fastest s":>11}{"slowest s":>11}{"images/s":>10}')
    for name, counted in times.items():
        median = statistics.median(counted)
        print(f'{name:<10}{median:>10.2f}{min(counted):>11.2f}{max(counted):>11.2f}{num_images / median:>10.2f}')
    ratio = median_ratio(times['forward'], times['extract'])
    num_bytes, seconds = compare_prediction(extraction)
    print(f'extract/forward {ratio:.3f} predicted/real bytes {num_bytes:.3f} time {seconds:.3f}')


def prepare(extraction: Extraction) -> list[Tensor]:
    """The network inputs of every batch and view, on the device."""
    inputs = []
    normalisation = extraction.teacher.preprocessing.normalisation
    for batch in batches(extraction, extraction.plan.shard_keys()):
        pixels = [image.to(extraction.device) for image in load_images(extraction, batch.images)]
        padded = extraction.plan.by_name[batch.key.bucket].padded
        for view in extraction.description.views:
            images = [image.flip(-1) for image in pixels] if view == 'flip' else pixels
            inputs.append(normalise(images, padded=padded, normalisation=normalisation))
    return inputs


def time_forward(extraction: Extraction, inputs: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    for images in inputs:
        extraction.teacher.maps(images)
    if extraction.device.type == 'cuda':
        torch.cuda.synchronize(extraction.device)
    return time.perf_counter() - start


def time_extract(extraction: Extraction) -> float:
    """Seconds from the first image to the last shard on the disk."""
    plan, description, weights = extraction.plan, extraction.description, extraction.teacher_weights
    with (
        tempfile.TemporaryDirectory() as name,
        CacheWriter(
            FolderDestination(Path(name) / 'cache'), description=description, plan=plan, teacher_weights=weights
        ) as writer,
    ):
        bases = writer.bases(partial(compute_bases, extraction)) if description.codec == 'lean' else {}
        keys, group, commit = writer.pending(), writer.start_group, writer.commit
        bar = progress_bar(total=plan.num_images, unit='image', desc='extract', in_logs=False)
        start = time.perf_counter()
        extract_groups(extraction, keys, bases=bases, start_group=group, commit=commit, stop=StopFlag(), bar=bar)
        return time.perf_counter() - start


def compare_prediction(extraction: Extraction) -> tuple[float, float]:
    """Predicted over real bytes and seconds of the whole extraction."""
    rates = measure_rates(extraction)
    predicted = predict(extraction, rates)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / 'cache'
        start = time.perf_counter()
        extract(extraction, out, rates=lambda: rates)
        real = Prediction(predicted.num_images, folder_bytes(out), time.perf_counter() - start)
    print(f'predicted by a trial on {rates.num_images} images: {predicted}\nreal: {real}')
    return predicted.num_bytes / real.num_bytes, predicted.seconds / real.seconds


if __name__ == '__main__':
    main(sys.argv[1:])
