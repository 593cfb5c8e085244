"""What is drawn at random depends on a seed alone, not on what was drawn before."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(seed: Sequence[int]) -> None:
    """Seeds every generator that a training step may draw from, on all devices."""
    number = int(np.random.default_rng(seed).integers(2**63))
    torch.manual_seed(number)
    # Some samplers of mmdet draw from these.
    np.random.seed(number % 2**32)
    random.seed(number)


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Leaves every generator as it was before the block, whatever the block draws."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
