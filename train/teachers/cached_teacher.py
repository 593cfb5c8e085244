"""A teacher that has left its maps in a cache."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtpd.cache import CacheReader
from mtpd.detectors.class_names import class_list
from mtpd.detectors.transforms import Sample
from mtpd.errors import CacheMismatchError
from mtpd.geometry import Geometry, Level, Size
from mtpd.heads.roi_head import RoiHead
from mtpd.losses.teacher_map import TeacherMap
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.sampling import Request
from mtpd_train.teachers.cache_fit import require_fit
from mtpd_train.teachers.code_batch import teacher_maps
from mtpd_train.teachers.code_stream import stream_codes
from mtpd_train.teachers.teacher_source import ReadAhead


@dataclass(frozen=True)
class CachedTeacher:
    """The `TeacherSource` of a cache; `reader` has it open."""

    reader: CacheReader

    kind: ClassVar[Literal['caches']] = 'caches'

    @property
    def name(self) -> str:
        return str(self.reader.path)

    @property
    def description(self) -> Mapping[str, Any]:
        return self.reader.manifest.description.model_dump(mode='json')

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.reader.levels

    @property
    def geometry(self) -> Geometry:
        return self.reader.geometry

    @property
    def classes(self) -> tuple[str, ...] | None:
        return class_list(self.reader.manifest.description.provenance.get('classes'))

    @property
    def hook_point(self) -> str:
        teacher = self.reader.manifest.description.fingerprint.get('teacher')
        return str(teacher['hook_point']) if isinstance(teacher, dict) and 'hook_point' in teacher else 'neck'

    def __str__(self) -> str:
        return f'cache {self.name} ({", ".join(self.reader.views)})'

    def weights(self) -> dict[str, Tensor]:
        return self.reader.teacher_weights()

    def roi_head(self) -> RoiHead:
        return self.reader.roi_head()

    def num_roi_classes(self) -> int:
        record = self.reader.manifest.description.rois
        if record is None:
            raise CacheMismatchError(
                f'{self.name}: holds no proposals of its teacher, which cached_rois needs; extract it with --rois 512, '
                'or set mode to head_on_gpu'
            )
        return record.num_classes

    def require_fit(self, train_set: DetectionDataset, *, flip: float) -> None:
        require_fit(self.reader, train_set, flip=flip)

    def to(self, device: torch.device) -> None:
        del device

    def read_ahead(
        self,
        batches: Sequence[Sequence[Request]],
        *,
        levels: Sequence[str],
        with_rois: bool = False,
        device: torch.device,
    ) -> Iterator[ReadAhead]:
        return stream_codes(self.reader, batches, levels=levels, with_rois=with_rois, device=device)

    def maps(
        self,
        samples: Sequence[Sample],
        ahead: ReadAhead,
        *,
        levels: Sequence[Level],
        padded: Size,
        device: torch.device,
    ) -> dict[str, TeacherMap]:
        del samples
        return teacher_maps(ahead.maps, levels=levels, padded=padded, device=device)
