"""What a stage learns from: a teacher's maps, read from its cache or computed by the teacher in the loop.

Of a cache, threads read the codes ahead into reused buffers, and a GPU gets them while it computes.
"""

import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from mtpd.cache import CacheReader
from mtpd.cache.format.codecs import EncodedMaps, batch_images, require_finite
from mtpd.detectors.class_names import class_list
from mtpd.detectors.teachers import Teacher, neck_and_head_weights, teacher_fingerprint
from mtpd.detectors.transforms import Sample
from mtpd.errors import CacheMismatchError, InputError
from mtpd.geometry import Geometry, Level, Size
from mtpd.heads.roi_head import RoiHead
from mtpd.heads.rois import ImageRois
from mtpd.system.files import canonical_json
from mtpd.system.prefetch import prefetched
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.sampling import Request

READ_THREADS = 2
# Batches that wait in memory, fewer where they are large: all buffers together take at most so many bytes, except that
# there are always two, one to compute with and one to read into.
MAX_DEPTH = 2
MAX_BYTES = 2**30

# Of each image of a batch the codes by level name, and the teacher's proposals.
Images = tuple[Sequence[dict[str, EncodedMaps]], Sequence[ImageRois]]


class ReadAhead(NamedTuple):
    """What is read ahead for a batch."""

    maps: Mapping[str, EncodedMaps] = {}  # level name -> the teacher's maps (B, C, H, W), where there are any to read
    rois: Sequence[ImageRois] = ()  # the teacher's proposals on each image, in px of the original image


@dataclass(frozen=True)
class TeacherSource:
    """A teacher as the trainer sees it: what both kinds have in common, and what one that reads nothing ahead does."""

    name: str  # what the user calls it: the folder of a cache, the name of a teacher
    description: Mapping[str, Any]  # what it is, as JSON values; a run is not resumed with another one
    levels: tuple[Level, ...]  # all that it can give
    geometry: Geometry  # resize and padding of its inputs, which are those of the student too
    classes: tuple[str, ...] | None  # what its labels mean, in their order; None where it does not say
    hook_point: str  # where in the network its maps were taken

    kind: ClassVar[Literal['caches', 'teachers']]  # the part of run.json that records it

    def weights(self) -> dict[str, Tensor]:
        """The teacher's neck and head parameters by their name in the teacher, on the CPU."""
        raise NotImplementedError

    def roi_head(self) -> RoiHead:
        """The teacher's RoI head, in float32 on the CPU, for the maps of this source; an MtpdError if it has none."""
        raise NotImplementedError

    def num_roi_classes(self) -> int:
        """Object classes of the teacher's stored proposals; an MtpdError where none are."""
        raise NotImplementedError

    def require_fit(self, train_set: DetectionDataset, *, flip: float) -> None:
        """Checks that it can teach on all images of a data set, in every view that training draws."""

    def to(self, device: torch.device) -> None:
        """Moves what computes, in place; what is only read stays where it is."""

    def read_ahead(
        self,
        batches: Sequence[Sequence[Request]],
        *,
        levels: Sequence[str],
        with_rois: bool = False,
        device: torch.device,
    ) -> Iterator[ReadAhead]:
        """What `maps` needs of each batch, in order, prepared by threads while the steps before are computed.

        The result for a batch is valid until the next is requested. `device` is where `maps` will compute; a GPU is
        copied to while it computes.
        """
        return itertools.repeat(ReadAhead(), len(batches))

    def maps(
        self, samples: Sequence[Sample], ahead: ReadAhead, *, levels: Sequence[Level], device: torch.device
    ) -> Mapping[str, EncodedMaps]:
        """Level name -> maps (B, C, H, W) on `device`, without gradient; call it outside of autocast.

        An image's map covers its own padded input; the grid is that of the largest, and the values beyond are zero.
        They, like all padding, are masked out of every loss. The maps hold as long as `ahead`, from `read_ahead`, does.
        """
        return ahead.maps


@dataclass(frozen=True)
class LiveTeacher(TeacherSource):
    """A teacher in the training loop, on the pixels of every batch: computes what extraction does, stores nothing."""

    teacher: Teacher  # part of no other module, so nothing trains or saves it

    kind: ClassVar[Literal['teachers']] = 'teachers'

    def __str__(self) -> str:
        return f'teacher {self.name} in the loop'

    def weights(self) -> dict[str, Tensor]:
        return neck_and_head_weights(self.teacher)

    def roi_head(self) -> RoiHead:
        if self.teacher.roi_head is None:
            raise InputError(
                f'tar_head: teacher {self.name} has no RoI head, or one that mtpd cannot run on its maps; '
                'use a Faster, Mask or Cascade R-CNN, or another loss'
            )
        return RoiHead(self.teacher.roi_head, self.weights())

    def num_roi_classes(self) -> int:
        raise InputError(
            f'tar_head: teacher {self.name} in the loop has no stored proposals, which cached_rois needs; set mode to '
            'head_on_gpu, or train from a cache that was extracted with --rois'
        )

    def to(self, device: torch.device) -> None:
        self.teacher.module.to(device)

    def maps(
        self, samples: Sequence[Sample], ahead: ReadAhead, *, levels: Sequence[Level], device: torch.device
    ) -> dict[str, EncodedMaps]:
        # A forward pass for each padded size, as in extraction: with more padding the cells at the edge would differ.
        groups: dict[Size, list[int]] = {}
        for number, sample in enumerate(samples):
            groups.setdefault(self.geometry.padded(sample.data_sample.ori_shape), []).append(number)
        found: list[dict[str, EncodedMaps]] = [{} for _ in samples]
        for size, numbers in groups.items():
            pixels = [samples[number].image.to(device, non_blocking=True) for number in numbers]
            live = self.teacher.maps_of(pixels, padded=size)
            for level in levels:
                values = live[level.name].float()
                self._require_sound(values, level, [samples[number] for number in numbers], size)
                for place, number in enumerate(numbers):
                    found[number][level.name] = EncodedMaps(values[place : place + 1])
        return {level.name: batch_images([one[level.name] for one in found]) for level in levels}

    def _require_sound(self, values: Tensor, level: Level, samples: Sequence[Sample], size: Size) -> None:
        """Refuses maps of other sizes than the stride says, or that are not finite."""
        if values.shape[2:] != level.grid(*size):
            raise InputError(
                f'teacher {self.name}: {level.name} is {tuple(values.shape[2:])} for an input of {size[0]} x {size[1]} '
                f'px, expected {level.grid(*size)}: its stride is not {level.stride} there; exclude it with `levels`'
            )
        for view in sorted({sample.view for sample in samples}):
            seen = [number for number, sample in enumerate(samples) if sample.view == view]
            ids = [samples[number].image_id for number in seen]
            require_finite(values[seen], level=level.name, view=view, image_ids=ids)


def teacher_name(teacher: str, checkpoint: Path | str | None) -> str:
    """What a user calls a teacher in the loop: its reference, with its weights where they are named."""
    return teacher if checkpoint is None else f'{teacher} from {checkpoint}'


def live_teacher(teacher: Teacher, *, name: str) -> LiveTeacher:
    """A teacher to learn from, with what identifies it."""
    geometry = teacher.preprocessing.geometry
    description = {
        'fingerprint': teacher_fingerprint(teacher),
        'levels': [asdict(level) for level in teacher.levels],
        'geometry': geometry.to_dict(),
    }
    # As it comes back from a file: lists for tuples.
    description = json.loads(canonical_json(description))
    return LiveTeacher(
        name, description, teacher.levels, geometry, teacher.classes, teacher.hook_point, teacher=teacher
    )


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
