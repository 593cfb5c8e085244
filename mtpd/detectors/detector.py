"""What mtpd asks of a detector, whichever library it comes from.

A `Definition` is a detector by its name, before it is built; a `Detector` is one that is built. Each family of
detectors has a folder `mtpd/detectors/of_NAME` with both, see `mtpd.detectors.references`. What a family has to offer
are the abstract methods; the others are capabilities that it may have, and are refused in words where it lacks them.

B batch, C channels, H W input px, h w grid of a level.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mtpd.detectors.exportable import Exportable
from mtpd.detectors.hook_points import NECK_MAPS
from mtpd.detectors.ingredients import Ingredient
from mtpd.detectors.preprocessing import Preprocessing
from mtpd.detectors.record import DetectorRecord
from mtpd.detectors.samples import Sample, collate
from mtpd.errors import InputError
from mtpd.geometry import Geometry, Level, Size
from mtpd.heads.roi_head import RoiHeadRecord, RoiPredictions
from mtpd.heads.rois import BoxCoder

CHECKPOINT_OFFLINE = 'give a local file with --checkpoint FILE, or `checkpoint: FILE` in a stage file'

# The parts that weights come for: `head` is all but the first two, a detector's RoI head and RPN too.
BACKBONE, NECK, HEAD = 'backbone', 'neck', 'head'
PARTS = frozenset({BACKBONE, NECK, HEAD})


def part_of(name: str, *, backbone: str = BACKBONE) -> str:
    """Which of PARTS a dotted name belongs to; `backbone` is that of the backbone. Only mmdet's have a `neck`."""
    if f'{name}.'.startswith(f'{backbone}.'):
        return BACKBONE
    return NECK if name.split('.')[0] == NECK else HEAD


class Detections(NamedTuple):
    """What a detector finds on one image, in px of the original image."""

    boxes: Tensor  # (N, 4), absolute xyxy
    scores: Tensor  # (N,)
    labels: Tensor  # (N,), class indices, 0-based
    masks: Tensor | None = None  # bool (N, height, width) of the original image


@dataclass(frozen=True)
class CapturedRois:
    """Filled during one forward pass of the detector's losses; a mask branch may add to it after the box branch."""

    rois: list[Tensor] = field(default_factory=list)  # (K, 5): image in the batch, absolute xyxy in px of the input
    predictions: list[RoiPredictions] = field(default_factory=list)

    def require(self) -> tuple[Tensor, RoiPredictions]:
        """The sampled proposals, and the student's predictions for them."""
        assert self.rois, 'the RoI extractor did not run'
        assert self.predictions, 'the box head did not run'
        return self.rois[0].detach(), self.predictions[0]


@dataclass(frozen=True)
class Detector(ABC):
    """A network that finds objects in images, and learns to.

    Attributes:
        name: as the user gave it, for messages.
        module: the network, in whichever mode its user put it.
        preprocessing: geometry and normalisation of its inputs.
        levels: of the maps that its heads get, as `maps` returns them; empty where nobody asked for them.
        num_classes: of objects; None where it is not known.
        has_masks: whether the objects that it finds have masks.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    levels: tuple[Level, ...] = ()
    num_classes: int | None = None
    has_masks: bool = False

    # Dotted name of the backbone, whose weights come from elsewhere, in the module.
    backbone: ClassVar[str] = 'backbone'
    # Images that a batch has at least in training: norms of maps with one cell need two.
    least_images: ClassVar[int] = 1

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.module.parameters()).device

    @abstractmethod
    def losses(self, images: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Its own training losses by name, in training mode; their sum is what it learns from.

        `images` are normalised inputs (B, 3, H, W), by `collate` from `samples`, which have targets.
        """

    @abstractmethod
    def predict(self, images: Tensor, samples: Sequence[Sample]) -> list[Detections]:
        """What it finds in each image, in eval mode; `images` are (B, 3, H, W), by `collate` from `samples`."""

    def find(self, samples: Sequence[Sample]) -> list[Detections]:
        """As `predict`, from samples."""
        return self.predict(collate(samples, preprocessing=self.preprocessing, device=self.device), samples)

    @abstractmethod
    def captured_maps(self, *, hook_point: str = NECK_MAPS) -> AbstractContextManager[list[Tensor]]:
        """Collects the maps during one forward pass: a list that has a map (B, C, h, w) per level afterwards."""

    @abstractmethod
    def given_maps(self, maps: Sequence[Tensor], *, hook_point: str = NECK_MAPS) -> AbstractContextManager[None]:
        """Hands `maps` (B, C, h, w), of all levels, to the heads in place of those of the images."""

    @abstractmethod
    def maps(self, images: Tensor, *, hook_point: str = NECK_MAPS) -> Sequence[Tensor]:
        """The maps (B, C, h, w) of normalised images (B, 3, H, W)."""

    def hook_point(self, teacher: str) -> str:
        """Where its maps are taken, so that they can reach the scale of those of a teacher taken at `teacher`."""
        return NECK_MAPS

    def require_neck(self) -> None:  # noqa: B027
        """Refuses a detector without maps to distil."""

    def require_inputs(self, padded: Collection[Size]) -> None:  # noqa: B027
        """Refuses inputs of these `padded` (height, width), px, on which it cannot be trained or tried."""

    def weights_loaded(self, path: Path) -> None:  # noqa: B027
        """Tells it the file that its weights were loaded from, to families whose network depends on that."""

    def tell_progress(self, *, epoch: int, step: int) -> None:  # noqa: B027
        """Tells the `epoch`, from 0, and the optimizer steps done, to losses that depend on it."""

    def base_anchors(self) -> dict[int, Tensor]:
        """Stride of each level that has anchors -> the anchors (A, 4) of its first cell, absolute xyxy in px.

        Those of the cell in column x and row y are x strides to the right and y strides below. They belong to a
        one-stage detector's head, or to a two-stage one's region proposal network.
        """
        raise InputError(
            f'fine_grained needs the anchors of the student, and {self.name} has none that mtpd knows; use tar_feature '
            'or fgd, which need only boxes'
        )

    def box_coder(self) -> BoxCoder:
        """How its RoI head encodes boxes. InputError for one that cannot learn from a teacher's."""
        raise InputError(
            f'tar_head: the student {self.name} has no RoI head that can learn from a teacher; choose '
            'faster-rcnn_r50_fpn_1x_coco, or another loss'
        )

    def captured_rois(self) -> AbstractContextManager[CapturedRois]:
        """Collects the sampled proposals and the outputs of the box head of a detector that has a `box_coder`."""
        raise NotImplementedError

    def predict_rois(self, maps: Sequence[Tensor], rois: Tensor) -> RoiPredictions:
        """What the RoI head says about RoIs (K, 5) on the maps of all levels; of a detector that has a `box_coder`."""
        raise NotImplementedError

    def roi_head_record(self) -> RoiHeadRecord | None:
        """How its RoI head is built, so that `RoiHead` can run it on its maps; None where it cannot."""
        return None

    def proposals(self, maps: Sequence[Tensor], resized: Sequence[Size]) -> list[tuple[Tensor, Tensor]]:
        """Boxes (K, 4), absolute xyxy in px of the input, and scores (K,) that its RPN proposes for each image."""
        raise NotImplementedError

    def has_proposals(self) -> bool:
        """Whether it has `proposals`."""
        return False

    def require_inheritance(self) -> None:
        """Refuses a detector that cannot start from its teacher's neck and head."""
        raise InputError(
            f'init.inherit: {self.name} does not inherit: only mmdet detectors have names of tensors that fit those of '
            'their teachers; remove init.inherit'
        )

    def save(self, folder: Path, *, classes: Sequence[str]) -> None:  # noqa: B027
        """Writes, beside `student.pth`, what its own library loads it from; most need no more than that file."""

    def exportable(self) -> Exportable:
        """Its network as it is exported, with the same weights. InputError for one that cannot be."""
        raise InputError(
            f'{self.name}: has no export; choose a detector of mmdet, torchvision or hf, or define its `exportable`'
        )

    def part_of(self, name: str) -> str:
        """Which of PARTS a tensor, a parameter or a module with this dotted name belongs to."""
        return part_of(name, backbone=self.backbone)


