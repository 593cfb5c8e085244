"""The course of a weight, step by step."""

import itertools
import math

import pytest
from pydantic import ValidationError

from mtpd.losses.options import Decay, DecayKind, decay_factor


def course(decay: Decay, num_steps: int) -> list[float]:
    return [decay_factor(decay, progress=step / num_steps) for step in range(num_steps)]


def test_none() -> None:
    assert course(Decay(), 5) == [1] * 5


def test_linear() -> None:
    """As TAR's follower DWPose writes it: 1 - (t - 1) / t_max at step t from 1."""
    assert course(Decay(kind='linear'), 8) == [1 - (t - 1) / 8 for t in range(1, 9)]


def test_cosine() -> None:
    half = math.sqrt(0.5)
    assert course(Decay(kind='cosine'), 4) == pytest.approx([1, (1 + half) / 2, 0.5, (1 - half) / 2])


def test_step() -> None:
    assert course(Decay(kind='step', at=(0.5,)), 4) == [1, 1, 0, 0]
    assert course(Decay(kind='step', at=(0.25, 0.75)), 8) == [1, 1, 0.5, 0.5, 0.5, 0.5, 0, 0]


@pytest.mark.parametrize('decay', [Decay(kind='linear'), Decay(kind='cosine'), Decay(kind='step', at=(0.3, 0.6))])
def test_all_fall_from_one_to_nought(decay: Decay) -> None:
    factors = course(decay, 1000)
    assert factors[0] == 1
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))
    assert 0 <= factors[-1] <= 1.1e-3
    assert decay_factor(decay, progress=1.0) == 0


@pytest.mark.parametrize(('kind', 'at'), [('step', ()), ('linear', (0.5,)), ('none', (0.5,))])
def test_stairs_belong_to_step(kind: DecayKind, at: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match='step'):
        Decay(kind=kind, at=at)
