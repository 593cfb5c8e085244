"""What a stage learns from: a teacher's maps, read from its cache or computed by the teacher in the loop."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.detectors.transforms import Sample
from mtpd.geometry import Geometry, Level
from mtpd.heads.roi_head import RoiHead
from mtpd.heads.rois import ImageRois
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.sampling import Request


class ReadAhead(NamedTuple):
    """What is read ahead for a batch.

    Attributes:
        maps: level name -> the teacher's maps (B, C, H, W), or nothing where there is nothing to read.
        rois: the teacher's proposals on each of its images, in px of the original image, or nothing.
    """

    maps: Mapping[str, EncodedMaps] = {}
    rois: Sequence[ImageRois] = ()


@dataclass(frozen=True)
class TeacherSource:
    """A teacher as the trainer sees it: what both kinds have in common, and what one that reads nothing ahead does.

    Attributes:
        name: what the user calls it: the folder of a cache, the name of a teacher.
        description: what it is, as JSON values; a run is not resumed with another one.
        levels: all levels that it can give.
        geometry: resize and padding of its inputs, which are those of the student too.
        classes: what its labels mean, in their order; None where it does not say.
        hook_point: where in the network its maps were taken.
        kind: the part of run.json that records it.
    """

    name: str
    description: Mapping[str, Any]
    levels: tuple[Level, ...]
    geometry: Geometry
    classes: tuple[str, ...] | None
    hook_point: str

    kind: ClassVar[Literal['caches', 'teachers']]

    def weights(self) -> dict[str, Tensor]:
        """The teacher's neck and head parameters by their name in the teacher, on the CPU."""
        raise NotImplementedError

    def roi_head(self) -> RoiHead:
        """The teacher's RoI head, in float32 on the CPU, for maps that this source gives.

        Raises:
            MtpdError: the teacher has none that mtpd can run; the message states why.
        """
        raise NotImplementedError

    def num_roi_classes(self) -> int:
        """Object classes of the teacher's proposals that are stored.

        Raises:
            MtpdError: none are.
        """
        raise NotImplementedError

    def require_fit(self, train_set: DetectionDataset, *, flip: float) -> None:
        """Checks that it can teach on all images of a data set, in every view that training draws.

        Raises:
            MtpdError: it cannot.
        """

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

        The result for a batch is valid until the next is requested.

        Args:
            batches: that will be requested.
            levels: names of those that `maps` will give.
            with_rois: whether the proposals are wanted too, if `num_roi_classes` says that there are some.
            device: where `maps` will compute; a GPU is copied to while it computes.
        """
        return itertools.repeat(ReadAhead(), len(batches))

    def maps(
        self, samples: Sequence[Sample], ahead: ReadAhead, *, levels: Sequence[Level], device: torch.device
    ) -> Mapping[str, EncodedMaps]:
        """Level name -> maps (B, C, H, W) on `device`, without gradient; call it outside of autocast.

        An image's map covers its own padded input; the grid is that of the largest, and the values beyond are zero.
        They, like all padding, are masked out of every loss. The maps hold as long as `ahead` does.

        Args:
            samples: the images of the batch.
            ahead: what `read_ahead` gave for it.
            levels: those to give.
            device: where to compute.
        """
        return ahead.maps
