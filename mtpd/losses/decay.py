"""How the weight of a distillation loss falls during a stage."""

import math
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from mtpd.options import Options

DecayKind = Literal['none', 'linear', 'cosine', 'step']


class Decay(Options):
    """Decay of a loss weight from its full value in the first step of a stage to 0 at its end."""

    kind: DecayKind = 'none'
    """`none`: constant weight; `linear`; `cosine`: half a cosine; `step`: equal steps at the points `at`."""
    at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(), validate_default=True)
    """Fractions of the stage at which `step` lowers the weight, the last one to 0: [0.5] ends the loss half-way."""

    @field_validator('at')
    @classmethod
    def _check_at(cls, at: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        kind = info.data.get('kind')
        if kind == 'step' and not at:
            raise ValueError('step needs `at`, such as at: [0.5]')
        if at and kind not in (None, 'step'):
            raise ValueError(f'belongs to the step decay, not to {kind}')
        if list(at) != sorted(set(at)):
            raise ValueError(f'must increase, got {list(at)}')
        return at


NO_DECAY = Decay()
LINEAR_DECAY = Decay(kind='linear')


def decay_factor(decay: Decay, *, progress: float) -> float:
    """What the weight is multiplied by, from 1 to 0.

        linear    1 - x
        cosine    (1 + cos(pi x)) / 2
        step      (shares in `at` beyond x) / (all shares in `at`)

    TAR (Sun et al. 2020) lets distillation decay. Its form is, to the best of our knowledge, that of DWPose (Yang et
    al. 2023), which credits it: `1 - (t - 1) / t_max` in epoch t from 1. `linear` is that, by optimizer steps.

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
