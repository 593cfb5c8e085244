"""Inheritance between detectors of the zoo, made small: the student computes what the teacher did."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtpd.cache
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd_train.stage import Stage
from mtpd_train.student import inherit, inheritance_summary, inheritance_table

BuildStage = Callable[..., Stage]
NUM_CLASSES = 5
BOTH = ('neck', 'head')
TINY = {'backbone.depth': 18, 'backbone.base_channels': 8, 'neck.in_channels': [8, 16, 32, 64]}
TWO_STAGE = TINY | {
    'neck.out_channels': 16,
    'rpn_head.in_channels': 16,
    'rpn_head.feat_channels': 16,
    'roi_head.bbox_roi_extractor.out_channels': 16,
    'roi_head.mask_roi_extractor.out_channels': 16,
}
BOX_HEAD = {'in_channels': 16, 'fc_out_channels': 32}
MASK_HEAD = {'in_channels': 16, 'conv_out_channels': 16}
STUDENT = TWO_STAGE | {'roi_head.bbox_head': BOX_HEAD, 'roi_head.mask_head': MASK_HEAD}


HTC = TWO_STAGE | {
    'roi_head.bbox_head': {str(stage): BOX_HEAD for stage in range(3)},
    'roi_head.mask_head': {str(stage): MASK_HEAD for stage in range(3)},
}
SEMANTIC = {
    'roi_head.semantic_roi_extractor.out_channels': 16,
    'roi_head.semantic_head': {'in_channels': 16, 'conv_out_channels': 16, 'num_convs': 1},
}
# HTC and DetectoRS are cascades whose names do not say so.
CASCADES = {
    # Its config has one mask head, of which mmdet makes three.
    'cascade-mask-rcnn_r50_fpn_1x_coco': HTC | {'roi_head.mask_head': MASK_HEAD},
    'htc-without-semantic_r50_fpn_1x_coco': HTC,
    'htc_r50_fpn_1x_coco': HTC | SEMANTIC,
    'detectors_htc-r50_1x_coco': HTC
    | SEMANTIC
    | {
        'backbone.depth': 50,
        'neck.in_channels': [32, 64, 128, 256],
        'neck.rfp_backbone.depth': 50,
        'neck.rfp_backbone.base_channels': 8,
        'neck.rfp_backbone.rfp_inplanes': 16,
        'neck.aspp_out_channels': 4,
    },
}


def build(name: str, changes: dict[str, Any], *, num_classes: int = NUM_CLASSES) -> nn.Module:
    """With random values in every tensor: a fresh layer's zeros would agree by chance."""
    config = load_config(name)
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    model = build_detector(config, num_classes=num_classes)
    for value in model.state_dict().values():
        value.copy_(torch.randint(0, 50, value.shape) if value.dtype == torch.int64 else torch.rand_like(value) - 0.5)
    return model.eval()


def decoded(head: Any, features: Tensor, rois: Tensor, number: int) -> Tensor:
    """Boxes (N, 4) that a box head regresses for a class; a class-agnostic head has one box for all."""
    _, deltas = head(features)
    if not head.reg_class_agnostic:
        deltas = deltas.view(len(rois), -1, 4)[:, number]
    boxes: Tensor = head.bbox_coder.decode(rois, deltas, max_shape=(400, 400))
    return boxes


@pytest.mark.parametrize('name', CASCADES)
def test_a_single_head_regresses_the_boxes_of_the_first_stage_for_every_class(name: str) -> None:
    torch.manual_seed(0)
    teacher, student = build(name, CASCADES[name]), build('mask-rcnn_r50_fpn_1x_coco', STUDENT)
    plan = inherit(student, teacher.state_dict(), BOTH)
    first: Any = teacher.get_submodule('roi_head.bbox_head.0')
    own: Any = student.get_submodule('roi_head.bbox_head')
    assert first.reg_class_agnostic
    assert not own.reg_class_agnostic
    features, corners = torch.rand(6, 16, 7, 7), torch.randint(0, 200, (6, 2))
    rois = torch.cat([corners, corners + 40], dim=1).float()
    with torch.no_grad():
        want = decoded(first, features, rois, 0)
        for number in range(NUM_CLASSES):
            assert torch.allclose(decoded(own, features, rois, number), want, atol=1e-4)
        assert torch.allclose(own(features)[0], first(features)[0], atol=1e-6)
        crops = torch.rand(2, 16, 14, 14)
        masks: Any = teacher.get_submodule('roi_head.mask_head.0')(crops)
        masks = masks[0] if isinstance(masks, list) else masks  # HTC's passes its features on to the next stage
        assert torch.allclose(student.get_submodule('roi_head.mask_head')(crops), masks, atol=1e-6)
    tiled = {entry.student: entry.detail for entry in plan if entry.outcome == 'tiled'}
    assert tiled == {
        'roi_head.bbox_head.fc_reg.weight': '4x32 for each of 5 classes',
        'roi_head.bbox_head.fc_reg.bias': '4 for each of 5 classes',
    }
    fresh = [entry for entry in plan if entry.teacher is None]
    assert not fresh


