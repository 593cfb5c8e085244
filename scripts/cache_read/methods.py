"""Ways to read the codes of images."""

import io
import tarfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numcodecs.zstd import Zstd
from torch import Tensor
from tqdm import tqdm

from mtpd.cache import CacheReader
from mtpd.cache.format.arrays import ZSTD_LEVELS
from mtpd.cache.format.shard import CHECKSUM_BYTES, encode_chunk


@dataclass(frozen=True)
class Method:
    """A way to read images.

    Attributes:
        name: in the table.
        files: that it reads; none for the limit, which reads memory.
        read: reads the images with these ids, one after another, in one thread.
        by_shard: whether it can only read whole shards.
    """

    name: str
    files: Sequence[Path]
    read: Callable[[Sequence[int]], object]
    by_shard: bool = False


def methods_of(reader: CacheReader, ids: Sequence[int], folder: Path) -> list[Method]:
    """All methods, the cache and the limit first; writes the rivals' files."""
    shards: dict[Any, list[int]] = {}
    for one in ids:
        shards.setdefault(reader.shard(one), []).append(one)
    codec, local = reader.manifest.description.codec, threading.local()
    num_codes = max(map(reader.num_codes, ids))

    def buffer() -> Tensor:
        """Of the thread that asks."""
        if not hasattr(local, 'buffer'):
            local.buffer = torch.zeros(num_codes, dtype=reader.code_dtype)
        codes: Tensor = local.buffer
        return codes

    frames: dict[int, list[tuple[bytes, int]]] = {}
    npy, half, saved, tars = (folder / name for name in ('npy', 'fp16', 'saved', 'tar'))
    for path in (npy, half, saved, tars):
        path.mkdir()
    for number, members in enumerate(tqdm(shards.values(), desc='writing the rivals', unit='shard', mininterval=0.5)):
        with tarfile.open(tars / f'{number}.tar', 'w') as tar:
            for one in members:
                encoded = reader.read_encoded(one)
                codes = {name: maps.codes.numpy() for name, maps in encoded.items()}
                chunks = [encode_chunk(each, level=ZSTD_LEVELS[codec])[:-CHECKSUM_BYTES] for each in codes.values()]
                frames[one] = list(zip(chunks, (each.size for each in codes.values()), strict=True))
                np.save(npy / f'{one}.npy', np.concatenate([each.ravel() for each in codes.values()]))
                np.save(half / f'{one}.npy', torch.cat([maps.values().half().flatten() for maps in encoded.values()]))
                torch.save({name: maps.codes.clone() for name, maps in encoded.items()}, saved / f'{one}.pt')
                for name, each in codes.items():
                    file = io.BytesIO()
                    np.save(file, each)
                    entry = tarfile.TarInfo(f'{one}.{name}.npy')
                    entry.size = file.tell()
                    file.seek(0)
                    tar.addfile(entry, file)
    group: Any = zarr.open_group(reader.path, mode='r', zarr_format=3)
    rows = {one: [f'{reader.shard(one).bucket}/plain/{level.name}' for level in reader.levels] for one in ids}
    opened = {each: group[each] for paths in rows.values() for each in paths}
    position: dict[int, int] = {}
    for key in {reader.shard(one) for one in ids}:
        table = group[f'{key.bucket}/plain/image_id'][:]
        position |= {int(image_id): row for row, image_id in enumerate(table)}
    tar_of = {one: tars / f'{number}.tar' for number, members in enumerate(shards.values()) for one in members}

    def limit(some: Sequence[int]) -> None:
        zstd, codes = Zstd(), buffer().numpy()
        for one in some:
            start = 0
            for packed, length in frames[one]:
                zstd.decode(packed, codes[start : start + length])
                start += length

    def read(some: Sequence[int]) -> None:
        codes = buffer()
        for one in some:
            reader.read_encoded(one, out=codes)

    def unzarr(some: Sequence[int]) -> None:
        for one in some:
            for each in rows[one]:
                opened[each][position[one]]

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
        Method(
            'zarr-python', of_cache, lambda some: [opened[path][position[one]] for one in some for path in rows[one]]
        ),
        Method('npy codes', sorted(npy.iterdir()), lambda some: [np.load(npy / f'{one}.npy') for one in some]),
        Method('npy fp16', sorted(half.iterdir()), lambda some: [np.load(half / f'{one}.npy') for one in some]),
        Method('torch.save', sorted(saved.iterdir()), lambda some: [torch.load(saved / f'{one}.pt') for one in some]),
        Method('tar', sorted(tars.iterdir()), untar, by_shard=True),
    ]
    if find_spec('tensorstore'):
        found.append(Method('tensorstore', of_cache, tensorstore_read(reader.path, rows, position)))
    return found


def tensorstore_read(
    root: Path, rows: dict[int, list[str]], position: dict[int, int]
) -> Callable[[Sequence[int]], object]:
    """Google's reader on the files of the cache."""
    tensorstore = import_module('tensorstore')  # only where it is installed

    paths = {path for one in rows.values() for path in one}
    specs = {path: {'driver': 'zarr3', 'kvstore': {'driver': 'file', 'path': str(root / path)}} for path in paths}
    opened = {path: tensorstore.open(spec).result() for path, spec in specs.items()}
    return lambda some: [opened[path][position[one]].read().result() for one in some for path in rows[one]]
