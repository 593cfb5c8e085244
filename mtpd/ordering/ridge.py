"""Ridge regression between the features of models, in closed form, from their second moments.

Letters: C channels of a source, D channels of all models side by side, G groups, M models, N cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

DEFAULT_RIDGE = 1e-4
# Of the squared mean: single precision, in which maps are read, leaves a constant channel less variance than this.
NO_VARIANCE = 1e-13
# Of the second moment about the origin: less is the rounding of sums in double precision, not variance.
LOST_VARIANCE = 1e-9


@dataclass(frozen=True)
class Correlation:
    """What is left of features when each channel is standardised.

    `matrix` (D, D) float64: rows and columns of constant channels are zero off the diagonal. `varies`: bool (D,), false
    for constant channels.
    """

    matrix: Tensor
    varies: Tensor


class GroupedMoments:
    """Running moments of feature vectors, kept apart for groups of images; memory is G x D x D float64.

    `num_cells`: (G,) float64, cells taken in.
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


def ridge_weights(among: Tensor, across: Tensor, *, ridge: float) -> Tensor:
    """The linear map W (C, D) that minimises |Y - X W|^2 + ridge |W|^2, for `ridge` above zero.

    `among` is X^T X, (C, C); `across` is X^T Y, (C, D).
    """
    factor, failed = torch.linalg.cholesky_ex(among + ridge * torch.eye(len(among), dtype=among.dtype))
    if not failed:
        return torch.cholesky_solve(across, factor)
    # Rounding has made an eigenvalue of a matrix of low rank less than -ridge.
    values, vectors = torch.linalg.eigh(among)
    weights: Tensor = vectors @ ((vectors.T @ across) / (values.clamp(min=0) + ridge)[:, None])
    return weights


def cost_matrix(correlation: Correlation, num_channels: Sequence[int], *, ridge: float = DEFAULT_RIDGE) -> Tensor:
    """Adaptation cost (M, M) float64 of every model to every other, from the correlation of their features.

    The cost is the mean over the target's channels of the residual variance over the variance, after ridge regression
    on the source's channels: that of a 1x1 convolution with bias on standardised channels, where W minimises
    |Y - X W|^2 / N + ridge |W|^2. Constant channels have nothing to explain and do not count; the diagonal is zero.
    `num_channels` are those of each model, in the order of the correlation's.
    """
    ends = torch.tensor([0, *num_channels]).cumsum(0).tolist()
    parts = [slice(start, end) for start, end in pairwise(ends)]
    costs = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    for row, source in enumerate(parts):
        among, across = correlation.matrix[source, source], correlation.matrix[source]
        weights = ridge_weights(among, across, ridge=ridge)
        residual = (1 - 2 * (weights * across).sum(0) + (weights * (among @ weights)).sum(0)).clamp(min=0)
        for column, target in enumerate(parts):
            varying = residual[target][correlation.varies[target]]
            if row != column and len(varying):
                costs[row, column] = varying.mean()
    return costs
