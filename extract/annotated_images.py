"""Annotated images as a teacher sees them, one by one: for measuring what features are worth."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mtpd.cache.format.manifest import ViewName
from mtpd.data.coco import CocoImage, image_path
from mtpd.data.images import read_image
from mtpd.detectors.detection import collate
from mtpd.detectors.teachers import Teacher
from mtpd.detectors.transforms import Sample, make_sample


@dataclass(frozen=True)
class AnnotatedImage:
    """One view of an image.

    Attributes:
        sample: with the sizes that a head looks up.
        inputs: normalised and padded, (1, 3, H, W) on the teacher's device.
    """

    sample: Sample
    inputs: Tensor


def view_of(
    teacher: Teacher, image: CocoImage, *, folder: Path, view: ViewName, device: torch.device
) -> AnnotatedImage:
    """An image of the set in `folder`, resized and perhaps mirrored, padded and normalised for `teacher`."""
    path = image_path(folder, image.file_name)
    sample = make_sample(
        read_image(path, size=(image.height, image.width)),
        image_id=image.id,
        path=str(path),
        geometry=teacher.preprocessing.geometry,
        view=view,
    )
    return AnnotatedImage(sample, collate([sample], preprocessing=teacher.preprocessing, device=device))
