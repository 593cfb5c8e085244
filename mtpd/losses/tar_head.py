"""TAR's distillation of responses (Sun et al. 2020, arXiv 2006.13108): classes and boxes of shared RoIs.

The structure (shared proposals, knowledge taken only where the student needs it, a gate on boxes by overlap with the
ground truth) is the paper's; the exact formulae below are the best known reading, not checked against its text.
Hence the gates are options.

Letters: B images, K RoIs, N objects of an image, C object classes; the background is class C.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torchvision.ops import box_iou

from mtpd.errors import InputError
from mtpd.heads.roi_head import RoiPredictions
from mtpd.heads.rois import BoxCoder, ImageRois, class_slice, decode, paired_iou
from mtpd.losses.maps import accumulation_dtype
from mtpd.losses.options import LINEAR_DECAY, Decay, Options, decay_factor, require_name

ClassGate = Literal['better', 'none']
BoxGate = Literal['proposal', 'student', 'none']

NAMES = 'distill/tar_head/class', 'distill/tar_head/box'
# The smallest that half precision tells from 0, which has no logarithm.
LEAST_PROBABILITY = 2.0**-24


class TarHeadOptions(Options):
    """TAR's responses: classes and boxes of RoIs, as the teacher's RoI head sees them. For two-stage detectors."""

    model_config = ConfigDict(json_schema_extra=require_name)

    loss: Literal['tar_head'] = 'tar_head'
    """Name of the loss."""
    mode: Literal['head_on_gpu', 'cached_rois'] = 'head_on_gpu'
    """`head_on_gpu`: the teacher's head runs on the student's RoIs; `cached_rois`: the reverse, on cached RoIs."""
    class_weight: NonNegativeFloat = 1.0
    """Weight of the class term, a divergence averaged over RoIs."""
    box_weight: NonNegativeFloat = 1.0
    """Weight of the box term, an L1 distance of deltas averaged over the RoIs that `box_gate` selects."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature of the class logits."""
    class_gate: ClassGate = 'better'
    """RoIs of the class term. `better`: where the teacher is more confident in the true class; `none`: all."""
    box_gate: BoxGate = 'proposal'
    """RoIs of the box term: those where the teacher's IoU exceeds that of the `proposal` or `student`; `none`: all."""
    positive_iou: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Minimum IoU with an object for a RoI to be positive."""
    decay: Decay = LINEAR_DECAY
    """Decay of the weights during the stage."""


class LabelledBoxes(NamedTuple):
    """The annotated objects of one image: boxes (N, 4), absolute xyxy in px of the input, and classes (N,)."""

    boxes: Tensor
    labels: Tensor


class Matches(NamedTuple):
    """The annotated objects of RoIs; for background the label is the number of classes and the box zeros."""

    labels: Tensor  # (K,)
    boxes: Tensor  # (K, 4)
    positive: Tensor  # (K,) bool, whether it has an object


@torch.no_grad()
def match_rois(rois: Tensor, objects: Sequence[LabelledBoxes], *, num_classes: int, positive_iou: float) -> Matches:
    """Assigns each RoI the object of its image with the highest IoU, if that is at least `positive_iou`.

    RoIs are (K, 5): image in the batch, absolute xyxy in px of the input.
    """
    labels = torch.full((len(rois),), num_classes, dtype=torch.long, device=rois.device)
    boxes = rois.new_zeros(len(rois), 4)
    positive = torch.zeros(len(rois), dtype=torch.bool, device=rois.device)
    for number, one in enumerate(objects):
        if not len(one.boxes):
            continue
        overlap, best = box_iou(rois[:, 1:], one.boxes.to(rois.dtype)).max(1)
        here = (rois[:, 0] == number) & (overlap >= positive_iou)
        labels = torch.where(here, one.labels[best], labels)
        boxes = torch.where(here[:, None], one.boxes[best].to(rois.dtype), boxes)
        positive |= here
    return Matches(labels, boxes, positive)


class TeacherPredictions(NamedTuple):
    """The teacher's predictions for RoIs."""

    logits: Tensor  # (K, C + 1), or log probabilities
    raw: Tensor  # (K, 4) raw deltas of each RoI's true class
    known: Tensor  # (K,) bool, whether there are such deltas


def predictions_of_head(predictions: RoiPredictions, matches: Matches, *, coder: BoxCoder) -> TeacherPredictions:
    """Those of a teacher's RoI head, with its box coder: all are known."""
    raw = coder.to_raw(class_slice(predictions.deltas, matches.labels))
    return TeacherPredictions(predictions.logits, raw, torch.ones_like(matches.positive))


def predictions_of_cache(stored: ImageRois, matches: Matches) -> TeacherPredictions:
    """Those of a cache, which stores the deltas of the class with the highest score: known where it is the true one."""
    logits = stored.probabilities.clamp(min=LEAST_PROBABILITY).log()
    return TeacherPredictions(logits, stored.deltas, stored.labels == matches.labels)


