"""What a stage learns from: a teacher's maps, out of its cache or from the teacher itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.detectors.transforms import Sample
from mtpd.geometry import Geometry, Level, Size
from mtpd.heads.roi_head import RoiHead
from mtpd.heads.rois import ImageRois
from mtpd.losses.teacher_map import TeacherMap
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.sampling import Request

# The codes of one image by level name.
Encoded = Mapping[str, EncodedMaps]


class ReadAhead(NamedTuple):
    """What is read ahead for a batch.

    Attributes:
        maps: the codes of each of its images, or nothing where there is nothing to read.
        rois: the teacher's proposals on each of its images, in px of the original image, or nothing.
    """

    maps: Sequence[Encoded] = ()
    rois: Sequence[ImageRois] = ()


class TeacherSource(Protocol):
    """A teacher as the trainer sees it."""

    @property
    def name(self) -> str:
        """What the user calls it: the folder of a cache, the name of a teacher."""

    @property
    def kind(self) -> Literal['caches', 'teachers']:
        """The part of run.json that records it."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What it is, as JSON values; a run is not resumed with another one."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """All levels that it can give."""

    @property
    def geometry(self) -> Geometry:
        """Resize and padding of its inputs, which are those of the student too."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """What its labels mean, in their order; None where it does not say."""

    @property
    def hook_point(self) -> str:
        """Where in the network its maps were taken."""

    def __str__(self) -> str:
        """For the summary of a stage."""

    def weights(self) -> dict[str, Tensor]:
        """The teacher's neck and head parameters by their name in the teacher, on the CPU."""

    def roi_head(self) -> RoiHead:
        """The teacher's RoI head, in float32 on the CPU, for maps that this source gives.

        Raises:
            MtpdError: the teacher has none that mtpd can run; the message states why.
        """

    def num_roi_classes(self) -> int:
        """Object classes of the teacher's proposals that are stored.

        Raises:
            MtpdError: none are.
        """

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

    def maps(
        self,
        samples: Sequence[Sample],
        ahead: ReadAhead,
        *,
        levels: Sequence[Level],
        padded: Size,
        device: torch.device,
    ) -> dict[str, TeacherMap]:
        """Level name -> maps (B, C, H, W) on `device`, without gradient; call it outside of autocast.

        An image's map covers its own padded input; the batch may be padded further, and the values beyond are zero.
        They, like all padding, are masked out of every loss. The maps hold as long as `ahead` does.

        Args:
            samples: the images of the batch.
            ahead: what `read_ahead` gave for it.
            levels: those to give.
            padded: (height, width) of the student's input, px.
            device: where to compute.
        """
