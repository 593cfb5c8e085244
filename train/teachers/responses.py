"""Distillation of responses in a stage: what two RoI heads say about the same RoIs, beside the maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.detectors.class_names import require_same_labels
from mtpd.detectors.detector import CapturedRois, Detector
from mtpd.detectors.hook_points import NECK_MAPS
from mtpd.detectors.samples import Sample
from mtpd.errors import InputError
from mtpd.geometry import Level
from mtpd.heads.roi_head import RoiHead, RoiHeadRecord
from mtpd.heads.rois import BoxCoder, ImageRois, mirrored, scaled
from mtpd.losses.options import Options
from mtpd.losses.tar_head import (
    LabelledBoxes,
    Matches,
    TarHeadOptions,
    match_rois,
    no_losses,
    predictions_of_cache,
    predictions_of_head,
    tar_head_losses,
)
from mtpd_train.teachers.teacher_source import TeacherSource


@dataclass(frozen=True)
class Responses:
    """The loss on responses of a stage."""

    options: TarHeadOptions
    coder: BoxCoder  # the student's
    num_classes: int  # of student and teacher
    # The teacher's, part of no other module, so nothing trains or saves it; None: its stored predictions are used.
    head: RoiHead | None
    levels: tuple[Level, ...]  # of the teacher, that the head takes RoIs from, in its order; none without a head


def build_responses(
    distill: Sequence[Options], *, student: Detector, classes: Sequence[str], source: TeacherSource | None
) -> Responses | None:
    """The loss on responses in `distill`, if there is one; `classes` are the names of the student's labels."""
    entries = [one for one in distill if isinstance(one, TarHeadOptions)]
    if not entries or source is None:
        return None
    if len(entries) > 1:
        raise InputError('distill lists tar_head twice; remove one')
    (options,) = entries
    coder = student.box_coder()
    if options.mode == 'head_on_gpu' and source.hook_point != NECK_MAPS:
        raise InputError(
            f'tar_head: the maps of {source.name} are taken before the norms of its neck, but its RoI head needs '
            'those after; extract the cache with --hook neck (with a `teacher`: set hook to neck)'
        )
    head = source.roi_head() if options.mode == 'head_on_gpu' else None
    of_teacher = source.num_roi_classes() if head is None else head.record.num_classes
    if of_teacher != len(classes):
        raise InputError(
            f'tar_head: the teacher of {source.name} has {of_teacher} classes, the student {len(classes)}; '
            'use a teacher trained on the classes of data.train'
        )
    require_same_labels(classes, source.classes, name=f'the teacher of {source.name}')
    return Responses(options, coder, len(classes), head, levels=() if head is None else _levels(head.record, source))


def _levels(record: RoiHeadRecord, source: TeacherSource) -> tuple[Level, ...]:
    """The levels that a head takes RoIs from, in its order."""
    # Of several maps of one stride the first has the stride's name.
    by_stride = {level.stride: level for level in reversed(source.levels)}
    missing = [stride for stride in record.strides if stride not in by_stride]
    if missing:
        raise InputError(
            f'tar_head: the RoI head of {source.name} needs levels of strides '
            f'{", ".join(map(str, record.strides))}, but it has {", ".join(level.name for level in source.levels)}, '
            f'none of stride {missing[0]}; add that level with --levels when extracting'
        )
    levels = tuple(by_stride[stride] for stride in record.strides)
    wrong = [level for level in levels if level.channels != record.in_channels]
    if wrong:
        raise InputError(
            f'tar_head: the RoI head of {source.name} needs {record.in_channels} channels, but its {wrong[0].name} '
            f'has {wrong[0].channels}; extract the cache again'
        )
    return levels


def response_losses(
    responses: Responses,
    samples: Sequence[Sample],
    teacher: Mapping[str, EncodedMaps],
    stored: Sequence[ImageRois],
    *,
    student: Detector,
    maps: Sequence[Tensor],
    captured: CapturedRois | None,
    progress: float,
) -> dict[str, Tensor]:
    """The losses of a batch by name, weighted and decayed: on the student's own proposals, or on the teacher's.

    With a head of the teacher: it judges the proposals that were `captured` in the student's forward pass, on its own
    maps `teacher`, (B, C, H, W) by level. Else the student's head judges the `stored` proposals of the teacher, in px
    of the original image, on `maps`, (B, C, H, W) of all levels of the student's neck.
    """
    nothing = no_losses(responses.options, progress=progress, device=maps[0].device)
    if nothing is not None:
        return nothing
    if responses.head is not None:
        assert captured is not None, 'the proposals of the student were not kept'
        rois, own = captured.require()
        rois, record = rois.float(), responses.head.record
        matches = _matches(responses, samples, rois)
        found = responses.head([teacher[level.name].values() for level in responses.levels], rois)
        predictions = predictions_of_head(found, matches, coder=BoxCoder(record.means, record.stds))
    else:
        # On the host, and then copied once for the batch.
        images = [_on_sample(one, sample) for one, sample in zip(stored, samples, strict=True)]
        together = ImageRois(*(torch.cat(column) for column in zip(*images, strict=True))).to(maps[0].device)
        # Numbered image by image: `repeat_interleave` with counts on the device would make the host wait for it.
        numbers = [together.boxes.new_full((len(one.boxes), 1), number) for number, one in enumerate(images)]
        rois = torch.cat([torch.cat(numbers), together.boxes], dim=1)
        own = student.predict_rois(maps, rois)
        matches = _matches(responses, samples, rois)
        predictions = predictions_of_cache(together, matches)
    return tar_head_losses(
        responses.options,
        rois=rois,
        matches=matches,
        student=own,
        teacher=predictions,
        coder=responses.coder,
        progress=progress,
    )


def _matches(responses: Responses, samples: Sequence[Sample], rois: Tensor) -> Matches:
    """What the RoIs are by the annotations."""
    objects = []
    for one in (sample.objects for sample in samples):
        # Without waiting for what the device is at.
        objects.append(LabelledBoxes(*(value.to(rois.device, non_blocking=True) for value in (one.boxes, one.labels))))
    return match_rois(rois, objects, num_classes=responses.num_classes, positive_iou=responses.options.positive_iou)


def _on_sample(rois: ImageRois, sample: Sample) -> ImageRois:
    """RoIs in px of the original image, on its resized and perhaps mirrored view."""
    placed = scaled(rois, source=sample.original, target=sample.resized)
    return mirrored(placed, width=sample.resized[1]) if sample.view == 'flip' else placed
