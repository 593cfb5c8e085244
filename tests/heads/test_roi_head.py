"""The restored head gives what mmdet's own gives, and lets no gradient through."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtpd.detectors.of_mmdet.detector_heads import roi_head_record
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd.geometry import Level, level_name
from mtpd.heads.roi_head import RoiHead, RoiHeadRecord, roi_levels

# The zoo's own heads, made small.
FASTER = 'faster-rcnn_r50_fpn_1x_coco'
MASK = 'mask-rcnn_r50_fpn_1x_coco'
CASCADE = 'cascade-rcnn_r50_fpn_1x_coco'
CASCADE_MASK = 'cascade-mask-rcnn_r50_fpn_1x_coco'
GROUP_NORM = 'mask-rcnn_r50_fpn_gn-all_2x_coco'
CHANNELS, SIZE = 32, 256
LEVELS = [Level(level_name(stride), stride, CHANNELS) for stride in (4, 8, 16, 32, 64)]


def small_detector(name: str, **of_head: Any) -> Any:
    config = load_config(name)
    width = 32 if name == GROUP_NORM else 8  # its norms have 32 groups
    config.model.backbone.base_channels = width
    config.model.neck.update(in_channels=[4 * width, 8 * width, 16 * width, 32 * width], out_channels=CHANNELS)
    config.model.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
    roi_head = config.model.roi_head
    roi_head.bbox_roi_extractor.out_channels = CHANNELS
    heads = roi_head.bbox_head if isinstance(roi_head.bbox_head, list) else [roi_head.bbox_head]
    for head in heads:
        head.update(in_channels=CHANNELS, fc_out_channels=24, num_classes=7, **of_head)
    if 'mask_roi_extractor' in roi_head:
        roi_head.mask_roi_extractor.out_channels = CHANNELS
        roi_head.mask_head.update(in_channels=CHANNELS, num_classes=7)
    torch.manual_seed(3)
    return build_detector(config, init_weights=False).eval()


def maps_and_rois() -> tuple[list[Tensor], Tensor]:
    """Two images; RoIs of every size, at the border, beyond it, and without an area."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, CHANNELS, *level.grid(SIZE, SIZE), generator=generator) for level in LEVELS]
    centres, sizes = SIZE * torch.rand(200, 2, generator=generator), SIZE * torch.rand(200, 2, generator=generator) ** 2
    numbers = torch.randint(0, 2, (200, 1), generator=generator)
    rois = torch.cat([numbers, centres - sizes, centres + sizes], dim=1)
    edges = torch.tensor([[0, 0, 0, 0, 0], [1, 5, 5, 5, 9], [1, 0, 0, SIZE, SIZE], [0, 10, 10, 122, 122]])
    return maps, torch.cat([rois, edges.float()])


@pytest.mark.parametrize('name', [FASTER, MASK, CASCADE, CASCADE_MASK, GROUP_NORM])
def test_it_gives_what_mmdets_head_gives(name: str) -> None:
    changes = {'conv_out_channels': 32} if name == GROUP_NORM else {}
    model = small_detector(name, **changes)
    record = roi_head_record(model, levels=LEVELS)
    assert record is not None
    is_cascade = 'cascade' in name
    assert record.class_agnostic == is_cascade
    assert (record.num_classes, record.num_groups) == (7, 32 if name == GROUP_NORM else 0)
    maps, rois = maps_and_rois()
    with torch.no_grad():
        stage = (0,) if is_cascade else ()
        wanted = model.roi_head._bbox_forward(*stage, tuple(maps), rois)
    found = RoiHead(record, model.state_dict())(maps[:4], rois)
    torch.testing.assert_close(found.logits, wanted['cls_score'], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.deltas, wanted['bbox_pred'], rtol=1e-5, atol=1e-5)
    assert found.deltas.shape == (len(rois), 4 if is_cascade else 28)
    # Every level is used, so that none can be mistaken for another.
    assert set(roi_levels(rois, num_levels=4, finest_scale=56).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    'name',
    [
        'retinanet_r50_fpn_1x_coco',
        'htc_r50_fpn_1x_coco',
        'dh-faster-rcnn_r50_fpn_1x_coco',
        'faster-rcnn_r50-caffe-c4_1x_coco',
    ],
)
def test_heads_that_work_otherwise_have_no_record(name: str) -> None:
    model = build_detector(load_config(name), init_weights=False)
    assert roi_head_record(model, levels=LEVELS) is None


def test_a_head_on_other_levels_has_no_record() -> None:
    assert roi_head_record(small_detector(FASTER), levels=LEVELS[1:]) is None


def test_sigmoid_classes_have_no_record() -> None:
    loss = {'type': 'CrossEntropyLoss', 'use_sigmoid': True}
    assert roi_head_record(small_detector(FASTER, loss_cls=loss), levels=LEVELS) is None


def test_no_rois(make_record: Callable[..., RoiHeadRecord], make_weights: Callable[..., dict[str, Tensor]]) -> None:
    record = make_record()
    maps = [torch.randn(1, 4, 64 // stride, 64 // stride) for stride in record.strides]
    found = RoiHead(record, make_weights(record))(maps, torch.zeros(0, 5))
    assert (found.logits.shape, found.deltas.shape) == ((0, 6), (0, 20))


def test_it_is_frozen_and_in_float32(
    make_record: Callable[..., RoiHeadRecord], make_weights: Callable[..., dict[str, Tensor]]
) -> None:
    record = make_record()
    head = RoiHead(record, {name: value.half() for name, value in make_weights(record).items()}).train()
    assert not head.training
    assert all(not parameter.requires_grad and parameter.dtype == torch.float32 for parameter in head.parameters())
    maps = [torch.randn(1, 4, 64 // stride, 64 // stride, requires_grad=True) for stride in record.strides]
    rois = torch.tensor([[0, 3.0, 4.0, 50.0, 60.0]], requires_grad=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = head([one.bfloat16() for one in maps], rois)
    assert found.logits.dtype == found.deltas.dtype == torch.float32
    assert not found.logits.requires_grad
    assert not found.deltas.requires_grad
