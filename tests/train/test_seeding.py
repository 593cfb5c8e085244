"""What a training step may draw from."""

import random

import numpy as np
import torch

from mtpd_train.training.loop import seed_everything


def draws(*seed: int) -> tuple[float, float, float]:
    seed_everything(seed)
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_every_generator_is_seeded() -> None:
    first = draws(0, 1, 2)
    assert draws(0, 1, 2) == first
    for other in (draws(0, 1, 3), draws(0, 2, 2), draws(1, 1, 2), draws(2**62, 1, 2)):
        assert all(one != two for one, two in zip(other, first, strict=True))
