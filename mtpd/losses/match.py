"""Which level of the teacher each level of the student learns from: the one with its stride."""

from collections.abc import Sequence
from dataclasses import dataclass

from mtpd.errors import InputError
from mtpd.pyramid import Level


@dataclass(frozen=True)
class LevelPair:
    """A level of the student and the level of the teacher that has its stride.

    Attributes:
        student: the student's level.
        teacher: the teacher's level.
    """

    student: Level
    teacher: Level

    @property
    def name(self) -> str:
        """Name of both, since a level is named after its stride."""
        return self.student.name


def match_levels(
    student: Sequence[Level], teacher: Sequence[Level], *, wanted: Sequence[str] | None = None
) -> list[LevelPair]:
    """Pairs levels by stride; their indices may differ (a RetinaNet starts at p3, a Mask R-CNN at p2).

    Args:
        student: the student's levels.
        teacher: the teacher's levels.
        wanted: names of the levels to pair, in the order of the result; None for all that both have.

    Raises:
        InputError: a wanted level is missing on one side, or they share none.
    """
    teachers = {level.stride: level for level in teacher}
    shared = {level.name: LevelPair(level, teachers[level.stride]) for level in student if level.stride in teachers}
    both = f'the student has {_names(student)}, the teacher {_names(teacher)}'
    if not shared:
        raise InputError(f'student and teacher share no level to distil: {both}; take a teacher with the same strides')
    if wanted is None:
        return list(shared.values())
    missing = [name for name in wanted if name not in shared]
    if missing:
        raise InputError(f'cannot distil {", ".join(missing)}: {both}; choose levels from {", ".join(shared)}')
    return [shared[name] for name in wanted]


def _names(levels: Sequence[Level]) -> str:
    return ', '.join(level.name for level in levels) or 'none'
