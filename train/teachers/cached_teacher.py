"""A teacher whose maps are in a cache: threads read its codes ahead into reused buffers, and a GPU gets them while it
computes."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mtpd.cache import CacheReader
from mtpd.cache.format.codecs import EncodedMaps, batch_images
from mtpd.detectors.class_names import class_list
from mtpd.errors import CacheMismatchError
from mtpd.heads.roi_head import RoiHead
from mtpd.heads.rois import ImageRois
from mtpd.system.prefetch import prefetched
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.sampling import Request
from mtpd_train.teachers.teacher_source import ReadAhead, TeacherSource

READ_THREADS = 2
# Batches that wait in memory, fewer where they are large: all buffers together take at most so many bytes, except that
# there are always two, one to compute with and one to read into.
MAX_DEPTH = 2
MAX_BYTES = 2**30

# Of each image of a batch the codes by level name, and the teacher's proposals.
Images = tuple[Sequence[dict[str, EncodedMaps]], Sequence[ImageRois]]


@dataclass(frozen=True)
class CachedTeacher(TeacherSource):
    """A teacher whose maps are in a cache; `reader` has it open."""

    reader: CacheReader

    kind: ClassVar[Literal['caches']] = 'caches'

    def __str__(self) -> str:
        return f'cache {self.name} ({", ".join(self.reader.views)})'

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
                f'{cache.path}: was made from a different annotation file than {coco.path} (sha256 '
                f'{str(found)[:12]}... there, {coco.sha256[:12]}... here); extract a cache of this data set'
            )
        missing = [image_id for image_id in train_set.sizes(with_objects=True) if image_id not in cache]
        if missing:
            raise CacheMismatchError(
                f'{cache.path}: lacks {len(missing)} of the images of {coco.path}, the first is {missing[0]}; '
                'extract it without --limit'
            )
        needed = {'plain'} if flip == 0 else {'flip'} if flip == 1 else {'plain', 'flip'}
        lacking = sorted(needed - set(cache.views))
        if lacking:
            raise CacheMismatchError(
                f'{cache.path}: holds the view {", ".join(cache.views)} and data.flip is {flip:g}, which needs '
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
        num_codes = reader.max_codes(levels=levels) * max(map(len, batches), default=0)
        depth = depth_within(MAX_BYTES, num_codes * reader.code_dtype.itemsize)
        # The batch that is computed with has the buffer that `depth` others behind it leave.
        buffers = [Buffer(num_codes, reader.code_dtype, pinned=on_gpu) for _ in range(depth + 1)]

        def read(numbered: tuple[int, Sequence[Request]]) -> Images:
            number, batch = numbered
            buffer, start, maps = buffers[number % len(buffers)], 0, []
            buffer.wait()
            for one in batch if levels else ():
                maps.append(reader.read_encoded(one.image_id, one.view, levels=levels, out=buffer.codes[start:]))
                start += sum(level.codes.numel() for level in maps[-1].values())
            return maps, [reader.rois(one.image_id) for one in batch] if with_rois else ()

        images: Iterator[Images] = prefetched(read, enumerate(batches), num_threads=READ_THREADS, depth=depth)
        if on_gpu and levels:
            images = _on_gpu(images, buffers, bases=reader.bases, device=device)
        return map(_batched, images)


def cached_teacher(reader: CacheReader) -> CachedTeacher:
    """The source of an open cache."""
    description = reader.manifest.description
    teacher = description.fingerprint.get('teacher')
    return CachedTeacher(
        name=str(reader.path),
        description=description.model_dump(mode='json'),
        levels=reader.levels,
        geometry=reader.geometry,
        classes=class_list(description.provenance.get('classes')),
        hook_point=str(teacher['hook_point']) if isinstance(teacher, dict) and 'hook_point' in teacher else 'neck',
        reader=reader,
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


def buffer_bytes(reader: CacheReader, *, levels: Sequence[str], batch_size: int) -> int:
    """What the buffers of `CachedTeacher.read_ahead` take on the host."""
    batch_bytes = reader.max_codes(levels=levels) * batch_size * reader.code_dtype.itemsize
    return (depth_within(MAX_BYTES, batch_bytes) + 1) * batch_bytes


def depth_within(max_bytes: int, batch_bytes: int) -> int:
    """How many batches are read ahead, beside the one that is computed with."""
    return max(1, min(MAX_DEPTH, max_bytes // max(1, batch_bytes) - 1))


def _on_gpu(
    batches: Iterable[Images], buffers: Sequence[Buffer], *, bases: dict[str, Tensor], device: torch.device
) -> Iterator[Images]:
    """The images, those of each batch copied by a stream of its own while the GPU computes with the one before."""
    stream, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]
    bases = {name: basis.to(device) for name, basis in bases.items()}
    waiting: deque[tuple[Images, Tensor, torch.cuda.Event]] = deque()

    def next_one() -> Images:
        images, codes, copied = waiting.popleft()
        main.wait_event(copied)
        # It was allocated for the other stream, which must not reuse it too early.
        codes.record_stream(main)
        return images

    for number, (maps, rois) in enumerate(batches):
        buffer = buffers[number % len(buffers)]
        last = [one.codes for one in maps[-1].values()][-1]
        with torch.cuda.stream(stream):
            codes = buffer.codes[: last.storage_offset() + last.numel()].to(device, non_blocking=True)
            buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            buffer.copied.record(stream)
        moved = [{name: _moved(one, codes, bases.get(name)) for name, one in image.items()} for image in maps]
        waiting.append(((moved, rois), codes, buffer.copied))
        if len(waiting) == 2:
            yield next_one()
    while waiting:
        yield next_one()


def _moved(maps: EncodedMaps, codes: Tensor, basis: Tensor | None) -> EncodedMaps:
    """The maps of an image as views of the batch's codes on the GPU."""
    view = codes.as_strided(maps.codes.shape, maps.codes.stride(), maps.codes.storage_offset())
    return replace(maps, codes=view, basis=basis)


def _batched(images: Images) -> ReadAhead:
    """Called when the batch is requested: what is padded together takes no memory before."""
    maps, rois = images
    names = maps[0] if maps else ()
    return ReadAhead({name: batch_images([one[name] for one in maps]) for name in names}, rois)
