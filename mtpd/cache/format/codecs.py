"""Encoded feature maps: codecs that make them, the one type that holds them, and decoding.

`fp16`  the map itself in half precision.
`int8`  per image and channel 256 steps between the channel's smallest and largest value. The offset matters:
        activations such as SiLU are far from symmetric, and without it half of the codes of such a channel represent
        values that never occur.
`lean`  as few bits as a relative squared error allows, on decorrelated channels. A uniform step, the same for all
        channels of an image's level, spends the least bits for a squared error: a channel with little variance then
        rounds to zeros, which cost nothing. The step is searched for every image, so that the error is met on every
        image and does not depend on others. Channels are centred on their mean over the image, and int8 codes bound how
        far a channel may reach: one with a heavier tail gets a coarser step of its own, and the others a finer one to
        make up for it. Where even that misses the target, the error stored beside the codes says so.
        The rotation of the channels is to their principal directions (Karhunen-Loeve transform): channels resemble each
        other, rotated they do not, most of the energy gathers in a few of them, and the rest rounds to zeros. A
        rotation leaves squared errors as they are and commutes with masks over cells. One basis per level serves all
        images; it is computed once, from a sample (`Covariance`), and stored with the cache.

In all: value = code * step + offset, then, for `lean`, a rotation of the channels. Encoding runs on the teacher's
device, so that a quarter of the bytes crosses to the host, and never makes the host wait. What is read from a cache
stays encoded up to the losses, most of which compare codes.

Letters: B images, C channels, H W grid of a level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mtpd.errors import InputError
from mtpd.geometry import Size

CodecName = Literal['fp16', 'int8', 'lean']

# Images named in a message.
MAX_NAMED = 8
# Default error of `lean`, as a share of a map's energy.
DEFAULT_TARGET = 0.03
LARGEST_CODE = 127
# The step of `lean` is found between these multiples of the one whose rounding noise, step^2 / 12, would be the whole
# error. Above it because channels that round to zero lose less than that, below it to make up for heavy tails.
SEARCH_RANGE = (1 / 20, 8.0)
# Halvings of the logarithm of that range: the step is known within 0.5%, the error within 1%.
SEARCH_STEPS = 10
# Half precision has 11 significant bits: the nearest step to this share of one is never above it.
ROUND_DOWN = 1 - 2**-11


@dataclass(frozen=True)
class EncodedMaps:
    """Maps of one level as codes; values, of which nothing is to be decoded, are the simplest codes.

        T_bc = sum_k basis_ck (codes_bk step_bk + offset_bk)

    Attributes:
        codes: (B, C, H, W), int8 or any floating dtype, with any strides; without gradient.
        scale: (B, 2, C) step and offset of each image and channel, floating; None: 1 and 0.
        basis: (C, C) float32, orthonormal columns, the directions that the channels of the codes stand for; None when
            these are the teacher's channels.
        sizes: (rows, columns) of each image's own map, beyond which values are 0 for any codes; None: all of it.
        error: (B,) float32, ||decoded - map||^2 / ||map||^2 of each image, measured when it was encoded; None where
            it is not known, or of no use.
    """

    codes: Tensor
    scale: Tensor | None = None
    basis: Tensor | None = None
    sizes: Sequence[Size] | None = None
    error: Tensor | None = None

    def __post_init__(self) -> None:
        """Raises InputError when the shapes do not fit."""
        batch, channels = (*self.codes.shape, 0, 0)[:2]
        scale, basis = (None if one is None else tuple(one.shape) for one in (self.scale, self.basis))
        fits = scale in (None, (batch, 2, channels)) and basis in (None, (channels, channels))
        if self.codes.ndim != 4 or not fits:
            raise InputError(
                f'codes {tuple(self.codes.shape)}, scale {scale} and basis {basis} do not fit: expected (B, C, H, W), '
                '(B, 2, C) or None, and (C, C) or None'
            )

    @property
    def shape(self) -> torch.Size:
        """(B, C, H, W)."""
        return self.codes.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the values, and what they are added up in: float64 if the codes are, else float32."""
        return torch.float64 if self.codes.dtype == torch.float64 else torch.float32

    def values(self) -> Tensor:
        """T (B, C, H, W) in `dtype`: computed in every call, as most losses do not need it."""
        # Half precision would be the rounding of all values, not of a layer's output.
        with torch.no_grad(), torch.autocast(self.codes.device.type, enabled=False):
            values = self.codes.to(self.dtype, copy=self.scale is not None or self.sizes is not None)
            if self.scale is not None:
                step, offset = self.scale.to(self.dtype)[..., None, None].unbind(1)
                values = values.mul_(step).add_(offset)
            if self.basis is not None:
                values = torch.matmul(self.basis.to(self.dtype), values.flatten(2)).view_as(values)
            for image, (rows, columns) in zip(values, self.sizes or (), strict=False):
                # An offset is not zero.
                image[:, rows:] = 0
                image[:, :, columns:] = 0
            return values

    def to(self, device: torch.device) -> 'EncodedMaps':
        """The same on another device; copies from pinned memory do not wait."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def batch_images(images: Sequence[EncodedMaps]) -> EncodedMaps:
    """One level of several images, each a batch of one, as a batch on the device of the codes; without their errors.

    The grid is the least that holds all maps, each at the top left.
    """
    codes = [one.codes for one in images]
    sizes: list[Size] = [(one.shape[2], one.shape[3]) for one in codes]
    grid = max(rows for rows, _ in sizes), max(columns for _, columns in sizes)
    has_padding = any(size != grid for size in sizes)
    batch = None if has_padding else _side_by_side(codes)
    if batch is None:
        batch = codes[0].new_zeros((len(codes), codes[0].shape[1], *grid))
        for target, one in zip(batch, codes, strict=True):
            target[:, : one.shape[2], : one.shape[3]] = one[0]
    scales = [one.scale for one in images if one.scale is not None]
    return EncodedMaps(
        codes=batch,
        # Copied without waiting for what the device is at.
        scale=torch.cat(scales).to(batch.device, non_blocking=True) if scales else None,
        basis=images[0].basis,
        # Without offsets the zeros of the padding are values.
        sizes=sizes if has_padding and scales else None,
    )


def _side_by_side(codes: Sequence[Tensor]) -> Tensor | None:
    """Maps (1, C, H, W) of one shape as a view (B, C, H, W), if they lie evenly in one memory; else None."""
    first = codes[0]
    places = [int(one.storage_offset()) for one in codes]
    stride = places[1] - places[0] if len(codes) > 1 else first.numel()
    evenly = places == [places[0] + number * stride for number in range(len(codes))] and stride >= 0
    memories = {(one.untyped_storage().data_ptr(), one.stride()) for one in codes}
    if not evenly or len(memories) > 1:
        return None
    return first.as_strided((len(codes), *first.shape[1:]), (stride, *first.stride()[1:]), places[0])


def expected_bytes(codec: CodecName) -> float:
    """What a feature value takes on disk, about: `lean` compresses to 1 to 2 bits, the others hardly."""
    return {'fp16': 2.0, 'int8': 1.0, 'lean': 0.25}[codec]


def encode(maps: Tensor, codec: CodecName, *, target: float | None = None, basis: Tensor | None = None) -> EncodedMaps:
    """Encodes maps (B, C, H, W) of any float dtype, on their own device.

    Only `lean` has a target, the relative squared error that it may make (None: DEFAULT_TARGET), and a basis,
    orthonormal columns (C, C) on the same device (None: the channels stay as they are).
    Values that cannot be stored give an error that is not finite; see `require_storable`.
    """
    maps = maps.float()
    if codec == 'fp16':
        codes = maps.half()
        return EncodedMaps(codes, error=_relative_error(codes.float(), maps))
    basis = basis if codec == 'lean' else None
    if not maps.numel():
        codes = maps.to(torch.int8)
        scale = maps.new_zeros(len(maps), 2, maps.shape[1], dtype=torch.half if codec == 'lean' else torch.float32)
    elif codec == 'int8':
        codes, scale = _int8_codes(maps)
    else:
        rotated = maps if basis is None else torch.einsum('ck,bchw->bkhw', basis, maps)
        codes, scale = _lean_codes(rotated, target=DEFAULT_TARGET if target is None else target)
    # Not `values`: multiplied and added in one rounding, which is what the errors of all caches are measured by.
    step, offset = scale.float()[..., None, None].unbind(1)
    decoded = torch.addcmul(offset, codes.float(), step)
    if basis is not None:
        decoded = torch.einsum('ck,bkhw->bchw', basis, decoded)
    return EncodedMaps(codes, scale, basis, error=_relative_error(decoded, maps))


def require_storable(encoded: EncodedMaps, *, level: str, view: str, image_ids: Sequence[int]) -> None:
    """`require_finite` for what `encode` made: a value may also have been too large for half precision."""
    uses_half = torch.float16 in (encoded.codes.dtype, encoded.scale is not None and encoded.scale.dtype)
    limit = ', or exceed 65504, the largest half-precision value (if so, use the codec int8)' if uses_half else ''
    assert encoded.error is not None
    require_finite(encoded.error, level=level, view=view, image_ids=image_ids, limit=limit)


def require_finite(values: Tensor, *, level: str, view: str, image_ids: Sequence[int], limit: str = '') -> None:
    """Refuses a teacher's maps (B, ...), or what is not finite where they are not; waits for the device."""
    finite = torch.isfinite(values[:, None]).flatten(1).all(1)
    if bool(finite.all()):
        return
    wrong = [str(image_id) for image_id, one in zip(image_ids, finite.tolist(), strict=True) if not one]
    shown = ', '.join(wrong[:MAX_NAMED]) + (', ...' if len(wrong) > MAX_NAMED else '')
    raise InputError(
        f'level {level}, view {view} of the images with ids {shown}: the teacher returned feature values that are not '
        f'finite, or whose squares are not{limit}; check its weights and input normalisation'
    )


