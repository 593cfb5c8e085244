"""TAR's distillation of responses (Sun et al. 2020, arXiv 2006.13108): classes and boxes of shared RoIs.

The structure (shared proposals, knowledge taken only where the student needs it, a gate on boxes by overlap with the
ground truth) is the paper's; the exact formulae below are the best known reading, not checked against its text.
Hence the gates are options.

Letters: K RoIs, C object classes; the background is class C.
"""

from typing import Literal

import torch
from torch import Tensor

from mtpd.errors import InputError
from mtpd.heads.rois import decode, paired_iou
from mtpd.losses.maps import accumulation_dtype

ClassGate = Literal['better', 'none']
BoxGate = Literal['proposal', 'student', 'none']


def class_term(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 1.0, gate: ClassGate = 'better'
) -> Tensor:
    """Divergence of the student's class distributions from the teacher's where the teacher does better.

        p = softmax(T_k / tau),   q = softmax(S_k / tau)
        L = tau^2 / K sum_k w_k sum_c p_c log(p_c / q_c)
        w_k = 1 where softmax(T_k)[y_k] > softmax(S_k)[y_k], else 0;   always 1 without a gate

    Closed RoIs count in the mean, so the loss fades as the student overtakes its teacher. Whether the paper weights
    foreground more is not known to us; here all RoIs weigh the same, and detectors sample them 1 : 3.

    Args:
        student: logits (K, C + 1), any floating dtype; only these get a gradient.
        teacher: logits (K, C + 1), or log probabilities.
        labels: (K,) true classes.
        temperature: tau, greater than 0.
        gate: `better` or `none`.

    Returns:
        Scalar, accumulated in float32 (float64 if an input is); 0 without RoIs.

    Raises:
        InputError: the shapes do not fit, or `temperature` is not greater than 0.
    """
    if not temperature > 0:
        raise InputError(f'temperature {temperature} must be greater than 0')
    if student.ndim != 2 or student.shape != teacher.shape or labels.shape != student.shape[:1]:
        raise InputError(
            f'class logits of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} and labels '
            f'{tuple(labels.shape)} do not fit: expected two (RoIs, classes + 1) and (RoIs,)'
        )
    dtype = accumulation_dtype(student, teacher)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    is_open = _class_gate(student.detach(), teacher, labels, gate)[:, None]
    log_p = (teacher / temperature).log_softmax(1)
    log_q = torch.where(is_open, student / temperature, 0.0).log_softmax(1)
    divergence = torch.where(is_open, log_p.exp() * (log_p - log_q), 0.0).sum()
    return temperature**2 * divergence / max(1, len(student))


def box_term(student: Tensor, teacher: Tensor, is_open: Tensor) -> Tensor:
    """L1 distance between the deltas of student and teacher, averaged over the RoIs whose gate is open.

        L = 1 / sum_k g_k  sum_k g_k |S_k - T_k|_1

    Args:
        student: (K, 4) deltas of the true class, any floating dtype; only these get a gradient.
        teacher: (K, 4) the teacher's in the same units.
        is_open: (K,) bool, from `box_gate`. Values in other rows, including NaN, have no effect.

    Returns:
        Scalar, accumulated in float32 (float64 if an input is); 0 when no gate is open.

    Raises:
        InputError: the shapes do not fit.
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
    """Where (K,) the teacher's box is worth learning: among positives, where its IoU with the object is the higher.

    The paper's box to beat is, to the best of our knowledge, the proposal.

    Args:
        gate: `proposal`: the proposal is to be beaten; `student`: the student's box; `none`: open for all positives.
        proposals: (K, 4) absolute xyxy.
        teacher, student: (K, 4) raw deltas of the true class.
        objects: (K, 4) matched boxes.
        positive: (K,) bool.
    """
    if gate == 'none':
        return positive
    rival = proposals if gate == 'proposal' else decode(proposals, student)
    # Not `>`: a NaN of the student must come out, not close the gate.
    is_worse = paired_iou(decode(proposals, teacher), objects) <= paired_iou(rival, objects)
    return positive & ~is_worse


def _class_gate(student: Tensor, teacher: Tensor, labels: Tensor, gate: ClassGate) -> Tensor:
    if gate == 'none':
        return torch.ones_like(labels, dtype=torch.bool)
    of_teacher, of_student = (one.softmax(1).gather(1, labels[:, None])[:, 0] for one in (teacher, student))
    return ~(of_teacher <= of_student)
