"""What an entry of a stage's `distill` list may say, with defaults."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, ValidationInfo, field_validator

from mtpd_train.section import Section, Share

LevelName = Annotated[str, Field(pattern=r'^[ps]\d+$')]
Levels = Annotated[tuple[LevelName, ...] | None, Field(min_length=1)]
Resize = Literal['none', 'student', 'teacher']


def _check_pairs(teacher_levels: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
    levels = info.data.get('levels', ())
    # `levels` is missing from `info.data` when it is itself wrong.
    if teacher_levels is not None and 'levels' in info.data and len(levels or ()) != len(teacher_levels):
        raise ValueError(
            f'needs one level for each of `levels`, which has {len(levels or ())}, got {len(teacher_levels)}'
        )
    return teacher_levels


TeacherLevels = Annotated[Levels, AfterValidator(_check_pairs)]


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


class FineGrainedSettings(Section):
    """Fine-grained feature imitation: squared error in cells whose anchors, the student's, are near an object."""

    loss: Literal['fine_grained']
    """Kind of this loss."""
    levels: Levels = None
    """Levels it acts on; null: all that student and teacher share."""
    teacher_levels: TeacherLevels = None
    """The teacher's level for each of `levels`, one by one; null: those of the same strides."""
    resize: Resize = 'none'
    """Whose map is brought to the grid of the other where the strides of a pair differ."""
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
    decay: DecaySettings = DecaySettings()
    """How the weight falls during the stage."""


class TarFeatureSettings(Section):
    """TAR's feature level: squared error under a Gaussian mask of each object."""

    loss: Literal['tar_feature']
    """Kind of this loss."""
    levels: Levels = None
    """Levels it acts on; null: all that student and teacher share."""
    teacher_levels: TeacherLevels = None
    """The teacher's level for each of `levels`, one by one; null: those of the same strides."""
    resize: Resize = 'none'
    """Whose map is brought to the grid of the other where the strides of a pair differ."""
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


class FgdSettings(Section):
    """Focal and global distillation; the defaults are those published for RetinaNet (see `mtpd/losses/fgd.py`)."""

    loss: Literal['fgd']
    """Kind of this loss."""
    levels: Levels = None
    """Levels it acts on; null: all that student and teacher share."""
    teacher_levels: TeacherLevels = None
    """The teacher's level for each of `levels`, one by one; null: those of the same strides."""
    resize: Resize = 'none'
    """Whose map is brought to the grid of the other where the strides of a pair differ."""
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
    decay: DecaySettings = DecaySettings()
    """How the weight falls during the stage."""


class TarHeadSettings(Section):
    """TAR's responses: classes and boxes of RoIs, as the teacher's RoI head sees them. For two-stage detectors."""

    loss: Literal['tar_head']
    """Kind of this loss."""
    mode: Literal['head_on_gpu', 'cached_rois'] = 'head_on_gpu'
    """`head_on_gpu`: the teacher's head judges the student's proposals; `cached_rois`: the student's the teacher's."""
    class_weight: NonNegativeFloat = 1.0
    """Factor of the class term, a divergence averaged over RoIs."""
    box_weight: NonNegativeFloat = 1.0
    """Factor of the box term, an L1 distance of deltas averaged over the RoIs that its gate lets pass."""
    temperature: PositiveFloat = 1.0
    """What class logits are divided by."""
    class_gate: Literal['better', 'none'] = 'better'
    """`better`: learn classes where the teacher is surer of the true class than the student; `none`: everywhere."""
    box_gate: Literal['proposal', 'student', 'none'] = 'proposal'
    """Learn boxes where the teacher's overlaps the object more than `proposal` or `student` does; `none`: of all."""
    positive_iou: Annotated[float, Field(gt=0, le=1)] = 0.5
    """IoU with an object from which a RoI is positive."""
    decay: DecaySettings = DecaySettings(kind='linear')
    """How the weights fall during the stage."""


# What compares maps, level by level.
LevelLossSettings = (
    MaskedMseSettings | MgdSettings | PkdSettings | CwdSettings | FineGrainedSettings | TarFeatureSettings | FgdSettings
)
DistillSettings = Annotated[LevelLossSettings | TarHeadSettings, Field(discriminator='loss')]
