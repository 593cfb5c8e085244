"""The stream of a cache's codes: read ahead by threads into reused buffers, copied to the GPU while it computes."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mtpd.cache import CacheReader
from mtpd.cache.format.codecs import EncodedMaps
from mtpd.system.prefetch import prefetched
from mtpd_train.data.sampling import Request
from mtpd_train.teachers.teacher_source import ReadAhead

READ_THREADS = 2
# Batches that wait in memory, fewer where they are large: all buffers together take at most so many bytes, except that
# there are always two, one to compute with and one to read into.
MAX_DEPTH = 2
MAX_BYTES = 2**30


class Buffer:
    """Memory for the codes of one batch on the host, pinned for a GPU."""

    def __init__(self, num_codes: int, dtype: torch.dtype, *, pinned: bool) -> None:
        self.codes = torch.empty(num_codes, dtype=dtype, pin_memory=pinned)
        self.copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Waits until a copy from the buffer is through."""
        if self.copied is not None:
            self.copied.synchronize()


def stream_codes(
    reader: CacheReader,
    batches: Sequence[Sequence[Request]],
    *,
    levels: Sequence[str],
    with_rois: bool,
    device: torch.device,
) -> Iterator[ReadAhead]:
    """Result of `TeacherSource.read_ahead`; a batch's codes may be overwritten when the next batch is requested.

    On a GPU codes and bases are there when it comes to them; scales stay on the host.
    """
    on_gpu = device.type == 'cuda'
    num_codes = reader.max_codes(levels=levels) * max(map(len, batches), default=0)
    depth = depth_within(MAX_BYTES, num_codes * reader.code_dtype.itemsize)
    # The batch that is computed with has the buffer that `depth` others behind it leave.
    buffers = [Buffer(num_codes, reader.code_dtype, pinned=on_gpu) for _ in range(depth + 1)]

    def read(numbered: tuple[int, Sequence[Request]]) -> ReadAhead:
        number, batch = numbered
        buffer, start, maps = buffers[number % len(buffers)], 0, []
        buffer.wait()
        for one in batch if levels else ():
            maps.append(reader.read_encoded(one.image_id, one.view, levels=levels, out=buffer.codes[start:]))
            start += sum(level.codes.numel() for level in maps[-1].values())
        return ReadAhead(maps, [reader.rois(one.image_id) for one in batch] if with_rois else ())

    ahead = prefetched(read, enumerate(batches), num_threads=READ_THREADS, depth=depth)
    return _on_gpu(ahead, buffers, bases=reader.bases, device=device) if on_gpu and levels else ahead


def buffer_bytes(reader: CacheReader, *, levels: Sequence[str], batch_size: int) -> int:
    """What the buffers of `stream_codes` take on the host."""
    batch_bytes = reader.max_codes(levels=levels) * batch_size * reader.code_dtype.itemsize
    return (depth_within(MAX_BYTES, batch_bytes) + 1) * batch_bytes


def depth_within(max_bytes: int, batch_bytes: int) -> int:
    """How many batches are read ahead, beside the one that is computed with."""
    return max(1, min(MAX_DEPTH, max_bytes // max(1, batch_bytes) - 1))


def _on_gpu(
    batches: Iterable[ReadAhead], buffers: Sequence[Buffer], *, bases: dict[str, Tensor], device: torch.device
) -> Iterator[ReadAhead]:
    """The batches, each copied by a stream of its own while the GPU computes with the one before."""
    stream, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]
    bases = {name: basis.to(device) for name, basis in bases.items()}
    waiting: deque[tuple[ReadAhead, Tensor, torch.cuda.Event]] = deque()

    def next_one() -> ReadAhead:
        batch, codes, copied = waiting.popleft()
        main.wait_event(copied)
        # It was allocated for the other stream, which must not reuse it too early.
        codes.record_stream(main)
        return batch

    for number, batch in enumerate(batches):
        buffer = buffers[number % len(buffers)]
        last = [one.codes for one in batch.maps[-1].values()][-1]
        with torch.cuda.stream(stream):
            codes = buffer.codes[: last.storage_offset() + last.numel()].to(device, non_blocking=True)
            buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            buffer.copied.record(stream)
        moved = [{name: _moved(maps, codes, bases.get(name)) for name, maps in one.items()} for one in batch.maps]
        waiting.append((ReadAhead(moved, batch.rois), codes, buffer.copied))
        if len(waiting) == 2:
            yield next_one()
    while waiting:
        yield next_one()


def _moved(maps: EncodedMaps, codes: Tensor, basis: Tensor | None) -> EncodedMaps:
    """The maps as views of the batch's codes on the GPU."""
    view = codes.as_strided(maps.codes.shape, maps.codes.stride(), maps.codes.storage_offset())
    return replace(maps, codes=view, basis=basis)
