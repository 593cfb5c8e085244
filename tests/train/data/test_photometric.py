"""Photometric augmentation: what it draws, what it leaves alone, and that nothing but seed, epoch and image decide."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtpd.detectors.samples import Sample, collate
from mtpd_train.data.photometric import distorted
from mtpd_train.settings.stage_settings import PhotometricSettings
from mtpd_train.stage import Stage
from mtpd_train.training.step import loaded, seen_by_student

CPU = torch.device('cpu')
NOTHING = {'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0, 'probability': 1.0}
SSD = PhotometricSettings()


def sample_of(image: Tensor, image_id: int = 0) -> Sample:
    return Sample(image=image, image_id=image_id, view='plain', original=(image.shape[1], image.shape[2]))


def constant(blue: int, green: int, red: int) -> Tensor:
    return torch.tensor([blue, green, red], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)


def pixels(image: Tensor, options: PhotometricSettings, *, seed: int) -> list[int]:
    (found,) = distorted([sample_of(image)], options, seed=(seed, 1, 0))
    assert found.image.dtype == torch.uint8
    assert found.image.shape == image.shape
    return [int(value) for value in found.image[:, 0, 0]]


def test_brightness_is_drawn_from_its_range_half_of_the_time() -> None:
    options = PhotometricSettings(**NOTHING | {'brightness': 0.125, 'probability': 0.5})
    found = np.array([pixels(constant(100, 100, 100), options, seed=seed) for seed in range(400)])
    assert (found == found[:, :1]).all()
    assert (found.min(), found.max()) == (87, 112)
    assert (found == 100).mean() == pytest.approx(0.5, abs=0.1)


def test_contrast_weighs_channels_as_bgr() -> None:
    """The grey of pure red is 0.299 of it; of blue it would be 0.114."""
    options = PhotometricSettings(**NOTHING | {'contrast': 0.5})
    for seed in range(20):
        blue, green, red = pixels(constant(0, 0, 200), options, seed=seed)
        assert blue == green
        factor = (red - blue) / 200
        if 0.5 < factor < 0.9:
            assert blue / (1 - factor) == pytest.approx(0.299 * 200, abs=6)


def test_hue_and_saturation_leave_grey_alone() -> None:
    options = PhotometricSettings(**NOTHING | {'hue': 0.5, 'saturation': 1.0})
    assert {tuple(pixels(constant(90, 90, 90), options, seed=seed)) for seed in range(10)} <= {
        (89, 89, 89),
        (90, 90, 90),
    }
    assert len({tuple(pixels(constant(20, 60, 200), options, seed=seed)) for seed in range(10)}) == 10


def test_float_pixels_change_as_whole_ones_do() -> None:
    image = torch.randint(60, 200, (3, 8, 8), dtype=torch.uint8)
    whole = distorted([sample_of(image)], SSD, seed=(0, 1, 0))[0].image
    floats = distorted([sample_of(image.float())], SSD, seed=(0, 1, 0))[0].image
    assert floats.dtype == torch.float32
    assert (floats - whole).abs().max() < 5  # Whole values are rounded after each of the four.


def test_a_pure_function_of_seed_epoch_and_image() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 20, 30)).astype(np.uint8))
    samples = [sample_of(image, image_id) for image_id in (5, -1, 7, 2**40)]
    state = torch.get_rng_state()
    first = distorted(samples, SSD, seed=(0, 1, 3))
    assert torch.equal(torch.get_rng_state(), state)
    again = distorted(samples[::-1], SSD, seed=(0, 1, 3))[::-1]
    assert all(torch.equal(one.image, other.image) for one, other in zip(first, again, strict=True))
    other = distorted(samples, SSD, seed=(0, 1, 4))
    assert not all(torch.equal(one.image, two.image) for one, two in zip(first, other, strict=True))
    assert len({one.image.numpy().tobytes() for one in first}) > 2
    assert torch.equal(samples[0].image, image)


def test_only_pixels_of_the_image_change(build_stage: Callable[..., Stage]) -> None:
    """Padding, boxes and sizes stay; what teachers get are the samples themselves."""
    stage = build_stage(data={'photometric': {'brightness': 0.5, 'probability': 1.0}})
    samples, _ = next(loaded(stage, stage.epoch_batches(0)))
    before = [one.image.clone() for one in samples]
    seen = seen_by_student(stage, samples, epoch=0)
    assert all(one.target is other.target for one, other in zip(seen, samples, strict=True))
    assert all(torch.equal(one.image, image) for one, image in zip(samples, before, strict=True))
    clean, moved = (collate(ones, preprocessing=stage.student.preprocessing, device=CPU) for ones in (samples, seen))
    assert not torch.equal(clean, moved)
    assert torch.equal(clean == 0, moved == 0)


def test_it_trains(
    train: Callable[..., Any],
    write_stage: Callable[..., Path],
    records: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other colours in each epoch, other losses; the same settings, the same losses with any number of workers."""
    losses, seeds = [], []

    def noted(samples: Sequence[Sample], options: PhotometricSettings, *, seed: Sequence[int]) -> list[Sample]:
        seeds.append(tuple(seed))
        return distorted(samples, options, seed=seed)

    monkeypatch.setattr('mtpd_train.training.step.distorted', noted)
    for name, photometric, workers in (('clean', None, 0), ('one', {}, 0), ('two', {}, 2)):
        data: dict[str, Any] = {'photometric': photometric, 'workers': workers, 'val': None}
        stage = write_stage(tmp_path / f'{name}.yaml', data=data, optim={'epochs': 2})
        train(stage, '--out', tmp_path / name)
        losses.append([record['losses'] for record in records(tmp_path / name, 'train')])
    assert losses[0] != losses[1] == losses[2]
    half = len(seeds) // 2
    assert seeds[:half] == seeds[half:]
    assert [(stage, epoch) for _, stage, epoch in seeds[:half]] == [(1, 0)] * (half // 2) + [(1, 1)] * (half // 2)
