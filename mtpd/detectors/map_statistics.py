"""How much a teacher's maps vary: constant ones teach nothing, and losses that divide by their variance explode."""

import math

import torch
from torch import Tensor

from mtpd.errors import InputError

# Features that a network has learned have standard deviations of 0.01 to 10. An untrained one without the statistics of
# its norms gives 1e-4 and less, layer by layer.
LEAST_DEVIATION = 1e-4
# Of a level's deviation to its mean: below it differences drown in the rounding of half precision and of codes.
LEAST_RATIO = 1e-3
MIN_CELLS = 16  # of a level, over all images: fewer say nothing
PART = 1 << 14  # cells that are in float64 at once


class MapStatistics:
    """Mean and variance of each channel of one level, over the cells of all maps that were added."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._num_cells = 0
        self._mean = torch.zeros(1, dtype=torch.float64)
        self._squares = torch.zeros(1, dtype=torch.float64)  # sum of squared deviations from the mean

    def add(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Takes in maps (B, C, H, W), or of them the cells where `mask`, bool (B, 1, H, W), is true."""
        cells = values.detach().permute(0, 2, 3, 1)
        chosen = cells.flatten(0, 2) if mask is None else cells[mask[:, 0]]
        if not len(chosen):
            return
        for part in torch.split(chosen.cpu(), PART):
            # Means and squared deviations are joined as by Chan et al. 1979.
            numbers = part.double()
            num_cells = self._num_cells + len(part)
            mean = numbers.mean(0)
            difference = mean - self._mean
            between = difference.square() * self._num_cells * len(part) / num_cells
            self._squares = self._squares + (numbers - mean).square().sum(0) + between
            self._mean = self._mean + difference * len(part) / num_cells
            self._num_cells = num_cells

    def require_varied(self, *, name: str, advice: str) -> None:
        """Refuses a level of the teacher `name` that is nearly constant; `advice` is how to exclude the level."""
        if self._num_cells < MIN_CELLS:
            return
        deviation = math.sqrt(float(self._squares.mean()) / self._num_cells)
        mean = math.sqrt(float(self._mean.square().mean()))
        if deviation >= LEAST_DEVIATION and deviation >= LEAST_RATIO * mean:
            return
        raise InputError(
            f'teacher {name}: level {self._level} is nearly constant: its features have a standard deviation of '
            f'{deviation:.2g} and means of {mean:.2g}, expected a deviation of at least '
            f'{max(LEAST_DEVIATION, LEAST_RATIO * mean):.2g}; check its weights (is it trained, and is its checkpoint '
            f'loaded?), or {advice}'
        )
