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
import io
import math
import mmap
import os
import random
import tarfile
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import zarr
from numcodecs.zstd import Zstd
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

import mtpd.cache
from measuring import described_parser
from mtpd.cache import CacheReader
from mtpd.cache.format.arrays import CHECKSUM_BYTES, ZSTD_LEVELS, encode_chunk
from mtpd.cache.format.codecs import CodecName, EncodedMaps, encode, expected_bytes
from mtpd.cache.format.manifest import Description, GeometryRecord, LevelRecord
from mtpd.cache.format.plan import SourceImage, plan_cache
from mtpd.cache.writing.destination import FolderDestination
from mtpd.cache.writing.writer import CacheWriter
from mtpd.geometry import Geometry, Level, Size

CHANNELS = 256
IMAGE_SIZE: Size = (480, 640)
DISTINCT_MAPS = 4  # images share them, which costs a reader nothing less
IMAGES_PER_SHARD = 6
OUTLIER = 60  # how far one cell stands out: it takes most of the range of int8

# The rows of the tables: state of the page cache, order of the images, threads.
SETTINGS = list(product(('warm', 'cold'), ('random', 'shards'), (1, 2)))


class Method(NamedTuple):
    """A way to read images, by their ids, one after another in one thread, from files on `gigabytes` an image.

    The limit has no files: it reads memory. `by_shard`: it can only read whole shards.
    """

    name: str
    files: Sequence[Path]
    gigabytes: float
    read: Callable[[Sequence[int]], object]
    by_shard: bool = False


