"""The teacher's maps of a batch, from the cache, on the student's grid."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from mtpd.cache import CacheReader
from mtpd.cache.format.codecs import EncodedMaps, dequantise, rotate
from mtpd.geometry import Size
from mtpd.losses.valid_mask import valid_cells
from mtpd.pyramid import Level
from mtpd_train.sampling import Request

Encoded = Mapping[str, EncodedMaps]


def read_batch(cache: CacheReader, batch: Sequence[Request], *, levels: Sequence[str]) -> list[Encoded]:
    """The codes of every image of a batch; runs in a thread while the step before is computed."""
    return [cache.read_encoded(request.image_id, request.view, levels=levels) for request in batch]


def batch_maps(
    encoded: Sequence[Encoded], *, levels: Sequence[Level], padded: Size, device: torch.device
) -> dict[str, Tensor]:
    """Level name -> float32 maps (B, C, H, W) on `device`.

    An image's map covers its own padded input; the batch may be padded further, and the cells beyond are zero. They,
    like all padding, are masked out of every loss.
    """
    maps = {}
    for level in levels:
        height, width = level.grid(*padded)
        moved = [one[level.name].to(device) for one in encoded]
        values = [dequantise(one) for one in moved]
        padded_values = [pad(one, (0, width - one.shape[-1], 0, height - one.shape[-2])) for one in values]
        # One cache has one basis: the batch is rotated at once.
        maps[level.name] = rotate(torch.stack(padded_values), moved[0].basis)
    return maps


def batch_masks(
    resized: Sequence[Size], *, levels: Sequence[Level], padded: Size, device: torch.device
) -> dict[str, Tensor]:
    """Level name -> bool (B, 1, H, W), true at cells that see the image."""
    return {
        level.name: valid_cells(resized, stride=level.stride, grid=level.grid(*padded), device=device)
        for level in levels
    }
