"""What the entries of a stage's `distill` list have in common: levels, a weight, and how it falls."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, ValidationInfo, field_validator

from mtpd_train.settings.section import Section

LevelName = Annotated[str, Field(pattern=r'^[ps]\d+(_\d+)?$')]
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
    """Decay of a loss weight from its full value in the first step of a stage to 0 at its end."""

    kind: Literal['none', 'linear', 'cosine', 'step'] = 'none'
    """`none`: constant weight; `linear`; `cosine`: half a cosine; `step`: equal steps at the points `at`."""
    at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(), validate_default=True)
    """Fractions of the stage at which `step` lowers the weight, the last one to 0: [0.5] ends the loss half-way."""

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


class LevelLossOptions(Section):
    """Options of every loss that compares maps level by level."""

    loss: str
    """Name of the loss."""
    levels: Levels = None
    """Levels to distil; null: all levels that student and teacher share."""
    teacher_levels: TeacherLevels = None
    """Teacher level for each entry of `levels`, in the same order; null: the levels of the same names."""
    resize: Resize = 'none'
    """Which map is resized to the grid of the other when the strides of a pair differ."""
    weight: NonNegativeFloat
    """Loss weight."""
    decay: DecaySettings = DecaySettings()
    """Decay of the weight during the stage."""
