"""The global context block (Cao et al., ICCV workshops 2019) with which FGD looks at relations between pixels.

Legend: B batch, C channels, H W grid of a level.
"""

import torch
from torch import Tensor, nn


class GcBlock(nn.Module):
    """Adds to every cell what one attention over the image gathers.

        R(F) = F + W2 ReLU(LayerNorm(W1 sum_hw p F)),   p = softmax over valid h, w of K F

    It starts as FGD's authors start it: R(F) = F, as W2 is zero, and K after He et al. 2015.
    """

    def __init__(self, channels: int) -> None:
        """Builds the layers; their first weights come from torch's global generator."""
        super().__init__()
        self.attend = nn.Conv2d(channels, 1, kernel_size=1)
        hidden = max(channels // 2, 1)
        last = nn.Conv2d(hidden, channels, kernel_size=1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size=1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(), last
        )
        nn.init.kaiming_normal_(self.attend.weight, nonlinearity='relu')
        for parameter in (self.attend.bias, last.weight, last.bias):
            assert parameter is not None
            nn.init.zeros_(parameter)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """R of a batch.

        Args:
            values: (B, C, H, W), 0 where the mask is False.
            mask: bool (B, 1, H, W), True at cells that count.
        """
        attention = softmax_over_cells(self.attend(values), mask)
        context = (attention * values).sum((2, 3), keepdim=True)
        added: Tensor = self.transform(context)
        return values + added


def softmax_over_cells(values: Tensor, mask: Tensor) -> Tensor:
    """Softmax of each image (B, 1, H, W) over its valid cells, in float32 at least; 0 elsewhere."""
    # An image without valid cells has no distribution: minus infinity everywhere would give NaN.
    hidden = torch.where(mask.any(-1, keepdim=True).any(-2, keepdim=True), -torch.inf, 0.0)
    values = values.double() if values.dtype == torch.float64 else values.float()
    shown = torch.where(mask, values, hidden.to(values.dtype))
    return torch.where(mask, shown.flatten(1).softmax(1).view_as(shown), 0.0)
