"""The feature pyramid that a detector hands to its heads.

B batch, C channels, H W input px, h w grid of a level.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.hook_point import NECK, captured_maps
from mtpd.errors import InputError
from mtpd.geometry import Level, Size, level_name

DEFAULT_INPUT: Size = (256, 256)
MAX_LOG_STRIDE = 12
# Required by NAS-FPN and FPG, whose levels are added after resizing by factors of two.
LARGE_DIVISORS = (64, 128, 256)


def neck_features(model: nn.Module, images: Tensor, *, hook_point: str = NECK) -> tuple[Tensor, ...]:
    """The maps (B, C, h, w) that an mmdet detector's neck, or its backbone where it has no neck, gives to its heads.

    Args:
        model: an mmdet detector.
        images: normalised and padded images (B, 3, H, W).
        hook_point: where they are taken, see `mtpd.detectors.hook_point`.

    Raises:
        InputError: the model gives no maps.
    """
    extract: Callable[[Tensor], Any] | None = getattr(model, 'extract_feat', None)
    if extract is None:
        raise InputError(f'{type(model).__name__} returns no features (it has no extract_feat): use a detector')
    if hook_point == NECK:  # also of detectors that have no neck
        return tuple(_maps(extract(images), type(model).__name__))
    with captured_maps(model, hook_point=hook_point) as maps:
        extract(images)
    return tuple(maps)


def probe_levels(model: nn.Module, *, input_size: Size = DEFAULT_INPUT) -> tuple[Level, ...]:
    """Levels of an mmdet detector, found by running it once in eval mode. See `levels_of`.

    Raises:
        InputError: it fails on inputs of this size; says which sizes it takes if that can be found out.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        return levels_of(lambda images: neck_features(model, images), input_size=input_size, device=device)
    except (InputError, torch.OutOfMemoryError):
        raise
    # A network says in any way that it cannot add the maps of its levels.
    except Exception as error:
        raise InputError(
            f'{type(model).__name__} fails on an input of {input_size[0]} x {input_size[1]} px (height x width): '
            f'{" ".join(str(error).split())[:200]}{_sizes_taken(model, device)}'
        ) from error
    finally:
        model.train(training)


def _sizes_taken(model: nn.Module, device: torch.device) -> str:
    """What to do about a network, in eval mode, that takes some sizes only."""
    for divisor in LARGE_DIVISORS:
        try:
            with torch.no_grad():
                neck_features(model, torch.zeros(1, 3, 2 * divisor, 3 * divisor, device=device))
        # As above.
        except Exception:
            continue
        return (
            f'; its input sides must be multiples of {divisor} px: set data.geometry.pad_divisor to {divisor}, or use '
            'a teacher with that padding'
        )
    return '; correct its config, use another input size (data.geometry), or choose another detector'


@torch.no_grad()
def levels_of(
    features: Callable[[Tensor], Sequence[Tensor]],
    *,
    input_size: Size = DEFAULT_INPUT,
    device: torch.device | None = None,
) -> tuple[Level, ...]:
    """Levels of a network, found by running it on a black image.

    Two maps of the same stride, such as the two stacks of an hourglass, are distinguished by a suffix: `p2`, `p2_2`.

    Args:
        features: (B, 3, H, W) -> maps (B, C, h, w).
        input_size: height and width, px, large enough for the deepest level to have more than one cell.
        device: where the network runs; None: the CPU.

    Raises:
        InputError: a map is not four-dimensional, or has no one stride in both directions.
    """
    maps = list(features(torch.zeros(1, 3, *input_size, device=device)))
    if not maps:
        raise InputError('the network returns no feature maps; a teacher or student needs at least one')
    seen: Counter[str] = Counter()
    levels = []
    for values in maps:
        if values.ndim != 4:
            raise InputError(f'a feature map has the shape {tuple(values.shape)}, expected (batch, channels, h, w)')
        stride = _stride(input_size, (values.shape[2], values.shape[3]))
        name = level_name(stride)
        seen[name] += 1
        if seen[name] > 1:
            name = f'{name}_{seen[name]}'
        levels.append(Level(name, stride, values.shape[1]))
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
        'has no single '
        f'stride; choose an input size that the network divides evenly'
    )


def _maps(output: Any, owner: str) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _maps(item, owner)
    else:
        raise InputError(f'{owner} returns a {type(output).__name__} as features, expected tensors')
