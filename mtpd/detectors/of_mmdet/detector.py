"""A detector of mmdet as mtpd runs it."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.detector import CapturedRois, Detections, Detector
from mtpd.detectors.exportable import Exportable
from mtpd.detectors.hook_points import BEFORE_NORM, NECK_MAPS
from mtpd.detectors.of_mmdet import detector_heads
from mtpd.detectors.of_mmdet.data_samples import data_samples
from mtpd.detectors.of_mmdet.features import captured_maps, has_output_norms, neck_features, neck_of, neck_outputs
from mtpd.detectors.of_mmdet.one_stage import DECODERS, OneStage, Yolox
from mtpd.detectors.of_mmdet.trainable import require_inputs
from mtpd.detectors.of_mmdet.two_stage import TwoStage
from mtpd.detectors.samples import Sample
from mtpd.errors import InputError
from mtpd.geometry import Size
from mtpd.heads.roi_head import RoiHeadRecord, RoiPredictions
from mtpd.heads.rois import BoxCoder

# Detectors whose boxes an export computes.
EXPORTED = ('ATSS', 'FCOS', 'FasterRCNN', 'GFL', 'MaskRCNN', 'RTMDet', 'RepPointsDetector', 'RetinaNet', 'YOLOX')


@dataclass(frozen=True)
class MmdetDetector(Detector):
    """See `Detector`."""

    def losses(self, images: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Each summed over levels and stages: what mmdet adds to its total."""
        model: Any = self.module
        losses = model.loss(images, self._data_samples(images, samples))
        return {
            name: torch.stack([part.mean() for part in (value if isinstance(value, list | tuple) else [value])]).sum()
            for name, value in losses.items()
            if 'loss' in name
        }

    @torch.no_grad()
    def predict(self, images: Tensor, samples: Sequence[Sample]) -> list[Detections]:
        """What it finds in each image, in eval mode."""
        model: Any = self.module
        given = self._data_samples(images, samples)
        size = 1 if takes_one_image(self.module) else len(samples)
        results: list[Any] = []
        for start in range(0, len(samples), size):
            part = slice(start, start + size)
            results += model.predict(images[part], given[part], rescale=True)
        found = []
        for instances in (result.pred_instances for result in results):
            masks = instances.masks if self.has_masks else None
            # CrowdDet gives its labels as floats.
            found.append(Detections(instances.bboxes, instances.scores, instances.labels.long(), masks))
        return found

    def captured_maps(self, *, hook_point: str = NECK_MAPS) -> AbstractContextManager[list[Tensor]]:
        """The maps at a hook point of its neck."""
        return captured_maps(self.module, hook_point=hook_point)

    @contextmanager
    def given_maps(self, maps: Sequence[Tensor], *, hook_point: str = NECK_MAPS) -> Iterator[None]:
        """Its heads get `maps`, behind the norms that follow the hook point."""
        model: Any = self.module
        features = tuple(neck_outputs(model, maps, hook_point=hook_point))
        # The instance's attribute hides the class's method: the maps replace the features of any input.
        model.extract_feat = lambda inputs: features
        try:
            yield
        finally:
            del model.extract_feat

    def maps(self, images: Tensor, *, hook_point: str = NECK_MAPS) -> Sequence[Tensor]:
        """Those of its neck or, where it has none, its backbone."""
        return neck_features(self.module, images, hook_point=hook_point)

    def hook_point(self, teacher: str) -> str:
        """Before the norms of its neck for a teacher's maps from there."""
        return BEFORE_NORM if teacher == BEFORE_NORM and has_output_norms(self.module) else NECK_MAPS

    def require_neck(self) -> None:
        """Refuses a detector without a neck."""
        neck_of(self.module)

    def require_inputs(self, padded: Collection[Size]) -> None:
        """Refuses too many queries for the smallest input, and several sizes for YOLACT."""
        require_inputs(self.module, levels=self.levels, padded=padded)

    def tell_progress(self, *, epoch: int, step: int) -> None:
        """Sets them where mmengine's runner would: TOOD assigns as ATSS does in its first epochs."""
        from mmengine.logging import MessageHub

        hub = MessageHub.get_current_instance()
        hub.update_info('epoch', epoch)
        hub.update_info('iter', step)

    def base_anchors(self) -> dict[int, Tensor]:
        """Those of its `AnchorGenerator`."""
        return detector_heads.base_anchors(self.module)

    def box_coder(self) -> BoxCoder:
        """That of its RoI head."""
        return detector_heads.student_box_coder(self.module)

    def captured_rois(self) -> AbstractContextManager[CapturedRois]:
        """By hooks of its RoI extractor and box head."""
        return detector_heads.captured_rois(self.module)

    def predict_rois(self, maps: Sequence[Tensor], rois: Tensor) -> RoiPredictions:
        """Runs the box head, with gradient."""
        model: Any = self.module
        results = model.roi_head._bbox_forward(tuple(maps), rois)
        return RoiPredictions(results['cls_score'], results['bbox_pred'])

    def roi_head_record(self) -> RoiHeadRecord | None:
        """Of a cascade its first stage."""
        return detector_heads.roi_head_record(self.module, levels=self.levels)

    def has_proposals(self) -> bool:
        """Whether it has a region proposal network."""
        return hasattr(self.module, 'rpn_head')

    def proposals(self, maps: Sequence[Tensor], resized: Sequence[Size]) -> list[tuple[Tensor, Tensor]]:
        """Those of its region proposal network."""
        from mmdet.structures import DetDataSample

        samples = [DetDataSample(metainfo={'img_shape': size, 'scale_factor': (1.0, 1.0)}) for size in resized]
        rpn_head: Any = self.module.rpn_head
        results = rpn_head.predict(tuple(maps), samples, rescale=False)
        return [(result.bboxes, result.scores) for result in results]

    def require_inheritance(self) -> None:
        """Every mmdet detector may inherit."""

    def exportable(self) -> Exportable:
        """Of the families whose boxes are known."""
        return exportable_of(self.module, name=self.name)

    def _data_samples(self, images: Tensor, samples: Sequence[Sample]) -> list[Any]:
        padded = int(images.shape[2]), int(images.shape[3])
        return data_samples(samples, preprocessing=self.preprocessing, padded=padded, device=images.device)


