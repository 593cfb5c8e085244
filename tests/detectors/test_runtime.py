"""mmdet at work on the stand-in operators: whole detectors, losses to gradients, images to boxes."""

import logging
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from mtpd.detectors import runtime
from mtpd.detectors.models import build_detector, load_config

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