def _int8_codes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 (B, C, H, W) and scale (B, 2, C)."""
    low, high = maps.amin((-2, -1)), maps.amax((-2, -1))
    step = (high - low) / 255
    # A constant channel has step 0: every code is 0 and the offset is the value.
    inverse = torch.where(step > 0, 1 / step, 0)
    codes = ((maps - low[..., None, None]) * inverse[..., None, None]).round_() - 128
    codes = torch.where((step > 0)[..., None, None], codes.clamp_(-128, 127), 0)
    offset = torch.where(step > 0, low + 128 * step, low)
    return codes.to(torch.int8), torch.stack([step, offset], dim=-2)


def _lean_codes(maps: Tensor, *, target: float) -> tuple[Tensor, Tensor]:
    """Codes int8 (B, C, H, W) with the largest step that keeps the error, and their scale float16 (B, 2, C).

    `target` is the greatest ||decoded - map||^2 / ||map||^2 of each image. Step and offset of a channel are in half
    precision, since on the small maps of deep levels they would take a fifth of all bits.
    """
    offset = maps.mean((-2, -1)).half()
    centred = maps - offset.float()[..., None, None]
    steps = _channel_steps(centred, _search(centred, maps.square().sum((1, 2, 3)) * target))
    steps = (steps * ROUND_DOWN).half()
    codes = _round(centred, steps.float())
    return codes.to(torch.int8), torch.stack([steps, offset], dim=-2)


def _search(centred: Tensor, allowed: Tensor) -> Tensor:
    """The largest step (B,) whose squared error stays within `allowed` (B,), or the least one tried."""
    noise_only = (12 * allowed / centred[0].numel()).sqrt()
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
    return torch.maximum(step[:, None], centred.abs().amax((-2, -1)) / LARGEST_CODE)


def _round(centred: Tensor, steps: Tensor) -> Tensor:
    """Codes as float32; a channel without values has step 0 and codes 0."""
    inverse = torch.where(steps > 0, 1 / steps, 0)
    return (centred * inverse[..., None, None]).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)


def _relative_error(decoded: Tensor, maps: Tensor) -> Tensor:
    error, energy = (values.square().sum((1, 2, 3)) for values in (decoded - maps, maps))
    # A map of zeros is exact; what is not finite stays so.
    return torch.where((energy == 0) | energy.isinf(), error + energy, error / energy)


class Covariance:
    """Running channel covariance of one level, each image around its own channel means."""

    def __init__(self, num_channels: int) -> None:
        self._sum = torch.zeros(num_channels, num_channels, dtype=torch.float64)

    def add(self, maps: Tensor) -> None:
        """Takes in maps (B, C, H, W)."""
        centred = maps.float() - maps.float().mean((-2, -1), keepdim=True)
        # Images differ in energy; each counts alike, as each is to keep the same relative error.
        centred = centred / centred.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        products = torch.einsum('bihw,bjhw->ij', centred, centred) / max(1, centred[0, 0].numel())
        self._sum += products.cpu().double()

    def basis(self) -> Tensor:
        """Orthonormal columns (C, C) float32, the direction of the greatest variance first."""
        _, vectors = torch.linalg.eigh(self._sum)
        vectors = vectors.flip(1)
        # An eigenvector has no sign of its own: the largest entry is made positive.
        signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        basis: Tensor = (vectors * signs).float().contiguous()
        return basis


@dataclass
class Comparison:
    """Relative squared errors, ||found - wanted||^2 / ||wanted||^2, and cosines of maps; nan without maps.

    Where both maps are zero the error is 0 and the cosine 1.
    """

    errors: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """Takes in a map (C, H, W) of a level and its original, in double precision."""
        found, wanted = found.double(), wanted.double()
        error, energy = float((found - wanted).square().sum()), float(wanted.square().sum())
        product, norms = float((found * wanted).sum()), math.sqrt(energy * float(found.square().sum()))
        self.errors.append(error / energy if energy else (math.inf if error else 0.0))
        self.cosines.append(product / norms if norms else float(not error))

    def summary(self) -> dict[str, float]:
        """Means, the greatest error and the least cosine, by name."""
        num_maps = len(self.errors) or math.nan
        return {
            'mean_error': sum(self.errors) / num_maps,
            'worst_error': max(self.errors, default=math.nan),
            'mean_cosine': sum(self.cosines) / num_maps,
            'worst_cosine': min(self.cosines, default=math.nan),
        }
