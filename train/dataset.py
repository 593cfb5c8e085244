"""The images and annotations of one split, as samples for a detector."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import torch.utils.data

from mtpd.data.coco import CocoAnnotation, CocoImage, CocoSet, image_path, missing_images, training_annotations
from mtpd.data.images import read_image
from mtpd.detectors.transforms import Instance, Sample, make_sample
from mtpd.errors import InputError
from mtpd.geometry import Geometry
from mtpd_train.sampling import Request


class DetectionDataset(torch.utils.data.Dataset[Sample]):
    """Samples by request (image id and view).

    Attributes:
        coco: the annotations.
        geometry: how images become inputs.
    """

    def __init__(
        self, coco: CocoSet, folder: Path, *, geometry: Geometry, for_training: bool, with_masks: bool
    ) -> None:
        """Checks that every image is there.

        Args:
            coco: the annotations.
            folder: where the images are.
            geometry: resize and padding.
            for_training: whether samples carry annotations.
            with_masks: whether these hold masks.

        Raises:
            InputError: images are missing.
        """
        self.coco = coco
        self.geometry = geometry
        self._folder = folder
        self._for_training = for_training
        self._with_masks = with_masks
        self._images: dict[int, CocoImage] = {image.id: image for image in coco.images}
        missing = missing_images(coco, folder)
        if missing:
            raise InputError(
                f'{folder}: {len(missing)} of {len(coco.images)} images of {coco.path.name} are missing, the first is '
                f'{missing[0]}; fetch them or take them out of the annotation file'
            )

    def __getitem__(self, request: Request) -> Sample:
        image = self._images[request.image_id]
        path = image_path(self._folder, image.file_name)
        annotations = training_annotations(self.coco, image) if self._for_training else None
        return make_sample(
            read_image(path, size=(image.height, image.width)),
            image_id=image.id,
            path=str(path),
            geometry=self.geometry,
            view=request.view,
            instances=None if annotations is None else [_instance(one) for one in annotations],
            with_masks=self._with_masks,
        )

    def sizes(self, *, with_objects: bool = False) -> dict[int, tuple[int, int]]:
        """Image id -> original (height, width) in px; `with_objects` leaves out images that hold nothing to find.

        mmdet trains without such images too, and its recipes count their iterations so.
        """
        return {
            image.id: (image.height, image.width)
            for image in self.coco.images
            if not with_objects or any(not one.is_crowd for one in training_annotations(self.coco, image))
        }


def load_batches(
    dataset: DetectionDataset, batches: Sequence[Sequence[Request]], *, num_workers: int
) -> Iterator[list[Sample]]:
    """The samples of each batch, in order, read by `num_workers` processes ahead of time."""
    loader: Iterable[list[Sample]] = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any list of lists of keys does
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=_start_worker,
    )
    return iter(loader)


def _start_worker(number: int) -> None:
    # One thread a process: OpenCV would start as many as there are cores in each of them.
    del number
    cv2.setNumThreads(0)


def _instance(annotation: CocoAnnotation) -> Instance:
    return Instance(annotation.box, annotation.category, annotation.is_crowd, annotation.segmentation)
