"""What a stage's `distill` list may say about losses that compare whole maps, with defaults."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat

from mtpd_train.settings.loss_options import LevelLossOptions, Levels
from mtpd_train.settings.section import Share


class MaskedMseSettings(LevelLossOptions):
    """FitNet: mean squared error between the student's maps, through 1x1 adapters, and the teacher's."""

    loss: Literal['masked_mse']
    """Kind of this loss."""
    weight: NonNegativeFloat = 1.0
    """Factor of the loss, a mean over cells and channels."""
    adapter: Literal['auto', 'always'] = 'auto'
    """`auto`: a 1x1 adapter where the channels differ; `always`: everywhere."""
    scale: Literal['teacher_std', 'none'] = 'teacher_std'
    """`teacher_std`: measure maps in standard deviations of the teacher's level; `none`: as they are."""


class MgdSettings(LevelLossOptions):
    """Masked generative distillation; the defaults are those published for RetinaNet (Mask R-CNN: 5e-7 and 0.45)."""

    loss: Literal['mgd']
    """Kind of this loss."""
    weight: NonNegativeFloat = 2e-5
    """Factor of the loss as `normalize` defines it."""
    mask_ratio: Share = 0.65
    """Share of the student's cells that are hidden."""
    normalize: Literal['mean', 'published'] = 'published'
    """What `weight` belongs to: `published`: the paper's sum, at 800x1088 px; `mean`: a mean over its elements."""
    scale: Literal['teacher_std', 'none'] = 'none'
    """`teacher_std`: measure maps in standard deviations of the teacher's level; `none`: as they are."""


class PkdSettings(LevelLossOptions):
    """Pearson knowledge distillation; the weight is that published for RetinaNet (Faster and Mask R-CNN: 6)."""

    loss: Literal['pkd']
    """Kind of this loss."""
    levels: Levels = None
    """Levels it acts on; null: all that student and teacher share. The authors leave out RetinaNet's p7."""
    weight: NonNegativeFloat = 10.0
    """Factor of the loss, one minus the correlation of each channel."""
    adapter: Literal['auto', 'always'] = 'auto'
    """`auto`: a 1x1 adapter where the channels differ; `always`: everywhere."""


class CwdSettings(LevelLossOptions):
    """Channel-wise distillation; the defaults are those published for feature pyramids."""

    loss: Literal['cwd']
    """Kind of this loss."""
    weight: NonNegativeFloat = 10.0
    """Factor of the loss, a mean over images and channels."""
    temperature: PositiveFloat = 1.0
    """What the features are divided by before the softmax over cells."""
    adapter: Literal['auto', 'always'] = 'auto'
    """`auto`: a 1x1 adapter where the channels differ; `always`: everywhere."""
