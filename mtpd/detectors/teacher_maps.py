"""Feature maps from user-supplied networks: any failure in them becomes a one-line error."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.errors import InputError, MtpdError, UnavailableError

logger = logging.getLogger(__name__)

Features = Callable[[Tensor], Sequence[Tensor]]

# Squared difference of two passes over one image, as a share of the maps' energy: on a GPU sums may differ a little.
SAME = 1e-6
# The same between an image by itself and beside another one, where other kernels may run, in half precision too.
SAME_IN_BATCH = 1e-3


def guarded(name: str, features: Callable[[Tensor], Any]) -> Features:
    """`features`, (B, 3, H, W) -> float32 maps (B, C, h, w) without gradient, with a one-line error for any failure."""

    def run(images: Tensor) -> Sequence[Tensor]:
        num_images, _, height, width = images.shape
        try:
            maps = features(images)
        except MtpdError:
            raise
        except torch.OutOfMemoryError as error:
            raise UnavailableError(
                f'teacher {name}: not enough device memory for {num_images} images of {height} x {width} px; '
                'use a smaller batch (--batch-size, data.batch_size)'
            ) from error
        except (Exception, SystemExit) as error:
            raise InputError(
                f'teacher {name} fails on {num_images} image(s) of {height} x {width} px (height x width): '
                f'{type(error).__name__}: {error}'
            ) from error
        if isinstance(maps, Mapping):
            names = ', '.join(map(str, maps))[:80]
            raise InputError(
                f'teacher {name}: features() returns a {type(maps).__name__} of {names}, expected a list of tensors; '
                'return list(maps.values()), from the finest level to the coarsest'
            )
        if not isinstance(maps, list | tuple) or not all(isinstance(values, Tensor) for values in maps):
            raise InputError(
                f'teacher {name}: features() returns a {type(maps).__name__}, expected a list of tensors; '
                'return a list with one map (batch, channels, h, w) for each level'
            )
        if not maps:
            raise InputError(f'teacher {name}: features() returns no maps, expected at least one')
        for number, values in enumerate(maps):
            _require_map(values, images, name=f'teacher {name}: map {number} of features()')
        return [values.detach().float() for values in maps]

    return run


def _require_map(values: Tensor, images: Tensor, *, name: str) -> None:
    if values.shape[:1] != images.shape[:1]:
        raise InputError(
            f'{name} has the shape {tuple(values.shape)}, expected as many images as in its input ({len(images)})'
        )
    if values.ndim != 4:
        raise InputError(f'{name} has the shape {tuple(values.shape)}, expected (batch, channels, h, w)')
    if not all(values.shape):
        raise InputError(f'{name} has the shape {tuple(values.shape)}, expected at least one channel and cell')
    if not values.is_floating_point() or values.layout != torch.strided:
        kind = str(values.dtype).removeprefix('torch.') if values.layout == torch.strided else 'sparse'
        raise InputError(f'{name} is of type {kind}, expected a dense map of floating-point numbers')
    if values.device != images.device:
        raise InputError(
            f'{name} is on {values.device} for images on {images.device}; compute it on the device of the images'
        )


def require_repeated(first: Sequence[Tensor], second: Sequence[Tensor], *, name: str) -> None:
    """Refuses a network that gives other maps for the same image a second time."""
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        if not _same(one, other):
            raise InputError(
                f'teacher {name}: map {number} of features() differs when the same image is passed twice; a teacher '
                'must not use random numbers or change from call to call (dropout, batch statistics of training mode)'
            )


def require_independent(features: Features, image: Tensor, alone: Sequence[Tensor], *, name: str) -> None:
    """Refuses a network whose maps of an image (1, 3, H, W) `alone` differ in a batch of two."""
    other = torch.linspace(-3, 3, image.numel(), device=image.device).view_as(image)
    try:
        pair = features(torch.cat([image, other]))
    except MtpdError:  # It may take one image at a time.
        return
    for number, (one, two) in enumerate(zip(alone, pair, strict=False)):
        # Other levels are reported when they are used.
        if one.shape == two[:1].shape and not _same(one, two[:1], SAME_IN_BATCH):
            raise InputError(
                f'teacher {name}: map {number} of features() differs when another image is in the batch; a teacher '
                'must treat each image independently: call eval() on all batch norms, including those in Python lists'
            )


def tell_random_weights(module: nn.Module, again: nn.Module, *, name: str, checkpoint: Path | None) -> None:
    """Says which weights neither the file nor the checkpoint sets: those that differ when it is built `again`.

    InputError where a checkpoint is given and sets none of them.
    """
    own, other = module.state_dict(), again.state_dict()
    differing = [key for key, value in own.items() if key not in other or not torch.equal(value.cpu(), other[key])]
    if checkpoint is not None and differing and len(differing) == len(own):
        raise InputError(
            f'teacher {name}: all its {len(own)} tensors are random, though --checkpoint {checkpoint} is given; load '
            'that file in the callable'
        )
    if differing:
        logger.warning(
            'warning: teacher %s: %d of its %d tensors (%s, ...) are random, since no checkpoint sets them; '
            'unless its maps do not need them, give trained weights with --checkpoint FILE, or load them in the file',
            name,
            len(differing),
            len(own),
            differing[0],
        )


def _same(one: Tensor, other: Tensor, limit: float = SAME) -> bool:
    if one.shape != other.shape:
        return False
    # What is not finite is refused later, with its image.
    one, other = (torch.nan_to_num(values.double(), 0, 0, 0) for values in (one, other))
    return float((one - other).square().sum()) <= limit * float(one.square().sum())
