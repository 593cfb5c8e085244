"""What a detector is exported as: a network whose output has fixed shapes.

N images, H W input px, D detections.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtpd.errors import InputError
from mtpd.heads.postprocessing import Candidates

# How masks of boxes become masks of images: as mmdet or as torchvision does.
Paste = Literal['mmdet', 'torchvision']


class Exportable(nn.Module, ABC):
    """A detector in eval mode, from normalised and padded images to detections.

    Its weights may be of half precision; boxes and scores are computed in float32.

    Attributes:
        num_detections: of each image, D.
        iou_threshold: of its suppression; None: it has none.
        paste: how its masks become those of images; None: it finds no masks.
        notes: a line for each way in which it differs from the detector.
    """

    num_detections: int
    iou_threshold: float | None = None
    paste: Paste | None = None
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """That of its weights."""
        return next(self.parameters()).dtype

    @abstractmethod
    def forward(self, images: Tensor, limits: Tensor) -> tuple[Candidates, Tensor | None]:
        """The best detections (N, D) of images (N, 3, H, W), and masks (N, D, h, w) of their boxes, from 0 to 1.

        `limits` (N, 2) are the height and width that boxes are clipped to, px.
        """

    def raw(self, images: Tensor) -> Mapping[str, Tensor]:
        """The outputs of its heads for images (N, 3, H, W), by name. InputError where boxes need more than these."""
        raise InputError(
            '--raw: the detector has no raw outputs, as two-stage detectors: its boxes need more than its heads give'
        )

    def raw_record(self) -> Mapping[str, Any]:
        """What boxes and scores are computed with from `raw`: plain values. InputError as `raw`."""
        return self.raw(torch.empty(0))

    def tracing(self) -> AbstractContextManager[None]:
        """For the time in which its graph is recorded."""
        return nullcontext()
