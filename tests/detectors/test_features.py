"""Feature maps and the levels found from their sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtpd.detectors.features import levels_of, neck_features, probe_levels
from mtpd.detectors.models import build_detector, load_config
from mtpd.errors import InputError
from mtpd.geometry import Level

# mmdet's YOLOX backbone spells autocast the old way.
pytestmark = pytest.mark.filterwarnings('ignore:`torch.cuda.amp.autocast:FutureWarning')


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
