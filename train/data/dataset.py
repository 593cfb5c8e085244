"""The images and annotations of one split, as samples for a detector."""

import atexit
import gc
import multiprocessing
import resource
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Literal

import cv2
import torch.utils.data

from mtpd.data.account import nothing_to_train_on
from mtpd.data.coco import CocoSet, coco_paths, missing_images, require_pixels, training_annotations
from mtpd.data.images import read_image
from mtpd.detectors.samples import Instance, Sample, make_sample
from mtpd.errors import InputError, MtpdError, UnavailableError
from mtpd.geometry import Geometry, Size, shared_sizes
from mtpd.system.interrupt import end_with_parent, signals_blocked_in_children
from mtpd_train.data.sampling import Request
from mtpd_train.settings.stage_settings import DataSettings, FilesSettings

MAX_OPEN_FILES = 2**16
FILES_OF_IMAGE = 1  # its pixels
OWN_FILES = 128


class DetectionDataset(torch.utils.data.Dataset[Sample | MtpdError]):
    """Samples of the images in `folder` with the annotations `coco`, by request (image id and view)."""

    def __init__(
        self, coco: CocoSet, folder: Path, *, geometry: Geometry, for_training: bool, with_masks: bool
    ) -> None:
        """Refuses a set of which images are missing; samples carry annotations `for_training`."""
        self.coco, self.folder = coco, folder
        self._geometry, self._for_training, self._with_masks = geometry, for_training, with_masks
        sizes = shared_sizes((image.height, image.width) for image in coco.images)
        self._sizes = {image.id: size for image, size in zip(coco.images, sizes, strict=True)}
        self._with_objects = dict(compress(self._sizes.items(), coco.with_objects.tolist()))
        require_pixels(coco.images, geometry)
        missing = missing_images(coco.images, folder)
        if missing:
            raise InputError(
                f'{folder}: {len(missing)} of {len(coco.images)} images of {coco.path.name} are missing, the first is '
                f'{missing[0]}; fetch them or take them out of the annotation file'
            )

    def __getitem__(self, request: Request) -> Sample | MtpdError:
        """The sample, or what is wrong with its image: raised in a worker, it would arrive inside a traceback."""
        image = self.coco.annotations.image_of(request.image_id)
        path = self.folder / image.file_name
        instances = None
        try:
            pixels = read_image(path, size=(image.height, image.width))
        except MtpdError as error:
            return error
        if self._for_training:
            annotations = training_annotations(self.coco, image)
            instances = [Instance(one.box, one.category, one.is_crowd, one.mask(image)) for one in annotations]
        return make_sample(
            pixels,
            image_id=image.id,
            geometry=self._geometry,
            view=request.view,
            instances=instances,
            with_masks=self._with_masks,
        )

    def sizes(self, *, with_objects: bool = False) -> Mapping[int, Size]:
        """Image id -> original (height, width) in px; `with_objects` leaves out images that hold nothing to find.

        mmdet trains without such images too, and its recipes count their iterations so.
        """
        return self._with_objects if with_objects else self._sizes


def load_batches(
    dataset: DetectionDataset,
    batches: Sequence[Sequence[Request]],
    *,
    num_workers: int,
    pin_memory: bool = False,
    start_method: Literal['fork', 'spawn'] | None = None,
) -> Iterator[list[Sample]]:
    """The samples of each batch, in order, prefetched by processes that start immediately; with none, when requested.

    Where the system can, they are forked, because a copy of COCO's annotations for each of them would take gigabytes.
    Threads may read a cache meanwhile: they hold no lock that a worker takes.
    """
    if num_workers:
        _require_open_files(max(map(len, batches), default=0), num_workers=num_workers)
    forked = (start_method or multiprocessing.get_start_method()) == 'fork'
    if num_workers and forked:
        # A collection writes to every object that it looks at, in a worker or here, and would so copy what they share.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        # Else some libraries report at the end that objects have leaked.
        atexit.unregister(gc.unfreeze)
        atexit.register(gc.unfreeze)
    with warnings.catch_warnings(), signals_blocked_in_children(forked=forked):
        # Of more processes than cores, twice an epoch; the programs say it once.
        warnings.filterwarnings('ignore', message='This DataLoader will create')
        loader: Iterable[list[Sample | MtpdError]] = torch.utils.data.DataLoader(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type]  # any list of lists of keys does
            num_workers=num_workers,
            collate_fn=list,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            multiprocessing_context=start_method if num_workers else None,
        )
        return map(_without_errors, iter(loader))


