"""Detectors that mmdet 3.3 itself cannot run, or not as one detector among others."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtpd.detectors.detection import predict, predicts_masks, takes_one_image
from mtpd.detectors.models import build_detector, load_config
from mtpd.detectors.runtime import prepare


def test_ssd_predicts() -> None:
    prepare()
    from mmdet.models.dense_heads import SSDHead
    from mmengine.config import ConfigDict

    anchors = {'type': 'SSDAnchorGenerator', 'scale_major': False, 'min_sizes': [8, 16], 'max_sizes': [16, 32]}
    coder = {'type': 'DeltaXYWHBBoxCoder', 'target_means': [0.0] * 4, 'target_stds': [0.1] * 4}
    head: Any = SSDHead(
        num_classes=2,
        in_channels=(4, 4),
        anchor_generator=anchors | {'strides': [8, 16], 'ratios': [[2], [2]]},
        bbox_coder=coder,
        test_cfg=ConfigDict(nms_pre=9, min_bbox_size=0, score_thr=0.0, nms={'iou_threshold': 0.5}, max_per_img=5),
    )
    outputs = head((torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 2, 2)))
    meta = {'img_shape': (32, 32), 'scale_factor': (1.0, 1.0)}
    (found,) = head.predict_by_feat(*outputs, batch_img_metas=[meta])
    assert len(found.bboxes) == 5

    class WithLoss(SSDHead):  # type: ignore[misc]  # mmdet has no types
        """A subclass with the loss that SSD's head has not."""

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.loss_cls = nn.Identity()

    assert isinstance(WithLoss().loss_cls, nn.Identity)


@pytest.mark.parametrize('box', [(40.0, 2.0, 60.0, 9.0), (2.0, -30.0, 9.0, -20.0), (3.0, 4.0, 9.0, 8.0)])
def test_masks_of_boxes_outside_of_the_image(box: tuple[float, ...]) -> None:
    """On a CPU mmdet cuts out the region of a box; a GPU pastes into the whole image."""
    prepare()
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    masks, boxes = torch.ones(1, 1, 4, 4), torch.tensor([box])
    whole, _ = fcn_mask_head._do_paste_mask(masks, boxes, 16, 24, skip_empty=False)
    region, place = fcn_mask_head._do_paste_mask(masks, boxes, 16, 24, skip_empty=True)
    pasted = torch.zeros(1, 16, 24)
    pasted[(slice(None), *place)] = region
    assert torch.equal(pasted, whole)


def test_ddq_has_all_its_tensors_before_its_first_step() -> None:
    config = load_config('ddq-detr-4scale_r50_8xb2-12e_coco')
    config.model.encoder.num_layers = config.model.decoder.num_layers = 1
    config.model.backbone.update(depth=18, base_channels=8)
    config.model.neck.in_channels = [16, 32, 64]
    model: Any = build_detector(config, init_weights=False)
    names = [name for name in model.state_dict() if name.startswith('decoder.aux_reg_branches.')]
    assert names
    assert model.decoder.aux_reg_branches is model.bbox_head.aux_reg_branches


class OneImage(nn.Module):
    """A detector with guided anchoring's convolution, which counts the images that it is given."""

    def __init__(self) -> None:
        super().__init__()
        prepare()
        from mmcv.ops import MaskedConv2d

        self.layer = MaskedConv2d(1, 1, 1)
        self.counts: list[int] = []

    def predict(self, images: Tensor, data_samples: list[Any], *, rescale: bool) -> list[Any]:
        """A box with the image's first value as its score."""
        assert rescale
        self.counts.append(len(images))
        found = {'scores': images[:, 0, 0, 0], 'labels': torch.zeros(len(images)), 'bboxes': torch.ones(len(images), 4)}
        return [SimpleNamespace(pred_instances=SimpleNamespace(**found)) for _ in data_samples]


@pytest.mark.parametrize('name', ['GuidedAnchorHead', 'GARPNHead'])
def test_guided_anchoring_finds_nothing_where_it_keeps_no_location(name: str) -> None:
    prepare()
    from mmdet.models import dense_heads

    given = {
        'cls_scores': [torch.zeros(1, 2, 3)] * 2,
        'bbox_preds': [torch.zeros(4, 2, 3)] * 2,
        'mlvl_anchors': [torch.zeros(0, 4)] * 2,
        'mlvl_masks': [torch.zeros(6, dtype=torch.bool)] * 2,
    }
    found = getattr(dense_heads, name)._predict_by_feat_single(None, **given, img_meta={}, cfg=None, rescale=True)
    assert [found.bboxes.shape, found.scores.shape, found.labels.shape] == [(0, 4), (0,), (0,)]


def test_guided_anchoring_predicts_images_one_by_one() -> None:
    model = OneImage()
    assert takes_one_image(model)
    images = torch.arange(3.0).view(3, 1, 1, 1)
    samples: Any = [SimpleNamespace(image_id=number, data_sample=nn.Identity()) for number in range(3)]
    boxes, _ = predict(model, images, samples, category_ids=[7], with_masks=False)
    assert model.counts == [1, 1, 1]
    # Labels may be floats, as CrowdDet's are.
    assert [(one['image_id'], one['score'], one['category_id']) for one in boxes] == [(0, 0, 7), (1, 1, 7), (2, 2, 7)]


@pytest.mark.parametrize(
    ('heads', 'expected'),
    [
        ({}, False),
        ({'bbox_head': {}}, False),
        ({'with_mask': True}, True),
        ({'bbox_head': {'loss_mask': nn.Identity()}}, True),
        ({'panoptic_head': {'loss_mask': nn.Identity()}}, True),
    ],
)
def test_where_a_mask_branch_may_be(heads: dict[str, Any], expected: bool) -> None:
    model: Any = SimpleNamespace(
        **{name: SimpleNamespace(**one) if isinstance(one, dict) else one for name, one in heads.items()}
    )
    assert predicts_masks(model) is expected


def test_rtmdet_ins_predicts_masks() -> None:
    boxes, masks = (load_config(f'rtmdet{name}_tiny_8xb32-300e_coco') for name in ('', '-ins'))
    assert not predicts_masks(build_detector(boxes, init_weights=False))
    assert predicts_masks(build_detector(masks, init_weights=False))
