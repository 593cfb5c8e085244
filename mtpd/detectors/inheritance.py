"""What a student inherits from its teacher before it is trained: tensors of neck and head, by their names and shapes.

MTPD (Cao et al., ICML 2023; released code, `init_student`): everything outside the backbone is copied where name and
shape agree, tensor by tensor, a bias also without its weight. Of a cascade teacher the first box head and mask head
become the single head of the student, and its class-agnostic box regression is repeated for every class. The released
code takes the path of the checkpoint for the sign of a cascade and 80 for the number of classes; here both are read
from the tensors, and everything that is left out is reported.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mtpd.detectors.detector import BACKBONE, part_of

Shape = tuple[int, ...]
Outcome = Literal['inherited', 'tiled', 'skipped']

BOX_SIZE = 4  # numbers that encode a box
_CASCADE_STAGE = re.compile(r'(?P<head>roi_head\.(?:bbox_head|mask_head))\.(?P<stage>\d+)\.(?P<rest>.+)')
_BOX_REGRESSION = re.compile(r'roi_head\.bbox_head\.fc_reg\.(weight|bias)')
# mmdet's names of layers whose number of outputs follows from the number of classes.
_CLASS_LAYER = re.compile(r'cls|logits|fc_reg')


@dataclass(frozen=True)
class Inheritance:
    """What becomes of one tensor, by its names in student and teacher; None: it has no such tensor."""

    outcome: Outcome
    student: str | None
    teacher: str | None
    shape: Shape  # of the student's tensor, or of the teacher's where the student has none
    reason: str = ''  # the same words for all tensors with the same fate; empty for plain copies
    detail: str = ''  # what is special about this one
    num_repeats: int = 1  # times that the teacher's rows follow one another in the student


def plan_inheritance(
    student: Mapping[str, Shape], teacher: Mapping[str, Shape], *, parts: Sequence[str]
) -> tuple[Inheritance, ...]:
    """One entry for every tensor of neck and head, in the order of their names; `parts` (`part_of`) are inherited."""
    entries = [_entry(name, teacher[name], student, parts) for name in teacher if part_of(name) != BACKBONE]
    met = {entry.student for entry in entries}
    for name, shape in student.items():
        if part_of(name) in parts and name not in met:
            entries.append(Inheritance('skipped', name, None, shape, "not in the teacher, the student's is fresh"))
    return tuple(sorted(entries, key=lambda entry: entry.teacher or entry.student or ''))


def inherited_tensors(plan: Sequence[Inheritance], teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a plan gives to the student, by their names in the student."""
    tensors = {}
    for entry in plan:
        if entry.outcome != 'skipped':
            assert entry.student is not None
            assert entry.teacher is not None
            value = teacher[entry.teacher]
            # A scalar, such as BatchNorm's counter, has no rows to repeat.
            repeats = (entry.num_repeats, *[1] * (value.ndim - 1)) if value.ndim else ()
            tensors[entry.student] = value.repeat(repeats)
    return tensors


def shape_text(shape: Shape) -> str:
    """256x192x1x1."""
    return 'x'.join(map(str, shape)) or 'scalar'


def _entry(name: str, shape: Shape, student: Mapping[str, Shape], parts: Sequence[str]) -> Inheritance:
    if part_of(name) not in parts:
        return Inheritance('skipped', None, name, shape, f'{part_of(name)} not asked for')
    target, stage = _counterpart(name, student)
    if stage > 0:
        return Inheritance('skipped', None, name, shape, "later cascade stage, the student's head is a single one")
    own = student.get(target)
    if own is None:
        return Inheritance('skipped', None, name, shape, 'no counterpart in the student')
    if own == shape:
        return Inheritance('inherited', target, name, own)
    same_inputs = own[1:] == shape[1:]
    # The teacher regresses one box for all classes and the student one for each.
    is_one_box = shape[0] == BOX_SIZE and own[0] % BOX_SIZE == 0
    if _BOX_REGRESSION.fullmatch(target) and is_one_box and same_inputs:
        num_classes = own[0] // BOX_SIZE
        detail = f'{shape_text(shape)} for each of {num_classes} classes'
        return Inheritance('tiled', target, name, own, 'class-agnostic boxes', detail, num_repeats=num_classes)
    layer = target.rpartition('.')[0].rpartition('.')[2]  # `fc_cls` of `roi_head.bbox_head.fc_cls.weight`
    reason = 'another number of classes' if same_inputs and _CLASS_LAYER.search(layer) else 'another shape'
    detail = f"the teacher's is {shape_text(shape)}"
    return Inheritance('skipped', target, name, own, reason, detail)


def _counterpart(name: str, student: Mapping[str, Shape]) -> tuple[str, int]:
    """The student's name for a tensor of the teacher, and the stage it has in a cascade that the student lacks."""
    found = _CASCADE_STAGE.fullmatch(name)
    if found is None:
        return name, 0
    of_this_head = [one for one in student if one.startswith(f'{found["head"]}.')]
    if not of_this_head or any(_CASCADE_STAGE.fullmatch(one) for one in of_this_head):
        return name, 0
    return f'{found["head"]}.{found["rest"]}', int(found['stage'])
