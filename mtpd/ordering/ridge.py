"""How much of one model's features a linear map of another's leaves unexplained, in closed form.

Letters: C channels of a source, D channels of all models side by side, M models.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mtpd.ordering.moments import Correlation

DEFAULT_RIDGE = 1e-4


def unexplained(correlation: Correlation, source: slice, *, ridge: float = DEFAULT_RIDGE) -> Tensor:
    """Residual variance over variance of every channel after ridge regression on the channels of `source`.

    The regression is that of a 1x1 convolution with bias on standardised channels: W minimises
    |Y - X W|^2 / N + ridge |W|^2, and what counts is the first term.

    Returns:
        (D,) float64, 0 to 1; meaningless for constant channels.
    """
    among, across = correlation.matrix[source, source], correlation.matrix[source]
    penalised = among + ridge * torch.eye(len(among), dtype=among.dtype)
    factor, failed = torch.linalg.cholesky_ex(penalised)
    if failed:
        # Rounding has made an eigenvalue of a matrix of low rank less than -ridge.
        values, vectors = torch.linalg.eigh(among)
        weights = vectors @ ((vectors.T @ across) / (values.clamp(min=0) + ridge)[:, None])
    else:
        weights = torch.cholesky_solve(across, factor)
    residual: Tensor = 1 - 2 * (weights * across).sum(0) + (weights * (among @ weights)).sum(0)
    return residual.clamp(min=0)


def cost_matrix(correlation: Correlation, num_channels: Sequence[int], *, ridge: float = DEFAULT_RIDGE) -> Tensor:
    """Adaptation cost of every model to every other, from the correlation of their features at the same cells.

    The cost is the mean over the target's channels of the unexplained share of variance; constant channels have
    nothing to explain and do not count.

    Args:
        correlation: of the channels of all models side by side.
        num_channels: of each model, in that order.
        ridge: penalty on squared weights, relative to the variance of one channel.

    Returns:
        (M, M) float64: [a, b] is the cost of adapting model a to model b; the diagonal is zero.
    """
    ends = torch.tensor([0, *num_channels]).cumsum(0).tolist()
    parts = [slice(start, end) for start, end in pairwise(ends)]
    costs = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    for row, source in enumerate(parts):
        residual = unexplained(correlation, source, ridge=ridge)
        for column, target in enumerate(parts):
            varying = residual[target][correlation.varies[target]]
            if row != column and len(varying):
                costs[row, column] = varying.mean()
    return costs
