"""What a stage's `distill` list may say about losses that compare whole maps, with defaults."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat

from mtpd_train.settings.loss_options import DecaySettings, Levels, Resize, TeacherLevels
from mtpd_train.settings.section import Section, Share


class MaskedMseSettings(Section):
    """FitNet: mean squared error between the student's maps, through 1x1 adapters, and the teacher's."""

    loss: Literal['masked_mse']
    """Kind of this loss."""
    levels: Levels = None
    """Levels it acts on; null: all that student and teacher share."""
    teacher_levels: TeacherLevels = None
    """The teacher's level for each of `levels`, one by one; null: those of the same strides."""
    resize: Resize = 'none'
    """Whose map is brought to the grid of the other where the strides of a pair differ."""
    weight: NonNegativeFloat = 1.0
    """Factor of the loss, a mean over cells and channels."""
    adapter: Literal['auto', 'always'] = 'auto'
    """`auto`: a 1x1 adapter where the channels differ; `always`: everywhere."""
    scale: Literal['teacher_std', 'none'] = 'teacher_std'
    """`teacher_std`: measure maps in standard deviations of the teacher's level; `none`: as they are."""
    decay: DecaySettings = DecaySettings()
    """How the weight falls during the stage."""


class MgdSettings(Section):
    """Masked generative distillation; the defaults are those published for RetinaNet (Mask R-CNN: 5e-7 and 0.45)."""

    loss: Literal['mgd']
    """Kind of this loss."""
    levels: Levels = None
    """Levels it acts on; null: all that student and teacher share."""
    teacher_levels: TeacherLevels = None
    """The teacher's level for each of `levels`, one by one; null: those of the same strides."""
    resize: Resize = 'none'
    """Whose map is brought to the grid of the other where the strides of a pair differ."""
    weight: NonNegativeFloat = 2e-5
    """Factor of the loss as `normalize` defines it."""
    mask_ratio: Share = 0.65
    """Share of the student's cells that are hidden."""
    normalize: Literal['mean', 'published'] = 'published'
    """What `weight` belongs to: `published`: the paper's sum, at 800x1088 px; `mean`: a mean over its elements."""
    scale: Literal['teacher_std', 'none'] = 'none'
    """`teacher_std`: measure maps in standard deviations of the teacher's level; `none`: as they are."""
    decay: DecaySettings = DecaySettings()
    """How the weight falls during the stage."""


class PkdSettings(Section):
    """Pearson knowledge distillation; the weight is that published for RetinaNet (Faster and Mask R-CNN: 6)."""

    loss: Literal['pkd']
    """Kind of this loss."""
    levels: Levels = None
    """Levels it acts on; null: all that student and teacher share. The authors leave out RetinaNet's p7."""
    teacher_levels: TeacherLevels = None
    """The teacher's level for each of `levels`, one by one; null: those of the same strides."""
    resize: Resize = 'none'
    """Whose map is brought to the grid of the other where the strides of a pair differ."""
    weight: NonNegativeFloat = 10.0
    """Factor of the loss, one minus the correlation of each channel."""
    adapter: Literal['auto', 'always'] = 'auto'
    """`auto`: a 1x1 adapter where the channels differ; `always`: everywhere."""
    decay: DecaySettings = DecaySettings()
    """How the weight falls during the stage."""


class CwdSettings(Section):
    """Channel-wise distillation; the defaults are those published for feature pyramids."""

    loss: Literal['cwd']
    """Kind of this loss."""
    levels: Levels = None
    """Levels it acts on; null: all that student and teacher share."""
    teacher_levels: TeacherLevels = None
    """The teacher's level for each of `levels`, one by one; null: those of the same strides."""
    resize: Resize = 'none'
    """Whose map is brought to the grid of the other where the strides of a pair differ."""
    weight: NonNegativeFloat = 10.0
    """Factor of the loss, a mean over images and channels."""
    temperature: PositiveFloat = 1.0
    """What the features are divided by before the softmax over cells."""
    adapter: Literal['auto', 'always'] = 'auto'
    """`auto`: a 1x1 adapter where the channels differ; `always`: everywhere."""
    decay: DecaySettings = DecaySettings()
    """How the weight falls during the stage."""
