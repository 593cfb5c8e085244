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
import statistics
import tarfile
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from measuring import described_parser, median_ratio
from mtpd.cache import CacheReader
from mtpd.cache.format.arrays import CHECKSUM_BYTES, ZSTD_LEVELS, encode_chunk
from mtpd.cache.format.codecs import CodecName, EncodedMaps, encode, expected_bytes
from mtpd.cache.format.manifest import Description, GeometryRecord, LevelRecord
from mtpd.cache.format.plan import SourceImage, plan_cache
from mtpd.cache.writing.writer import CacheWriter
from mtpd.geometry import Geometry, Level, Size

CHANNELS = 256
IMAGE_SIZE: Size = (480, 640)
DISTINCT_MAPS = 4  # images share them, which costs a reader nothing less
IMAGES_PER_SHARD = 6
OUTLIER = 60  # how far one cell stands out: it takes most of the range of int8

ORDERS, PAGE_CACHES, THREADS = ('random', 'shards'), ('warm', 'cold'), (1, 2)


class Setting(NamedTuple):
    """A row of the table."""

    page_cache: str
    order: str
    num_threads: int


@dataclass(frozen=True)
class Method:
    """A way to read images, by their ids, one after another in one thread.

    The limit has no files: it reads memory. `by_shard`: it can only read whole shards.
    """

    name: str
    files: Sequence[Path]
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
    with CacheWriter(root, description=description, plan=plan, teacher_weights=weights) as writer:
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
    shards = dict.fromkeys(map(reader.shard, ids))
    tar_of = {one: tars / f'{list(shards).index(reader.shard(one))}.tar' for one in ids}
    for one in tqdm(ids, desc='writing the rivals', unit='image', mininterval=0.5):
        encoded = reader.read_encoded(one)
        codes = {name: maps.codes.numpy() for name, maps in encoded.items()}
        chunks = [encode_chunk(each, level=ZSTD_LEVELS[codec])[:-CHECKSUM_BYTES] for each in codes.values()]
        frames[one] = list(zip(chunks, (each.size for each in codes.values()), strict=True))
        np.save(npy / f'{one}.npy', np.concatenate([each.ravel() for each in codes.values()]))
        np.save(half / f'{one}.npy', torch.cat([maps.values().half().flatten() for maps in encoded.values()]))
        torch.save({name: maps.codes.clone() for name, maps in encoded.items()}, saved / f'{one}.pt')
        with tarfile.open(tar_of[one], 'a') as tar:
            for name, each in codes.items():
                file = io.BytesIO()
                np.save(file, each)
                entry = tarfile.TarInfo(f'{one}.{name}.npy')
                entry.size = file.tell()
                file.seek(0)
                tar.addfile(entry, file)
    group: Any = zarr.open_group(reader.path, mode='r', zarr_format=3)
    # Of each image, the arrays of its levels and its row in them.
    arrays = {one: [f'{reader.shard(one).bucket}/plain/{level.name}' for level in reader.levels] for one in ids}
    opened = {each: group[each] for paths in arrays.values() for each in paths}
    position: dict[int, int] = {}
    for key in shards:
        table = group[f'{key.bucket}/plain/image_id'][:]
        position |= {int(image_id): row for row, image_id in enumerate(table)}

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

    def by_zarr(some: Sequence[int]) -> None:
        for one in some:
            for array in arrays[one]:
                opened[array][position[one]]

    def untar(some: Sequence[int]) -> None:
        for path in dict.fromkeys(tar_of[one] for one in some):
            with tarfile.open(path, 'r|') as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    assert content is not None, 'only files were put in'
                    np.load(io.BytesIO(content.read()))

    of_cache = [path for path in reader.path.rglob('c/**/*') if path.is_file()]
    found = [
        Method('read', of_cache, read),
        Method('limit', [], limit),
        Method('zarr-python', of_cache, by_zarr),
        Method('npy codes', sorted(npy.iterdir()), lambda some: [np.load(npy / f'{one}.npy') for one in some]),
        Method('npy fp16', sorted(half.iterdir()), lambda some: [np.load(half / f'{one}.npy') for one in some]),
        Method('torch.save', sorted(saved.iterdir()), lambda some: [torch.load(saved / f'{one}.pt') for one in some]),
        Method('tar', sorted(tars.iterdir()), untar, by_shard=True),
    ]
    if find_spec('tensorstore'):
        tensorstore = import_module('tensorstore')
        stores = {}
        for array in opened:
            source = {'driver': 'file', 'path': str(reader.path / array)}
            stores[array] = tensorstore.open({'driver': 'zarr3', 'kvstore': source}).result()

        def by_tensorstore(some: Sequence[int]) -> None:
            for one in some:
                for array in arrays[one]:
                    stores[array][position[one]].read().result()

        found.append(Method('tensorstore', of_cache, by_tensorstore))
    return found


