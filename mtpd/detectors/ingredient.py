"""One thing that the training recipe of a detector's config asks for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ingredient:
    """One thing that a recipe asks for, and the setting of a stage file that gives it.

    Attributes:
        name: what it is, in a few words.
        key: dotted key of the setting; None: there is none.
        values: of the setting, each of which gives just this; None: any does. Empty: none does quite.
    """

    name: str
    key: str | None = None
    values: tuple[Any, ...] | None = ()

    def is_given(self, settings: Mapping[str, Any]) -> bool:
        """Whether the settings of a stage, by dotted key, give it."""
        setting = settings.get(self.key) if self.key is not None else None
        if self.values is None:
            return setting is not None
        return any(_are_same(value, setting) for value in self.values)

    def __str__(self) -> str:
        return self.name if self.key is None else f'{self.name} ({self.key})'


def _are_same(value: Any, setting: Any) -> bool:
    if isinstance(value, list | tuple) and isinstance(setting, list | tuple):
        return len(value) == len(setting) and all(map(_are_same, value, setting))
    if isinstance(value, int | float) and isinstance(setting, int | float):
        return math.isclose(value, setting, rel_tol=1e-3)
    return bool(value == setting)


def numbers(values: Sequence[Any]) -> str:
    """Numbers for people: 1333x800."""
    return 'x'.join(str(value) for value in values)
