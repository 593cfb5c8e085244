"""The images and annotations of one split, as samples for a detector."""

import multiprocessing
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import cv2
import torch.utils.data

from mtpd.data.coco import (
    CocoAnnotation,
    CocoImage,
    CocoSet,
    image_path,
    missing_images,
    require_pixels,
    training_annotations,
)
from mtpd.data.images import read_image
from mtpd.detectors.runtime import prepare
from mtpd.detectors.transforms import Instance, Sample, make_sample
from mtpd.errors import InputError, MtpdError
from mtpd.geometry import Geometry, Size
from mtpd.system.interrupt import deaf_children, end_with_parent
from mtpd_train.data.sampling import Request


class DetectionDataset(torch.utils.data.Dataset[Sample | MtpdError]):
    """Samples by request (image id and view).

    Attributes:
        coco: the annotations.
        folder: where the images are.
    """

    def __init__(
        self, coco: CocoSet, folder: Path, *, geometry: Geometry, for_training: bool, with_masks: bool
    ) -> None:
        """Checks that every image is there.

        Args:
            coco: the annotations.
            folder: where the images are.
            geometry: resize of the images.
            for_training: whether samples carry annotations.
            with_masks: whether these hold masks.

        Raises:
            InputError: images are missing, or the resize leaves nothing of one.
        """
        self.coco = coco
        self.folder = folder
        self._geometry = geometry
        self._for_training = for_training
        self._with_masks = with_masks
        self._images: dict[int, CocoImage] = {image.id: image for image in coco.images}
        require_pixels(coco.images, geometry)
        missing = missing_images(coco, folder)
        if missing:
            raise InputError(
                f'{folder}: {len(missing)} of {len(coco.images)} images of {coco.path.name} are missing, the first is '
                f'{missing[0]}; fetch them or take them out of the annotation file'
            )

    def __getitem__(self, request: Request) -> Sample | MtpdError:
        """The sample, or what is wrong with its image: raised in a worker, it would arrive inside a traceback."""
        image = self._images[request.image_id]
        path = image_path(self.folder, image.file_name)
        annotations = training_annotations(self.coco, image) if self._for_training else None
        try:
            pixels = read_image(path, size=(image.height, image.width))
        except MtpdError as error:
            return error
        return make_sample(
            pixels,
            image_id=image.id,
            path=str(path),
            geometry=self._geometry,
            view=request.view,
            instances=None if annotations is None else [_instance(one, image) for one in annotations],
            with_masks=self._with_masks,
        )

    def sizes(self, *, with_objects: bool = False) -> dict[int, Size]:
        """Image id -> original (height, width) in px; `with_objects` leaves out images that hold nothing to find.

        mmdet trains without such images too, and its recipes count their iterations so.
        """
        return {
            image.id: (image.height, image.width)
            for image in self.coco.images
            if not with_objects or any(one.is_object for one in training_annotations(self.coco, image))
        }


def load_batches(
    dataset: DetectionDataset,
    batches: Sequence[Sequence[Request]],
    *,
    num_workers: int,
    pin_memory: bool = False,
    start_method: Literal['fork', 'spawn'] | None = None,
) -> Iterator[list[Sample]]:
    """The samples of each batch, in order, prefetched by processes that start immediately.

    Where the system can, they are forked, because a copy of COCO's annotations for each of them would take gigabytes.
    Threads may read a cache meanwhile: they hold no lock that a worker takes.

    Args:
        dataset: gives the samples.
        batches: what to load.
        num_workers: processes; 0: none, and each batch is read when it is requested.
        pin_memory: whether pixels are put where a GPU can fetch them while it computes; needs one.
        start_method: how they start; None: as the system does it.

    Raises:
        MtpdError: an image cannot be read.
    """
    prepare()  # Once, here: else each process would import mmdet by itself.
    forked = (start_method or multiprocessing.get_start_method()) == 'fork'
    with warnings.catch_warnings(), deaf_children(forked=forked):
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


def _start_worker(number: int) -> None:
    del number
    end_with_parent()
    # One thread a process: OpenCV would start as many as there are cores in each of them.
    cv2.setNumThreads(0)
    prepare()  # A process that was not forked has mmdet still to import.


def _instance(annotation: CocoAnnotation, image: CocoImage) -> Instance:
    return Instance(annotation.box, annotation.category, annotation.is_crowd, annotation.mask(image))
