"""Feature maps that detectors hand to their heads: where they are taken, and their levels."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtpd.detectors.hook_points import BEFORE_NORM, NECK_MAPS, choice_of
from mtpd.detectors.levels import levels_of
from mtpd.detectors.of_mmdet.detector import MmdetDetector
from mtpd.detectors.of_mmdet.features import (
    captured_maps,
    has_output_norms,
    neck_features,
    neck_outputs,
    probe_levels,
    teacher_hook_point,
)
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd.detectors.preprocessing import Normalisation, Preprocessing
from mtpd.errors import InputError
from mtpd.geometry import Geometry, Level

# mmdet's YOLOX backbone spells autocast the old way.
pytestmark = pytest.mark.filterwarnings('ignore:`torch.cuda.amp.autocast:FutureWarning')


def hook_point_of(model: nn.Module, teacher: str) -> str:
    return MmdetDetector('it', model, Preprocessing(Geometry((1, 1)), Normalisation())).hook_point(teacher)


@pytest.fixture(scope='module')
def detector() -> nn.Module:
    return build_detector(load_config('yolox_nano_8xb8-300e_coco'), init_weights=False)


class Fixed(nn.Module):
    """A detector with the same features for every image."""

    def __init__(self, features: object) -> None:
        super().__init__()
        self.features = features

    def extract_feat(self, images: Tensor) -> object:
        del images
        return self.features


def fake(*sizes: tuple[int, int, int]) -> Any:
    """A network that gives maps of these (channels, rows, columns) for any input."""
    return lambda images: [torch.zeros(len(images), *size) for size in sizes]


def test_levels_of_a_detector(detector: nn.Module) -> None:
    expected = (Level('p3', 8, 64), Level('p4', 16, 64), Level('p5', 32, 64))
    assert probe_levels(detector, input_size=(96, 160)) == expected
    assert probe_levels(detector) == expected


@pytest.mark.parametrize('training', [True, False])
def test_probing_leaves_the_detector_as_it_was(detector: nn.Module, training: bool) -> None:
    detector.train(training)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    probe_levels(detector, input_size=(64, 64))
    assert detector.training is training
    after = detector.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_features_are_those_that_the_heads_get(detector: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    detector.eval()
    images = torch.randn(2, 3, 64, 96)
    seen: list[Tensor] = []

    head: Any = detector.bbox_head
    run: Any = detector
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(head, 'forward', seen.extend)
        run(images, mode='tensor')
        maps = neck_features(detector, images)
    assert len(maps) == len(seen) == 3
    assert all(torch.equal(a, b) for a, b in zip(maps, seen, strict=True))


def test_strides_of_ceiled_maps_and_of_ssd() -> None:
    """Only the sizes of maps are known, so the smallest power of two that explains a size is its stride."""
    ssd300 = [(512, 38, 38), (1024, 19, 19), (512, 10, 10), (256, 5, 5), (256, 3, 3), (256, 1, 1)]
    levels = levels_of(fake(*ssd300), input_size=(300, 300))
    assert [level.stride for level in levels] == [8, 16, 32, 64, 128, 512]
    assert levels_of(fake((4, 13, 19)), input_size=(200, 301)) == (Level('p4', 16, 4),)
    assert levels_of(fake((4, 10, 20)), input_size=(100, 200)) == (Level('s10', 10, 4),)


def test_strides_of_maps_that_are_rounded_down() -> None:
    levels = levels_of(fake((4, 64, 80), (4, 16, 20), (4, 2, 2)), input_size=(256, 320))
    assert [level.stride for level in levels] == [4, 16, 128]


class EvenOnly(nn.Module):
    """A pyramid that adds its two levels up, which fits inputs of multiples of 128 px alone."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        self.divisor = nn.Parameter(torch.tensor(float(divisor)))

    def extract_feat(self, images: Tensor) -> list[Tensor]:
        if images.shape[2] % int(self.divisor) or images.shape[3] % int(self.divisor):
            raise RuntimeError('The size of tensor a (5)\nmust match the size of tensor b (6)')
        return [images[:, :, ::8, ::8]]


