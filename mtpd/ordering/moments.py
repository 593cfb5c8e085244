"""Second moments of features: all that linear regression between them needs of any number of cells.

Letters: D channels of all models side by side, G groups, N cells.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the squared mean: single precision, in which maps are read, leaves a constant channel less variance than this.
NO_VARIANCE = 1e-13
# Of the second moment about the origin: less is the rounding of sums in double precision, not variance.
LOST_VARIANCE = 1e-9


@dataclass(frozen=True)
class Correlation:
    """What is left of features when each channel is standardised.

    Attributes:
        matrix: (D, D) float64; rows and columns of constant channels are zero off the diagonal.
        varies: bool (D,), false for constant channels.
    """

    matrix: Tensor
    varies: Tensor


class GroupedMoments:
    """Running moments of feature vectors, kept apart for groups of images; memory is G x D x D float64.

    Attributes:
        num_cells: (G,) float64, cells taken in.
    """

    def __init__(self, num_groups: int, num_channels: int) -> None:
        self.num_cells = torch.zeros(num_groups, dtype=torch.float64)
        self._sums = torch.zeros(num_groups, num_channels, dtype=torch.float64)
        self._products = torch.zeros(num_groups, num_channels, num_channels, dtype=torch.float64)
        self._origin: Tensor | None = None

    def add(self, cells: Tensor, *, group: int) -> None:
        """Takes in feature vectors (N, D) of one group."""
        cells = cells.double()
        if self._origin is None:
            # Moments around about the mean: where it is large beside the deviation, those around zero would cancel.
            self._origin = cells.mean(0)
        cells = cells - self._origin
        self.num_cells[group] += len(cells)
        self._sums[group] += cells.sum(0)
        self._products[group].addmm_(cells.T, cells)

    def correlation(self, weights: Tensor | None = None) -> Correlation:
        """Correlation of the channels over all cells, each counted as often as `weights` (G,) says for its group."""
        weights = torch.ones_like(self.num_cells) if weights is None else weights.double()
        count = self.num_cells @ weights
        mean = (weights @ self._sums) / count
        covariance = torch.tensordot(weights, self._products, dims=1) / count - mean[:, None] * mean
        variance = covariance.diagonal()
        origin = torch.zeros_like(mean) if self._origin is None else self._origin
        least = NO_VARIANCE * (mean + origin).square() + LOST_VARIANCE * (variance + mean.square())
        varies = variance > least
        deviation = torch.where(varies, variance, 1).sqrt()
        matrix = covariance / (deviation[:, None] * deviation)
        matrix = torch.where(varies[:, None] & varies, matrix, 0)
        matrix.diagonal().fill_(1)
        return Correlation(matrix, varies)
