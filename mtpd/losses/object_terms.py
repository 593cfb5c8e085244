"""What a loss that knows where the objects are is asked to be; the others are in `terms`. Imports no torch."""

from dataclasses import dataclass
from typing import ClassVar

from mtpd.losses.decay import NO_DECAY, Decay
from mtpd.losses.terms import Adapter, Scale


@dataclass(frozen=True)
class TarFeatureTerm:
    """TAR's feature level: squared error under a Gaussian mask of the objects. See `mtpd.losses.tar_feature`.

    Attributes:
        loss: its name in stage files and logs.
        levels: names of the levels it acts on; None for all that student and teacher share.
        weight: factor of the loss; the paper's own is not known to us.
        spread: widths of the Gaussian, in half widths and half heights of its box.
        adapter: as for `MaskedMseTerm`; the paper has one everywhere.
        scale: as for `MaskedMseTerm`.
        decay: how the weight falls during a stage; TAR's is linear.
    """

    loss: ClassVar[str] = 'tar_feature'

    levels: tuple[str, ...] | None = None
    weight: float = 1.0
    spread: tuple[float, float] = (2.0, 2.0)
    adapter: Adapter = 'always'
    scale: Scale = 'teacher_std'
    decay: Decay = NO_DECAY


ObjectTerm = TarFeatureTerm
