#!/usr/bin/env python3
"""Reading whole images, all levels, from a cache: compared with bare decompression and with other storage formats.

    scripts/bench_cache_read.py                              # synthetic maps, lean, under 2 minutes
    scripts/bench_cache_read.py --codec int8 --images 32
    scripts/bench_cache_read.py --cache cache/r101 --images 64 --folder /mnt/disk/scratch

What is read are codes, as training reads them: `read` is mtpd.cache into a reused buffer with all its checks. The
limit decompresses the same bytes, which are in memory, into a reused buffer, and checks nothing. The rivals hold the
same codes: zarr-python on the very files of the cache; a .npy of each image; a torch.save of each image; tar files as
webdataset writes them, which can only be read from front to end. `npy fp16` is what one has without a codec: the maps
in half precision. tensorstore joins if it is installed.

Images are read in random order, or shard by shard in a random order of the shards, by one and by two threads. `cold`:
the files are dropped from the page cache before each pass. Every round runs all methods one after another, in a new
order; rates are medians of rounds, ratios medians of the ratios in each round. `per GB`: images/s for each GB that 1000
images take on disk. Processor time hardly depends on other load of the machine. Last line: `read/limit R1
read/best-rival R2`: the lowest ratio to the limit of the warm rows, and the lowest ratio to the best rival of the cold
ones: real caches do not fit into memory.
"""

import argparse
import ctypes
import math
import mmap
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

import mtpd.cache
from cache_read.methods import Method, methods_of
from cache_read.synthetic import synthetic_cache
from mtpd.cache import CacheReader

ORDERS, PAGE_CACHES, THREADS = ('random', 'shards'), ('warm', 'cold'), (1, 2)


class Setting(NamedTuple):
    """A row of the table."""

    page_cache: str
    order: str
    num_threads: int


def ordered(reader: CacheReader, ids: Sequence[int], order: str, *, seed: int) -> list[int]:
    """The images in random order, or those of a shard together and as they lie in it."""
    generator = random.Random(seed)
    shuffled = generator.sample(ids, len(ids))
    if order == 'random':
        return shuffled
    first: dict[object, int] = {}
    for one in shuffled:
        first.setdefault(reader.shard(one), len(first))
    return sorted(ids, key=lambda one: first[reader.shard(one)])


def portions(reader: CacheReader, ids: Sequence[int], number: int, *, by_shard: bool) -> Iterator[list[int]]:
    """The images dealt out to threads: one by one, or shard by shard."""
    places: dict[object, int] = {}
    keys = [places.setdefault(reader.shard(one) if by_shard else one, len(places)) for one in ids]
    for thread in range(number):
        yield [one for one, key in zip(ids, keys, strict=True) if key % number == thread]


def dropped(files: Sequence[Path]) -> float:
    """Drops files from the page cache; the share of their pages that is gone."""
    num_pages = num_left = 0
    for path in files:
        if not path.stat().st_size:
            continue
        with path.open('rb') as file:
            os.fsync(file.fileno())  # what is not yet written cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
                first = ctypes.c_char.from_buffer(mapped)
                states = (ctypes.c_ubyte * math.ceil(len(mapped) / mmap.PAGESIZE))()
                ctypes.CDLL(None).mincore(
                    ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), states
                )
                del first
                num_pages, num_left = num_pages + len(states), num_left + sum(one & 1 for one in states)
    return 1 - num_left / max(1, num_pages)


