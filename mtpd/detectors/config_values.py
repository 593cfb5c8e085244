"""Checked reading of entries of mmdet configs, which may hold any value."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from mtpd.errors import InputError

# Packages whose classes are the plain ones of that name, whether named by class, with a scope or without.
_PLAIN_PACKAGES = frozenset({'mmdet', 'mmcv', 'mmengine'})


def plain_type(value: Any) -> str:
    """The name of a config's `type`: `Resize` for 'Resize', 'mmdet.Resize', its full path and the class alike.

    Other scopes and classes of other packages keep their full names; what names no type becomes its repr.
    """
    if isinstance(value, str):
        scope, _, name = value.rpartition('.')
        return name if scope.partition('.')[0] in _PLAIN_PACKAGES else value
    if isinstance(value, type):
        is_plain = value.__module__.partition('.')[0] in _PLAIN_PACKAGES
        return value.__name__ if is_plain else f'{value.__module__}.{value.__qualname__}'
    return f'{value!r:.80}'


@dataclass(frozen=True)
class Entry:
    """A dict of a config, with its place for messages.

    Attributes:
        place: the file and the part of the config.
        values: its keys and values.
    """

    place: str
    values: Mapping[str, Any]

    @property
    def type(self) -> str:
        """Its `type` by `plain_type`."""
        return plain_type(self.values.get('type'))

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than None."""
        return self.values.get(key) is not None

    def refuse(self, key: str, wanted: str) -> NoReturn:
        """Raises InputError with place, key, value and what was wanted."""
        raise InputError(
            f'{self.place}: {key} is {self.values.get(key)!r:.80}, expected {wanted}; change it in a copy of the config'
        )

    def require_plain_class(self, registry: Any) -> None:
        """Refuses a class of the user's that is registered under the name of a plain one."""
        name = self.values['type']
        found = registry.get(name) if isinstance(name, str) else name
        if found is None or plain_type(found) != self.type:
            what = 'is not a known class' if found is None else f'is the class {plain_type(found)}'
            raise InputError(
                f'{self.place}: type {name!r:.80} {what}, not the class of mmdet; use that of mmdet in a '
                'copy of the config'
            )

    def require_known(self, known: Collection[str]) -> None:
        """Refuses keys that are not in `known` (`type` and `_scope_` always are)."""
        if self.values.get('_scope_', 'mmdet') not in _PLAIN_PACKAGES:
            self.refuse('_scope_', ' or '.join(sorted(_PLAIN_PACKAGES)))
        for key in self.values:
            if key not in known and key not in ('type', '_scope_'):
                raise InputError(
                    f'{self.place}: has {key}={self.values[key]!r:.80}, which is not supported; supported are '
                    f'{", ".join(sorted(known)) or "no arguments"}; remove it in a copy of the config'
                )

    def flag(self, key: str, default: bool) -> bool:
        """A truth value; None, 0 and 1 count as such."""
        value = self.values.get(key, default)
        if value is not None and (not isinstance(value, bool | int) or value not in (0, 1)):
            self.refuse(key, 'True or False')
        return bool(value)

    def whole(self, key: str, default: int) -> int:
        """An int of at least 1."""
        value = self.values.get(key, default)
        if not is_whole(value) or value < 1:
            self.refuse(key, 'a whole number of at least 1')
        return int(value)

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.values.get(key, default)
        if not is_number(value):
            self.refuse(key, 'a finite number')
        return float(value)

    def choice(self, key: str, default: str, choices: Collection[str]) -> str:
        """One of the strings."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in choices:
            self.refuse(key, ' or '.join(map(repr, sorted(choices))))
        return value

    def size(self, key: str, *, also_list: bool) -> tuple[int, int]:
        """Two whole numbers from 1; a list of them only where mmcv takes lists."""
        value = self.values.get(key)
        kinds = (tuple, list) if also_list else (tuple,)
        if not isinstance(value, kinds) or len(value) != 2 or not all(is_whole(one) and one >= 1 for one in value):
            self.refuse(key, 'a tuple of two whole numbers of at least 1')
        first, second = value
        return int(first), int(second)


def is_whole(value: Any) -> bool:
    """Whether it is an int, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite real number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
