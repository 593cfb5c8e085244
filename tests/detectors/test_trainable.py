"""Students: which detectors can be, what is unfrozen, and blocks that are computed again."""

import copy
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mtpd.detectors.backbones import checkpoint_activations
from mtpd.detectors.of_mmdet.detector import MmdetDetector
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd.detectors.of_mmdet.trainable import require_inputs, require_trainable, unfreeze
from mtpd.detectors.of_mmdet.zoo import find_model
from mtpd.detectors.preprocessing import Normalisation, Preprocessing
from mtpd.errors import InputError, UnavailableError
from mtpd.geometry import Geometry, Level
from mtpd_train.student import frozen_parameters


def as_detector(model: nn.Module) -> MmdetDetector:
    return MmdetDetector('it', model, Preprocessing(Geometry((1, 1)), Normalisation()))


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
    frozen = frozen_parameters(as_detector(build_detector(config)), loaded=())
    assert frozen
    assert all(one.startswith('backbone.') for one in frozen)
    assert not frozen_parameters(as_detector(build_detector(config)), loaded={'backbone'})
    assert unfreeze(config.model, loaded=(), kept=())['backbone.frozen_stages'] == none
    model = build_detector(config)
    assert not frozen_parameters(as_detector(model), loaded=())
    assert all(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


REPOSITORY = Path(__file__).resolve().parents[2]


def student(name: str, **backbone: Any) -> Any:
    config = load_config(str(REPOSITORY / 'configs' / name))
    config.merge_from_dict({f'model.backbone.{key}': value for key, value in backbone.items()})
    torch.manual_seed(0)
    return build_detector(config, num_classes=3).train()


def trained(model: Any, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Gradients and buffers after a backward pass over the neck's maps, and the bytes that were kept for it."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(1)
    with saved_tensors_hooks(keep, lambda one: one):
        loss = sum(one.square().mean() for one in model.extract_feat(images))
    held = sum(kept.values())
    torch.autograd.backward(loss)
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return gradients, dict(model.named_buffers()), held


@pytest.mark.parametrize(
    ('name', 'backbone', 'num_blocks', 'share'),
    [
        ('demo/retinanet_tiny.py', {'norm_eval': False, 'frozen_stages': -1}, 8, 0.8),
        ('demo/retinanet_tiny.py', {'norm_eval': True, 'frozen_stages': 2}, 8, 0.9),
        ('students/retinanet_mobilenet_v2.py', {}, 17, 0.6),
        # Its stages drop paths at random.
        ('teachers/retinanet_swin_t_fpn_3x_coco.py', {'depths': (1, 1, 2, 1), 'drop_path_rate': 0.5}, 4, 0.6),
    ],
)
def test_gradients_and_statistics_are_the_same(
    name: str, backbone: dict[str, Any], num_blocks: int, share: float
) -> None:
    plain, frugal = (student(name, **backbone) for _ in range(2))
    assert checkpoint_activations(frugal.backbone) == num_blocks
    assert list(frugal.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 96, 64)
    (gradients, buffers, held), (found, found_buffers, found_held) = (trained(one, images) for one in (plain, frugal))
    with torch.no_grad():
        for one in (plain, frugal):
            one.extract_feat(2 * images)  # The statistics of a further step enter as before.
    assert gradients.keys() == found.keys()
    assert gradients
    for key, wanted in gradients.items():
        assert torch.equal(found[key], wanted), key
    for key, wanted in buffers.items():
        assert torch.equal(found_buffers[key], wanted), key
    assert found_held < share * held
    plain.eval()
    frugal.eval()
    for one, other in zip(plain.extract_feat(images), frugal.extract_feat(images), strict=True):
        assert torch.equal(one, other)


def test_a_copy_computes_with_its_own_blocks() -> None:
    model = student('demo/retinanet_tiny.py')
    checkpoint_activations(model.backbone)
    images = torch.randn(1, 3, 64, 64)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
        assert all(float(one.abs().sum()) > 0 for one in other.extract_feat(images))


def test_a_detector_without_blocks() -> None:
    with pytest.raises(
        InputError, match=r'optim\.activation_checkpointing needs a backbone built from sequential blocks'
    ):
        checkpoint_activations(nn.Sequential(nn.Conv2d(3, 3, 1)))