def test_a_class_agnostic_student_gets_the_same_rows() -> None:
    changes = copy.deepcopy(STUDENT)
    changes['roi_head.bbox_head'] = BOX_HEAD | {'reg_class_agnostic': True}
    teacher = build('cascade-mask-rcnn_r50_fpn_1x_coco', CASCADES['cascade-mask-rcnn_r50_fpn_1x_coco'])
    student = build('mask-rcnn_r50_fpn_1x_coco', changes)
    plan = inherit(student, teacher.state_dict(), BOTH)
    assert not [entry for entry in plan if entry.outcome == 'tiled']
    weight = student.get_parameter('roi_head.bbox_head.fc_reg.weight')
    assert torch.equal(weight, teacher.get_parameter('roi_head.bbox_head.0.fc_reg.weight'))


def test_other_classes_leave_the_rest_of_the_head() -> None:
    teacher = build('cascade-mask-rcnn_r50_fpn_1x_coco', CASCADES['cascade-mask-rcnn_r50_fpn_1x_coco'], num_classes=7)
    student = build('mask-rcnn_r50_fpn_1x_coco', STUDENT)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    plan = inherit(student, teacher.state_dict(), BOTH)
    skipped = {entry.student for entry in plan if entry.outcome == 'skipped' and entry.student}
    assert skipped == {
        'roi_head.bbox_head.fc_cls.weight', 'roi_head.bbox_head.fc_cls.bias',
        'roi_head.mask_head.conv_logits.weight', 'roi_head.mask_head.conv_logits.bias',
    }  # fmt: skip
    after = student.state_dict()
    assert all(torch.equal(before[name], after[name]) == (name in skipped or name[:8] == 'backbone') for name in after)


def test_a_swin_retinanet_gives_its_heads_but_not_its_laterals() -> None:
    """The neck sees 192, 384 and 768 channels in a Swin, 512, 1024 and 2048 in a ResNet-50."""
    head = {'neck.out_channels': 32, 'bbox_head.in_channels': 32, 'bbox_head.feat_channels': 32}
    swin = head | {'backbone.depths': [1, 1, 1, 1], 'backbone.init_cfg': None}
    teacher = build('retinanet_swin-t-p4-w7_fpn_1x_coco', swin)
    student = build('retinanet_r50_fpn_1x_coco', head)
    plan = inherit(student, teacher.state_dict(), BOTH)
    skipped = {entry.student: (entry.reason, entry.detail) for entry in plan if entry.outcome == 'skipped'}
    assert skipped == {
        'neck.lateral_convs.0.conv.weight': ('another shape', "the teacher's is 32x192x1x1"),
        'neck.lateral_convs.1.conv.weight': ('another shape', "the teacher's is 32x384x1x1"),
        'neck.lateral_convs.2.conv.weight': ('another shape', "the teacher's is 32x768x1x1"),
        'neck.fpn_convs.3.conv.weight': ('another shape', "the teacher's is 32x768x3x3"),
    }
    maps = [torch.rand(1, 32, side, side) for side in (16, 8, 4, 2, 1)]
    with torch.no_grad():
        for one, other in zip(teacher.bbox_head(maps), student.bbox_head(maps), strict=True):  # type: ignore[operator]
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_table_has_a_line_for_every_tensor() -> None:
    teacher = build('htc_r50_fpn_1x_coco', CASCADES['htc_r50_fpn_1x_coco'])
    student = build('mask-rcnn_r50_fpn_1x_coco', STUDENT)
    plan = inherit(student, teacher.state_dict(), BOTH)
    *rows, blank, summary, end = inheritance_table(plan).split('\n')
    assert (blank, end) == ('', '')
    assert summary == inheritance_summary(plan)
    outside = [name for name in teacher.state_dict() if not name.startswith('backbone.')]
    assert len(rows) == 1 + len(outside)
    for name in outside:
        assert sum(f' {name} ' in f'{row} ' for row in rows) >= 1
    _, tiled = (row.split(maxsplit=4) for row in rows if row.startswith('tiled'))
    assert tiled == [
        'tiled', 'roi_head.bbox_head.fc_reg.weight', '20x32', 'roi_head.bbox_head.0.fc_reg.weight',
        'class-agnostic boxes: 4x32 for each of 5 classes',
    ]  # fmt: skip


def test_a_run_reports_it(train: Callable[..., Any], write_stage: Any, caches: dict[int, Path], tmp_path: Path) -> None:
    """In the summary of the stage, whole in a dry run, and in the run's folder."""
    stage = write_stage(tmp_path / 'stage.yaml', cache=caches[16], distill=[], init={'inherit': ['head']})
    dry = train(stage, '--out', tmp_path / 'run', '--dry-run').output
    trained = train(stage, '--out', tmp_path / 'run').output
    table = (tmp_path / 'run' / 'stage1' / 'inheritance.txt').read_text()
    assert table in dry
    assert table not in trained
    rows, summary = table.splitlines()[1:-2], table.splitlines()[-1]
    assert summary in trained.splitlines()[0]
    teacher = mtpd.cache.open(caches[16]).teacher_weights()
    assert len(rows) == len(teacher)
    # 32 channels against 16: only the biases of the two last layers have the same shape.
    inherited = [row.split()[1] for row in rows if row.startswith('inherited')]
    assert inherited == ['bbox_head.retina_cls.bias', 'bbox_head.retina_reg.bias']
    assert sum('neck not asked for' in row for row in rows) == sum(name.startswith('neck.') for name in teacher)
    assert summary.startswith('inherited 2 tensors from the teacher, tiled 0, skipped')