def synthetic_cache(root: Path, codec: CodecName, *, num_images: int, scale: Size) -> None:
    """Maps like those of an FPN: correlated channels, smooth in space, heavy tails; lean packs to 1.2 bits."""
    geometry, generator = Geometry(scale), torch.Generator().manual_seed(0)
    levels = tuple(Level(f'p{number}', 2**number, CHANNELS) for number in range(3, 8))
    bases = {one.name: torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator))[0] for one in levels}
    energies = torch.arange(1.0, CHANNELS + 1) ** -0.7

    def smooth(channels: int, grid: Size, *, cells: int) -> Tensor:
        coarse = torch.randn(1, channels, *(side // cells + 1 for side in grid), generator=generator)
        return interpolate(coarse, size=grid, mode='bilinear')

    def maps(level: Level) -> EncodedMaps:
        grid, basis = level.grid(*geometry.padded(IMAGE_SIZE)), bases[level.name]
        values = smooth(CHANNELS, grid, cells=4) + 0.2 * torch.randn(1, CHANNELS, *grid, generator=generator)
        gain = (0.8 * smooth(1, grid, cells=6)).exp()
        gain[..., grid[0] // 2, grid[1] // 2] *= OUTLIER
        values = values * gain
        values = torch.einsum('ck,bkhw->bchw', basis * energies, values)
        return encode(values, codec, basis=basis if codec == 'lean' else None)

    encoded = [{level.name: maps(level) for level in levels} for _ in range(min(DISTINCT_MAPS, num_images))]
    images = [SourceImage(number, IMAGE_SIZE) for number in range(num_images)]
    largest = CHANNELS * levels[0].stride ** -2 * geometry.padded(IMAGE_SIZE)[0] * geometry.padded(IMAGE_SIZE)[1]
    shard_bytes = int(largest * expected_bytes(codec) * (IMAGES_PER_SHARD + 0.5))
    plan = plan_cache(
        images, geometry=geometry, levels=levels, bytes_per_element=expected_bytes(codec), shard_bytes=shard_bytes
    )
    description = Description(
        fingerprint={'maps': 'synthetic'},
        provenance={},
        levels=tuple(LevelRecord(**vars(level)) for level in levels),
        codec=codec,
        target_error=0.03 if codec == 'lean' else None,
        views=('plain',),
        geometry=GeometryRecord(**vars(geometry)),
    )
    weights = safetensors.torch.save({'none': torch.zeros(1)})
    with CacheWriter(FolderDestination(root), description=description, plan=plan, teacher_weights=weights) as writer:
        if codec == 'lean':
            writer.bases(lambda: bases)
        for key in writer.pending():
            group = writer.start_group(key)
            for image in writer.plan.images(key):
                group.append('plain', encoded[image.image_id % len(encoded)])
            writer.commit(group)
        writer.finish()


def methods_of(reader: CacheReader, ids: Sequence[int], folder: Path) -> list[Method]:
    """All methods, the cache and the limit first; writes the rivals' files."""
    codec, num_codes = reader.manifest.description.codec, max(map(reader.num_codes, ids))
    buffers: dict[int, Tensor] = defaultdict(lambda: torch.zeros(num_codes, dtype=reader.code_dtype))  # by thread
    frames: dict[int, list[tuple[bytes, int]]] = {}
    npy, half, saved, tars = (folder / name for name in ('npy', 'fp16', 'saved', 'tar'))
    for path in (npy, half, saved, tars):
        path.mkdir()
    shards = list(dict.fromkeys(map(reader.shard, ids)))
    tar_of = {one: tars / f'{shards.index(reader.shard(one))}.tar' for one in ids}
    for one in tqdm(ids, desc='writing the rivals', unit='image', mininterval=0.5):
        encoded = reader.read_encoded(one)
        codes = [maps.codes.numpy() for maps in encoded.values()]
        frames[one] = [(encode_chunk(each, level=ZSTD_LEVELS[codec])[:-CHECKSUM_BYTES], each.size) for each in codes]
        np.save(npy / f'{one}.npy', np.concatenate([each.ravel() for each in codes]))
        np.save(half / f'{one}.npy', torch.cat([maps.values().half().flatten() for maps in encoded.values()]))
        torch.save({name: maps.codes.clone() for name, maps in encoded.items()}, saved / f'{one}.pt')
        with tarfile.open(tar_of[one], 'a') as tar:
            tar.add(npy / f'{one}.npy', arcname=f'{one}.npy')
    group: Any = zarr.open_group(reader.name, mode='r', zarr_format=3)
    # Of each image, the arrays of its levels and its row in them.
    arrays = {one: [f'{reader.shard(one).bucket}/plain/{level.name}' for level in reader.levels] for one in ids}
    opened = {each: group[each] for paths in arrays.values() for each in paths}
    position: dict[int, int] = {}
    for key in shards:
        position |= {int(image_id): row for row, image_id in enumerate(group[f'{key.bucket}/plain/image_id'][:])}

    def limit(some: Sequence[int]) -> None:
        zstd, codes = Zstd(), buffers[threading.get_ident()].numpy()
        for one in some:
            start = 0
            for packed, length in frames[one]:
                zstd.decode(packed, codes[start : start + length])
                start += length

    def read(some: Sequence[int]) -> None:
        codes = buffers[threading.get_ident()]
        for one in some:
            reader.read_encoded(one, out=codes)

    def row_by_row(take: Callable[[str, int], object]) -> Callable[[Sequence[int]], object]:
        return lambda some: [take(array, position[one]) for one in some for array in arrays[one]]

    def untar(some: Sequence[int]) -> None:
        for path in dict.fromkeys(tar_of[one] for one in some):
            with tarfile.open(path, 'r|') as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    assert content is not None, 'only files were put in'
                    np.load(io.BytesIO(content.read()))

    def rival(name: str, files: Path, read: Callable[[Sequence[int]], object], *, by_shard: bool = False) -> Method:
        paths = sorted(files.iterdir())
        return Method(name, paths, _gigabytes(paths) / len(ids), read, by_shard)

    of_cache = [path for path in Path(reader.name).rglob('c/**/*') if path.is_file()]
    size = _gigabytes(of_cache) / len(reader)
    found = [
        Method('read', of_cache, size, read),
        Method('limit', [], math.nan, limit),
        Method('zarr-python', of_cache, size, row_by_row(lambda array, row: opened[array][row])),
        rival('npy codes', npy, lambda some: [np.load(npy / f'{one}.npy') for one in some]),
        rival('npy fp16', half, lambda some: [np.load(half / f'{one}.npy') for one in some]),
        rival('torch.save', saved, lambda some: [torch.load(saved / f'{one}.pt') for one in some]),
        rival('tar', tars, untar, by_shard=True),
    ]
    if find_spec('tensorstore'):
        tensorstore = import_module('tensorstore')
        stores = {}
        for array in opened:
            source = {'driver': 'file', 'path': f'{reader.name}/{array}'}
            stores[array] = tensorstore.open({'driver': 'zarr3', 'kvstore': source}).result()
        by_tensorstore = row_by_row(lambda array, row: stores[array][row].read().result())
        found.append(Method('tensorstore', of_cache, size, by_tensorstore))
    return found


def _gigabytes(files: Sequence[Path]) -> float:
    return sum(path.stat().st_size for path in files) / 1e9


def dealt(reader: CacheReader, ids: Sequence[int], order: str, num_threads: int, *, seed: int) -> list[list[int]]:
    """The images for each thread: one by one in random order, or shard by shard in a random order of the shards."""
    shuffled = random.Random(seed).sample(ids, len(ids))
    groups = [[one] for one in shuffled]
    if order == 'shards':
        shards = list(dict.fromkeys(map(reader.shard, shuffled)))
        by_shard = sorted(ids, key=lambda one: shards.index(reader.shard(one)))
        groups = [list(group) for _, group in groupby(by_shard, key=reader.shard)]
    return [[one for group in groups[thread::num_threads] for one in group] for thread in range(num_threads)]


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
                start, length = ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped))
                ctypes.CDLL(None).mincore(start, length, states)
                del first
                num_pages, num_left = num_pages + len(states), num_left + sum(one & 1 for one in states)
    return 1 - num_left / max(1, num_pages)


def main() -> None:
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
        codes = sum(map(reader.num_codes, ids)) * reader.code_dtype.itemsize / len(ids)
        print(
            f'{len(ids)} images of {codes / 1e6:.2f} MB of codes ({reader.manifest.description.codec}), '
            f'{1000 * methods[0].gigabytes:.2f} GB on disk for 1000 images'
        )
        rates, milliseconds = _measure(reader, ids, methods, options.rounds)
    _report(methods, rates, milliseconds)


def _measure(reader: CacheReader, ids: Sequence[int], methods: Sequence[Method], num_rounds: int) -> Any:
    """Images/s and ms of processor time an image, (2, rounds, settings, methods); NaN for what a method cannot do."""
    figures = np.full((2, num_rounds + 1, len(SETTINGS), len(methods)), np.nan)
    gone = 1.0
    for number, (row, (page_cache, order, num_threads)) in product(range(num_rounds + 1), enumerate(SETTINGS)):
        parts = dealt(reader, ids, order, num_threads, seed=number)
        for column in random.Random(number).sample(range(len(methods)), len(methods)):
            method = methods[column]
            if method.by_shard and order != 'shards':
                continue
            if page_cache == 'cold':
                gone = min(gone, dropped(method.files))
            with ThreadPoolExecutor(num_threads) as executor:
                start, started = time.perf_counter(), time.process_time()
                list(executor.map(method.read, parts))
                seconds, used = time.perf_counter() - start, time.process_time() - started
            figures[:, number, row, column] = len(ids) / seconds, 1000 * used / len(ids)
    print(
        f'cold: {100 * gone:.1f}% of the pages were out of memory (mincore); caches of the disk or of the host of a '
        'virtual machine are not visible here'
    )
    return figures[:, 1:]  # the first round warms up


def _report(methods: Sequence[Method], rates: Any, milliseconds: Any) -> None:
    """Tables of the medians; a ratio is the median of those of each round."""
    sizes = 1000 * np.array([one.gigabytes for one in methods])
    ratios = np.median(rates[..., :1] / rates, axis=0)
    # To the rival that comes nearest to the reader, or is furthest ahead of it.
    best, best_per_gb = (np.nanmin(one[:, 2:], axis=1) for one in (ratios, ratios * sizes / sizes[0]))
    busy = np.median(milliseconds[..., 1] / milliseconds[..., 0], axis=0)

    def lines(figures: Any, form: str, *last: Any) -> None:
        for setting, row, *others in zip(SETTINGS, np.median(figures, axis=0), *last, strict=True):
            print(f'{" ".join(map(str, setting)):<18}', *(f'{one:>12{form}}' for one in row), *others)

    print(f'\n{"images/s":<18}', *(f'{one.name:>12}' for one in methods), 'read/limit  read/best')
    lines(rates, '.1f', [f'{one:>10.3f}' for one in ratios[:, 1]], [f'{one:>10.3f}' for one in best])
    print(f'{"GB per 1000":<18}', *(f'{one:>12.2f}' for one in sizes))
    print('\nimages/s per GB')
    lines(rates / sizes, '.1f', [f'{one:>21.3f}' for one in best_per_gb])
    print("\nms of processor time per image, and the limit's share of the reading time")
    lines(milliseconds, '.2f', [f'{one:>10.3f}' for one in busy])
    is_warm = np.array([setting[0] == 'warm' for setting in SETTINGS])
    print(f'read/limit {ratios[is_warm, 1].min():.3f} read/best-rival {best[~is_warm].min():.3f}')


def _options() -> argparse.Namespace:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add('--cache', type=Path, help='cache to read instead of the synthetic one')
    add('--codec', default='lean', choices=ZSTD_LEVELS, help='codec of the synthetic cache (default %(default)s)')
    add('--scale', metavar='WxH', default='1333x800', help='scale of its images of 640x480 px (default %(default)s)')
    add('--images', type=int, default=24, help='images to read (default %(default)s)')
    add('--rounds', type=int, default=5, help='measured rounds (default %(default)s)')
    add('--folder', type=Path, help='folder on the disk to measure (default: the temporary folder)')
    return parser.parse_args()


if __name__ == '__main__':
    main()
