"""From a stage's `distill` list to its loss on responses, checked against student and teacher."""

from collections.abc import Sequence

from torch import nn

from mtpd.detectors.class_names import require_same_labels
from mtpd.detectors.detector_heads import student_box_coder, student_num_classes
from mtpd.detectors.features import NECK
from mtpd.errors import InputError
from mtpd.geometry import Level
from mtpd.heads.roi_head import RoiHeadRecord
from mtpd.losses.tar_head import TarHeadOptions
from mtpd.options import Options
from mtpd_train.teachers.responses import Responses
from mtpd_train.teachers.teacher_source import TeacherSource


def build_responses(
    distill: Sequence[Options], *, student: nn.Module, classes: Sequence[str], source: TeacherSource | None
) -> Responses | None:
    """The loss on responses that a stage asks for; None where it asks for none.

    Args:
        distill: the stage's losses.
        student: the network that learns.
        classes: what its labels mean.
        source: the teacher.

    Raises:
        InputError: the student has no RoI head that can learn so, or the teacher's does not fit it.
        CacheError: the cache holds no RoI head, or lacks levels that it needs.
    """
    entries = [one for one in distill if isinstance(one, TarHeadOptions)]
    if not entries or source is None:
        return None
    if len(entries) > 1:
        raise InputError('distill lists tar_head twice; remove one')
    (options,) = entries
    coder, num_classes = student_box_coder(student), student_num_classes(student)
    if options.mode == 'head_on_gpu' and source.hook_point != NECK:
        raise InputError(
            f'tar_head: the maps of {source.name} are taken before the norms of its neck, but its RoI head needs '
            'those after; extract the cache with --hook neck (with a `teacher`: set hook to neck)'
        )
    head = source.roi_head() if options.mode == 'head_on_gpu' else None
    of_teacher = source.num_roi_classes() if head is None else head.record.num_classes
    if of_teacher != num_classes:
        raise InputError(
            f'tar_head: the teacher of {source.name} has {of_teacher} classes, the student {num_classes}; '
            'use a teacher trained on the classes of data.train'
        )
    require_same_labels(classes, source.classes, name=f'the teacher of {source.name}')
    return Responses(
        options=options,
        coder=coder,
        num_classes=num_classes,
        head=head,
        levels=() if head is None else _levels(head.record, source),
    )


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
