"""A teacher whose maps are in a cache: threads read its codes ahead into reused buffers, and a GPU gets them while it
computes."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mtpd.cache import CacheReader
from mtpd.cache.format.codecs import EncodedMaps, batch_images
from mtpd.detectors.class_names import class_list
from mtpd.errors import CacheMismatchError
from mtpd.heads.roi_head import RoiHead
from mtpd.heads.rois import ImageRois
from mtpd.system.prefetch import prefetched_groups
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.sampling import Request
from mtpd_train.teachers.teacher_source import ReadAhead, TeacherSource

# What the buffers of all batches take together, at most, except that there are always two: one to compute with and one
# to read into.
MAX_BYTES = 2**30

# The codes by level name, and the teacher's proposals.
Image = tuple[dict[str, EncodedMaps], ImageRois | None]


@dataclass(frozen=True)
class CachedTeacher(TeacherSource):
    """A teacher whose maps are in a cache; `reader` has it open."""

    reader: CacheReader
    num_threads: int  # that read
    num_ahead: int  # images that are read ahead, at least

    kind: ClassVar[Literal['caches']] = 'caches'

    def __str__(self) -> str:
        return f'cache {self.name} ({", ".join(self.reader.views)})'

    def caches(self, levels: Sequence[str]) -> list[tuple[CacheReader, list[str]]]:
        return [(self.reader, list(levels))]

    def buffer_bytes(self, levels: Sequence[str], *, batch_size: int) -> int:
        batch_bytes = self.reader.max_codes(levels=levels) * batch_size * self.reader.code_dtype.itemsize
        return (batches_ahead(self.num_ahead, batch_size, batch_bytes=batch_bytes) + 1) * batch_bytes

    def weights(self) -> dict[str, Tensor]:
        return self.reader.teacher_weights()

    def roi_head(self) -> RoiHead:
        return self.reader.roi_head()

    def num_roi_classes(self) -> int:
        record = self.reader.manifest.description.rois
        if record is None:
            raise CacheMismatchError(
                f'{self.name}: holds no proposals of its teacher, which cached_rois needs; extract it with --rois 512, '
                'or set mode to head_on_gpu'
            )
        return record.num_classes

    def require_fit(self, train_set: DetectionDataset, *, flip: float) -> None:
        cache, coco = self.reader, train_set.coco
        data = cache.manifest.description.fingerprint.get('data')
        found = data.get('annotations') if isinstance(data, dict) else None
        if found != coco.sha256:
            raise CacheMismatchError(
                f'{cache.name}: was made from a different annotation file than {coco.path} (sha256 '
                f'{str(found)[:12]}... there, {coco.sha256[:12]}... here); extract a cache of this data set'
            )
        missing = [image_id for image_id in train_set.sizes(with_objects=True) if image_id not in cache]
        if missing:
            raise CacheMismatchError(
                f'{cache.name}: lacks {len(missing)} of the images of {coco.path}, the first is {missing[0]}; '
                'extract it without --limit'
            )
        needed = {'plain'} if flip == 0 else {'flip'} if flip == 1 else {'plain', 'flip'}
        lacking = sorted(needed - set(cache.views))
        if lacking:
            raise CacheMismatchError(
                f'{cache.name}: holds the view {", ".join(cache.views)} and data.flip is {flip:g}, which needs '
                f'{lacking[0]}; extract with --views plain,flip, or set data.flip to {int(lacking[0] == "plain")}'
            )

    def read_ahead(
        self,
        batches: Sequence[Sequence[Request]],
        *,
        levels: Sequence[str],
        with_rois: bool = False,
        device: torch.device,
    ) -> Iterator[ReadAhead]:
        """A batch's codes may be overwritten when the next is requested; on a GPU they are there when it needs them."""
        on_gpu, reader = device.type == 'cuda', self.reader
        batch_size = max(map(len, batches), default=0)
        num_codes = reader.max_codes(levels=levels) * batch_size
        depth = batches_ahead(self.num_ahead, batch_size, batch_bytes=num_codes * reader.code_dtype.itemsize)
        # The batch that is computed with has the buffer that `depth` others behind it leave.
        buffers = [Buffer(num_codes, reader.code_dtype, pinned=on_gpu) for _ in range(depth + 1)]

        def read(one: Request, buffer: Buffer, start: int) -> Image:
            buffer.wait()
            rois = reader.rois(one.image_id) if with_rois else None
            if not levels:
                return {}, rois
            return reader.read_encoded(one.image_id, one.view, levels=levels, out=buffer.codes[start:]), rois

        def calls(number: int, batch: Sequence[Request]) -> Iterator[Callable[[], Image]]:
            start = 0
            for one in batch:
                yield partial(read, one, buffers[number % len(buffers)], start)
                start += reader.num_codes(one.image_id, levels=levels)

        images: Iterator[list[Image]] = prefetched_groups(
            itertools.starmap(calls, enumerate(batches)), self.num_threads, depth=depth
        )
        if on_gpu and levels:
            images = _on_gpu(images, buffers, bases=reader.bases, device=device)
        return map(_batched, images)


