"""The levels of a feature pyramid: found by running the network once."""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtpd.errors import InputError
from mtpd.geometry import Level, Size, level_name

DEFAULT_INPUT: Size = (256, 256)
MAX_LOG_STRIDE = 12


@torch.no_grad()
def levels_of(
    features: Callable[[Tensor], Sequence[Tensor]],
    *,
    input_size: Size = DEFAULT_INPUT,
    device: torch.device | None = None,
) -> tuple[Level, ...]:
    """Levels of a network, (B, 3, H, W) -> maps (B, C, h, w), found by running it on a black image.

    `input_size`, height and width in px, is large enough for the deepest level to have more than one cell. Two maps of
    the same stride, such as the two stacks of an hourglass, are distinguished by a suffix: `p2`, `p2_2`.
    """
    maps = list(features(torch.zeros(1, 3, *input_size, device=device)))
    if not maps:
        raise InputError('the network returns no feature maps; a teacher or student needs at least one')
    num_seen: Counter[str] = Counter()
    levels = []
    for values in maps:
        if values.ndim != 4:
            raise InputError(f'a feature map has the shape {tuple(values.shape)}, expected (batch, channels, h, w)')
        stride = _stride(input_size, (values.shape[2], values.shape[3]))
        name = level_name(stride)
        num_seen[name] += 1
        levels.append(Level(name if num_seen[name] == 1 else f'{name}_{num_seen[name]}', stride, values.shape[1]))
    return tuple(levels)


def _stride(input_size: Size, grid: Size) -> int:
    """The stride of a map: the smallest power of two that explains its size, else the ratio of the sizes.

    Networks round the size of a map up, as strided convolutions do, or down (the average pooling of HRNet's neck).
    """
    ratio = max(1, round(input_size[0] / max(grid[0], 1)))
    strides = [*(1 << power for power in range(MAX_LOG_STRIDE)), ratio]
    for stride in strides:
        if Level('', stride, 0).grid(*input_size) == grid:
            return stride
    for stride in strides:
        if (input_size[0] // stride, input_size[1] // stride) == grid and min(grid) > 0:
            return stride
    raise InputError(
        f'a feature map of {grid[0]} x {grid[1]} cells for an input of {input_size[0]} x {input_size[1]} px '
        'has no single stride; choose an input size that the network divides evenly'
    )
