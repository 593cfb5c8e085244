"""Sizes: how an image becomes a network input (resize, mirror, pad), and levels of feature pyramids. No pixels.

Teacher and student of a cache share one geometry, so that cell (y, x) of a level means the same pixels to both.
Sizes are (height, width) in px. Padding goes to the right and the bottom, after mirroring, as in mmdet.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mtpd.errors import InputError

__all__ = ['Geometry', 'Level', 'level_name']

Size = tuple[int, int]

MAX_SIDE = 2**16  # px of an input; what a cache can hold


@dataclass(frozen=True)
class Geometry:
    """Resize and padding of a network input.

    Attributes:
        scale: (long edge, short edge) in px that the resized image must fit when `keep_ratio`; else its exact
            (width, height). This is mmdet's `Resize.scale`.
        keep_ratio: whether the aspect ratio is kept.
        pad_divisor: the padded sides are multiples of this many px.
        pad_size: the padded (height, width) is at least this, or None.
        pad_square: both padded sides are at least the longer resized one.
        interpolation, backend: of the resize, as in mmdet's `Resize`.
        rounds_down: whether the kept ratio gives sides that are rounded down (mmdet's `FixScaleResize`).
        float_pixels: whether the resize gives float32 pixels, not uint8.
    """

    scale: tuple[int, int]
    keep_ratio: bool = True
    pad_divisor: int = 32
    pad_size: Size | None = None
    pad_square: bool = False
    interpolation: str = 'bilinear'
    backend: str = 'cv2'
    rounds_down: bool = False
    float_pixels: bool = False

    def __post_init__(self) -> None:
        if min(self.scale) < 1 or self.pad_divisor < 1:
            raise InputError(f'scale {self.scale} and pad divisor {self.pad_divisor} must be positive')

    def resized(self, original: Size) -> Size:
        """Size of an image of size `original` after the resize (mmcv rounds half up)."""
        height, width = original
        if not self.keep_ratio:
            return self.scale[1], self.scale[0]
        factor = min(max(self.scale) / max(height, width), min(self.scale) / min(height, width))
        offset = 0.0 if self.rounds_down else 0.5
        return int(height * factor + offset), int(width * factor + offset)

    def padded(self, original: Size) -> Size:
        """Size of the network input for an image of size `original`."""
        height, width = self.resized(original)
        if self.pad_square:
            height = width = max(height, width)
        if self.pad_size is not None:
            height, width = max(height, self.pad_size[0]), max(width, self.pad_size[1])
        divisor = self.pad_divisor
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def to_dict(self) -> dict[str, Any]:
        """Its values by name; the rarer ones only where they are not the default, as older caches lack them."""
        rarer = {field.name: field.default for field in fields(self)[4:]}
        return {name: value for name, value in asdict(self).items() if name not in rarer or value != rarer[name]}


@dataclass(frozen=True)
class Level:
    """One map of a feature pyramid.

    Attributes:
        name: `p3` for stride 8, `p4` for stride 16, ...; `s100` if the stride is not a power of two.
        stride: input pixels per cell.
        channels: number of channels.
    """

    name: str
    stride: int
    channels: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of this level's map for an input of `height` x `width` px."""
        return -(-height // self.stride), -(-width // self.stride)


def level_name(stride: int) -> str:
    """`p<k>` for stride 2**k, the field's own naming; `s<stride>` for other strides."""
    power = stride.bit_length() - 1
    return f'p{power}' if stride == 1 << power else f's{stride}'


def shared_sizes(sizes: Iterable[Sequence[int]]) -> list[Size]:
    """The sizes, equal ones as the same object: a data set has far fewer of them than images."""
    known: dict[Size, Size] = {}
    return [known.setdefault((height, width), (height, width)) for height, width in sizes]
