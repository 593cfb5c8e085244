"""How numbers and tables look in a terminal."""

from collections.abc import Sequence


def size(num_bytes: int) -> str:
    """A number of bytes for people."""
    for unit, factor in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if num_bytes >= factor:
            return f'{num_bytes / factor:.2f} {unit}'
    return f'{num_bytes} B'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, the first aligned to the left and the others, which hold numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        '  '.join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
