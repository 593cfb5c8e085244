"""What a detector's authors train it with, item by item, so that nothing of it is left out without a word."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Settings of a stage file, by dotted key, that are not plain values there.
GEOMETRY, PAD_SIZE, PAD_DIVISOR = 'data.geometry', 'data.geometry.pad_size', 'data.geometry.pad_divisor'
WEIGHTS = 'init.fine_tune'


@dataclass(frozen=True)
class Ingredient:
    """One thing that a recipe requires, and the setting of a stage file that gives it."""

    name: str
    key: str | None = None  # dotted key of the setting
    values: tuple[Any, ...] | None = ()  # each of which gives just this; None: any does. Empty: none does quite.

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
