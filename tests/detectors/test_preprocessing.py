"""Inputs are pixel for pixel what mmdet's own pipeline and data preprocessor make of an image."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mtpd.detectors.of_mmdet.config_input import read_preprocessing
from mtpd.detectors.of_mmdet.models import load_config
from mtpd.detectors.preprocessing import normalise
from mtpd.detectors.samples import image_view
from mtpd.errors import InputError

ZOO = (
    'retinanet_r50_fpn_1x_coco',  # ImageNet mean and std, RGB, padded to 32 with zeros after the normalisation
    'yolox_tiny_8x8_300e_coco',  # raw BGR, letterbox padded with 114 before
    'rtmdet_tiny_8xb32-300e_coco',  # mean and std in BGR, letterbox
    'ssd300_coco',  # aspect ratio not kept
    'retinanet_r50-caffe_fpn_1x_coco',  # BGR means, unit std
)


def mmdet_input(config: Any, path: Path) -> torch.Tensor:
    """What mmdet's test pipeline and data preprocessor make of an image file."""
    from mmdet.registry import MODELS
    from mmengine.dataset import Compose

    pipeline = [step for step in config.test_dataloader.dataset.pipeline if step['type'] != 'LoadAnnotations']
    packed = Compose(pipeline)({'img_path': str(path), 'img_id': 1})
    preprocessor = MODELS.build(config.model.data_preprocessor)
    data = preprocessor({'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}, False)
    inputs: torch.Tensor = data['inputs']
    return inputs


@pytest.mark.parametrize('size', [(97, 131), (131, 97), (480, 640)])
@pytest.mark.parametrize('name', ZOO)
def test_input_equals_mmdets(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), image)
    config = load_config(name)
    expected = mmdet_input(config, path)
    found = read_preprocessing(config)
    padded = found.geometry.padded(size)
    view = image_view(image, geometry=found.geometry, view='plain')
    assert tuple(view.shape[1:]) == found.geometry.resized(size)
    result = normalise([view], padded=padded, normalisation=found.normalisation)
    assert result.shape == expected.shape
    assert torch.equal(result, expected) or torch.allclose(result, expected, rtol=0, atol=1e-6)


def test_flip_mirrors_the_resized_image_and_pads_on_the_same_side() -> None:
    image = np.random.default_rng(1).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    found = read_preprocessing(load_config(ZOO[0]), scale=(200, 150))
    plain, flip = (image_view(image, geometry=found.geometry, view=view) for view in ('plain', 'flip'))
    assert torch.equal(flip, plain.flip(-1))
    batch = normalise([flip], padded=found.geometry.padded((60, 100)), normalisation=found.normalisation)
    assert (batch[0, :, :, 200:] == 0).all()
    assert (batch[0, :, 120:] == 0).all()


def test_scale_replaces_the_size_of_the_letterbox() -> None:
    found = read_preprocessing(load_config('rtmdet_tiny_8xb32-300e_coco'), scale=(320, 256))
    assert found.geometry.padded((480, 640)) == (256, 320)


def test_a_step_that_a_cache_cannot_reproduce_is_refused() -> None:
    config = load_config(ZOO[0])
    config.test_dataloader.dataset.pipeline.insert(1, {'type': 'RandomCrop', 'crop_size': (10, 10)})
    with pytest.raises(InputError, match='RandomCrop'):
        read_preprocessing(config)


def test_the_zoo_states_its_preprocessing() -> None:
    """Models whose input cannot be read are few and known."""
    from mtpd.detectors.of_mmdet.zoo import ALIASES

    for alias in ALIASES:
        assert min(read_preprocessing(load_config(alias)).geometry.scale) > 0
