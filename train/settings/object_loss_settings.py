"""Settings, with defaults, of the losses in a stage's `distill` list that use the boxes of objects."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from mtpd_train.settings.loss_options import DecaySettings, LevelLossOptions


class FineGrainedSettings(LevelLossOptions):
    """Fine-grained feature imitation: squared error in cells where an anchor of the student is near an object."""

    loss: Literal['fine_grained']
    """Name of the loss."""
    weight: NonNegativeFloat = 1.28
    """Loss weight; the loss is a mean over channels and marked cells. Default: the released 0.01 at 256 channels."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """An anchor marks its cell if its IoU with an object exceeds this fraction of the object's maximum IoU."""
    reference: Literal['level', 'pyramid'] = 'level'
    """Anchors of the maximum IoU: those of the same `level`, or of the student's whole `pyramid`."""
    adapter: Literal['auto', 'always'] = 'always'
    """1x1 adapter of the student's map. `auto`: where the channels differ; `always`: on every level."""
    scale: Literal['teacher_std', 'none'] = 'none'
    """`teacher_std`: divide maps by the standard deviation of the teacher's level; `none`: use them unchanged."""


class TarFeatureSettings(LevelLossOptions):
    """TAR's feature level: squared error under a Gaussian mask of each object."""

    loss: Literal['tar_feature']
    """Name of the loss."""
    weight: NonNegativeFloat = 1.0
    """Loss weight; the loss is a mean over channels and a mask-weighted mean over cells."""
    spread: tuple[PositiveFloat, PositiveFloat] = (2.0, 2.0)
    """Standard deviations of the Gaussian along x and y, in half widths and half heights of the box."""
    adapter: Literal['auto', 'always'] = 'always'
    """1x1 adapter of the student's map. `auto`: where the channels differ; `always`: on every level."""
    scale: Literal['teacher_std', 'none'] = 'teacher_std'
    """`teacher_std`: divide maps by the standard deviation of the teacher's level; `none`: use them unchanged."""
    decay: DecaySettings = DecaySettings()
    """Decay of the weight during the stage; TAR's is linear."""


class FgdSettings(LevelLossOptions):
    """Focal and global distillation; defaults as published for RetinaNet (others: `fgd.py`)."""

    loss: Literal['fgd']
    """Name of the loss."""
    weight: NonNegativeFloat = 1.0
    """Loss weight, applied to all terms."""
    foreground: NonNegativeFloat = 1e-3
    """Weight of the error inside objects, alpha in the paper (two-stage: 5e-5; anchor-free: 1.6e-3)."""
    background: NonNegativeFloat = 5e-4
    """Weight of the error outside objects, beta (2.5e-5; 8e-4)."""
    attention: NonNegativeFloat = 1e-3
    """Weight of the attention difference, gamma (5e-5; 8e-3)."""
    relation: NonNegativeFloat = 5e-6
    """Weight of the global relation, lambda (5e-7; 8e-6)."""
    temperature: PositiveFloat = 0.5
    """Softmax temperature of the attentions."""
    normalize: Literal['mean', 'published'] = 'published'
    """Units of the four weights. `published`: the paper's sums at 800x1088 px; `mean`: means."""