def tar_head_losses(
    options: TarHeadOptions,
    *,
    rois: Tensor,
    matches: Matches,
    student: RoiPredictions,
    teacher: TeacherPredictions,
    coder: BoxCoder,
    progress: float = 0.0,
) -> dict[str, Tensor]:
    """The losses of one batch, weighted and decayed: `distill/tar_head/class` and `distill/tar_head/box`, float32.

    RoIs are (K, 5): image in the batch, absolute xyxy in px of the padded input; `coder` is the student's. Only the
    student's predictions get a gradient.
    """
    if student.logits.shape != teacher.logits.shape:
        raise InputError(
            f'tar_head: the logits are {tuple(teacher.logits.shape)} (RoIs, classes + 1) of the teacher and '
            f'{tuple(student.logits.shape)} of the student; both must have the same classes'
        )
    deltas = class_slice(student.deltas, matches.labels)
    is_open = box_gate(
        options.box_gate,
        proposals=rois[:, 1:].to(teacher.raw.dtype),
        teacher=teacher.raw,
        student=coder.to_raw(deltas.detach().to(teacher.raw.dtype)),
        objects=matches.boxes.to(teacher.raw.dtype),
        positive=matches.positive & teacher.known,
    )
    of_classes = class_term(
        student.logits, teacher.logits, matches.labels, temperature=options.temperature, gate=options.class_gate
    )
    of_boxes = box_term(deltas, coder.from_raw(teacher.raw), is_open)
    factor = decay_factor(options.decay, progress=progress)
    losses = factor * (options.class_weight * of_classes), factor * (options.box_weight * of_boxes)
    return dict(zip(NAMES, losses, strict=True))


def no_losses(options: TarHeadOptions, *, progress: float, device: torch.device) -> dict[str, Tensor] | None:
    """The losses where their weight has decayed to 0, so that nothing need be computed; else None."""
    if decay_factor(options.decay, progress=progress):
        return None
    return {name: torch.zeros((), device=device) for name in NAMES}


def decay_factors(options: TarHeadOptions, *, progress: float) -> dict[str, float]:
    """What the weights of decaying losses are multiplied by, by the names of `tar_head_losses`."""
    if options.decay.kind == 'none':
        return {}
    return dict.fromkeys(NAMES, decay_factor(options.decay, progress=progress))


def class_term(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 1.0, gate: ClassGate = 'better'
) -> Tensor:
    """Divergence of the student's class distributions from the teacher's where the teacher does better.

        p = softmax(T_k / tau),   q = softmax(S_k / tau)
        L = tau^2 / K sum_k w_k sum_c p_c log(p_c / q_c)
        w_k = 1 where softmax(T_k)[y_k] > softmax(S_k)[y_k], else 0;   always 1 without a gate

    Closed RoIs count in the mean, so the loss fades as the student overtakes its teacher. Whether the paper weights
    foreground more is not known to us; here all RoIs weigh the same, and detectors sample them 1 : 3.

    Logits (K, C + 1) of any floating dtype, or log probabilities of the teacher; labels (K,) are the true classes.
    Accumulated in float32 (float64 if an input is); 0 without RoIs.
    """
    if student.ndim != 2 or student.shape != teacher.shape or labels.shape != student.shape[:1]:
        raise InputError(
            f'class logits of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} and labels '
            f'{tuple(labels.shape)} do not fit: expected two (RoIs, classes + 1) and (RoIs,)'
        )
    dtype = accumulation_dtype(student, teacher)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    is_open = torch.ones_like(labels[:, None], dtype=torch.bool)
    if gate == 'better':
        of_teacher, of_student = (one.softmax(1).gather(1, labels[:, None]) for one in (teacher, student.detach()))
        # Not `>`: a NaN of the student must come out, not close the gate.
        is_open = ~(of_teacher <= of_student)
    log_p = (teacher / temperature).log_softmax(1)
    log_q = torch.where(is_open, student / temperature, 0.0).log_softmax(1)
    divergence = torch.where(is_open, log_p.exp() * (log_p - log_q), 0.0).sum()
    return temperature**2 * divergence / max(1, len(student))


def box_term(student: Tensor, teacher: Tensor, is_open: Tensor) -> Tensor:
    """L1 distance between the deltas of student and teacher, averaged over the RoIs whose gate is open.

        L = 1 / sum_k g_k  sum_k g_k |S_k - T_k|_1

    Deltas (K, 4) of the true class in the same units; `is_open` (K,) is from `box_gate`, and values in other rows, NaN
    included, have no effect. Accumulated in float32 (float64 if an input is); 0 when no gate is open.
    """
    if student.ndim != 2 or student.shape != teacher.shape or is_open.shape != student.shape[:1]:
        raise InputError(
            f'deltas of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} and gates '
            f'{tuple(is_open.shape)} do not fit: expected two (RoIs, 4) and (RoIs,)'
        )
    dtype = accumulation_dtype(student, teacher)
    difference = torch.where(is_open[:, None], student.to(dtype) - teacher.detach().to(dtype), 0.0)
    # Counted on the device: reading the number here would make the host wait for the GPU.
    return difference.abs().sum() / is_open.sum().clamp(min=1)


@torch.no_grad()
def box_gate(
    gate: BoxGate, *, proposals: Tensor, teacher: Tensor, student: Tensor, objects: Tensor, positive: Tensor
) -> Tensor:
    """Positive RoIs (K,) whose teacher's box has a higher IoU with the object than the box to beat.

    The paper's box to beat is, to the best of our knowledge, the proposal. Proposals and objects are (K, 4), absolute
    xyxy; teacher and student (K, 4) raw deltas of the true class.
    """
    if gate == 'none':
        return positive
    rival = proposals if gate == 'proposal' else decode(proposals, student)
    # Not `>`: a NaN of the student must come out, not close the gate.
    is_worse = paired_iou(decode(proposals, teacher), objects) <= paired_iou(rival, objects)
    return positive & ~is_worse
