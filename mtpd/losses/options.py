"""The options that losses have in common: how the weight decays, levels, and how a loss is built from its options."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationInfo, field_validator
from torch import Tensor, nn

from mtpd.geometry import Level
from mtpd.losses.match import LevelPair, Resize

Share = Annotated[float, Field(ge=0, le=1)]
DecayKind = Literal['none', 'linear', 'cosine', 'step']
# `auto`: a 1x1 adapter where the channels differ; `always`: everywhere.
Adapter = Literal['auto', 'always']
# `teacher_std`: maps are measured in standard deviations of the teacher's level over the batch, so that 1 is the loss
# of a student that knows only each channel's mean; `none`: as they are.
Scale = Literal['teacher_std', 'none']
# What weights belong to. `published`: the paper's sums over channels and cells at 800x1088 px, for any size of the
# input (see `mtpd.losses.mgd.published_elements`); `mean`: means over them.
Normalize = Literal['mean', 'published']

LevelName = Annotated[str, Field(pattern=r'^[ps]\d+(_\d+)?$')]
Levels = Annotated[tuple[LevelName, ...] | None, Field(min_length=1)]


class Options(BaseModel):
    """Frozen, validated by pydantic, strict about types and names; the text below a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra='forbid', strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Decay(Options):
    """Decay of a loss weight from its full value in the first step of a stage to 0 at its end, or the reverse."""

    kind: DecayKind = 'none'
    """`none`: constant weight; `linear`; `cosine`: half a cosine; `step`: equal steps at the points `at`."""
    rise: bool = False
    """Reverse the course: the weight rises from 0 in the first step to its full value at the end of the stage."""
    at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(), validate_default=True)
    """Fractions of the stage at which `step` lowers the weight, the last one to 0: [0.5] ends the loss half-way."""

    @field_validator('rise')
    @classmethod
    def _check_rise(cls, rise: bool, info: ValidationInfo) -> bool:
        if rise and info.data.get('kind') == 'none':
            raise ValueError('needs a `kind` other than none, such as kind: linear')
        return rise

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

    or, where it rises, 1 minus that: two teachers whose weights decay and rise are cross-faded.

    TAR (Sun et al. 2020) lets distillation decay. Its form is, to the best of our knowledge, that of DWPose (Yang et
    al. 2023), which credits it: `1 - (t - 1) / t_max` in epoch t from 1. `linear` is that, by optimizer steps.

    `progress`, x, is optimizer steps taken / all: 0 in the first step, one step short of 1 in the last. There is no
    other state, so a resumed stage continues exactly.
    """
    factor = 1.0
    if decay.kind == 'linear':
        factor = 1 - progress
    elif decay.kind == 'cosine':
        factor = (1 + math.cos(math.pi * progress)) / 2
    elif decay.kind == 'step':
        factor = sum(share > progress for share in decay.at) / len(decay.at)
    return 1 - factor if decay.rise else factor


def _check_pairs(teacher_levels: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
    levels = info.data.get('levels', ())
    # `levels` is missing from `info.data` when it is itself wrong.
    if teacher_levels is not None and 'levels' in info.data and len(levels or ()) != len(teacher_levels):
        raise ValueError(
            f'needs one level for each of `levels`, which has {len(levels or ())}, got {len(teacher_levels)}'
        )
    return teacher_levels


TeacherLevels = Annotated[Levels, AfterValidator(_check_pairs)]


def require_name(schema: dict[str, Any]) -> None:
    """Makes `loss` a required key of the JSON schema, since an entry of a stage file names its loss."""
    schema['properties']['loss'].pop('default', None)
    schema['required'] = ['loss']


class LevelOptions(Options):
    """Where a loss acts and how much it counts. The options of a loss add its own and say how it is built.

    Attributes:
        looks_at_objects: whether the loss needs the annotated objects of each image.
        looks_at_anchors: whether `build` needs the anchors of the student's head.
    """

    model_config = ConfigDict(json_schema_extra=require_name)
    looks_at_objects: ClassVar[bool] = False
    looks_at_anchors: ClassVar[bool] = False

    loss: str
    """Name of the loss."""
    levels: Levels = None
    """Levels to distil; null: all levels that student and teacher share."""
    teacher_levels: TeacherLevels = None
    """Teacher level for each entry of `levels`, in the same order; null: the levels of the same names."""
    resize: Resize = 'none'
    """Which map is resized to the grid of the other when the strides of a pair differ."""
    teacher: Annotated[str, Field(min_length=1)] | None = None
    """With several caches: the folder name of the one to learn from; null: from each, with adapters of its own."""
    weight: NonNegativeFloat = 1.0
    """Loss weight."""
    decay: Decay = NO_DECAY
    """Decay of the weight during the stage."""

    def build(self, pair: LevelPair, anchors: Mapping[int, Tensor]) -> nn.Module:
        """The module of the loss on one level; its first weights come from torch's global generator.

        It is called as `module(student, teacher, mask, objects=objects, generator=generator)` with

            student     Tensor (B, C of the student, H, W)
            teacher     `EncodedMaps` (B, C of the teacher, H, W)
            mask        bool (B, 1, H, W), True at cells that count
            objects     `Objects` of the batch, may be None unless `looks_at_objects`
            generator   what random numbers are drawn from, or None for torch's global one

        and returns a scalar float32, before `factor` and `is_over_variance`, or the `WeightedError` that it is, since
        those of all levels are computed together. It raises InputError when the shapes do not fit.

        Args:
            pair: the levels.
            anchors: of the student's head, stride -> (A, 4), see `AnchorWeights`; empty unless `looks_at_anchors`.
        """
        raise NotImplementedError

    def factor(self, compared: Level) -> float:
        """What the module's result is multiplied by to become the loss; `compared` is what is compared."""
        return self.weight

    @property
    def is_over_variance(self) -> bool:
        """Whether the loss is divided by the teacher's variance: with `scale: teacher_std`."""
        return getattr(self, 'scale', 'none') == 'teacher_std'
