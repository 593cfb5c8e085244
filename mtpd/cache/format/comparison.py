"""How close decoded maps are to the originals."""

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Comparison:
    """Relative squared errors, ||found - wanted||^2 / ||wanted||^2, and cosines of maps; nan without maps.

    Where both maps are zero the error is 0 and the cosine 1.
    """

    errors: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """Takes in a map (C, H, W) of a level and its original, in double precision."""
        found, wanted = found.double(), wanted.double()
        error, energy = float((found - wanted).square().sum()), float(wanted.square().sum())
        product, norms = float((found * wanted).sum()), math.sqrt(energy * float(found.square().sum()))
        self.errors.append(error / energy if energy else (math.inf if error else 0.0))
        self.cosines.append(product / norms if norms else float(not error))

    @property
    def mean_error(self) -> float:
        """Mean relative squared error."""
        return sum(self.errors) / len(self.errors) if self.errors else math.nan

    @property
    def worst_error(self) -> float:
        """Greatest relative squared error."""
        return max(self.errors, default=math.nan)

    @property
    def mean_cosine(self) -> float:
        """Mean cosine."""
        return sum(self.cosines) / len(self.cosines) if self.cosines else math.nan

    @property
    def worst_cosine(self) -> float:
        """Least cosine."""
        return min(self.cosines, default=math.nan)
