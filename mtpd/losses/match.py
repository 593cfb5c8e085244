"""Which level of the teacher each level of the student learns from: the one with its name, or one that was named.

Levels are named after their strides. Where a network has several maps of one stride, the first has the name alone
(`p5`) and the others a number (`p5_2`): a level learns from a map of another name only if configured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mtpd.errors import InputError
from mtpd.geometry import Level

Resize = Literal['none', 'student', 'teacher']


@dataclass(frozen=True)
class LevelPair:
    """A level of the student and the level of the teacher that it learns from; `resize` is `none` at equal strides."""

    student: Level
    teacher: Level
    resize: Resize = 'none'

    @property
    def name(self) -> str:
        """Name of both, since a level is named after its stride; `p3-p2` where the names differ."""
        if self.student.name == self.teacher.name:
            return self.student.name
        return f'{self.student.name}-{self.teacher.name}'

    @property
    def compared(self) -> Level:
        """What is compared: the teacher's channels, on the grid of the side that is not resized."""
        target = self.student if self.resize == 'teacher' else self.teacher
        return Level(target.name, target.stride, self.teacher.channels)


def match_levels(
    student: Sequence[Level],
    teacher: Sequence[Level],
    *,
    levels: Sequence[str] | None = None,
    teacher_levels: Sequence[str] | None = None,
    resize: Resize = 'none',
) -> list[LevelPair]:
    """Pairs levels by name, for any index (a RetinaNet starts at p3, a Mask R-CNN at p2), or as given.

    `levels` are names in the order of the result, None for all that both sides have; `teacher_levels` the teacher's
    level for each of them, None for those of the same names.
    """
    if teacher_levels is None:
        levels = teacher_levels = _shared(student, teacher, levels)
    elif len(levels or ()) != len(teacher_levels):
        raise InputError(
            f'teacher_levels {", ".join(teacher_levels)} must name one level for each of levels '
            f'{", ".join(levels or ()) or "(not given)"}; give both lists with the same length'
        )
    pairs = []
    for name, teacher_name in zip(levels or (), teacher_levels, strict=True):
        one, other = _find(student, name, 'student'), _find(teacher, teacher_name, 'teacher')
        if one.stride != other.stride and resize == 'none':
            raise InputError(
                f'cannot distil {name} of the student (stride {one.stride}) from {teacher_name} of the teacher (stride '
                f'{other.stride}): their grids differ; set resize to student or teacher, or pair levels of one stride'
            )
        pairs.append(LevelPair(one, other, 'none' if one.stride == other.stride else resize))
    # What was meant is most likely another pairing, which would train on other levels than these.
    if resize != 'none' and all(pair.resize == 'none' for pair in pairs):
        names = ', '.join(pair.name for pair in pairs)
        raise InputError(
            f'resize is {resize}, but student and teacher have the same strides on {names}; remove it, or name the '
            "teacher's levels with teacher_levels"
        )
    return pairs


def _shared(student: Sequence[Level], teacher: Sequence[Level], levels: Sequence[str] | None) -> Sequence[str]:
    """The names of the levels that both sides have, of those that are wanted, which both must have."""
    places = {(level.name, level.stride) for level in teacher}
    shared = [level.name for level in student if (level.name, level.stride) in places]
    both = f'the student has {_names(student)}, the teacher {_names(teacher)}'
    if not shared:
        raise InputError(f'student and teacher share no level to distil: {both}; use a teacher with the same strides')
    missing = [name for name in levels or () if name not in shared]
    if missing:
        raise InputError(f'cannot distil {", ".join(missing)}: {both}; choose levels from {", ".join(shared)}')
    return shared if levels is None else levels


def _find(levels: Sequence[Level], name: str, owner: str) -> Level:
    for level in levels:
        if level.name == name:
            return level
    raise InputError(f'cannot distil {name}: the {owner} has {_names(levels)}; choose one of these')


def _names(levels: Sequence[Level]) -> str:
    return ', '.join(level.name for level in levels) or 'none'