def main() -> None:
    """Entry point."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.cache is None:
            width, height = map(int, options.scale.split('x'))
            synthetic_cache(folder / 'cache', options.codec, num_images=options.images, scale=(width, height))
        reader = mtpd.cache.open(options.cache or folder / 'cache')
        # Neighbours in the cache, so that shards are read whole.
        ids = reader.image_ids[: options.images]
        methods = methods_of(reader, ids, folder)
        gigabytes = {one.name: _gigabytes(one, methods, reader, ids) for one in methods}
        codes = sum(map(reader.num_codes, ids)) * reader.code_dtype.itemsize / len(ids)
        print(
            f'{len(ids)} images of {codes / 1e6:.2f} MB of codes ({reader.manifest.description.codec}), '
            f'{1000 * gigabytes["read"]:.2f} GB on disk for 1000 images'
        )
        _report(*_measure(reader, ids, methods, options.rounds), gigabytes)


# Of every setting, method and round.
Figures = dict[Setting, dict[str, list[float]]]


def _measure(
    reader: CacheReader, ids: Sequence[int], methods: Sequence[Method], num_rounds: int
) -> tuple[Figures, Figures]:
    """Images/s, and milliseconds of processor time an image; NaN for what a method cannot do."""
    rates: Figures = {}
    processor: Figures = {}
    gone = 1.0
    for number in range(num_rounds + 1):
        for setting in map(Setting._make, product(PAGE_CACHES, ORDERS, THREADS)):
            of_setting, of_processor = (
                figures.setdefault(setting, {one.name: [] for one in methods}) for figures in (rates, processor)
            )
            images = ordered(reader, ids, setting.order, seed=number)
            for method in random.Random(number).sample(methods, len(methods)):
                if method.by_shard and setting.order == 'random':
                    of_setting[method.name].append(math.nan)
                    of_processor[method.name].append(math.nan)
                    continue
                if setting.page_cache == 'cold':
                    gone = min(gone, dropped(method.files))
                parts = list(portions(reader, images, setting.num_threads, by_shard=setting.order == 'shards'))
                with ThreadPoolExecutor(setting.num_threads) as executor:
                    start, started = time.perf_counter(), time.process_time()
                    list(executor.map(method.read, parts))
                    of_setting[method.name].append(len(ids) / (time.perf_counter() - start))
                    of_processor[method.name].append(1000 * (time.process_time() - started) / len(ids))
    print(
        f'cold: {100 * gone:.1f}% of the pages were out of memory (mincore); caches of the disk or of the host of a '
        'virtual machine are not visible here'
    )
    # The first round warms up.
    return _without_first(rates), _without_first(processor)


def _without_first(figures: Figures) -> Figures:
    return {setting: {name: one[1:] for name, one in found.items()} for setting, found in figures.items()}


def _report(rates: Figures, processor: Figures, gigabytes: Mapping[str, float]) -> None:
    names = list(gigabytes)
    print(f'\n{"images/s":<18}', *(f'{name:>12}' for name in names), 'read/limit  read/best')
    for setting, found in rates.items():
        print(
            f'{" ".join(map(str, setting)):<18}',
            *(f'{statistics.median(found[name]):>12.1f}' for name in names),
            f'{_ratio(found, "limit"):>10.3f} {_to_best(found):>10.3f}',
        )
    print(f'{"GB per 1000":<18}', *(f'{1000 * gigabytes[name]:>12.2f}' for name in names))
    print('\nimages/s per GB')
    for setting, found in rates.items():
        per_gb = {name: [rate / (1000 * gigabytes[name]) for rate in found[name]] for name in names if gigabytes[name]}
        values = (f'{statistics.median(per_gb[name]):>12.1f}' if name in per_gb else f'{"-":>12}' for name in names)
        print(f'{" ".join(map(str, setting)):<18}', *values, f'{"":10} {_to_best(per_gb):>10.3f}')
    print("\nms of processor time per image, and the limit's share of the reading time")
    for setting, found in processor.items():
        share = 1 / _ratio(found, 'limit')
        print(
            f'{" ".join(map(str, setting)):<18}',
            *(f'{statistics.median(found[name]):>12.2f}' for name in names),
            f'{share:>10.3f}',
        )
    limit = min(_ratio(found, 'limit') for setting, found in rates.items() if setting.page_cache == 'warm')
    rival = min(_to_best(found) for setting, found in rates.items() if setting.page_cache == 'cold')
    print(f'read/limit {limit:.3f} read/best-rival {rival:.3f}')


def _ratio(found: Mapping[str, Sequence[float]], other: str) -> float:
    return statistics.median(one / two for one, two in zip(found['read'], found[other], strict=True))


def _to_best(found: Mapping[str, Sequence[float]]) -> float:
    """The ratio to the rival that comes nearest to the reader, or is furthest ahead of it."""
    ratios = [_ratio(found, name) for name in found if name not in ('read', 'limit')]
    return min(one for one in ratios if not math.isnan(one))


def _gigabytes(method: Method, methods: Sequence[Method], reader: CacheReader, ids: Sequence[int]) -> float:
    """On disk for an image; of a cache by the share of its images that is read."""
    size = sum(path.stat().st_size for path in method.files) / 1e9
    return size / (len(reader) if method.files is methods[0].files else len(ids))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--cache', type=Path, help='cache to read instead of the synthetic one')
    add(
        '--codec',
        default='lean',
        choices=['fp16', 'int8', 'lean'],
        help='codec of the synthetic cache (default %(default)s)',
    )
    add('--scale', metavar='WxH', default='1333x800', help='scale of its images of 640x480 px (default %(default)s)')
    add('--images', type=int, default=24, help='images to read (default %(default)s)')
    add('--rounds', type=int, default=5, help='measured rounds (default %(default)s)')
    add('--folder', type=Path, help='folder on the disk to measure (default: the temporary folder)')
    return parser.parse_args()


if __name__ == '__main__':
    main()
