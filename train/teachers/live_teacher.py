"""A teacher that runs in the training loop, on the pixels of every batch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps, batch_images, require_finite
from mtpd.detectors.samples import Sample
from mtpd.detectors.teachers import Teacher, neck_and_head_weights, teacher_fingerprint
from mtpd.errors import InputError
from mtpd.geometry import Level, Size
from mtpd.heads.roi_head import RoiHead
from mtpd.system.files import canonical_json
from mtpd_train.teachers.teacher_source import ReadAhead, TeacherSource


@dataclass(frozen=True)
class LiveTeacher(TeacherSource):
    """A teacher in the training loop, on the pixels of every batch: computes what extraction does, stores nothing."""

    teacher: Teacher  # part of no other module, so nothing trains or saves it

    kind: ClassVar[Literal['teachers']] = 'teachers'

    def __str__(self) -> str:
        return f'teacher {self.name} in the loop'

    def weights(self) -> dict[str, Tensor]:
        return neck_and_head_weights(self.teacher)

    def roi_head(self) -> RoiHead:
        if self.teacher.roi_head is None:
            raise InputError(
                f'tar_head: teacher {self.name} has no RoI head, or one that mtpd cannot run on its maps; '
                'use a Faster, Mask or Cascade R-CNN, or another loss'
            )
        return RoiHead(self.teacher.roi_head, self.weights())

    def num_roi_classes(self) -> int:
        raise InputError(
            f'tar_head: teacher {self.name} in the loop has no stored proposals, which cached_rois needs; set mode to '
            'head_on_gpu, or train from a cache that was extracted with --rois'
        )

    def to(self, device: torch.device) -> None:
        self.teacher.module.to(device)

    def maps(
        self, samples: Sequence[Sample], ahead: ReadAhead, *, levels: Sequence[Level], device: torch.device
    ) -> dict[str, EncodedMaps]:
        # A forward pass for each padded size, as in extraction: with more padding the cells at the edge would differ.
        groups: dict[Size, list[int]] = {}
        for number, sample in enumerate(samples):
            groups.setdefault(self.geometry.padded(sample.original), []).append(number)
        found: list[dict[str, EncodedMaps]] = [{} for _ in samples]
        for size, numbers in groups.items():
            pixels = [samples[number].image.to(device, non_blocking=True) for number in numbers]
            live = self.teacher.maps_of(pixels, padded=size)
            for level in levels:
                values = live[level.name].float()
                self._require_sound(values, level, [samples[number] for number in numbers], size)
                for place, number in enumerate(numbers):
                    found[number][level.name] = EncodedMaps(values[place : place + 1])
        return {level.name: batch_images([one[level.name] for one in found]) for level in levels}

    def _require_sound(self, values: Tensor, level: Level, samples: Sequence[Sample], size: Size) -> None:
        """Refuses maps of other sizes than the stride says, or that are not finite."""
        if values.shape[2:] != level.grid(*size):
            raise InputError(
                f'teacher {self.name}: {level.name} is {tuple(values.shape[2:])} for an input of {size[0]} x {size[1]} '
                f'px, expected {level.grid(*size)}: its stride is not {level.stride} there; exclude it with `levels`'
            )
        for view in sorted({sample.view for sample in samples}):
            seen = [number for number, sample in enumerate(samples) if sample.view == view]
            ids = [samples[number].image_id for number in seen]
            require_finite(values[seen], level=level.name, view=view, image_ids=ids)


def teacher_name(teacher: str, checkpoint: Path | str | None) -> str:
    """What a user calls a teacher in the loop: its reference, with its weights where they are named."""
    return teacher if checkpoint is None else f'{teacher} from {checkpoint}'


def live_teacher(teacher: Teacher, *, name: str) -> LiveTeacher:
    """A teacher to learn from, with what identifies it."""
    geometry = teacher.preprocessing.geometry
    description = {
        'fingerprint': teacher_fingerprint(teacher),
        'levels': [asdict(level) for level in teacher.levels],
        'geometry': geometry.to_dict(),
    }
    # As it comes back from a file: lists for tuples.
    description = json.loads(canonical_json(description))
    return LiveTeacher(
        name, description, teacher.levels, geometry, teacher.classes, teacher.hook_point, teacher=teacher
    )
