"""A teacher's maps from its cache, next to those of the student trained on them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mtpd.cache
from mtpd.cache import CacheReader
from mtpd.cache.map_images import principal_colours
from mtpd.data.annotation_table import CocoImage
from mtpd.data.coco import CocoSet, coco_paths, spread
from mtpd.detectors.detector import Detector
from mtpd.detectors.hook_points import NECK_MAPS
from mtpd.detectors.samples import collate, make_sample
from mtpd.errors import CacheMismatchError, InputError
from mtpd.ordering.ridge import ridge_weights
from mtpd_train.evaluator.detector import build_student, require_student, student_of_run
from mtpd_train.report.images import map_uri, photo_uri, read_pixels
from mtpd_train.report.run_log import RunLog, StageLog, entries, section
from mtpd_train.run_folder import stage_folder

# A linear map of the student's channels to the teacher's is fitted on a sample of the cells of these.
NUM_FITTED, CELLS_PER_IMAGE = 12, 2048
RIDGE = 1e-3  # relative to the variance of a channel
MAX_LEVELS = 3

# The teacher's map and the student's, (C, H, W) and (S, H, W).
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImageMaps:
    """An image, and a level's maps on it as data URIs: level -> (teacher's, student's)."""

    name: str
    photo: str
    levels: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class StageMaps:
    """The maps of a stage's teacher and student."""

    student: str  # which of its students is shown, see `find_student`
    images: Sequence[ImageMaps]
    explained: Mapping[str, float]  # level -> share of the teacher's variance that the student's maps explain


@torch.no_grad()
def stage_maps(
    run: RunLog, stage: StageLog, *, num_images: int, device: torch.device, read: Callable[[Path], CocoSet]
) -> StageMaps:
    """The maps of the teacher that a stage's cache holds, and of the stage's student, on training images.

    Refuses a stage without a cache or without a student yet, and another cache than the stage learned from.
    """
    if stage.settings.get('cache') is None:
        raise InputError('the stage did not use a cache')
    if not isinstance(stage.settings['cache'], str):
        raise InputError('the stage used several caches, of which no maps are drawn')
    stage_files = stage_folder(run.folder, stage.number)
    checkpoint, title = require_student(stage_files)
    cache = mtpd.cache.open(stage.settings['cache'])
    if cache.manifest.description.model_dump(mode='json')['fingerprint'] != section(stage.teachings[0], 'fingerprint'):
        raise CacheMismatchError(f'{cache.name}: is not the cache that the stage was trained with')
    folder, annotations = _train_files(stage)
    coco = read(annotations)
    images = [
        image for image in coco.images if image.id in cache and any(one.is_object for one in coco.annotations[image.id])
    ]
    student, _ = build_student(student_of_run(stage_files, checkpoint), device, with_levels=True)
    shown = spread(images, num_images)
    pairs: dict[int, dict[str, Pair]] = {}
    for image in (*spread(images, max(num_images, NUM_FITTED)), *shown):
        if image.id not in pairs:
            pairs[image.id] = _maps(cache, student, image, folder, device=device)
    levels = _levels(stage, next(iter(pairs.values())) if pairs else ())
    if not levels:
        raise InputError('student and teacher have no common level on any image')
    pictures: dict[str, Sequence[tuple[str, str]]] = {}
    explained = {}
    for level in levels:
        adapt, explained[level] = fit_adapter([maps[level] for maps in pairs.values()])
        taught = [pairs[image.id][level][0] for image in shown]
        own = [adapt(pairs[image.id][level][1]) for image in shown]
        uris = [map_uri(picture) for picture in principal_colours([*taught, *own], fitted_to=taught)]
        pictures[level] = list(zip(uris[: len(shown)], uris[len(shown) :], strict=True))
    drawn = []
    for index, image in enumerate(shown):
        maps = {level: pictures[level][index] for level in levels}
        drawn.append(ImageMaps(image.file_name, photo_uri(read_pixels(image, folder), []), maps))
    return StageMaps(title, drawn, explained)


def fit_adapter(pairs: Sequence[Pair]) -> tuple[Callable[[Tensor], Tensor], float]:
    """The linear map (S, H, W) -> (C, H, W) of a student's channels that comes closest to its teacher's, by ridge
    regression over cells, and the share of the variance of the teacher's cells that it explains.

    A student may order its channels as it likes: only behind such a map are its features comparable.
    """
    cells = []
    for pair in pairs:
        num_cells = pair[0][0].numel()
        chosen = torch.linspace(0, num_cells - 1, min(CELLS_PER_IMAGE, num_cells)).long()
        cells.append([one.flatten(1)[:, chosen].T for one in pair])
    taught, own = (torch.cat(one) for one in zip(*cells, strict=True))
    taught_mean, own_mean = taught.mean(0), own.mean(0)
    taught, own = taught - taught_mean, own - own_mean
    among = own.T @ own
    penalty = RIDGE * float(among.diagonal().mean().clamp(min=1e-12))
    weights = ridge_weights(among, own.T @ taught, ridge=penalty)
    left = (taught - own @ weights).square().sum() / taught.square().sum().clamp(min=1e-30)

    def adapt(maps: Tensor) -> Tensor:
        adapted = (maps.flatten(1).T - own_mean) @ weights + taught_mean
        return adapted.T.reshape(-1, *maps.shape[1:])

    return adapt, float(1 - left)


def _maps(
    cache: CacheReader, student: Detector, image: CocoImage, folder: Path, *, device: torch.device
) -> dict[str, Pair]:
    """The teacher's and the student's map of each level that both have, without padding, on the CPU."""
    sample = make_sample(read_pixels(image, folder), image_id=image.id, geometry=cache.geometry, view='plain')
    inputs = collate([sample], preprocessing=student.preprocessing, device=device)
    hook_point = section(cache.manifest.description.fingerprint, 'teacher').get('hook_point', NECK_MAPS)
    found = student.maps(inputs, hook_point=student.hook_point(str(hook_point)))
    names = [level.name for level in student.levels]
    own = {name: maps[0].cpu() for name, maps in zip(names, found, strict=False)}
    taught = cache.read(image.id)
    common = {}
    for level in cache.levels:
        if level.name in own and own[level.name].shape[1:] == taught[level.name].shape[1:]:
            rows, columns = level.grid(*sample.resized)
            common[level.name] = (taught[level.name][:, :rows, :columns], own[level.name][:, :rows, :columns])
    return common


def _train_files(stage: StageLog) -> tuple[Path, Path]:
    """Image folder and annotation file of the training set, as the stage file has them."""
    data = section(stage.settings, 'data')
    train: Any = data.get('train')
    if isinstance(train, Mapping):
        return Path(str(train.get('images'))), Path(str(train.get('annotations')))
    return coco_paths(Path(str(data.get('coco'))), str(train))


def _levels(stage: StageLog, common: Iterable[str]) -> list[str]:
    """The finest common levels, those first that a loss names."""
    named = {str(level) for loss in entries(stage.settings, 'distill') for level in entries(loss, 'levels')}
    names = list(common)
    chosen = sorted(names, key=lambda name: name not in named)[:MAX_LEVELS]
    return [name for name in names if name in chosen]
