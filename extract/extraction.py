"""One extraction: what it is made from, and the loop from images to shard groups.

An image passes `read_image`, `image_view`, `Teacher.maps_of`, `encode`, `ShardGroup.append` and `CacheWriter.commit`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtpd.cache.format.arrays import RoisRecord
from mtpd.cache.format.codecs import DEFAULT_TARGET, Covariance, EncodedMaps, encode, expected_bytes, require_finite
from mtpd.cache.format.manifest import Description, GeometryRecord, LevelRecord
from mtpd.cache.format.plan import CachePlan, ShardKey, SourceImage, plan_cache
from mtpd.cache.format.tensor_files import save_teacher
from mtpd.cache.writing.writer import ShardGroup
from mtpd.data.account import suspicions
from mtpd.data.annotation_table import CocoImage
from mtpd.data.coco import missing_images, read_annotations, require_pixels, spread
from mtpd.data.images import read_image
from mtpd.detectors.map_statistics import MapStatistics
from mtpd.detectors.references import load_teacher
from mtpd.detectors.samples import View, image_view
from mtpd.detectors.teacher_heads import proposing_head, teacher_rois
from mtpd.detectors.teacher_maps import require_repeated
from mtpd.detectors.teachers import Teacher, neck_and_head_weights
from mtpd.errors import InputError
from mtpd.geometry import Level, Size
from mtpd.heads.roi_head import RoiHead
from mtpd.heads.rois import ImageRois
from mtpd.system.console import progress_bar, warn
from mtpd.system.environment import choose_device
from mtpd.system.interrupt import StopFlag
from mtpd.system.prefetch import BackgroundQueue, prefetched
from mtpd_extract.fingerprint import fingerprint, provenance
from mtpd_extract.options import ExtractOptions

# Views of batches that wait to be compressed and written; with the current shard group this bounds the memory.
QUEUE_DEPTH = 4
# Of the statistics of `lean`. Directions belong to the teacher and not to images: a basis of other images took as many
# bits on real features.
NUM_BASIS_IMAGES = 64
NUM_CHECKED_IMAGES = 4


@dataclass(frozen=True)
class Extraction:
    """One extraction, fully decided.

    `levels` are a subset of the teacher's. `proposing_head` is its RoI head, on the device, where its proposals are
    stored too. `teacher_weights`, a safetensors file, holds neck, head and a record of the RoI head. `paths` are by
    image id. `batch_size` counts the images of a forward pass, `num_threads` the threads that read and resize them.
    """

    teacher: Teacher
    device: torch.device
    levels: tuple[Level, ...]
    plan: CachePlan
    description: Description
    proposing_head: RoiHead | None
    teacher_weights: bytes
    paths: Mapping[int, Path]
    batch_size: int
    num_threads: int


@dataclass(frozen=True)
class Batch:
    """Images of one shard group, in row order; `is_last` closes the group."""

    key: ShardKey
    images: tuple[SourceImage, ...]
    is_last: bool


def build_extraction(options: ExtractOptions) -> Extraction:
    """Reads the annotations, loads the teacher and plans the cache."""
    folder, annotation_file = options.data_paths
    coco = read_annotations(annotation_file)
    selected = coco.images[: options.limit]
    if not selected:
        raise InputError(f'{annotation_file}: lists no images')
    if options.part is None or options.part[0] == 1:  # only one of several processes reports
        for doubt in suspicions(coco):
            warn(f'{annotation_file}: {doubt}')
    _require_images(selected, folder)
    device = choose_device(options.device, number=options.local_rank)
    teacher = load_teacher(
        options.teacher,
        checkpoint=options.checkpoint,
        options=options.input_options,
        device=device,
        trust_checkpoint=options.trust_checkpoint,
        hook=options.hook,
    )
    geometry = teacher.preprocessing.geometry
    require_pixels(selected, geometry)
    levels = _select_levels(teacher, options.levels)
    paths = {image.id: folder / image.file_name for image in selected}
    if options.error is not None and options.codec != 'lean':
        raise InputError(
            f'--error {options.error:g}: applies to --codec lean only, but the codec is {options.codec}; remove it'
        )
    plan = plan_cache(
        [SourceImage(image.id, (image.height, image.width)) for image in selected],
        geometry=geometry,
        levels=levels,
        bytes_per_element=expected_bytes(options.codec),
        shard_bytes=int(options.shard_mb * 2**20),
    )
    head = None
    if options.rois:
        if 'plain' not in options.views:
            raise InputError('--rois: proposals are stored with the plain view; extract it too with --views plain,flip')
        head = proposing_head(teacher).to(device)
    description = Description(
        fingerprint=fingerprint(teacher, coco, selected),
        provenance=provenance(teacher, coco, paths, device, license_name=options.license_name),
        levels=tuple(LevelRecord(**vars(level)) for level in levels),
        codec=options.codec,
        target_error=(options.error or DEFAULT_TARGET) if options.codec == 'lean' else None,
        views=options.views,
        geometry=GeometryRecord(**vars(geometry)),
        rois=None if head is None else RoisRecord(num_rois=options.rois, num_classes=head.record.num_classes),
    )
    return Extraction(
        teacher=teacher,
        device=device,
        levels=levels,
        plan=plan,
        description=description,
        proposing_head=head,
        teacher_weights=save_teacher(neck_and_head_weights(teacher), roi_head=teacher.roi_head),
        paths=paths,
        batch_size=options.batch_size,
        num_threads=options.workers,
    )


def extract_groups(
    extraction: Extraction,
    keys: Sequence[ShardKey],
    *,
    bases: Mapping[str, Tensor],
    start_group: Callable[[ShardKey], ShardGroup],
    commit: Callable[[ShardGroup], int],
    stop: StopFlag,
    bar: Any,
) -> None:
    """Runs the teacher over shard groups, and commits each when it is full; `bar`, which counts images, is closed.

    When `stop` is set it finishes the current group and returns. `bases` are the rotations of `lean` by level name;
    `start_group` and `commit` are those of a `CacheWriter` or like them, `commit` is called in a thread.
    """
    description, device = extraction.description, extraction.device
    bases = {name: basis.to(device) for name, basis in bases.items()}
    num_bytes = 0

    def load(batch: Batch) -> tuple[Batch, list[Tensor]]:
        return batch, load_images(extraction, batch.images)

    def append(
        group: ShardGroup,
        view: View,
        maps: Mapping[str, EncodedMaps],
        rois: Sequence[ImageRois] | None,
        arrival: torch.cuda.Event | None,
    ) -> None:
        if arrival is not None:  # a GPU may still be copying the maps
            arrival.synchronize()
        group.append(view, maps)
        if rois is not None:
            group.append_rois(rois)

    def finish(group: ShardGroup) -> None:
        nonlocal num_bytes
        num_bytes += commit(group)
        if not bar.disable:
            rate = num_bytes / 1e6 / max(bar.format_dict['elapsed'], 1e-9)
            bar.set_postfix_str(f'{rate:.1f} MB/s', refresh=False)

    num_threads = extraction.num_threads
    read_ahead = prefetched(load, batches(extraction, keys), num_threads=num_threads, depth=2 * num_threads)
    with bar, closing(read_ahead) as loaded, BackgroundQueue(depth=QUEUE_DEPTH) as queue:
        group: ShardGroup | None = None
        for batch, pixels in loaded:
            if group is None:
                if stop:
                    return
                group = start_group(batch.key)
            padded = extraction.plan.by_name[batch.key.bucket].padded
            for view in description.views:
                maps = view_maps(extraction, pixels, padded=padded, view=view)
                rois = None
                if view == 'plain' and extraction.proposing_head is not None and description.rois is not None:
                    rois = teacher_rois(
                        extraction.teacher,
                        extraction.proposing_head,
                        maps,
                        originals=[image.size for image in batch.images],
                        num_rois=description.rois.num_rois,
                    )
                encoded = {}
                for level in extraction.levels:
                    target, basis = description.target_error, bases.get(level.name)
                    codes = encode(maps[level.name], description.codec, target=target, basis=basis)
                    encoded[level.name] = replace(codes, basis=None).to(torch.device('cpu'))
                arrival = None
                if device.type == 'cuda':
                    arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    arrival.record(torch.cuda.current_stream(device))
                queue.submit(partial(append, group, view, encoded, rois, arrival))
            if stop:
                bar.set_description('finishing this shard; press Ctrl-C again to stop immediately', refresh=False)
            bar.update(len(batch.images))
            if batch.is_last:
                queue.submit(partial(finish, group))
                group = None


def batches(extraction: Extraction, keys: Sequence[ShardKey]) -> Iterator[Batch]:
    """The forward passes over the shard groups `keys`."""
    size = extraction.batch_size
    for key in keys:
        images = extraction.plan.images(key)
        for start in range(0, len(images), size):
            yield Batch(key, images[start : start + size], is_last=start + size >= len(images))


def load_images(extraction: Extraction, images: Sequence[tuple[int, Size]]) -> list[Tensor]:
    """Resized images uint8 (3, h, w), BGR, of ids and original (height, width) in px."""
    geometry = extraction.teacher.preprocessing.geometry
    return [
        image_view(read_image(extraction.paths[image_id], size=size), geometry=geometry, view='plain')
        for image_id, size in images
    ]


def view_maps(extraction: Extraction, pixels: Sequence[Tensor], *, padded: Size, view: View) -> dict[str, Tensor]:
    """Level name -> maps (B, C, H, W) on the device, of one view of resized images uint8 (3, h, w)."""
    moved = [image.to(extraction.device, non_blocking=True) for image in pixels]
    if view == 'flip':
        moved = [image.flip(-1) for image in moved]
    return extraction.teacher.maps_of(moved, padded=padded)


def compute_bases(extraction: Extraction) -> dict[str, Tensor]:
    """The principal directions of the teacher's channels, which `lean` needs before the first shard.

    Level name -> orthonormal columns (C, C) float32 on the CPU, from a sample spread over the data set.
    """
    covariances = {level.name: Covariance(level.channels) for level in extraction.levels}
    sample = _sample(extraction, NUM_BASIS_IMAGES)
    for padded, image in progress_bar(sample, desc='channel statistics', unit='image', in_logs=False):
        maps = view_maps(extraction, load_images(extraction, [image]), padded=padded, view='plain')
        for name, covariance in covariances.items():
            # Encoding finds them too, but on the way there a basis of NaN would be stored.
            energy = maps[name].float().square().sum((2, 3))
            require_finite(energy, level=name, view='plain', image_ids=[image.image_id])
            covariance.add(maps[name])
    return {name: covariance.basis() for name, covariance in covariances.items()}


def check_teacher(extraction: Extraction) -> None:
    """Runs the teacher on a few images before anything is written.

    Raises InputError where maps are not finite, nearly constant, or differ between two runs on one image.
    """
    statistics = {level.name: MapStatistics(level.name) for level in extraction.levels}
    name = extraction.teacher.name
    for number, (padded, image) in enumerate(_sample(extraction, NUM_CHECKED_IMAGES)):
        pixels = load_images(extraction, [image])
        for view in extraction.description.views:
            maps = view_maps(extraction, pixels, padded=padded, view=view)
            if number == 0:
                again = view_maps(extraction, pixels, padded=padded, view=view)
                require_repeated(list(maps.values()), list(again.values()), name=name)
            for level, one in statistics.items():
                require_finite(maps[level], level=level, view=view, image_ids=[image.image_id])
                one.add(maps[level])
    for one in statistics.values():
        one.require_varied(name=name, advice='exclude the level with --levels')


def _sample(extraction: Extraction, num_images: int) -> tuple[tuple[Size, SourceImage], ...]:
    """Images with their padded shapes, in the order of the buckets, so that each shape has its share."""
    everything = [(bucket.padded, image) for bucket in extraction.plan.buckets for image in bucket.images]
    return spread(everything, num_images)


def _require_images(images: Sequence[CocoImage], folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f'{folder}: there is no such image folder; give --coco DIR, or --images and --annotations')
    missing = missing_images(images, folder)
    if missing:
        raise InputError(
            f'{folder}: {len(missing)} of {len(images)} images are missing, the first is {missing[0]}; '
            'restore them, or remove them from the annotation file'
        )


def _select_levels(teacher: Teacher, wanted: tuple[str, ...] | None) -> tuple[Level, ...]:
    names = [level.name for level in teacher.levels]
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise InputError(f'--levels: teacher {teacher.name} has {", ".join(names)}, not {unknown[0]}')
    return tuple(level for level in teacher.levels if wanted is None or level.name in wanted)
