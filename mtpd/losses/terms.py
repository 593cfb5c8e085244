"""Distillation loss configuration: one value per entry of a stage's `distill` list. Does not import torch."""

from dataclasses import dataclass
from typing import ClassVar

from mtpd.losses.level_term import Adapter, LevelTerm, Normalize, Scale


@dataclass(frozen=True)
class MaskedMseTerm(LevelTerm):
    """FitNet's loss: mean squared error after a 1x1 adapter."""

    loss: ClassVar[str] = 'masked_mse'

    adapter: Adapter = 'auto'
    scale: Scale = 'teacher_std'


@dataclass(frozen=True)
class MgdTerm(LevelTerm):
    """Masked generative distillation; the defaults are the published ones for RetinaNet (Mask R-CNN: 5e-7 and 0.45).

    Attributes:
        mask_ratio: share of the student's cells that are hidden.
        normalize: what `weight` belongs to.
    """

    loss: ClassVar[str] = 'mgd'

    weight: float = 2e-5
    mask_ratio: float = 0.65
    normalize: Normalize = 'published'
    scale: Scale = 'none'


@dataclass(frozen=True)
class PkdTerm(LevelTerm):
    """Pearson knowledge distillation; the weight is the one published for RetinaNet (Faster R-CNN, Mask R-CNN: 6).

    The authors leave out RetinaNet's p7 (`levels: [p3, p4, p5, p6]`).

    Attributes:
        weight: factor of the loss, one minus the correlation.
        adapter: the authors have none.
    """

    loss: ClassVar[str] = 'pkd'

    weight: float = 10.0
    adapter: Adapter = 'auto'


@dataclass(frozen=True)
class CwdTerm(LevelTerm):
    """Channel-wise distillation; the defaults are mmrazor's for the feature pyramids of all its detectors.

    The paper's own, for segmentation, are to the best of our knowledge temperature 4 and weight 50 on features.

    Attributes:
        temperature: what the features are divided by before the softmax over cells.
        adapter: the published detectors have none.
    """

    loss: ClassVar[str] = 'cwd'

    weight: float = 10.0
    temperature: float = 1.0
    adapter: Adapter = 'auto'