def exportable_of(model: Any, *, name: str) -> Exportable:
    """The network of a detector as it is exported. InputError for a family that has no export."""
    kind = type(model).__name__
    if kind not in EXPORTED:
        raise InputError(
            f'{name}: {kind} has no export; the families of mmdet that have one are {", ".join(sorted(EXPORTED))}'
        )
    if kind in ('FasterRCNN', 'MaskRCNN'):
        return TwoStage(model, name=name)
    head = model.bbox_head
    known = {'YOLOXHead'} if kind == 'YOLOX' else set(DECODERS)
    if type(head).__name__ not in known or getattr(head.loss_cls, 'custom_cls_channels', False):
        raise InputError(
            f'{name}: its bbox_head is {type(head).__name__}, but an export needs {", ".join(sorted(known))}'
        )
    return (Yolox if kind == 'YOLOX' else OneStage)(model, name=name)


def takes_one_image(model: nn.Module) -> bool:
    """Whether a detector predicts one image at a time: mmcv's masked convolution (guided anchoring) takes no batch."""
    from mmcv.ops import MaskedConv2d

    return any(isinstance(one, MaskedConv2d) for one in model.modules())


def predicts_masks(model: nn.Module) -> bool:
    """Whether the objects that a detector predicts have masks."""
    if getattr(model, 'with_mask', False):
        return True
    # mmdet only checks for a `mask_head`, not for RTMDet-Ins's box head nor MaskFormer's panoptic one.
    heads = [getattr(model, name, None) for name in ('bbox_head', 'panoptic_head')]
    return any(isinstance(getattr(head, 'loss_mask', None), nn.Module) for head in heads)


def num_classes_of(model: nn.Module) -> int | None:
    """Number of classes of a detector's box head; None where it is not known."""
    owner: Any = getattr(model, 'roi_head', model)
    head = getattr(owner, 'bbox_head', None)
    if isinstance(head, nn.ModuleList):
        head = head[-1]
    found = getattr(head, 'num_classes', None)
    return found if isinstance(found, int) else None
