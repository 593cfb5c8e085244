"""One level of a teacher's pyramid as it was stored: what losses are given in place of decoded maps.

Legend: B batch, C channels, H W grid of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtpd.errors import InputError
from mtpd.geometry import Size
from mtpd.losses.maps import accumulation_dtype


@dataclass(frozen=True)
class TeacherMap:
    """The maps of a batch as codes; values, of which nothing is to be decoded, are the simplest codes.

        T_bc = sum_k basis_ck (codes_bk step_bk + offset_bk)

    Attributes:
        codes: (B, C, H, W), int8 or any floating dtype, with any strides; without gradient.
        scale: (B, 2, C) step and offset of each image and channel; None: 1 and 0.
        basis: (C, C) float32, orthonormal columns, the directions that the channels of the codes stand for; None when
            these are the teacher's channels.
        sizes: (rows, columns) of each image's own map, beyond which values are 0 for any codes; None: all of it.
    """

    codes: Tensor
    scale: Tensor | None = None
    basis: Tensor | None = None
    sizes: Sequence[Size] | None = None

    def __post_init__(self) -> None:
        """Raises InputError when the shapes do not fit."""
        batch, channels = (*self.codes.shape, 0, 0)[:2]
        scale, basis = (None if one is None else tuple(one.shape) for one in (self.scale, self.basis))
        fits = scale in (None, (batch, 2, channels)) and basis in (None, (channels, channels))
        if self.codes.ndim != 4 or not fits:
            raise InputError(
                f'codes {tuple(self.codes.shape)}, scale {scale} and basis {basis} do not fit: expected (B, C, H, W), '
                '(B, 2, C) or None, and (C, C) or None'
            )

    @property
    def shape(self) -> torch.Size:
        """(B, C, H, W)."""
        return self.codes.shape

    @property
    def dtype(self) -> torch.dtype:
        """What the values are added up in: float64 if the codes are, else float32."""
        return accumulation_dtype(self.codes)

    def values(self) -> Tensor:
        """T (B, C, H, W) in `dtype`: computed in every call, as most losses do not need it."""
        # Half precision would be the rounding of all values, not of a layer's output.
        with torch.no_grad(), torch.autocast(self.codes.device.type, enabled=False):
            values = self.codes.to(self.dtype, copy=self.scale is not None or self.sizes is not None)
            if self.scale is not None:
                step, offset = self.scale.to(self.dtype)[..., None, None].unbind(1)
                values = values.mul_(step).add_(offset)
            if self.basis is not None:
                values = torch.matmul(self.basis.to(self.dtype), values.flatten(2)).view_as(values)
            for image, (rows, columns) in zip(values, self.sizes or (), strict=False):
                # An offset is not zero.
                image[:, rows:] = 0
                image[:, :, columns:] = 0
            return values
