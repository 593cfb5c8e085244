#!/usr/bin/env python3
"""Reading images with damage checks compared with OpenCV alone: images per second of one thread.

    scripts/bench_images.py data/coco/val2017 --limit 500

Both read the files from the page cache and return pixels; the fastest round counts. Last line:
`read_image/OpenCV R`, the ratio of the speeds.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from measuring import described_parser, interleaved
from mtpd.data.images import read_image


def main() -> None:
    parser = described_parser(__doc__)
    parser.add_argument('folder', type=Path, help='image folder')
    parser.add_argument('--limit', type=int, help='number of images')
    parser.add_argument('--repeats', type=int, default=5, help='rounds (default 5)')
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    paths = sorted(path for path in arguments.folder.iterdir() if path.is_file())[: arguments.limit]
    readers = {'OpenCV': read_by_opencv, 'read_image': read_image}
    # The first round fills the page cache.
    ways = {name: partial(images_per_second, reader, paths) for name, reader in readers.items()}
    rounds = interleaved(ways, arguments.repeats)
    fastest = {name: max(one[name] for one in rounds) for name in readers}
    for name, speed in fastest.items():
        print(f'{name:<12}{speed:>8.1f} images/s')
    print(f'read_image/OpenCV {fastest["read_image"] / fastest["OpenCV"]:.2f}')


def read_by_opencv(path: Path) -> object:
    """What mmdet does."""
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)


def images_per_second(reader: Callable[[Path], object], paths: Sequence[Path]) -> float:
    start = time.perf_counter()
    for path in paths:
        reader(path)
    return len(paths) / (time.perf_counter() - start)


if __name__ == '__main__':
    main()
