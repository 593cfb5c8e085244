"""TAR's class and box terms of one batch, from what student and teacher say about the same RoIs.

Letters: K RoIs, C object classes; the background is class C.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from mtpd.errors import InputError
from mtpd.heads.roi_head import RoiPredictions
from mtpd.heads.rois import BoxCoder, ImageRois, class_slice
from mtpd.losses.decay import LINEAR_DECAY, Decay, decay_factor
from mtpd.losses.level_options import require_name
from mtpd.losses.responses.roi_matching import Matches
from mtpd.losses.responses.tar_response import BoxGate, ClassGate, box_gate, box_term, class_term
from mtpd.options import Options

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


class TeacherAnswers(NamedTuple):
    """What the teacher says about RoIs.

    Attributes:
        logits: (K, C + 1), or log probabilities.
        raw: (K, 4) raw deltas of each RoI's true class.
        known: (K,) bool, where there are such deltas.
    """

    logits: Tensor
    raw: Tensor
    known: Tensor


def answers_of_head(predictions: RoiPredictions, matches: Matches, *, coder: BoxCoder) -> TeacherAnswers:
    """Of a teacher's RoI head with the box coder `coder`, which says all about every RoI."""
    raw = coder.to_raw(class_slice(predictions.deltas, matches.labels))
    return TeacherAnswers(predictions.logits, raw, torch.ones_like(matches.positive))


def answers_of_cache(stored: ImageRois, matches: Matches) -> TeacherAnswers:
    """Of stored answers: deltas are those of the teacher's favourite class, so known where that is the true one."""
    logits = stored.probabilities.clamp(min=LEAST_PROBABILITY).log()
    return TeacherAnswers(logits, stored.deltas, stored.labels == matches.labels)


def tar_head_losses(
    options: TarHeadOptions,
    *,
    rois: Tensor,
    matches: Matches,
    student: RoiPredictions,
    teacher: TeacherAnswers,
    coder: BoxCoder,
    progress: float = 0.0,
) -> dict[str, Tensor]:
    """The losses of one batch, weighted and decayed.

    Args:
        options: weights, gates and decay.
        rois: (K, 5): image in the batch, absolute xyxy in px of the padded input.
        matches: what the RoIs are by the annotations.
        student: of the same RoIs, any floating dtype; only these get a gradient.
        teacher: of the same RoIs.
        coder: the student's.
        progress: share of the stage that is done, from 0 to 1.

    Returns:
        `distill/tar_head/class` and `distill/tar_head/box` -> scalar float32.

    Raises:
        InputError: student and teacher tell other numbers of classes apart.
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
    losses = {
        'class': options.class_weight
        * class_term(
            student.logits, teacher.logits, matches.labels, temperature=options.temperature, gate=options.class_gate
        ),
        'box': options.box_weight * box_term(deltas, coder.from_raw(teacher.raw), is_open),
    }
    factor = decay_factor(options.decay, progress=progress)
    return {f'distill/{options.loss}/{name}': factor * loss for name, loss in losses.items()}


def no_losses(options: TarHeadOptions, *, progress: float, device: torch.device) -> dict[str, Tensor] | None:
    """The losses where their weight has decayed to 0, so that nothing need be computed; else None."""
    if decay_factor(options.decay, progress=progress):
        return None
    return {f'distill/{options.loss}/{name}': torch.zeros((), device=device) for name in ('class', 'box')}


def decay_factors(options: TarHeadOptions, *, progress: float) -> dict[str, float]:
    """What the weights of decaying losses are multiplied by, by the names of `tar_head_losses`."""
    if options.decay.kind == 'none':
        return {}
    factor = decay_factor(options.decay, progress=progress)
    return {f'distill/{options.loss}/{name}': factor for name in ('class', 'box')}
