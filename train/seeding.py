"""What is drawn at random depends on a seed alone, not on what was drawn before."""

import random
from collections.abc import Sequence

import numpy as np
import torch


def seed_everything(seed: Sequence[int]) -> None:
    """Seeds every generator that a training step may draw from, on all devices."""
    number = int(np.random.default_rng(seed).integers(2**63))
    torch.manual_seed(number)
    # Some samplers of mmdet draw from these.
    np.random.seed(number % 2**32)
    random.seed(number)
