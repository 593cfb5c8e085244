"""Heads of mmdet detectors: what they are built of, and predictions of a student's RoI head in training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.detector import CapturedRois
from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.errors import InputError
from mtpd.geometry import Level
from mtpd.heads.roi_head import RoiHeadRecord, RoiPredictions
from mtpd.heads.rois import BoxCoder


def base_anchors(model: nn.Module) -> dict[int, Tensor]:
    """Stride of each level that has anchors -> the anchors (A, 4) of its first cell, absolute xyxy in px.

    Those of the cell in column x and row y are x strides to the right and y strides below. They belong to a one-stage
    detector's head, or to a two-stage one's region proposal network.
    """
    prepare()
    from mmdet.models.task_modules.prior_generators import AnchorGenerator

    heads: list[Any] = [getattr(model, name, None) for name in ('bbox_head', 'rpn_head')]
    generators = [getattr(head, 'prior_generator', None) for head in heads]
    generator: Any = next((one for one in generators if isinstance(one, AnchorGenerator)), None)
    if generator is None:
        raise InputError(
            f'fine_grained needs the anchors of the student, and {type(model).__name__} has none; '
            'use tar_feature or fgd, which need only boxes'
        )
    if any(width != height for width, height in generator.strides):
        raise InputError(f'the anchors of {type(model).__name__} have different strides along x and y')
    pairs = zip(generator.strides, generator.base_anchors, strict=True)
    return {int(stride): torch.as_tensor(anchors).float() for (stride, _), anchors in pairs}


def roi_head_record(model: nn.Module, *, levels: Sequence[Level]) -> RoiHeadRecord | None:
    """The record of a RoI head, of a cascade its first stage; None where `RoiHead` could not run it on `levels`."""
    head, extractor = _box_head(model)
    if head is None or not _is_supported(head, extractor):
        return None
    strides = list(extractor.featmap_strides)
    if [level.stride for level in levels[: len(strides)]] != strides:
        return None
    roi_layer, coder = extractor.roi_layers[0], _coder(head)
    return RoiHeadRecord(
        prefix='roi_head.bbox_head.0.' if _is_cascade(model) else 'roi_head.bbox_head.',
        strides=tuple(map(int, strides)),
        finest_scale=float(extractor.finest_scale),
        output_size=int(roi_layer.output_size[0]),
        sampling_ratio=max(0, int(roi_layer.sampling_ratio)),
        aligned=bool(roi_layer.aligned),
        in_channels=int(head.in_channels),
        num_convs=int(head.num_shared_convs),
        conv_channels=int(head.conv_out_channels),
        num_groups=int(head.norm_cfg['num_groups']) if head.norm_cfg and head.num_shared_convs else 0,
        num_fcs=int(head.num_shared_fcs),
        fc_channels=int(head.fc_out_channels),
        num_classes=int(head.num_classes),
        class_agnostic=bool(head.reg_class_agnostic),
        means=coder.means,
        stds=coder.stds,
    )


def student_box_coder(model: nn.Module) -> BoxCoder:
    """The box coder of a student. InputError for one whose RoI head cannot learn from a teacher's."""
    name = type(model).__name__
    head, _ = _box_head(model)
    if head is None:
        if hasattr(model, 'roi_head'):
            raise InputError(
                f'tar_head: the RoI head of the student {name} is a {type(model.roi_head).__name__}, whose box head '
                'does not work as a StandardRoIHead; choose Faster R-CNN or Mask R-CNN'
            )
        raise InputError(f'tar_head: the student {name} has no RoI head; choose a two-stage student, or another loss')
    if _is_cascade(model):
        raise InputError(f'tar_head: the student {name} has a cascade of box heads, expected one; choose Faster R-CNN')
    problem = _unsupported_outputs(head)
    if problem is not None:
        raise InputError(f'tar_head: the box head of the student {name} {problem}; choose Faster R-CNN or Mask R-CNN')
    return _coder(head)


def _box_head(model: nn.Module) -> tuple[Any, Any]:
    """The box head and RoI extractor of a detector, or the first ones of a cascade; None, None where it has none."""
    prepare()
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    roi_head: Any = getattr(model, 'roi_head', None)
    forward = getattr(type(roi_head), '_bbox_forward', None)
    # Subclasses that add to the forward pass are other heads, even if their layers have the same names.
    if forward is StandardRoIHead._bbox_forward and not roi_head.with_shared_head:
        return roi_head.bbox_head, roi_head.bbox_roi_extractor
    if forward is CascadeRoIHead._bbox_forward:
        return roi_head.bbox_head[0], roi_head.bbox_roi_extractor[0]
    return None, None


def _is_cascade(model: Any) -> bool:
    return isinstance(model.roi_head.bbox_head, nn.ModuleList)


def _is_supported(head: Any, extractor: Any) -> bool:
    """Whether `RoiHead` can do what the head does."""
    from mmcv.ops import RoIAlign
    from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    if type(head).forward is not ConvFCBBoxHead.forward or head.with_avg_pool:
        return False
    if any((head.num_cls_convs, head.num_cls_fcs, head.num_reg_convs, head.num_reg_fcs)):
        return False
    norm = head.norm_cfg or {}
    if head.num_shared_convs and (head.conv_cfg or norm.get('type', 'GN') != 'GN' or norm.get('eps', 1e-5) != 1e-5):
        return False
    layer = extractor.roi_layers[0]
    if type(extractor) is not SingleRoIExtractor or type(layer) is not RoIAlign or layer.pool_mode != 'avg':
        return False
    height, width = layer.output_size
    return height == width and (height, width) == tuple(head.roi_feat_size) and _unsupported_outputs(head) is None


def _unsupported_outputs(head: Any) -> str | None:
    """What about a head's outputs is not a softmax over classes and background, and deltas of boxes."""
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

    coder: Any = head.bbox_coder
    if type(coder) is not DeltaXYWHBBoxCoder or coder.add_ctr_clamp or not head.with_reg or not head.with_cls:
        return 'does not encode boxes as DeltaXYWHBBoxCoder does'
    if type(head.fc_cls) is not nn.Linear or type(head.fc_reg) is not nn.Linear:
        return 'does not end in linear layers'
    if head.custom_cls_channels or getattr(head.loss_cls, 'use_sigmoid', False):
        return 'has no softmax over its classes'
    return None


def _coder(head: Any) -> BoxCoder:
    means, stds = (tuple(map(float, one)) for one in (head.bbox_coder.means, head.bbox_coder.stds))
    return BoxCoder(means, stds)  # type: ignore[arg-type]  # four each


@contextmanager
def captured_rois(model: nn.Module) -> Iterator[CapturedRois]:
    """Collects the sampled proposals and the outputs of the box head of a detector that `student_box_coder` accepts."""
    captured = CapturedRois()
    roi_head: Any = model.roi_head

    def keep_rois(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        captured.rois.append(inputs[1])

    def keep_predictions(module: nn.Module, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        captured.predictions.append(RoiPredictions(*output))

    with (
        roi_head.bbox_roi_extractor.register_forward_hook(keep_rois),
        roi_head.bbox_head.register_forward_hook(keep_predictions),
    ):
        yield captured
