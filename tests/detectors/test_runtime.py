"""mmdet with the operators and repairs of mtpd: detectors learn, detect, and predict where mmdet alone fails."""

import logging
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtpd.detectors.of_mmdet import runtime
from mtpd.detectors.of_mmdet.detector import MmdetDetector, predicts_masks, takes_one_image
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.detectors.preprocessing import Normalisation, Preprocessing
from mtpd.detectors.results import coco_results
from mtpd.detectors.samples import Sample
from mtpd.geometry import Geometry

SIZE = (96, 128)


def sample() -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    size = {'img_shape': SIZE, 'ori_shape': SIZE, 'pad_shape': SIZE, 'batch_input_shape': SIZE}
    data = DetDataSample(metainfo={**size, 'scale_factor': (1.0, 1.0)})
    masks = np.zeros((2, *SIZE), dtype=np.uint8)
    masks[0, 10:60, 20:80] = 1
    masks[1, 50:90, 60:120] = 1
    data.gt_instances = InstanceData(
        bboxes=torch.tensor([[20.0, 10, 80, 60], [60, 50, 120, 90]]),
        labels=torch.tensor([0, 2]),
        masks=BitmapMasks(masks, *SIZE),
    )
    return data


def small_config(name: str, *, deformable: bool = False) -> Any:
    config = load_config(name)
    config.model.backbone.update(depth=18, base_channels=8, norm_eval=False)
    if deformable:
        # Residual branches that start at zero would keep gradients from the deformable layers.
        config.model.backbone.update(depth=50, dcn={'type': 'DCNv2'}, stage_with_dcn=(False, True, True, True))
        config.model.backbone.update(zero_init_residual=False)
    width = 4 if deformable else 1
    config.model.neck.update(in_channels=[8 * width, 16 * width, 32 * width, 64 * width])
    return config


@pytest.mark.parametrize(
    ('name', 'deformable'),
    [
        ('retinanet_r50_fpn_1x_coco', False),
        ('retinanet_r50_fpn_1x_coco', True),
        ('faster-rcnn_r50_fpn_1x_coco', False),
        ('mask-rcnn_r50_fpn_1x_coco', False),
    ],
)
def test_a_detector_learns_and_detects(name: str, deformable: bool) -> None:
    torch.manual_seed(0)
    model: Any = build_detector(small_config(name, deformable=deformable), num_classes=3)
    images = torch.randn(1, 3, *SIZE)
    with runtime.known_warnings_ignored():
        losses = model.train().loss(images, [sample()])
        total = torch.zeros(())
        for key, value in losses.items():
            if 'loss' in key:
                total = total + (value if isinstance(value, torch.Tensor) else sum(value))
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(total, parameters, materialize_grads=True)
        # Every class looks likely, so that NMS and the masks have something to do.
        head = model.bbox_head.retina_cls if hasattr(model, 'bbox_head') else model.roi_head.bbox_head.fc_cls
        torch.nn.init.normal_(head.bias, std=2)
        with torch.no_grad():
            found = model.eval().predict(images, [sample()])[0].pred_instances
    assert total.isfinite()
    assert sum(bool(gradient.any()) for gradient in gradients) > len(gradients) / 2
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert len(found) > 0
    assert found.bboxes.isfinite().all()
    assert found.labels.max() < 3
    if 'mask' in name:
        assert found.masks.shape == (len(found), *SIZE)


def test_logging_of_mmengine_is_silenced_and_the_rest_is_not() -> None:
    runtime.prepare()
    from mmengine.logging import MMLogger

    assert MMLogger.get_current_instance().level == logging.ERROR
    assert logging.getLogger().level != logging.ERROR


def test_only_known_warnings_are_ignored() -> None:
    with runtime.known_warnings_ignored():
        warnings.warn('`torch.cuda.amp.autocast(args...)` is deprecated.', FutureWarning, stacklevel=1)
        with pytest.raises(UserWarning, match='something new'):
            warnings.warn('something new', stacklevel=1)


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
    samples = [Sample(torch.zeros(3, 1, 1), number, 'plain', (1, 1)) for number in range(3)]
    detector = MmdetDetector('', model, Preprocessing(Geometry((1, 1)), Normalisation()))
    boxes, _ = coco_results(detector.predict(images, samples), [0, 1, 2], category_ids=[7])
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
