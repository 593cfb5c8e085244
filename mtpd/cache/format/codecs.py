"""Encoding of feature maps to stored codes, and decoding.

`fp16`  the map itself in half precision.
`int8`  per image and channel 256 steps between the channel's smallest and largest value. The offset matters:
        activations such as SiLU are far from symmetric, and without it half of the codes of such a channel represent
        values that never occur.
`lean`  the coarsest steps that keep a relative error, on decorrelated channels; see `mtpd.cache.format.lean`.

In all: value = code * step + offset, then, for `lean`, a rotation of the channels. Encoding runs on the teacher's
device, so that a quarter of the bytes crosses to the host, and never makes the host wait.

Letters: B images, C channels, H W grid of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mtpd.cache.format.lean import lean_codes
from mtpd.errors import InputError

CodecName = Literal['fp16', 'int8', 'lean']

# Images named in a message.
MAX_NAMED = 8
# Default error of `lean`, as a share of a map's energy.
DEFAULT_TARGET = 0.03


@dataclass(frozen=True)
class EncodedMaps:
    """Codes of one level.

    Attributes:
        codes: (..., C, H, W), int8 or float16.
        error: (...) float32, ||decoded - map||^2 / ||map||^2 of each image, measured when it was encoded.
        scale: (..., 2, C), step and offset of each channel, float32 or, with `lean`, float16; None when the codes are
            the values.
        basis: (C, C) float32, whose columns are the directions that the channels of the codes stand for; None when
            these are the teacher's channels.
    """

    codes: Tensor
    error: Tensor
    scale: Tensor | None = None
    basis: Tensor | None = None

    def to(self, device: torch.device) -> 'EncodedMaps':
        """The same on another device; copies from pinned memory do not wait."""
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


def expected_bytes(codec: CodecName) -> float:
    """What a feature value takes on disk, about: `lean` compresses to 1 to 2 bits, the others hardly."""
    return {'fp16': 2.0, 'int8': 1.0, 'lean': 0.25}[codec]


def has_scale(codec: CodecName) -> bool:
    """Whether steps and offsets are stored beside the codes."""
    return codec != 'fp16'


def encode(maps: Tensor, codec: CodecName, *, target: float | None = None, basis: Tensor | None = None) -> EncodedMaps:
    """Encodes maps (B, C, H, W) of any float dtype, on their own device.

    Values that cannot be stored give an error that is not finite; see `require_storable`.

    Args:
        maps: of one level.
        codec: how.
        target: the relative squared error that `lean` may make; None: DEFAULT_TARGET.
        basis: for `lean`: orthonormal columns (C, C) on the same device; None leaves the channels as they are.
    """
    maps, scale, used = maps.float(), None, None
    if codec == 'fp16':
        codes = maps.half()
    elif codec == 'int8':
        codes, scale = _int8_codes(maps)
    else:
        used = basis
        rotated = maps if basis is None else torch.einsum('ck,bchw->bkhw', basis, maps)
        codes, scale = lean_codes(rotated, target=DEFAULT_TARGET if target is None else target)
    error = _relative_error(rotate(_values(codes, scale), used), maps)
    return EncodedMaps(codes=codes, error=error, scale=scale, basis=used)


def dequantise(encoded: EncodedMaps) -> Tensor:
    """The float32 values (..., C, H, W) of the codes, in the directions of `encoded.basis`."""
    return _values(encoded.codes, encoded.scale)


def rotate(values: Tensor, basis: Tensor | None) -> Tensor:
    """Dequantised values (..., C, H, W) in the teacher's channels."""
    return values if basis is None else torch.einsum('ck,...khw->...chw', basis, values)


def decode(encoded: EncodedMaps) -> Tensor:
    """The decoded float32 maps (..., C, H, W) of `encoded`, on its device."""
    return rotate(dequantise(encoded), encoded.basis)


def require_storable(encoded: EncodedMaps, *, level: str, view: str, image_ids: Sequence[int]) -> None:
    """Refuses codes of maps that could not be encoded.

    Args:
        encoded: of a batch.
        level: its name, for the message, like the others.
        view: 'plain' or 'flip'.
        image_ids: of the batch.

    Raises:
        InputError: a value was not finite, or too large for half precision.
    """
    uses_half = torch.float16 in (encoded.codes.dtype, encoded.scale is not None and encoded.scale.dtype)
    limit = ', or exceed 65504, the largest half-precision value (if so, use the codec int8)' if uses_half else ''
    require_finite(encoded.error, level=level, view=view, image_ids=image_ids, limit=limit)


def require_finite(values: Tensor, *, level: str, view: str, image_ids: Sequence[int], limit: str = '') -> None:
    """Refuses a teacher's maps that are not finite; waits for the device.

    Args:
        values: (B, ...), the maps, or what is not finite where they are not.
        level: its name, for the message, like the others.
        view: 'plain' or 'flip'.
        image_ids: of the batch.
        limit: what else the values may be.

    Raises:
        InputError: names the level and the images.
    """
    finite = torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else torch.isfinite(values)
    if bool(finite.all()):
        return
    wrong = [str(image_id) for image_id, one in zip(image_ids, finite.tolist(), strict=True) if not one]
    shown = ', '.join(wrong[:MAX_NAMED]) + (', ...' if len(wrong) > MAX_NAMED else '')
    raise InputError(
        f'level {level}, view {view} of the images with ids {shown}: the teacher returned feature values that are not '
        f'finite, or whose squares are not{limit}; check its weights and input normalisation'
    )


def _values(codes: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return codes.float()
    step, offset = scale.float().unbind(-2)
    return torch.addcmul(offset[..., None, None], codes.float(), step[..., None, None])


def _int8_codes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 (B, C, H, W) and scale (B, 2, C)."""
    if not maps.numel():
        return maps.to(torch.int8), maps.new_zeros(maps.shape[0], 2, maps.shape[1])
    low, high = maps.amin((-2, -1)), maps.amax((-2, -1))
    step = (high - low) / 255
    # A constant channel has step 0: every code is 0 and the offset is the value.
    inverse = torch.where(step > 0, 1 / step, 0)
    codes = ((maps - low[..., None, None]) * inverse[..., None, None]).round_() - 128
    codes = torch.where((step > 0)[..., None, None], codes.clamp_(-128, 127), 0)
    offset = torch.where(step > 0, low + 128 * step, low)
    return codes.to(torch.int8), torch.stack([step, offset], dim=-2)


def _relative_error(decoded: Tensor, maps: Tensor) -> Tensor:
    error, energy = (values.square().sum((1, 2, 3)) for values in (decoded - maps, maps))
    # A map of zeros is exact; what is not finite stays so.
    return torch.where((energy == 0) | energy.isinf(), error + energy, error / energy)