def _without_errors(loaded: list[Sample | MtpdError]) -> list[Sample]:
    samples = []
    for one in loaded:
        if isinstance(one, MtpdError):
            raise one
        samples.append(one)
    return samples


def _require_open_files(batch_size: int, *, num_workers: int) -> None:
    """Allows this process all open files that it may have, and refuses what would need more.

    Every tensor that a worker sends is an open file until it is used, in the worker or here, and the usual limit is
    1,024. A worker that may not open one ends without a word, and its batch is waited for without end.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        wanted = soft
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    # Two batches wait for each worker.
    needed = OWN_FILES + FILES_OF_IMAGE * batch_size * (2 * num_workers + 1)
    if wanted != resource.RLIM_INFINITY and wanted < needed:
        raise UnavailableError(
            f'data.workers: batches of {batch_size} images from {num_workers} processes need up to {needed} open '
            f'files, but the system allows {wanted}; raise the limit with `ulimit -Hn 65536`, or lower data.workers or '
            'data.batch_size'
        )


def _start_worker(_: int) -> None:
    end_with_parent()
    # One thread a process: OpenCV would start as many as there are cores in each of them.
    cv2.setNumThreads(0)


def split_paths(data: DataSettings, split: str | FilesSettings) -> tuple[Path, Path]:
    """Image folder and annotation file of a split."""
    return coco_paths(data.coco, split) if isinstance(split, str) else (split.images, split.annotations)


def read_train_annotations(data: DataSettings, *, read: Callable[[Path], CocoSet]) -> CocoSet:
    """The annotations of the images to train on; refuses those without categories or with one name for two."""
    coco = read(split_paths(data, data.train)[1])
    if not coco.categories:
        raise InputError(f"{coco.path}: 'categories' is empty, so there are no classes to learn; list the categories")
    ids: dict[str, int] = {}
    for category in coco.categories:
        if category.name in ids:
            raise InputError(
                f'{coco.path}: categories {ids[category.name]} and {category.id} are both named {category.name!r:.80}; '
                'class names must be unique, rename one'
            )
        ids[category.name] = category.id
    return coco


def build_train_set(data: DataSettings, coco: CocoSet, *, geometry: Geometry, with_masks: bool) -> DetectionDataset:
    """The images of `coco` to train on, resized by `geometry`; refuses a set without any usable object."""
    folder, annotations = split_paths(data, data.train)
    train_set = DetectionDataset(coco, folder, geometry=geometry, for_training=True, with_masks=with_masks)
    if not train_set.sizes(with_objects=True):
        raise InputError(
            f'{annotations}: no image has a usable object: {nothing_to_train_on(coco)}; correct the file or '
            'choose another training set'
        )
    return train_set


def build_val_set(
    data: DataSettings, train_coco: CocoSet, *, geometry: Geometry, read: Callable[[Path], CocoSet]
) -> DetectionDataset | None:
    """The images to evaluate on, if any; refuses an empty set, and other categories than those of the training set."""
    if data.val is None:
        return None
    folder, annotations = split_paths(data, data.val)
    coco = read(annotations)
    if coco.categories != train_coco.categories:
        raise InputError(
            f'{annotations}: its categories differ from those of {train_coco.path}: '
            f'{_first_difference(coco, train_coco)}; choose another data.val, or set it to null'
        )
    if not coco.images:
        raise InputError(f'{annotations}: lists no images; choose another data.val, or set it to null')
    return DetectionDataset(coco, folder, geometry=geometry, for_training=False, with_masks=False)


def _first_difference(coco: CocoSet, train_coco: CocoSet) -> str:
    """The first category that differs, with both names."""
    here, there = ({one.id: one.name for one in several.categories} for several in (coco, train_coco))
    number = next(one for one in sorted(here | there) if here.get(one) != there.get(one))
    names = (f'{one[number]!r:.80}' if number in one else 'missing' for one in (here, there))
    return 'id {} is {} here and {} there'.format(number, *names)
