"""The linear map of a student's channels that comes closest to its teacher's, in closed form.

Adapters that are trained are not kept, and a student's channels are its own affair: only behind such a map can its
features be set beside the teacher's. Letters: C channels of the teacher, S of the student, H W grid of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A sample of cells is enough to fit on; the penalty is relative to the variance of a channel.
CELLS_PER_IMAGE, RIDGE = 2048, 1e-3


@dataclass(frozen=True)
class Adapter:
    """The map.

    Attributes:
        weights: (S, C).
        student_mean, teacher_mean: (S,) and (C,), what is taken off before and put on after.
        explained: share of the variance of the teacher's cells that it explains.
    """

    weights: Tensor
    student_mean: Tensor
    teacher_mean: Tensor
    explained: float

    def __call__(self, maps: Tensor) -> Tensor:
        """(S, H, W) -> (C, H, W)."""
        adapted = (maps.flatten(1).T - self.student_mean) @ self.weights + self.teacher_mean
        return adapted.T.reshape(-1, *maps.shape[1:])


def fit_adapter(pairs: Sequence[tuple[Tensor, Tensor]]) -> Adapter:
    """Ridge regression over cells of all images, from (S, H, W) to (C, H, W)."""
    columns = [torch.linspace(0, one[0].numel() - 1, min(CELLS_PER_IMAGE, one[0].numel())).long() for one, _ in pairs]
    own, taught = (
        torch.cat([pair[side].flatten(1)[:, index] for pair, index in zip(pairs, columns, strict=True)], dim=1).T
        for side in (0, 1)
    )
    own_mean, taught_mean = own.mean(0), taught.mean(0)
    own, taught = own - own_mean, taught - taught_mean
    among = own.T @ own
    penalty = RIDGE * among.diagonal().mean().clamp(min=1e-12) * torch.eye(len(among))
    weights = torch.linalg.solve(among + penalty, own.T @ taught)
    left = (taught - own @ weights).square().sum() / taught.square().sum().clamp(min=1e-30)
    return Adapter(weights, own_mean, taught_mean, explained=float(1 - left))
