"""A teacher's maps from its cache, next to those of the student trained on them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mtpd.cache
from mtpd.cache import CacheReader, map_images
from mtpd.data.coco import CocoImage, CocoSet, coco_paths, image_path, spread
from mtpd.data.images import read_image
from mtpd.detectors.detection import collate
from mtpd.detectors.features import NECK, neck_features, probe_levels, student_hook_point
from mtpd.detectors.transforms import make_sample
from mtpd.errors import CacheMismatchError, InputError
from mtpd_train.evaluator.detector import build_target
from mtpd_train.evaluator.stage_student import find_student, why_none
from mtpd_train.evaluator.target import target_of_run
from mtpd_train.report.adapter import fit_adapter
from mtpd_train.report.images import map_uri, photo_uri
from mtpd_train.report.run_log import RunLog, StageLog, entries, section
from mtpd_train.run_folder import stage_folder
from mtpd_train.student import Student

# A linear map of S to C channels is fitted on these.
NUM_FITTED = 12
MAX_LEVELS = 3

Maps = Mapping[str, Tensor]


@dataclass(frozen=True)
class ImageMaps:
    """An image, and a level's maps on it as data URIs: level -> (teacher's, student's)."""

    name: str
    photo: str
    levels: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class StageMaps:
    """The maps of a stage.

    Attributes:
        student: which of its students is shown, empty for the last one of a stage that has finished.
        images: with their maps.
        explained: the share of the teacher's variance that the student's maps explain, by level.
    """

    student: str
    images: Sequence[ImageMaps]
    explained: Mapping[str, float]


@torch.no_grad()
def stage_maps(
    run: RunLog, stage: StageLog, *, num_images: int, device: torch.device, read: Callable[[Path], CocoSet]
) -> StageMaps:
    """The maps of the teacher that a stage's cache holds, and of the stage's student, on training images.

    Args:
        run: the run.
        stage: one of its stages.
        num_images: to be shown, at most.
        device: where the student runs.
        read: reads annotation files.

    Raises:
        InputError: the stage has no cache, no student yet, or its images are gone.
        CacheError: the cache is gone or another one than the stage learned from.
    """
    if stage.settings.get('cache') is None:
        raise InputError('the stage did not use a cache')
    stage_files = stage_folder(run.folder, stage.number)
    shown_student = find_student(stage_files)
    if shown_student is None:
        raise InputError(why_none(stage_files))
    cache = _own_cache(stage)
    folder, annotations = _train_files(stage)
    coco = read(annotations)
    images = [
        image for image in coco.images if image.id in cache and any(one.is_object for one in coco.annotations[image.id])
    ]
    target = target_of_run(stage_files, checkpoint=shown_student.checkpoint)
    student = build_target(target, scale=None, trust_checkpoint=False, device=device)
    pairs = {
        image.id: _maps(cache, student, image, folder, device=device)
        for image in spread(images, max(num_images, NUM_FITTED))
    }
    shown = spread(images, num_images)
    for image in shown:
        if image.id not in pairs:
            pairs[image.id] = _maps(cache, student, image, folder, device=device)
    levels = _levels(stage, next(iter(pairs.values()))[1].keys() if pairs else ())
    if not levels:
        raise InputError('student and teacher have no common level on any image')
    pictures: dict[str, Sequence[tuple[str, str]]] = {}
    explained = {}
    for level in levels:
        fitted = fit_adapter([(student_maps[level], maps[level]) for maps, student_maps in pairs.values()])
        explained[level] = fitted.explained
        ours = [pairs[image.id] for image in shown]
        pictures[level] = _pictures([maps[level] for maps, _ in ours], [fitted(own[level]) for _, own in ours])
    return StageMaps(
        student=shown_student.title,
        images=[
            ImageMaps(image.file_name, _photo(image, folder), {level: pictures[level][index] for level in levels})
            for index, image in enumerate(shown)
        ],
        explained=explained,
    )


def _pictures(taught: Sequence[Tensor], own: Sequence[Tensor]) -> list[tuple[str, str]]:
    coloured = map_images.principal_colours([*taught, *own], fitted_to=taught)
    uris = [map_uri(picture) for picture in coloured]
    return list(zip(uris[: len(taught)], uris[len(taught) :], strict=True))


def _maps(
    cache: CacheReader, student: Student, image: CocoImage, folder: Path, *, device: torch.device
) -> tuple[Maps, Maps]:
    """The teacher's and the student's maps of an image, without padding, on the CPU, of the levels that both have."""
    pixels = read_image(image_path(folder, image.file_name), size=(image.height, image.width))
    sample = make_sample(pixels, image_id=image.id, path='', geometry=cache.geometry, view='plain')
    inputs = collate([sample], preprocessing=student.preprocessing, device=device)
    hook_point = section(cache.manifest.description.fingerprint, 'teacher').get('hook_point', NECK)
    found = neck_features(student.model, inputs, hook_point=student_hook_point(student.model, str(hook_point)))
    names = [level.name for level in probe_levels(student.model)]
    own = {name: maps[0].cpu() for name, maps in zip(names, found, strict=False)}
    taught = cache.read(image.id)
    common = {}
    for level in cache.levels:
        if level.name in own and own[level.name].shape[1:] == taught[level.name].shape[1:]:
            rows, columns = level.grid(*sample.resized)
            common[level.name] = (taught[level.name][:, :rows, :columns], own[level.name][:, :rows, :columns])
    return {name: pair[0] for name, pair in common.items()}, {name: pair[1] for name, pair in common.items()}


def _own_cache(stage: StageLog) -> CacheReader:
    cache = mtpd.cache.open(stage.settings['cache'])
    if cache.manifest.description.model_dump(mode='json')['fingerprint'] != section(stage.teaching, 'fingerprint'):
        raise CacheMismatchError(f'{cache.path}: is not the cache that the stage was trained with')
    return cache


def _train_files(stage: StageLog) -> tuple[Path, Path]:
    """Image folder and annotation file of the training set, as the stage file has them."""
    data = section(stage.settings, 'data')
    train: Any = data.get('train')
    if isinstance(train, Mapping):
        return Path(str(train.get('images'))), Path(str(train.get('annotations')))
    return coco_paths(Path(str(data.get('coco'))), str(train))


def _levels(stage: StageLog, common: Iterable[str]) -> list[str]:
    """The finest common levels, those first that a loss names."""
    named = {
        str(level)
        for entry in entries(stage.settings, 'distill')
        if isinstance(entry, Mapping)
        for level in entries(entry, 'levels')
    }
    names = list(common)
    chosen = sorted(names, key=lambda name: name not in named)[:MAX_LEVELS]
    return [name for name in names if name in chosen]


def _photo(image: CocoImage, folder: Path) -> str:
    pixels = read_image(image_path(folder, image.file_name), size=(image.height, image.width))
    return photo_uri(np.ascontiguousarray(pixels[..., ::-1]), [])
