"""Closeness of maps against numpy."""

import math

import numpy as np
import pytest
import torch

from mtpd.cache.format.codecs import Comparison


def test_error_and_cosine() -> None:
    generator = np.random.default_rng(0)
    found, wanted = generator.normal(size=(2, 3, 5, 7))
    result = Comparison()
    result.add(torch.from_numpy(found).float(), torch.from_numpy(wanted).float())
    assert result.summary()['mean_error'] == pytest.approx(((found - wanted) ** 2).sum() / (wanted**2).sum(), rel=1e-6)
    cosine = (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)
    assert result.summary()['mean_cosine'] == pytest.approx(cosine, rel=1e-5)


def test_zeros() -> None:
    zeros, ones = torch.zeros(2, 3, 3), torch.ones(2, 3, 3)
    comparison = Comparison()
    for pair in ((zeros, zeros), (ones, zeros), (zeros, ones)):
        comparison.add(*pair)
    assert comparison.errors == [0.0, math.inf, 1.0]
    assert comparison.cosines == [1.0, 0.0, 0.0]


def test_means_and_worst() -> None:
    comparison = Comparison()
    assert math.isnan(comparison.summary()['mean_error'])
    assert math.isnan(comparison.summary()['worst_cosine'])
    ones = torch.ones(1, 2, 2)
    for factor in (1.0, 0.5, -1.0):
        comparison.add(ones * factor, ones)
    assert comparison.summary()['mean_error'] == pytest.approx((0 + 0.25 + 4) / 3)
    assert comparison.summary()['worst_error'] == 4
    assert comparison.summary()['mean_cosine'] == pytest.approx(1 / 3)
    assert comparison.summary()['worst_cosine'] == -1
