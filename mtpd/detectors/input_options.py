"""How images become inputs of a module that is no detector: from the user's options or from its attributes."""

import math
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from mtpd.detectors.preprocessing import Normalisation, Preprocessing, rgb
from mtpd.errors import InputError
from mtpd.geometry import MAX_SIDE, Geometry

_DEFAULTS = {
    'channel_order': 'bgr', 'pad_divisor': 32, 'pad_value': 0, 'keep_ratio': True, 'pad_after_normalisation': False,
}  # fmt: skip


@dataclass(frozen=True)
class InputOptions:
    """A user's settings of a teacher's input. None: as the teacher's config or module has it.

    Attributes:
        scale: (long edge, short edge) px of the resize.
        mean: per channel in the network's order, for values 0..255 (only for `file.py:callable`, like the rest).
        std: the standard deviation, likewise.
        channel_order: 'bgr' or 'rgb'.
        pad_divisor: the padded sides are multiples of this, px.
        pad_value: value of padding, a pixel value before the normalisation.
        keep_ratio: False resizes to exactly `scale`, as (width, height).
        pad_size: (height, width) px that the padded input has at least.
        pad_after_normalisation: `pad_value` is that of normalised inputs, as torchvision pads with zeros.
    """

    scale: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    channel_order: str | None = None
    pad_divisor: int | None = None
    pad_value: float | None = None
    keep_ratio: bool | None = None
    pad_size: tuple[int, int] | None = None
    pad_after_normalisation: bool | None = None


def require_only_scale(options: InputOptions, reference: str, *, source: str) -> None:
    """Refuses all options but `scale`, for a detector whose input is read from its `source`."""
    given = [name for name, value in vars(options).items() if value is not None and name != 'scale']
    if given:
        option = f'--{given[0].replace("_", "-")}'
        raise InputError(
            f'{option}: the input of {reference} is read from its {source}; the option is for file.py:callable'
        )


def stated_preprocessing(module: nn.Module, options: InputOptions, *, name: str) -> Preprocessing:
    """Preprocessing from the options, or else from attributes of the user's module with the same names."""

    def stated(field: str) -> Any:
        value = getattr(options, field)
        try:
            value = getattr(module, field, _DEFAULTS.get(field)) if value is None else value
        # A property is the user's program, too.
        except Exception as error:
            raise InputError(f'teacher {name}: its {field} fails: {type(error).__name__}: {error}') from error
        if value is None and field != 'pad_size':
            option = f'--{field.replace("_", "-")}'
            raise InputError(f'teacher {name}: its {field} is unknown; give {option}, or set `{field}` on the module')
        return value

    def refuse(field: str, wanted: str) -> NoReturn:
        raise InputError(f'teacher {name}: its {field} is {stated(field)!r:.80}, expected {wanted}')

    def numbers(field: str, count: int) -> tuple[float, ...]:
        try:
            # On a module it may well be a buffer of shape (1, 3, 1, 1).
            found = tuple(torch.as_tensor(stated(field), dtype=torch.float64).flatten().tolist())
        except (TypeError, ValueError, RuntimeError):
            found = ()
        if len(found) != count or not all(map(math.isfinite, found)):
            refuse(field, f'{count} finite number(s)')
        return found

    def whole(field: str, count: int) -> list[int]:
        found = numbers(field, count)
        if not all(one.is_integer() and 1 <= one <= MAX_SIDE for one in found):
            refuse(field, f'whole numbers from 1 to {MAX_SIDE}')
        return [int(one) for one in found]

    def flag(field: str) -> bool:
        value = stated(field)
        if not isinstance(value, bool):
            refuse(field, 'True or False')
        return value

    long_edge, short_edge = whole('scale', 2)
    mean, std = rgb(numbers('mean', 3)), rgb(numbers('std', 3))
    if min(std) <= 0:
        refuse('std', 'three numbers above 0')
    order = stated('channel_order')
    if not isinstance(order, str) or order not in ('bgr', 'rgb'):
        refuse('channel_order', 'bgr or rgb')
    (pad_divisor,), (pad_value,) = whole('pad_divisor', 1), numbers('pad_value', 1)
    padding = rgb((pad_value - m) / s for m, s in zip(mean, std, strict=True))
    if flag('pad_after_normalisation'):
        padding = (pad_value, pad_value, pad_value)
    pad_size: tuple[int, int] | None = None
    if stated('pad_size') is not None:
        height, width = whole('pad_size', 2)
        pad_size = height, width
    return Preprocessing(
        geometry=Geometry((long_edge, short_edge), flag('keep_ratio'), pad_divisor, pad_size),
        normalisation=Normalisation(mean, std, to_rgb=order == 'rgb', padding=padding),
    )