class Definition(ABC):
    """A detector by its name, with the user's changes, before it is built."""

    name: str  # as the user gave it
    record: DetectorRecord | None = None  # of a student that a run has trained

    def states_num_classes(self) -> bool:
        """Whether it says itself how many classes the detector has; else a checkpoint of mtpd does."""
        return self.record is not None

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash of the network that it defines, independent of files, their places and the process."""

    @abstractmethod
    def preprocessing(
        self, geometry: Geometry | None = None, *, scale: tuple[int, int] | None = None
    ) -> tuple[Preprocessing, tuple[str, ...]]:
        """How images become its inputs, and a line for each part of its own way that is then not used.

        `geometry` replaces its own resize and padding, as a teacher's does; `scale` the scale of its resize only.
        """

    @abstractmethod
    def build(
        self,
        preprocessing: Preprocessing,
        *,
        num_classes: int | None = None,
        loaded: Collection[str] = (),
        with_levels: bool = True,
    ) -> Detector:
        """The detector on the CPU, in training mode, without any download.

        Args:
            preprocessing: of its inputs.
            num_classes: of objects; None: as its own weights have.
            loaded: those of PARTS that get weights later; what starts at random must not be frozen.
            with_levels: whether it finds out the levels of its maps.
        """

    @abstractmethod
    def fetch_weights(self, *, offline: str = CHECKPOINT_OFFLINE) -> Path:
        """The file of its published weights, downloaded once; InputError if it has none.

        UnavailableError without a network; its message advises `offline` as another way.
        """

    @abstractmethod
    def load_backbone(self, detector: Detector, choice: str) -> str:
        """Loads the backbone of a new student, `pretrained` (of its family) or a file, and says what was loaded."""

    @abstractmethod
    def description(
        self,
        detector: Detector,
        *,
        classes: Sequence[str],
        evaluated_on: tuple[Path, Path] | None,
    ) -> tuple[str, str]:
        """Name and text of the file from which `read_definition` gets it back, and its own library builds it.

        `evaluated_on` are image folder and annotation file.
        """

    def require_trainable(self) -> None:  # noqa: B027
        """Refuses a detector that learns from, or predicts with, something else than a student gets."""

    def unfreeze(self, *, loaded: Collection[str], kept: Collection[str]) -> Mapping[str, Any]:
        """Changes it so that what starts from random weights is trained; returns new values by dotted key.

        Parts that are `loaded`, and the dotted keys in `kept`, stay as they are.
        """
        return {}

    def recipe(self) -> Sequence[Ingredient]:
        """What its authors train it with."""
        return ()

    def classes(self) -> tuple[str, ...] | None:
        """What its labels mean; None where it does not say."""
        return None if self.record is None else self.record.classes

    def evaluated_on(self) -> tuple[Path, Path] | None:
        """Image folder and annotation file of its training's evaluation, of a student of a run."""
        return None if self.record is None else self.record.evaluated_on


@contextmanager
def hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    """A forward hook of a module for the time of the block."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
