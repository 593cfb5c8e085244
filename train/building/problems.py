"""What is wrong with the stages of a run, gathered while they are built: one message has all of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mtpd.errors import InputError, MtpdError

# (number of a stage, key) -> where that is, as text.
Place = Callable[[int, str], str]


@dataclass(frozen=True)
class Problem:
    """One reason why a stage cannot be built: the stage's number, the responsible key, the error."""

    number: int
    key: str
    error: MtpdError


class Unbuildable(Exception):
    """A stage has problems, which are noted."""


class Problems:
    """The problems of one stage."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.found: list[Problem] = []

    @contextmanager
    def at(self, key: str) -> Iterator[None]:
        """Records an error of the block for a key and continues; call `require_none` before using its values."""
        try:
            yield
        except MtpdError as error:
            self.found.append(Problem(self._number, key, error))

    def require_none(self) -> None:
        """Ends the building of the stage when it has problems.

        Raises:
            Unbuildable: it has.
        """
        if self.found:
            raise Unbuildable


def raise_problems(problems: Sequence[Problem], place: Place) -> None:
    """Raises all problems as one error; a single one keeps its kind.

    Raises:
        MtpdError: there are some.
    """
    lines = [(f'{place(one.number, one.key)}', one.key, ' '.join(str(one.error).split())) for one in problems]
    if len(problems) == 1:
        ((where, key, text),) = lines
        raise type(problems[0].error)(f'{where}, {key}: {text}') from problems[0].error
    if problems:
        widths = [max(len(line[column]) for line in lines) for column in range(2)]
        rows = [f'  {where:{widths[0]}}  {key:{widths[1]}}  {text}' for where, key, text in lines]
        raise InputError('\n'.join([f'the stages have {len(problems)} problems', *rows])) from problems[0].error
