"""Where maps are taken: the right tensors of the neck, and the way from them to what the heads get."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtpd.detectors.features import (
    BEFORE_NORM,
    NECK,
    captured_maps,
    choice_of,
    has_output_norms,
    neck_features,
    neck_outputs,
    probe_levels,
    student_hook_point,
    teacher_hook_point,
)
from mtpd.detectors.models import build_detector, load_config
from mtpd.errors import InputError

RESNET = {'backbone.depth': 18, 'backbone.base_channels': 8, 'neck.in_channels': [8, 16, 32, 64]}
NORMS = {'neck.norm_cfg.num_groups': 4, 'neck.out_channels': 16}
ACTIVATED = {
    'neck.norm_cfg': {'type': 'GN', 'num_groups': 4},
    'neck.act_cfg': {'type': 'ReLU'},
    'neck.out_channels': 16,
}
REPPOINTS = 'reppoints-moment_r50_fpn-gn_head-gn_1x_coco'
RETINANET = 'retinanet_r50_fpn_1x_coco'


def build(name: str, changes: dict[str, Any]) -> nn.Module:
    config = load_config(name)
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    torch.manual_seed(0)
    model = build_detector(config).eval()
    for parameter in model.parameters():  # fresh norms have weights of 1 and biases of 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope='module')
def reppoints() -> nn.Module:
    return build(REPPOINTS, RESNET | NORMS)


@pytest.fixture(scope='module')
def retinanet() -> nn.Module:
    return build(RETINANET, RESNET | {'neck.out_channels': 16})


def laterals(model: Any, images: Tensor) -> list[Tensor]:
    """The top-down path of an FPN, written out."""
    neck = model.neck
    inputs = model.backbone(images)[neck.start_level :]
    values = [convolution(one) for convolution, one in zip(neck.lateral_convs, inputs, strict=True)]
    for deeper in range(len(values) - 1, 0, -1):
        size = values[deeper - 1].shape[-2:]
        values[deeper - 1] = values[deeper - 1] + nn.functional.interpolate(values[deeper], size=size)
    return values


@torch.no_grad()
def test_maps_before_the_norms(reppoints: Any) -> None:
    images = torch.randn(2, 3, 64, 96)
    maps = neck_features(reppoints, images, hook_point=BEFORE_NORM)
    neck = reppoints.neck
    for convolution, lateral, got in zip(neck.fpn_convs[:3], laterals(reppoints, images), maps[:3], strict=True):
        torch.testing.assert_close(got, convolution.conv(lateral))
    p6 = neck.fpn_convs[3].conv(reppoints.backbone(images)[-1])
    torch.testing.assert_close(maps[3], p6)
    torch.testing.assert_close(maps[4], neck.fpn_convs[4].conv(neck.fpn_convs[3].norm(p6)))
    assert len(maps) == 5
    behind = neck_features(reppoints, images)
    for before, after, put_behind in zip(
        maps, behind, neck_outputs(reppoints, maps, hook_point=BEFORE_NORM), strict=True
    ):
        assert torch.equal(after, put_behind)
        assert not torch.allclose(before, after, atol=0.1)
    assert [one.name for one in probe_levels(reppoints)] == ['p3', 'p4', 'p5', 'p6', 'p7']


@torch.no_grad()
def test_a_pooled_level_is_taken_behind_the_norms_and_activations_come_back() -> None:
    model: Any = build('faster-rcnn_r50_fpn_1x_coco', RESNET | ACTIVATED)
    images = torch.randn(1, 3, 64, 64)
    maps = neck_features(model, images, hook_point=BEFORE_NORM)
    behind = neck_features(model, images)
    assert len(model.neck.fpn_convs) == 4
    assert torch.equal(maps[4], behind[4])
    assert (behind[0] >= 0).all()
    assert (maps[0] < 0).any()
    outputs = neck_outputs(model, maps, hook_point=BEFORE_NORM)
    assert all(torch.equal(one, other) for one, other in zip(outputs, behind, strict=True))


@pytest.mark.parametrize('hook_point', [NECK, BEFORE_NORM])
def test_captured_maps(hook_point: str, reppoints: Any) -> None:
    images = torch.randn(1, 3, 64, 96)
    with captured_maps(reppoints, hook_point=hook_point) as maps:
        reppoints.extract_feat(images)
    want = neck_features(reppoints, images, hook_point=hook_point)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(maps, want, strict=True))
    with captured_maps(reppoints, hook_point=hook_point) as twice:
        reppoints.extract_feat(images + 1)
        reppoints.extract_feat(images)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(twice, want, strict=True))
    before = list(maps)
    reppoints.extract_feat(images + 1)
    assert all(mine is kept for mine, kept in zip(maps, before, strict=True))


def test_a_detector_without_a_neck() -> None:
    with pytest.raises(InputError, match='Linear has no neck'), captured_maps(nn.Linear(1, 1)):
        pass


def test_the_hook_point_of_a_teacher(reppoints: nn.Module, retinanet: nn.Module) -> None:
    assert teacher_hook_point(reppoints, 'auto', name='t') == BEFORE_NORM
    assert teacher_hook_point(reppoints, 'before-norm', name='t') == BEFORE_NORM
    assert teacher_hook_point(reppoints, 'neck', name='t') == NECK
    assert teacher_hook_point(retinanet, 'auto', name='t') == NECK
    assert teacher_hook_point(retinanet, 'neck', name='t') == NECK
    with pytest.raises(InputError, match='hook before-norm: the neck of t has no norms'):
        teacher_hook_point(retinanet, 'before-norm', name='t')
    assert choice_of(BEFORE_NORM) == 'before-norm'
    assert choice_of(NECK) == 'neck'


def test_the_hook_point_of_a_student(reppoints: nn.Module, retinanet: nn.Module) -> None:
    assert student_hook_point(reppoints, BEFORE_NORM) == BEFORE_NORM
    assert student_hook_point(reppoints, NECK) == NECK
    assert student_hook_point(retinanet, BEFORE_NORM) == NECK
    assert student_hook_point(retinanet, NECK) == NECK


def test_pyramids_that_go_on_from_their_convolutions_are_taken_behind_the_neck() -> None:
    norms = {'type': 'GN', 'num_groups': 4}
    pafpn = {'_delete_': True, 'type': 'PAFPN', 'in_channels': [8, 16, 32, 64], 'out_channels': 16, 'num_outs': 5}
    model = build('faster-rcnn_r50_fpn_1x_coco', RESNET | {'neck': pafpn | {'norm_cfg': norms}})
    assert not has_output_norms(model)
    assert not has_output_norms(nn.Linear(1, 1))