def test_a_detector_that_takes_few_sizes_says_which() -> None:
    assert probe_levels(EvenOnly(128), input_size=(256, 384)) == (Level('p3', 8, 3),)
    with pytest.raises(InputError, match=r'256 x 320 px .*pad_divisor to 128') as caught:
        probe_levels(EvenOnly(128), input_size=(256, 320))
    assert '\n' not in str(caught.value)
    with pytest.raises(InputError, match='another input size'):
        probe_levels(EvenOnly(100), input_size=(256, 320))


def test_every_level_predicts_the_size_of_its_map(detector: nn.Module) -> None:
    levels = probe_levels(detector, input_size=(64, 64))
    maps = neck_features(detector.eval(), torch.zeros(1, 3, 160, 224))
    assert [level.grid(160, 224) for level in levels] == [tuple(values.shape[2:]) for values in maps]


def test_maps_of_one_stride_get_different_names() -> None:
    levels = levels_of(fake((4, 16, 16), (4, 16, 16), (8, 8, 8)), input_size=(64, 64))
    assert [level.name for level in levels] == ['p2', 'p2_2', 'p3']


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [([], 'returns no feature maps'), ([(4, 16, 8)], 'has no single stride'), ([(4, 0, 0)], 'has no single stride')],
)
def test_maps_without_a_stride_are_refused(sizes: list[tuple[int, int, int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        levels_of(fake(*sizes), input_size=(64, 64))


def test_what_is_no_map_is_refused() -> None:
    images = torch.zeros(1, 3, 8, 8)
    with pytest.raises(InputError, match=r'has the shape \(1, 3\)'):
        levels_of(lambda given: neck_features(Fixed([torch.zeros(1, 3)]), given))
    nested = Fixed([[torch.zeros(1, 2, 4, 4)], (torch.zeros(1, 2, 2, 2),)])
    assert [tuple(values.shape) for values in neck_features(nested, images)] == [(1, 2, 4, 4), (1, 2, 2, 2)]
    with pytest.raises(InputError, match='returns a dict as features'):
        neck_features(Fixed({'a': 1}), images)
    with pytest.raises(InputError, match='no extract_feat'):
        neck_features(nn.Linear(1, 1), images)


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


@pytest.mark.parametrize('hook_point', [NECK_MAPS, BEFORE_NORM])
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
    assert teacher_hook_point(reppoints, 'neck', name='t') == NECK_MAPS
    assert teacher_hook_point(retinanet, 'auto', name='t') == NECK_MAPS
    assert teacher_hook_point(retinanet, 'neck', name='t') == NECK_MAPS
    with pytest.raises(InputError, match='hook before-norm: the neck of t has no norms'):
        teacher_hook_point(retinanet, 'before-norm', name='t')
    assert choice_of(BEFORE_NORM) == 'before-norm'
    assert choice_of(NECK_MAPS) == 'neck'


def test_the_hook_point_of_a_student(reppoints: nn.Module, retinanet: nn.Module) -> None:
    assert hook_point_of(reppoints, BEFORE_NORM) == BEFORE_NORM
    assert hook_point_of(reppoints, NECK_MAPS) == NECK_MAPS
    assert hook_point_of(retinanet, BEFORE_NORM) == NECK_MAPS
    assert hook_point_of(retinanet, NECK_MAPS) == NECK_MAPS


def test_pyramids_that_go_on_from_their_convolutions_are_taken_behind_the_neck() -> None:
    norms = {'type': 'GN', 'num_groups': 4}
    pafpn = {'_delete_': True, 'type': 'PAFPN', 'in_channels': [8, 16, 32, 64], 'out_channels': 16, 'num_outs': 5}
    model = build('faster-rcnn_r50_fpn_1x_coco', RESNET | {'neck': pafpn | {'norm_cfg': norms}})
    assert not has_output_norms(model)
    assert not has_output_norms(nn.Linear(1, 1))
