"""What a stage's `distill` list may say about losses that know where the objects are, with defaults."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from mtpd_train.settings.loss_options import DecaySettings, LevelLossOptions


class FineGrainedSettings(LevelLossOptions):
    """Fine-grained feature imitation: squared error in cells whose anchors, the student's, are near an object."""

    loss: Literal['fine_grained']
    """Kind of this loss."""
    weight: NonNegativeFloat = 1.28
    """Factor of the loss, a mean over channels and marked cells; the default is the released 0.01 at 256 channels."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of an object's greatest IoU with anchors that an anchor must exceed to mark its cell."""
    reference: Literal['level', 'pyramid'] = 'level'
    """Over which anchors the greatest IoU is taken: those of the level, or of the student's whole pyramid."""
    adapter: Literal['auto', 'always'] = 'always'
    """`auto`: a 1x1 adapter where the channels differ; `always`: everywhere."""
    scale: Literal['teacher_std', 'none'] = 'none'
    """`teacher_std`: measure maps in standard deviations of the teacher's level; `none`: as they are."""


class TarFeatureSettings(LevelLossOptions):
    """TAR's feature level: squared error under a Gaussian mask of each object."""

    loss: Literal['tar_feature']
    """Kind of this loss."""
    weight: NonNegativeFloat = 1.0
    """Factor of the loss, a mean over channels and over cells by their mask."""
    spread: tuple[PositiveFloat, PositiveFloat] = (2.0, 2.0)
    """Widths of the Gaussian along x and y, in half widths and half heights of its box."""
    adapter: Literal['auto', 'always'] = 'always'
    """`auto`: a 1x1 adapter where the channels differ; `always`: everywhere."""
    scale: Literal['teacher_std', 'none'] = 'teacher_std'
    """`teacher_std`: measure maps in standard deviations of the teacher's level; `none`: as they are."""
    decay: DecaySettings = DecaySettings()
    """How the weight falls during the stage; TAR's is linear."""


class FgdSettings(LevelLossOptions):
    """Focal and global distillation; the defaults are those published for RetinaNet (others: `fgd.py`)."""

    loss: Literal['fgd']
    """Kind of this loss."""
    weight: NonNegativeFloat = 1.0
    """Factor of the whole loss."""
    foreground: NonNegativeFloat = 1e-3
    """Factor of the error inside of objects, the paper's alpha (two-stage detectors: 5e-5; without anchors: 1.6e-3)."""
    background: NonNegativeFloat = 5e-4
    """Factor of the error outside of objects, beta (2.5e-5; 8e-4)."""
    attention: NonNegativeFloat = 1e-3
    """Factor of the difference of attentions, gamma (5e-5; 8e-3)."""
    relation: NonNegativeFloat = 5e-6
    """Factor of the global relation, lambda (5e-7; 8e-6)."""
    temperature: PositiveFloat = 0.5
    """What magnitudes are divided by before the softmaxes of the attentions."""
    normalize: Literal['mean', 'published'] = 'published'
    """What the four factors belong to: `published`: the paper's sums, at 800x1088 px; `mean`: means."""
