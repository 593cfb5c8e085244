"""A detector of torchvision as mtpd runs it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtpd.detectors.detector import BACKBONE, Detections, Detector, hooked
from mtpd.detectors.exportable import Exportable
from mtpd.detectors.hook_points import NECK_MAPS
from mtpd.detectors.of_torchvision.exportable import exportable_of
from mtpd.detectors.of_torchvision.networks import SSD300, SSDLITE, WITHOUT_EPS, is_published
from mtpd.detectors.of_torchvision.ready_inputs import ReadyImages
from mtpd.detectors.samples import Sample
from mtpd.errors import InputError

# Of a frozen norm; see `WITHOUT_EPS`.
_EPS, _PUBLISHED_EPS = 1e-5, 0.0
MASK_THRESHOLD = 0.5


@dataclass(frozen=True)
class TorchvisionDetector(Detector):
    """See `Detector`.

    Attributes:
        network: the name of torchvision's function for it.
        outputs: of its class logits, that of each class; output 0 is the background, and published detectors have
            further ones that stand for nothing.
    """

    network: str = ''
    outputs: tuple[int, ...] = ()

    backbone: ClassVar[str] = 'backbone.body'

    def losses(self, images: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Those of torchvision's training; crowd regions are left out of it, as in its reference training."""
        targets = [self._target(sample, images.device) for sample in samples]
        losses: dict[str, Tensor] = self.module(self._inputs(images, samples), targets)
        return losses

    @torch.no_grad()
    def predict(self, images: Tensor, samples: Sequence[Sample]) -> list[Detections]:
        """What it finds in each image, in eval mode."""
        results = self.module(self._inputs(images, samples))
        return [self._detections(result, sample) for result, sample in zip(results, samples, strict=True)]

    @contextmanager
    def captured_maps(self, *, hook_point: str = NECK_MAPS) -> Iterator[list[Tensor]]:
        """What its backbone, with the pyramid, gives to the heads."""
        maps: list[Tensor] = []

        def capture(_: Any, __: Any, output: dict[str, Tensor]) -> None:
            maps[:] = output.values()

        with hooked(self._pyramid, capture):
            yield maps

    @contextmanager
    def given_maps(self, maps: Sequence[Tensor], *, hook_point: str = NECK_MAPS) -> Iterator[None]:
        """Its heads get `maps`; the backbone does not run."""
        pyramid = self._pyramid
        # RoI heads take the maps that have numbers for names; those beyond the backbone's levels are not for them.
        num_own = len(pyramid.fpn.inner_blocks) if hasattr(pyramid, 'fpn') else len(maps)
        named = {str(n) if n < num_own else f'beyond{n}': values for n, values in enumerate(maps)}
        # The instance's attribute hides the class's method.
        pyramid.forward = lambda inputs: named
        try:
            yield
        finally:
            del pyramid.forward

    def maps(self, images: Tensor, *, hook_point: str = NECK_MAPS) -> Sequence[Tensor]:
        """What its backbone, with the pyramid, gives to the heads."""
        return list(self._pyramid(images).values())

    def base_anchors(self) -> dict[int, Tensor]:
        """Those of its `AnchorGenerator`, which are centred at the image's corner.

        torchvision divides the input by the grid to get the step between cells: where a stride does not divide the
        input, its own step is a little smaller, such as 800 // 13 = 61 px for 64.
        """
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        model: Any = self.module
        generator = model.rpn.anchor_generator if hasattr(model, 'rpn') else model.anchor_generator
        # FCOS uses one for the places of its cells.
        if not isinstance(generator, AnchorGenerator) or set(generator.num_anchors_per_location()) == {1}:
            return super().base_anchors()
        anchors: dict[int, Tensor] = {}
        for level, found in zip(self.levels, generator.cell_anchors, strict=True):
            if not torch.equal(anchors.setdefault(level.stride, found.float().cpu()), found.float().cpu()):
                raise InputError(
                    f'fine_grained needs the anchors of the student, and {self.name} has two levels of stride '
                    f'{level.stride} with different ones; use tar_feature or fgd, which need only boxes'
                )
        return anchors

    def exportable(self) -> Exportable:
        """All of its families."""
        return exportable_of(self.module, outputs=self.outputs, strides=[level.stride for level in self.levels])

    def weights_loaded(self, path: Path) -> None:
        """Tells it the file of its weights: as with the published ones, torchvision changes its frozen norms."""
        self.set_published(self.network in WITHOUT_EPS and is_published(self.network, path))

    def set_published(self, published: bool) -> None:
        """Sets the eps of its frozen norms as torchvision does with published weights, or without."""
        from torchvision.ops import FrozenBatchNorm2d

        for one in self.module.modules():
            if isinstance(one, FrozenBatchNorm2d):
                one.eps = _PUBLISHED_EPS if published and self.network in WITHOUT_EPS else _EPS

    @property
    def _pyramid(self) -> Any:
        return self.module.backbone

    def _inputs(self, images: Tensor, samples: Sequence[Sample]) -> ReadyImages:
        return ReadyImages(images, [sample.resized for sample in samples])

    def _target(self, sample: Sample, device: torch.device) -> dict[str, Tensor]:
        """An image's objects as torchvision takes them, without boxes that have no area, which it refuses."""
        objects = sample.objects
        kept = (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(dim=1)
        labels = torch.tensor(self.outputs, device=objects.labels.device)[objects.labels[kept]]
        target = {'boxes': objects.boxes[kept], 'labels': labels}
        if self.has_masks:
            assert objects.masks is not None, 'it learns from masks'
            target['masks'] = objects.masks[kept.to(objects.masks.device)]
        return {name: value.to(device, non_blocking=True) for name, value in target.items()}

    def _detections(self, result: dict[str, Tensor], sample: Sample) -> Detections:
        from torchvision.models.detection.roi_heads import paste_masks_in_image
        from torchvision.models.detection.transform import resize_boxes

        # Heads with a sigmoid have an output for the background too, for which no object ever teaches a label, and
        # published ones have outputs for the gaps between COCO's ids. A detection of either means nothing.
        places = {output: label for label, output in enumerate(self.outputs)}
        labels = torch.tensor([places.get(one, -1) for one in result['labels'].tolist()], dtype=torch.int64)
        labels = labels.to(result['labels'].device)
        kept = labels >= 0
        boxes = resize_boxes(result['boxes'][kept], list(sample.resized), list(sample.original))
        masks = None
        if self.has_masks:
            # As torchvision's reference evaluation does.
            masks = paste_masks_in_image(result['masks'][kept], boxes, sample.original)[:, 0] > MASK_THRESHOLD
        return Detections(boxes, result['scores'][kept], labels[kept], masks)


@dataclass(frozen=True)
class SsdDetector(TorchvisionDetector):
    """SSD and SSDLite, which have no pyramid but further layers behind the backbone."""

    backbone: ClassVar[str] = 'backbone.features'


@dataclass(frozen=True)
class SsdliteDetector(SsdDetector):
    """SSDLite, whose last map has one cell, behind a batch norm."""

    least_images: ClassVar[int] = 2


@dataclass(frozen=True)
class Ssd300Detector(SsdDetector):
    """SSD300, whose VGG-16 goes on in the first of these further layers."""

    def part_of(self, name: str) -> str:
        """Its last stage, conv5, is the backbone's too."""
        conv5 = any(f'{name}.'.startswith(f'backbone.extra.0.{number}.') for number in (1, 3, 5))
        return BACKBONE if conv5 else super().part_of(name)


def detector_class(network: str) -> type[TorchvisionDetector]:
    """The class for one of torchvision's functions."""
    return {SSD300: Ssd300Detector, SSDLITE: SsdliteDetector}.get(network, TorchvisionDetector)