def cached_teacher(reader: CacheReader, *, num_threads: int, num_ahead: int) -> CachedTeacher:
    """The source of an open cache, of which so many threads read so many images ahead."""
    description = reader.manifest.description
    teacher = description.fingerprint.get('teacher')
    return CachedTeacher(
        name=reader.name,
        description=description.model_dump(mode='json'),
        levels=reader.levels,
        geometry=reader.geometry,
        classes=class_list(description.provenance.get('classes')),
        hook_point=str(teacher['hook_point']) if isinstance(teacher, dict) and 'hook_point' in teacher else 'neck',
        reader=reader,
        num_threads=num_threads,
        num_ahead=num_ahead,
    )


class Buffer:
    """Memory for the codes of one batch on the host, pinned for a GPU."""

    def __init__(self, num_codes: int, dtype: torch.dtype, *, pinned: bool) -> None:
        self.codes = torch.empty(num_codes, dtype=dtype, pin_memory=pinned)
        self.copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Waits until a copy from the buffer is complete."""
        if self.copied is not None:
            self.copied.synchronize()


def batches_ahead(num_images: int, batch_size: int, *, batch_bytes: int) -> int:
    """How many batches are read ahead, beside the one that is computed with, so that they have `num_images` images."""
    return max(1, min(-(-num_images // max(1, batch_size)), MAX_BYTES // max(1, batch_bytes) - 1))


def _on_gpu(
    batches: Iterable[list[Image]], buffers: Sequence[Buffer], *, bases: dict[str, Tensor], device: torch.device
) -> Iterator[list[Image]]:
    """The images, those of each batch copied by a stream of its own while the GPU computes with the one before."""
    stream, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]
    bases = {name: basis.to(device) for name, basis in bases.items()}
    waiting: deque[tuple[list[Image], Tensor, torch.cuda.Event]] = deque()

    def next_one() -> list[Image]:
        images, codes, copied = waiting.popleft()
        main.wait_event(copied)
        # It was allocated for the other stream, which must not reuse it too early.
        codes.record_stream(main)
        return images

    for number, images in enumerate(batches):
        buffer = buffers[number % len(buffers)]
        last = [one.codes for one in images[-1][0].values()][-1]
        with torch.cuda.stream(stream):
            codes = buffer.codes[: last.storage_offset() + last.numel()].to(device, non_blocking=True)
            buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            buffer.copied.record(stream)
        moved = [
            ({name: _moved(one, codes, bases.get(name)) for name, one in maps.items()}, rois) for maps, rois in images
        ]
        waiting.append((moved, codes, buffer.copied))
        if len(waiting) == 2:
            yield next_one()
    while waiting:
        yield next_one()


def _moved(maps: EncodedMaps, codes: Tensor, basis: Tensor | None) -> EncodedMaps:
    """The maps of an image as views of the batch's codes on the GPU."""
    view = codes.as_strided(maps.codes.shape, maps.codes.stride(), maps.codes.storage_offset())
    return replace(maps, codes=view, basis=basis)


def _batched(images: Sequence[Image]) -> ReadAhead:
    """Called when the batch is requested: what is padded together takes no memory before."""
    maps = {name: batch_images([one[name] for one, _ in images]) for name in images[0][0]}
    return ReadAhead(maps, [rois for _, rois in images if rois is not None])
