"""The `lean` codec: as few bits as a relative squared error allows.

A uniform step, the same for all channels of an image's level, spends the least bits for a squared error: a channel with
little variance then rounds to zeros, which cost nothing. The step is searched for every image, so that the error is met
on every image and does not depend on others. Channels are centred on their mean over the image, and int8 codes bound
how far a channel may reach: one with a heavier tail gets a coarser step of its own, and the others a finer one to make
up for it. Where even that misses the target, the error stored beside the codes says so.

Letters: B images, C channels, H W grid of a level.
"""

import torch
from torch import Tensor

LARGEST_CODE = 127
# The step is found between these multiples of the one whose rounding noise, step^2 / 12, would be the whole error.
# Above it because channels that round to zero lose less than that, below it to make up for channels with heavy tails.
SEARCH_RANGE = (1 / 20, 8.0)
# Halvings of the logarithm of that range: the step is known within 0.5%, the error within 1%.
SEARCH_STEPS = 10
# Half precision has 11 significant bits: the nearest step to this share of one is never above it.
ROUND_DOWN = 1 - 2**-11


def lean_codes(maps: Tensor, *, target: float) -> tuple[Tensor, Tensor]:
    """Codes with the largest step that keeps the error.

    Args:
        maps: float32 (B, C, H, W).
        target: greatest ||decoded - map||^2 / ||map||^2 of each image.

    Returns:
        codes int8 (B, C, H, W) and scale float16 (B, 2, C): step and offset of each channel. In half precision, since
        on the small maps of deep levels they would take a fifth of all bits.
    """
    offset = maps.mean((-2, -1)).half() if maps.numel() else maps.new_zeros(maps.shape[:2]).half()
    centred = maps - offset.float()[..., None, None]
    steps = _channel_steps(centred, _search(centred, maps.square().sum((1, 2, 3)) * target))
    steps = (steps * ROUND_DOWN).half()
    codes = _round(centred, steps.float())
    return codes.to(torch.int8), torch.stack([steps, offset], dim=-2)


def _search(centred: Tensor, allowed: Tensor) -> Tensor:
    """The largest step (B,) whose squared error stays within `allowed` (B,), or the least one tried."""
    num_elements = max(1, centred[0].numel() if len(centred) else 1)
    noise_only = (12 * allowed / num_elements).sqrt()
    low, high = (noise_only * factor for factor in SEARCH_RANGE)
    # On the device all the way: each comparison on the host would wait for the GPU.
    for _ in range(SEARCH_STEPS):
        middle = (low * high).sqrt()
        steps = _channel_steps(centred, middle)
        error = (_round(centred, steps) * steps[..., None, None] - centred).square().sum((1, 2, 3))
        fits = error <= allowed
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return low


def _channel_steps(centred: Tensor, step: Tensor) -> Tensor:
    """Steps (B, C): `step` (B,), coarser where a channel would leave the range of the codes."""
    if not centred.numel():
        return centred.new_zeros(centred.shape[:2])
    return torch.maximum(step[:, None], centred.abs().amax((-2, -1)) / LARGEST_CODE)


def _round(centred: Tensor, steps: Tensor) -> Tensor:
    """Codes as float32; a channel without values has step 0 and codes 0."""
    inverse = torch.where(steps > 0, 1 / steps, 0)
    return (centred * inverse[..., None, None]).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)
