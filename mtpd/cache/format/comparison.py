"""How close decoded maps are to the originals, per image and overall.

Letters: C channels, H W grid of a level.
"""

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Closeness:
    """Of one map (C, H, W) to its original.

    Attributes:
        error: ||found - wanted||^2 / ||wanted||^2; 0 when both are zero.
        cosine: of the angle between the two as vectors; 1 when both are zero.
    """

    error: float
    cosine: float


def closeness(found: Tensor, wanted: Tensor) -> Closeness:
    """Compares two maps of one shape, in double precision."""
    found, wanted = found.double(), wanted.double()
    error, energy = float((found - wanted).square().sum()), float(wanted.square().sum())
    product, norms = float((found * wanted).sum()), math.sqrt(energy * float(found.square().sum()))
    return Closeness(
        error=error / energy if energy else (math.inf if error else 0.0),
        cosine=product / norms if norms else float(not error),
    )


@dataclass
class Comparison:
    """Closeness over many maps."""

    values: list[Closeness] = field(default_factory=list)

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """Takes in one pair of maps (C, H, W)."""
        self.values.append(closeness(found, wanted))

    @property
    def mean_error(self) -> float:
        """Mean relative squared error; nan without maps."""
        return sum(one.error for one in self.values) / len(self.values) if self.values else math.nan

    @property
    def worst_error(self) -> float:
        """Greatest relative squared error; nan without maps."""
        return max((one.error for one in self.values), default=math.nan)

    @property
    def mean_cosine(self) -> float:
        """Mean cosine; nan without maps."""
        return sum(one.cosine for one in self.values) / len(self.values) if self.values else math.nan

    @property
    def worst_cosine(self) -> float:
        """Least cosine; nan without maps."""
        return min((one.cosine for one in self.values), default=math.nan)
