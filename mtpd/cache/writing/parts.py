"""Dividing one extraction among processes that share nothing but the cache's folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar('Item')


@dataclass(frozen=True)
class Part:
    """The share of one process: part `index` (from 1) of `count`."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f'part {self.index}/{self.count}: parts are numbered from 1 to their count')

    def __str__(self) -> str:
        return f'{self.index}/{self.count}'

    @property
    def is_whole(self) -> bool:
        """Whether there are no others."""
        return self.count == 1

    @property
    def label(self) -> str:
        """For file names."""
        return f'{self.index}-of-{self.count}'

    def share(self, items: Iterable[Item]) -> list[Item]:
        """This part's items: every `count`-th, so that parts get like numbers of every padded shape."""
        return [item for number, item in enumerate(items) if number % self.count == self.index - 1]

    def excludes(self, other: 'Part') -> bool:
        """Whether the two must not write one cache at a time: the same shard could fall to both."""
        return self.count != other.count or self.index == other.index

    def others(self) -> list['Part']:
        """The parts that may be at work beside this one."""
        return [Part(index, self.count) for index in range(1, self.count + 1) if index != self.index]


WHOLE = Part()
