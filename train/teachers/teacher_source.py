"""What a stage learns from: a teacher's maps, read from its cache or computed by the teacher in the loop."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from mtpd.cache import CacheReader
from mtpd.cache.format.codecs import EncodedMaps
from mtpd.detectors.samples import Sample
from mtpd.geometry import Geometry, Level
from mtpd.heads.roi_head import RoiHead
from mtpd.heads.rois import ImageRois
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.sampling import Request


class ReadAhead(NamedTuple):
    """What is read ahead for a batch."""

    maps: Mapping[str, EncodedMaps] = {}  # level name -> the teacher's maps (B, C, H, W), where there are any to read
    rois: Sequence[ImageRois] = ()  # the teacher's proposals on each image, in px of the original image


@dataclass(frozen=True)
class TeacherSource:
    """A teacher as the trainer sees it: what both kinds have in common, and what one that reads nothing ahead does."""

    name: str  # what the user calls it: the folder of a cache, the name of a teacher
    description: Mapping[str, Any]  # what it is, as JSON values; a run is not resumed with another one
    levels: tuple[Level, ...]  # all that it can give
    geometry: Geometry  # resize and padding of its inputs, which are those of the student too
    classes: tuple[str, ...] | None  # what its labels mean, in their order; None where it does not say
    hook_point: str  # where in the network its maps were taken

    kind: ClassVar[Literal['caches', 'teachers']]  # the part of run.json that records it

    @property
    def teachers(self) -> Mapping[str, tuple[Level, ...]]:
        """The levels of each teacher by their own names; one teacher has no name."""
        return {'': self.levels}

    @property
    def descriptions(self) -> Mapping[str, Mapping[str, Any]]:
        """Name and description of each teacher."""
        return {self.name: self.description}

    def caches(self, levels: Sequence[str]) -> list[tuple[CacheReader, list[str]]]:
        """The caches that are read, each with those of the levels that it has, by their names there."""
        return []

    def buffer_bytes(self, levels: Sequence[str], *, batch_size: int) -> int:
        """What the buffers of `read_ahead` take on the host."""
        return 0

    def weights(self) -> dict[str, Tensor]:
        """The teacher's neck and head parameters by their name in the teacher, on the CPU."""
        raise NotImplementedError

    def roi_head(self) -> RoiHead:
        """The teacher's RoI head, in float32 on the CPU, for the maps of this source; an MtpdError if it has none."""
        raise NotImplementedError

    def num_roi_classes(self) -> int:
        """Object classes of the teacher's stored proposals; an MtpdError where none are."""
        raise NotImplementedError

    def require_fit(self, train_set: DetectionDataset, *, flip: float) -> None:
        """Checks that it can teach on all images of a data set, in every view that training draws."""

    def to(self, device: torch.device) -> None:
        """Moves what computes, in place; what is only read stays where it is."""

    def read_ahead(
        self,
        batches: Sequence[Sequence[Request]],
        *,
        levels: Sequence[str],
        with_rois: bool = False,
        device: torch.device,
    ) -> Iterator[ReadAhead]:
        """What `maps` needs of each batch, in order, prepared by threads while the steps before are computed.

        The result for a batch is valid until the next is requested. `device` is where `maps` will compute; a GPU is
        copied to while it computes.
        """
        return itertools.repeat(ReadAhead(), len(batches))

    def maps(
        self, samples: Sequence[Sample], ahead: ReadAhead, *, levels: Sequence[Level], device: torch.device
    ) -> Mapping[str, EncodedMaps]:
        """Level name -> maps (B, C, H, W) on `device`, without gradient; call it outside of autocast.

        An image's map covers its own padded input; the grid is that of the largest, and the values beyond are zero.
        They, like all padding, are masked out of every loss. The maps hold as long as `ahead`, from `read_ahead`, does.
        """
        return ahead.maps
