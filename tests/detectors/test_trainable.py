"""Which detectors of the zoo can be students, and that what a refusal names is one."""

import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mtpd.detectors.models import load_config
from mtpd.detectors.trainable import require_inputs, require_trainable
from mtpd.detectors.zoo import find_model
from mtpd.errors import InputError, UnavailableError
from mtpd.geometry import Level


@pytest.mark.parametrize(
    ('name', 'needs'),
    [
        ('ld_r18-gflv1-r101_fpn_1x_coco', 'teacher_ckpt'),
        ('lad_r50-paa-r101_fpn_2xb8_coco_1x', 'teacher_backbone'),
        ('htc_r50_fpn_1x_coco', 'semantic_head'),
        ('scnet_r50_fpn_1x_coco', 'semantic_head'),
        ('panoptic-fpn_r50_fpn_1x_coco', 'semantic_head'),
        ('grounding_dino_r50_scratch_8xb2_1x_coco', 'text'),
        ('centernet_r18_8xb16-crop512-140e_coco', 'CenterNetHead'),
        ('cornernet_hourglass104_8xb6-210e-mstest_coco', 'CornerHead'),
        ('boxinst_r50_fpn_ms-90k_coco', 'colours'),
        ('soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco', 'FasterRCNN'),
        ('fast-rcnn_r50_fpn_1x_coco', 'proposals'),
        ('mask2former_r50_8xb2-8e_youtubevis2019', 'video'),
        ('reid_r50_8xb32-6e_mot15train80_test-mot15val20', 'video'),
        ('d2_retinanet_r50-caffe_fpn_ms-90k_coco', 'another library'),
    ],
)
def test_refusals_name_what_is_needed_and_a_detector_without(name: str, needs: str) -> None:
    with pytest.raises(InputError, match=needs) as caught:
        require_trainable(load_config(name))
    named = [word for word in re.split(r'[ ,;]+', str(caught.value)) if word.endswith(('_coco', '_instance'))]
    assert named
    for other in named:
        assert find_model(other) is not None
        if not other.startswith('paa'):  # which needs a package, as its own refusal says
            require_trainable(load_config(other))


@pytest.mark.parametrize('kind', ['mmdet.CenterNetHead', 'class'])
def test_a_type_is_known_however_it_is_written(kind: str) -> None:
    config = load_config('retinanet_r50_fpn_1x_coco')
    require_trainable(config)
    config.model.bbox_head.type = type('CenterNetHead', (), {}) if kind == 'class' else kind
    with pytest.raises(InputError, match='CenterNetHead'):
        require_trainable(config)


def test_a_package_that_a_loss_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config('paa_r50_fpn_1x_coco')
    monkeypatch.setitem(sys.modules, 'sklearn', ModuleType('sklearn'))
    sys.modules['sklearn'].__spec__ = ModuleSpec('sklearn', None)
    require_trainable(config)
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    with pytest.raises(UnavailableError, match=r'pip install scikit-learn$'):
        require_trainable(config)


def detr(**changes: Any) -> Any:
    """As much of a detector with queries as is asked."""
    head = SimpleNamespace(num_classes=2, loss_cls=SimpleNamespace(use_sigmoid=True), test_cfg={'max_per_img': 100})
    return SimpleNamespace(**{'num_queries': 50, 'as_two_stage': True, 'bbox_head': head} | changes)


def test_queries_have_cells_to_come_from() -> None:
    levels = (Level('p4', 16, 8), Level('p5', 32, 8))
    require_inputs(detr(), levels=levels, padded=[(96, 128), (128, 128)])
    # 4 x 6 and 2 x 3 cells.
    with pytest.raises(InputError, match=r'50 queries .* 30 of them; set `model: {num_queries: 30}`'):
        require_inputs(detr(), levels=levels, padded=[(64, 96), (128, 128)])
    require_inputs(detr(as_two_stage=False), levels=levels, padded=[(64, 96)])
    require_inputs(SimpleNamespace(), levels=levels, padded=[(64, 96)])


def test_no_more_detections_are_kept_than_made() -> None:
    head = detr().bbox_head
    for changes, num_made in [({'num_classes': 1}, 50), ({'loss_cls': SimpleNamespace(use_sigmoid=False)}, 50)]:
        model = detr(bbox_head=SimpleNamespace(**vars(head) | changes))
        with pytest.raises(InputError, match=f'keeps 100; set `model: {{test_cfg.max_per_img: {num_made}}}`'):
            require_inputs(model, levels=(), padded=[])


def test_a_head_that_wants_images_of_one_size() -> None:
    model = SimpleNamespace(bbox_head=type('YOLACTHead', (), {})())
    require_inputs(model, levels=(), padded=[(64, 96), (64, 96)])
    with pytest.raises(InputError, match=r'64 x 96 px, 96 x 96 px.*keep_ratio: false'):
        require_inputs(model, levels=(), padded=[(96, 96), (64, 96)])
