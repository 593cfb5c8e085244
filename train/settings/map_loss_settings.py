"""What a stage's `distill` list may say about losses that compare whole maps, with defaults."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat

from mtpd_train.settings.loss_options import LevelLossOptions, Levels
from mtpd_train.settings.section import Share


class MaskedMseSettings(LevelLossOptions):
    """FitNet: mean squared error between the student's maps, through 1x1 adapters, and the teacher's."""

    loss: Literal['masked_mse']
    """Name of the loss."""
    weight: NonNegativeFloat = 1.0
    """Loss weight; the loss is a mean over cells and channels."""
    adapter: Literal['auto', 'always'] = 'auto'
    """1x1 adapter of the student's map. `auto`: where the channels differ; `always`: on every level."""
    scale: Literal['teacher_std', 'none'] = 'teacher_std'
    """`teacher_std`: divide maps by the standard deviation of the teacher's level; `none`: use them unchanged."""


class MgdSettings(LevelLossOptions):
    """Masked generative distillation; defaults as published for RetinaNet (Mask R-CNN: 5e-7 and 0.45)."""

    loss: Literal['mgd']
    """Name of the loss."""
    weight: NonNegativeFloat = 2e-5
    """Loss weight, in the units that `normalize` selects."""
    mask_ratio: Share = 0.65
    """Fraction of the student's cells that are masked."""
    normalize: Literal['mean', 'published'] = 'published'
    """Units of `weight`. `published`: the paper's sum at 800x1088 px; `mean`: the mean over its elements."""
    scale: Literal['teacher_std', 'none'] = 'none'
    """`teacher_std`: divide maps by the standard deviation of the teacher's level; `none`: use them unchanged."""


class PkdSettings(LevelLossOptions):
    """Pearson knowledge distillation; weight as published for RetinaNet (Faster and Mask R-CNN: 6)."""

    loss: Literal['pkd']
    """Name of the loss."""
    levels: Levels = None
    """Levels to distil; null: all levels that student and teacher share. The authors omit RetinaNet's p7."""
    weight: NonNegativeFloat = 10.0
    """Loss weight; the loss is one minus the correlation, averaged over channels."""
    adapter: Literal['auto', 'always'] = 'auto'
    """1x1 adapter of the student's map. `auto`: where the channels differ; `always`: on every level."""


class CwdSettings(LevelLossOptions):
    """Channel-wise distillation; defaults as published for feature pyramids."""

    loss: Literal['cwd']
    """Name of the loss."""
    weight: NonNegativeFloat = 10.0
    """Loss weight; the loss is a mean over images and channels."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature of the features, over cells."""
    adapter: Literal['auto', 'always'] = 'auto'
    """1x1 adapter of the student's map. `auto`: where the channels differ; `always`: on every level."""
