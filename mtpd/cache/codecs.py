"""How a feature map becomes stored codes and comes back.

`fp16`  the map itself in half precision.
`int8`  per image and channel 256 steps between the channel's smallest and largest value:
        value = code * step + offset. The offset matters: activations such as SiLU are far from symmetric, and without
        it half of the codes of such a channel stand for values that never occur.

Encoding runs on the teacher's device, so that a quarter of the bytes crosses to the host. Letters: B images,
C channels, H W grid of a level.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mtpd.errors import InputError

CodecName = Literal['fp16', 'int8']

FP16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class EncodedMaps:
    """Codes of one level.

    Attributes:
        codes: (..., C, H, W), int8 or float16.
        scale: (..., 2, C) float32, step and offset of each channel; None when the codes are the values.
    """

    codes: Tensor
    scale: Tensor | None


def bytes_per_element(codec: CodecName) -> int:
    """Size of one code before compression."""
    return {'fp16': 2, 'int8': 1}[codec]


def encode(maps: Tensor, codec: CodecName) -> EncodedMaps:
    """Encodes maps (B, C, H, W) of any float dtype, on their own device.

    Raises:
        InputError: a value is not finite, or too large for half precision.
    """
    if codec == 'fp16':
        _require(
            maps.abs().amax() <= FP16_MAX if maps.numel() else None, 'exceed 65504, the largest half-precision value'
        )
        return EncodedMaps(codes=maps.half(), scale=None)
    maps = maps.float()
    low, high = maps.amin((-2, -1)), maps.amax((-2, -1))
    step = (high - low) / 255
    _require(torch.isfinite(step).all() if step.numel() else None, 'are not finite')
    # A constant channel has step 0: every code is 0 and the offset is the value.
    inverse = torch.where(step > 0, 1 / step, 0)
    codes = ((maps - low[..., None, None]) * inverse[..., None, None]).round_() - 128
    codes = torch.where((step > 0)[..., None, None], codes.clamp_(-128, 127), 0)
    offset = torch.where(step > 0, low + 128 * step, low)
    return EncodedMaps(codes=codes.to(torch.int8), scale=torch.stack([step, offset], dim=-2))


def decode(encoded: EncodedMaps) -> Tensor:
    """The float32 maps (..., C, H, W) that `encoded` stands for, on its device."""
    values = encoded.codes.float()
    if encoded.scale is None:
        return values
    step, offset = encoded.scale[..., 0, :, None, None], encoded.scale[..., 1, :, None, None]
    return torch.addcmul(offset, values, step)


def _require(condition: Tensor | None, problem: str) -> None:
    if condition is not None and not bool(condition):
        raise InputError(
            f'the teacher gave feature values that {problem}: check its weights and its input normalisation, '
            'or choose another codec'
        )
