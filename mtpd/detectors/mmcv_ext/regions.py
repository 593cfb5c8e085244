"""Guards for regions of interest, which torchvision reads without checking.

A batch index out of range, or a coordinate that is not finite, makes torchvision's CPU kernels read outside of the
map, which ends the process.
"""

import torch
from torch import Tensor

# Far outside of every map in use, and small enough for sums to stay exact in float32.
FAR = 1e6
# With adaptive sampling the number of samples grows with the region's area.
ADAPTIVE_LIMIT = 4


def check_batch_index(rois: Tensor, *, batch_size: int) -> None:
    """Checks column 0 of `rois` (K, 5).

    Raises:
        IndexError: an index is not in [0, batch_size). On a GPU PyTorch reports it at its next synchronisation.
    """
    index = rois[:, 0]
    valid = ((index >= 0) & (index < batch_size)).all()
    if rois.device.type == 'cpu':
        if not valid:
            raise IndexError(f'rois name images {index.min():g} to {index.max():g} of a batch of {batch_size}')
    else:
        # Reading the flag here would stall the GPU.
        torch._assert_async(valid, f'rois name images outside of a batch of {batch_size}')


def finite_regions(
    rois: Tensor, spatial_scale: float, map_size: tuple[int, ...], sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Regions that are safe to sample, and which of them (K,) bool were not finite.

    Coordinates beyond `FAR` cells, or beyond `ADAPTIVE_LIMIT` map sides when `sampling_ratio` is 0 or less, are
    clamped to that; regions that are not finite are moved out of the map.
    """
    adaptive = sampling_ratio <= 0
    limit = (float(ADAPTIVE_LIMIT * max(map_size)) if adaptive else FAR) / spatial_scale
    index, boxes = rois[:, :1], rois[:, 1:]
    unusable = ~torch.isfinite(boxes).all(dim=1)
    boxes = boxes.clamp(-limit, limit).masked_fill(unusable[:, None], -limit)
    if adaptive:
        # An inverted side means a negative number of samples: none by the definition, an exception in torchvision.
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:].maximum(boxes[:, :2])], dim=1)
    return torch.cat([index, boxes], dim=1), unusable
