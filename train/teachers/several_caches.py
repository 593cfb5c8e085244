"""The teachers of several caches at once: only codes are read, so each further one costs disk and adapters, no network.

A level is named after its cache and its own name, such as `swin_s:p3`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtpd.cache import CacheReader
from mtpd.errors import CacheMismatchError, InputError
from mtpd.geometry import Level
from mtpd.heads.roi_head import RoiHead
from mtpd.losses.distiller import named_level
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.sampling import Request
from mtpd_train.teachers.cached_teacher import CachedTeacher
from mtpd_train.teachers.teacher_source import ReadAhead, TeacherSource


@dataclass(frozen=True)
class SeveralCaches(TeacherSource):
    """The teachers of several caches of the same images at the same geometry."""

    sources: Mapping[str, CachedTeacher]  # by the names of their folders

    kind: ClassVar[Literal['caches']] = 'caches'

    def __str__(self) -> str:
        return ' and '.join(map(str, self.sources.values()))

    @property
    def teachers(self) -> Mapping[str, tuple[Level, ...]]:
        return {name: source.levels for name, source in self.sources.items()}

    def weights(self) -> dict[str, Tensor]:
        raise self._needs_one('init.inherit')

    def roi_head(self) -> RoiHead:
        raise self._needs_one('tar_head')

    def num_roi_classes(self) -> int:
        raise self._needs_one('tar_head')

    def _needs_one(self, what: str) -> InputError:
        return InputError(f'{what} needs one teacher, but the stage has the caches {self.name}; name one cache')

    def require_fit(self, train_set: DetectionDataset, *, flip: float) -> None:
        for source in self.sources.values():
            source.require_fit(train_set, flip=flip)

    @property
    def descriptions(self) -> Mapping[str, Mapping[str, Any]]:
        return {source.name: source.description for source in self.sources.values()}

    def caches(self, levels: Sequence[str]) -> list[tuple[CacheReader, list[str]]]:
        return [(source.reader, names) for source, names in zip(self.sources.values(), self._own(levels), strict=True)]

    def buffer_bytes(self, levels: Sequence[str], *, batch_size: int) -> int:
        parts = zip(self.sources.values(), self._own(levels), strict=True)
        return sum(source.buffer_bytes(names, batch_size=batch_size) for source, names in parts if names)

    def _own(self, levels: Sequence[str]) -> list[list[str]]:
        """The levels of each teacher by their own names."""
        prefixes = [named_level(name, '') for name in self.sources]
        return [[one.removeprefix(prefix) for one in levels if one.startswith(prefix)] for prefix in prefixes]

    def read_ahead(
        self,
        batches: Sequence[Sequence[Request]],
        *,
        levels: Sequence[str],
        with_rois: bool = False,
        device: torch.device,
    ) -> Iterator[ReadAhead]:
        streams = [
            (name, source.read_ahead(batches, levels=own, device=device))
            for (name, source), own in zip(self.sources.items(), self._own(levels), strict=True)
            if own
        ]
        for ahead in zip(*(stream for _, stream in streams), strict=True):
            maps = {
                named_level(name, level): one
                for (name, _), part in zip(streams, ahead, strict=True)
                for level, one in part.maps.items()
            }
            yield ReadAhead(maps)


def several_caches(sources: Mapping[str, CachedTeacher]) -> SeveralCaches:
    """The source of caches by their names; CacheMismatchError where one student cannot see what all teachers saw."""
    first, *others = sources.values()
    for one in others:
        for what, own, other in (
            ('geometry', first.geometry, one.geometry),
            ('hook point', first.hook_point, one.hook_point),
        ):
            if own != other:
                raise CacheMismatchError(
                    f'{one.name}: its {what} is {other}, and that of {first.name} is {own}; a stage learns from caches '
                    f'of one {what}'
                )
    return SeveralCaches(
        name=', '.join(one.name for one in sources.values()),
        description={},  # each has its own, see `descriptions`
        levels=tuple(
            replace(level, name=named_level(name, level.name))
            for name, source in sources.items()
            for level in source.levels
        ),
        geometry=first.geometry,
        classes=first.classes if all(one.classes == first.classes for one in others) else None,
        hook_point=first.hook_point,
        sources=sources,
    )
