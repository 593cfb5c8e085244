"""What an entry of a stage's `distill` list may say, with defaults."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, ValidationInfo, field_validator

from mtpd_train.section import Section, Share

LevelName = Annotated[str, Field(pattern=r'^[ps]\d+$')]


class DecaySettings(Section):
    """How the weight of a loss falls from all of it in the first step of a stage to none at its end."""

    kind: Literal['none', 'linear', 'cosine', 'step'] = 'none'
    """`none`: the weight stays; `linear`; `cosine`: along half a cosine; `step`: in equal stairs."""
    at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(), validate_default=True)
    """Shares of the stage at which `step` falls by a stair, the last one to 0: [0.5] ends the loss half-way."""

    @field_validator('at')
    @classmethod
    def _check_at(cls, at: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        kind = info.data.get('kind')
        if kind == 'step' and not at:
            raise ValueError('step needs `at`, such as at: [0.5]')
        if at and kind not in (None, 'step'):
            raise ValueError(f'belongs to the step decay, not to {kind}')
        if list(at) != sorted(set(at)):
            raise ValueError(f'must rise, got {list(at)}')
        return at


class MaskedMseSettings(Section):
    """FitNet: mean squared error between the student's maps, through 1x1 adapters, and the teacher's."""

    loss: Literal['masked_mse']
    """Kind of this loss."""
    levels: tuple[LevelName, ...] | None = Field(default=None, min_length=1)
    """Levels it acts on; null: all that student and teacher share."""
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
    levels: tuple[LevelName, ...] | None = Field(default=None, min_length=1)
    """Levels it acts on; null: all that student and teacher share."""
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
    levels: tuple[LevelName, ...] | None = Field(default=None, min_length=1)
    """Levels it acts on; null: all that student and teacher share. The authors leave out RetinaNet's p7."""
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
    levels: tuple[LevelName, ...] | None = Field(default=None, min_length=1)
    """Levels it acts on; null: all that student and teacher share."""
    weight: NonNegativeFloat = 10.0
    """Factor of the loss, a mean over images and channels."""
    temperature: PositiveFloat = 1.0
    """What the features are divided by before the softmax over cells."""
    adapter: Literal['auto', 'always'] = 'auto'
    """`auto`: a 1x1 adapter where the channels differ; `always`: everywhere."""
    decay: DecaySettings = DecaySettings()
    """How the weight falls during the stage."""


class TarFeatureSettings(Section):
    """TAR's feature level: squared error under a Gaussian mask of each object."""

    loss: Literal['tar_feature']
    """Kind of this loss."""
    levels: tuple[LevelName, ...] | None = Field(default=None, min_length=1)
    """Levels it acts on; null: all that student and teacher share."""
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


DistillSettings = Annotated[
    MaskedMseSettings | MgdSettings | PkdSettings | CwdSettings | TarFeatureSettings, Field(discriminator='loss')
]
