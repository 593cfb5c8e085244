"""How the weight of a distillation loss falls during a stage. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Literal

from mtpd.errors import InputError

DecayKind = Literal['none', 'linear', 'cosine', 'step']


@dataclass(frozen=True)
class Decay:
    """The course of a weight from all of it to none.

    Attributes:
        kind: `none`: the weight stays; `linear`; `cosine`: half a cosine; `step`: equal stairs.
        at: shares of the stage, between 0 and 1, at which `step` falls by one stair; its last one is 0.
    """

    kind: DecayKind = 'none'
    at: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Raises InputError when `step` has no stairs, or another kind has some."""
        if (self.kind == 'step') != bool(self.at):
            raise InputError(
                f'decay {self.kind} has at {list(self.at)}; step needs at least one value, other decays none'
            )


NO_DECAY = Decay()
LINEAR_DECAY = Decay('linear')


def decay_factor(decay: Decay, *, progress: float) -> float:
    """What the weight is multiplied by, from 1 to 0.

        linear    1 - x
        cosine    (1 + cos(pi x)) / 2
        step      (shares in `at` beyond x) / (all shares in `at`)

    TAR (Sun et al. 2020) lets distillation decay. Its form is, to the best of our knowledge, that of DWPose (Yang et
    al. 2023), which credits it: `1 - (t - 1) / t_max` at step t from 1, that is `linear`.

    Args:
        decay: the course.
        progress: x, the share of the stage that is done: optimizer steps taken / all. It is 0 in the first step and
            falls short of 1 by one step in the last; there is no other state, so a resumed stage continues exactly.
    """
    if decay.kind == 'linear':
        return 1 - progress
    if decay.kind == 'cosine':
        return (1 + math.cos(math.pi * progress)) / 2
    if decay.kind == 'step':
        return sum(share > progress for share in decay.at) / len(decay.at)
    return 1.0
