"""What is frozen in a config: where weights are random it is not, however the backbone spells it."""

from typing import Any

import pytest
from torch import nn

from mtpd.detectors.frozen import frozen_parameters, unfreeze
from mtpd.detectors.models import build_detector, load_config

STAGES, NORMS, SCALES = 'backbone.frozen_stages', 'backbone.norm_eval', 'backbone.norm_cfg.requires_grad'


@pytest.mark.parametrize(
    ('name', 'changes'),
    [
        ('retinanet_r50_fpn_1x_coco', {STAGES: -1, NORMS: False}),
        ('faster-rcnn_r50-caffe_fpn_1x_coco', {STAGES: -1, NORMS: False, SCALES: True}),
        # norm_eval is HRNet's and Darknet's own default.
        ('fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco', {NORMS: False}),
        ('yolov3_d53_8xb8-ms-416-273e_coco', {NORMS: False}),
        # Group norms have no statistics.
        ('mask-rcnn_r50_fpn_gn-all_2x_coco', {STAGES: -1}),
        # It counts from 0, and freezes nothing.
        ('retinanet_effb3_fpn_8xb4-crop896-1x_coco', {}),
        ('mask-rcnn_swin-t-p4-w7_fpn_1x_coco', {}),
        ('rtmdet_tiny_8xb32-300e_coco', {}),
    ],
)
def test_spellings_of_the_zoo(name: str, changes: dict[str, Any]) -> None:
    config = load_config(name)
    assert unfreeze(config.model, loaded=(), kept=()) == changes
    assert not unfreeze(config.model, loaded=(), kept=())
    assert not unfreeze(load_config(name).model, loaded={'backbone', 'neck', 'head'}, kept=())


def test_parts_with_loaded_weights_stay_as_they_are() -> None:
    config = load_config('detectors_cascade-rcnn_r50_1x_coco')
    second = {'neck.rfp_backbone.frozen_stages': -1, 'neck.rfp_backbone.norm_eval': False}
    assert unfreeze(config.model, loaded={'backbone'}, kept=()) == second
    config = load_config('faster-rcnn_r50-caffe-c4_1x_coco')
    changes = unfreeze(config.model, loaded={'backbone'}, kept={'roi_head.shared_head.norm_eval'})
    assert changes == {'roi_head.shared_head.norm_cfg.requires_grad': True}


@pytest.mark.parametrize(('name', 'none'), [('ResNet', -1), ('EfficientNet', 0)])
def test_every_parameter_is_trained_afterwards(name: str, none: int) -> None:
    config = load_config('faster-rcnn_r50-caffe_fpn_1x_coco')
    if name == 'ResNet':
        config.model.backbone.update(depth=18, base_channels=8)
        config.model.neck.in_channels = [8, 16, 32, 64]
    else:
        config.model.backbone = {'type': name, 'arch': 'b0', 'out_indices': (2, 3, 4, 5), 'frozen_stages': 2}
        config.model.neck.in_channels = [24, 40, 112, 320]
    frozen = frozen_parameters(build_detector(config), loaded=())
    assert frozen
    assert all(one.startswith('backbone.') for one in frozen)
    assert not frozen_parameters(build_detector(config), loaded={'backbone'})
    assert unfreeze(config.model, loaded=(), kept=())['backbone.frozen_stages'] == none
    model = build_detector(config)
    assert not frozen_parameters(model, loaded=())
    assert all(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))
