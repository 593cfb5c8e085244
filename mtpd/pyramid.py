"""The vocabulary of feature pyramids: a level is known by its stride."""

from dataclasses import dataclass


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
