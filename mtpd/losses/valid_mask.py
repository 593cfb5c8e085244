"""Which cells of a level show the image, and which only padding.

Legend: B batch, H W grid of a level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from mtpd.geometry import Size


def valid_cells(
    resized_sizes: Sequence[Size], *, stride: int, grid: tuple[int, int], device: torch.device | str | None = None
) -> Tensor:
    """Marks the cells whose top-left pixel lies inside the resized image.

    A cell that straddles the border counts as image: its receptive field is centred near the border and sees both.
    Padding is at the right and the bottom, of mirrored images too, so one mask serves both views.

    Args:
        resized_sizes: (height, width) in px of each image after the resize, before padding.
        stride: input pixels per cell.
        grid: (H, W) of the level in the padded batch.
        device: where the mask is to be.

    Returns:
        Bool (B, 1, H, W).
    """
    # The sizes are copied and not the mask, without waiting for what the device is at.
    sizes = torch.tensor(resized_sizes, dtype=torch.int64).reshape(-1, 2).to(device, non_blocking=True)
    rows = torch.arange(grid[0], device=sizes.device) * stride < sizes[:, :1]
    columns = torch.arange(grid[1], device=sizes.device) * stride < sizes[:, 1:]
    return rows[:, None, :, None] & columns[:, None, None, :]


def on_full_grid(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Brings a map that lacks the last row or column to the grid of its mask; the cells that it lacks do not count.

    Networks that round the size of a map down, as HRNet's neck does, see nothing of the input's last pixels.

    Args:
        values: (B, C, h, w), with h and w as in the mask or one less.
        mask: bool (B, 1, H, W).

    Returns:
        both on the grid (H, W), the very same where nothing lacks; a map of yet another size is left to the losses.
    """
    rows, columns = values.shape[2:]
    lacking = mask.shape[2] - rows, mask.shape[3] - columns
    if lacking == (0, 0) or not all(0 <= one <= 1 for one in lacking):
        return values, mask
    seen = torch.zeros_like(mask)
    seen[:, :, :rows, :columns] = mask[:, :, :rows, :columns]
    return pad(values, (0, lacking[1], 0, lacking[0])), seen
