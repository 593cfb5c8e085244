"""How much a teacher's maps vary: those that hardly do teach nothing, and losses that divide by their variance explode.

Letters: B images, C channels, H W grid of a level.
"""

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


class MapStatistics:
    """Mean and variance of each channel of one level, over the cells of all maps that were added."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._maps: list[Tensor] = []

    def add(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Takes in maps.

        Args:
            values: (B, C, H, W).
            mask: bool (B, 1, H, W), true at cells that count; None: all.
        """
        cells = values.detach().permute(0, 2, 3, 1)
        chosen = cells.flatten(0, 2) if mask is None else cells[mask[:, 0]]
        self._maps.append(chosen.cpu().double())

    def require_varied(self, *, name: str, advice: str) -> None:
        """Refuses a level that is as good as constant.

        Args:
            name: of the teacher.
            advice: how to leave the level out.

        Raises:
            InputError: names the level with its deviation and mean.
        """
        values = torch.cat(self._maps)
        if len(values) < MIN_CELLS:
            return
        deviation = math.sqrt(float(values.var(0, correction=0).mean()))
        mean = math.sqrt(float(values.mean(0).square().mean()))
        if deviation >= LEAST_DEVIATION and deviation >= LEAST_RATIO * mean:
            return
        raise InputError(
            f'teacher {name}: level {self._level} is nearly constant: its features deviate by {deviation:.2g} from '
            f'means of {mean:.2g}, expected at least {max(LEAST_DEVIATION, LEAST_RATIO * mean):.2g}; check its weights '
            f'(is it trained, and is its checkpoint loaded?), or {advice}'
        )
