"""From the masks of boxes to those of images, as the libraries do it that the detectors come from."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from mtpd.detectors.exportable import Paste
from mtpd.geometry import Size

THRESHOLD = 0.5


def pasted(masks: Tensor, boxes: Tensor, *, size: Size, paste: Paste) -> Tensor:
    """Masks bool (D, height, width) of an image of this `size`, of those (D, h, w), from 0 to 1, of its `boxes`."""
    if paste == 'torchvision':
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        found: Tensor = paste_masks_in_image(masks[:, None], boxes, size)[:, 0] > THRESHOLD
        return found
    found = torch.zeros((len(masks), *size), dtype=torch.bool)
    for mask, box, slot in zip(masks, boxes, found, strict=True):
        _paste(mask, box, slot)
    return found


def _paste(mask: Tensor, box: Tensor, slot: Tensor) -> None:
    """One mask, in the region around its box, as mmdet's `_do_paste_mask` samples it."""
    height, width = slot.shape
    left, top = (box[:2].floor() - 1).clamp(min=0).int().tolist()
    right, bottom = (box[2:].ceil() + 1).minimum(box.new_tensor([width, height])).int().tolist()
    if right <= left or bottom <= top:
        return
    x, y = (
        (torch.arange(first, last) + 0.5 - box[axis]) / (box[axis + 2] - box[axis]) * 2 - 1
        for axis, (first, last) in enumerate(((left, right), (top, bottom)))
    )
    x, y = (torch.where(one.isinf(), 0.0, one) for one in (x, y))
    grid = torch.stack(torch.meshgrid(y, x, indexing='ij')[::-1], dim=-1)
    sampled = grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
    slot[top:bottom, left:right] = sampled >= THRESHOLD
