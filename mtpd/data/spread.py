"""A few of many, evenly."""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar('Item')


def spread(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """Up to `count` of `items`, at equal distances."""
    number = min(count, len(items))
    return tuple(items[index * len(items) // number] for index in range(number))