def ordered(reader: CacheReader, ids: Sequence[int], order: str, *, seed: int) -> list[int]:
    """The images in random order, or those of a shard together and in their order in it."""
    generator = random.Random(seed)
    shuffled = generator.sample(ids, len(ids))
    if order == 'random':
        return shuffled
    shards = list(dict.fromkeys(map(reader.shard, shuffled)))
    return sorted(ids, key=lambda one: shards.index(reader.shard(one)))


def portions(reader: CacheReader, ids: Sequence[int], number: int, *, by_shard: bool) -> Iterator[list[int]]:
    """The images dealt out to threads: one by one, or shard by shard."""
    groups = [[one] for one in ids]
    if by_shard:
        groups = [list(group) for _, group in groupby(ids, key=reader.shard)]
    for thread in range(number):
        yield [one for group in groups[thread::number] for one in group]


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
    settings = list(map(Setting._make, product(PAGE_CACHES, ORDERS, THREADS)))
    rates: Figures = {setting: {one.name: [] for one in methods} for setting in settings}
    processor: Figures = {setting: {one.name: [] for one in methods} for setting in settings}
    gone = 1.0
    for number, setting in product(range(num_rounds + 1), settings):
        images = ordered(reader, ids, setting.order, seed=number)
        for method in random.Random(number).sample(methods, len(methods)):
            rate = milliseconds = math.nan
            if setting.order == 'shards' or not method.by_shard:
                if setting.page_cache == 'cold':
                    gone = min(gone, dropped(method.files))
                parts = list(portions(reader, images, setting.num_threads, by_shard=setting.order == 'shards'))
                with ThreadPoolExecutor(setting.num_threads) as executor:
                    start, started = time.perf_counter(), time.process_time()
                    list(executor.map(method.read, parts))
                    rate = len(ids) / (time.perf_counter() - start)
                    milliseconds = 1000 * (time.process_time() - started) / len(ids)
            if number:  # the first round warms up
                rates[setting][method.name].append(rate)
                processor[setting][method.name].append(milliseconds)
    print(
        f'cold: {100 * gone:.1f}% of the pages were out of memory (mincore); caches of the disk or of the host of a '
        'virtual machine are not visible here'
    )
    return rates, processor


def _report(rates: Figures, processor: Figures, gigabytes: Mapping[str, float]) -> None:
    names = list(gigabytes)
    print(f'\n{"images/s":<18}', *(f'{name:>12}' for name in names), 'read/limit  read/best')
    for setting, found in rates.items():
        _print_medians(setting, found, names, '.1f', f'{_ratio(found, "limit"):>10.3f} {_to_best(found):>10.3f}')
    print(f'{"GB per 1000":<18}', *(f'{1000 * gigabytes[name]:>12.2f}' for name in names))
    print('\nimages/s per GB')
    for setting, found in rates.items():
        per_gb = {name: [rate / (1000 * gigabytes[name]) for rate in found[name]] for name in names if gigabytes[name]}
        _print_medians(setting, per_gb, names, '.1f', f'{"":10} {_to_best(per_gb):>10.3f}')
    print("\nms of processor time per image, and the limit's share of the reading time")
    for setting, found in processor.items():
        _print_medians(setting, found, names, '.2f', f'{1 / _ratio(found, "limit"):>10.3f}')
    limit = min(_ratio(found, 'limit') for setting, found in rates.items() if setting.page_cache == 'warm')
    rival = min(_to_best(found) for setting, found in rates.items() if setting.page_cache == 'cold')
    print(f'read/limit {limit:.3f} read/best-rival {rival:.3f}')


def _print_medians(
    setting: Setting, found: Mapping[str, Sequence[float]], names: Sequence[str], form: str, ratios: str
) -> None:
    values = (f'{statistics.median(found[name]):>12{form}}' if name in found else f'{"-":>12}' for name in names)
    print(f'{" ".join(map(str, setting)):<18}', *values, ratios)


def _ratio(found: Mapping[str, Sequence[float]], other: str) -> float:
    return median_ratio(found['read'], found[other])


def _to_best(found: Mapping[str, Sequence[float]]) -> float:
    """The ratio to the rival that comes nearest to the reader, or is furthest ahead of it."""
    ratios = [_ratio(found, name) for name in found if name not in ('read', 'limit')]
    return min(one for one in ratios if not math.isnan(one))


def _gigabytes(method: Method, methods: Sequence[Method], reader: CacheReader, ids: Sequence[int]) -> float:
    """On disk for an image; of a cache by the share of its images that is read."""
    size = sum(path.stat().st_size for path in method.files) / 1e9
    return size / (len(reader) if method.files is methods[0].files else len(ids))


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
