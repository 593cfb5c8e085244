"""The weighted mean squared error between a student's map and a teacher's, by a fused kernel where there is one.

Legend: B images, C channels, H W grid of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtpd.errors import InputError
from mtpd.kernels.fused_mse import Operands, fused_weighted_mse, runs_fused
from mtpd.kernels.reference import reference_weighted_mse


@dataclass(frozen=True)
class WeightedError:
    """A mean squared error over cells and channels, each cell with its weight, against values or stored codes.

        L = sum_bchw W_bhw A_bc (S_bchw - T_bchw)^2 / (C sum_bhw W_bhw),   T = teacher * step + offset

    W is 0 outside of the mask. It is here that all shapes are checked: the kernel would read beyond the ends of what is
    smaller, and plain PyTorch would broadcast.

    A has no part in what is divided by: channel weights whose mean is 1 keep the size of the loss.

    Attributes:
        student: S, (B, C, H, W), any floating dtype.
        teacher: (B, C, H, W), any floating dtype, or int8 codes.
        mask: bool (B, 1, H, W), True at cells that count. Values elsewhere, and where the weight is 0, including NaN,
            change neither the loss nor a gradient.
        weights: W, (B, 1, H, W), floating, at least 0; None: 1.
        scale: step and offset of codes, (B, 2, C), or (2, C) for all images, or (2, 1) for all channels too, floating;
            None where `teacher` has values.
        channel_weights: A, (B, C) or (C,), floating, at least 0; None: 1.

    Raises:
        InputError: the shapes do not fit.
    """

    student: Tensor
    teacher: Tensor
    mask: Tensor
    weights: Tensor | None = None
    scale: Tensor | None = None
    channel_weights: Tensor | None = None

    def __post_init__(self) -> None:
        student, teacher, mask, weights = self.student, self.teacher, self.mask, self.weights
        wanted = (*student.shape[:1], 1, *student.shape[2:])
        shapes_fit = student.ndim == 4 and teacher.shape == student.shape and mask.shape == wanted
        if not shapes_fit or mask.dtype != torch.bool or (weights is not None and weights.shape != wanted):
            of_weights = '' if weights is None else f' and weights {tuple(weights.shape)}'
            raise InputError(
                f'student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and mask {tuple(mask.shape)} '
                f'{mask.dtype}{of_weights} do not fit: expected two maps of one shape (B, C, H, W), a torch.bool mask '
                '(B, 1, H, W) and weights, if any, of its shape'
            )

    def operands(self) -> Operands:
        """What the kernel takes: one tensor of weights, 0 outside of the mask, and scales for each image."""
        batch, channels = self.student.shape[:2]
        return (
            self.student,
            self.teacher,
            self.mask if self.weights is None else torch.where(self.mask, self.weights, 0.0),
            None if self.scale is None else self.scale.expand(batch, 2, channels),
            None if self.channel_weights is None else self.channel_weights.expand(batch, channels),
        )


def weighted_mses(errors: Sequence[WeightedError]) -> list[Tensor]:
    """The errors of several levels, scalars, together.

    On a GPU with Triton they are one call of an operator, with one kernel a level for each direction; it keeps nothing
    but the students' gradients, and the same inputs give the same bits. Elsewhere, for float64, and when another tensor
    than the student needs a gradient an error is computed by plain PyTorch.

    They are accumulated in float32 (float64 if a map is); 0, with a gradient of zeros, when no cell has a weight.
    """
    operands = [one.operands() for one in errors]
    fused = [number for number, one in enumerate(operands) if runs_fused(*one)]
    losses = dict(zip(fused, fused_weighted_mse([operands[number] for number in fused]), strict=True)) if fused else {}
    return [losses[number] if number in losses else reference_weighted_mse(*one) for number, one in enumerate(operands)]
