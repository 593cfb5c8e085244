"""Formats numbers, names and tables for a terminal."""

from collections.abc import Sequence


def format_bytes(num_bytes: float) -> str:
    """A number of bytes in decimal units, for instance '1.25 GB'."""
    for unit, factor in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if num_bytes >= factor:
            return f'{num_bytes / factor:.2f} {unit}'
    return f'{num_bytes:.0f} B'


def format_duration(seconds: float) -> str:
    """A duration in s, min or h, for instance '2.5 h'."""
    if seconds >= 5400:
        return f'{seconds / 3600:.1f} h'
    return f'{seconds / 60:.1f} min' if seconds >= 90 else f'{seconds:.1f} s'


def listed(names: Sequence[str], *, most: int = 3, length: int = 200) -> str:
    """The first names of a list, for instance 'a, b, c, ...', cut and without what could control a terminal."""
    shown = [''.join(one if one.isprintable() else '?' for one in name[:length]) for name in names[:most]]
    return ', '.join([*shown, '...'] if len(names) > most else shown)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, num_texts: int = 1) -> list[str]:
    """Lines of columns, the first `num_texts` aligned to the left and the others, which hold numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        '  '.join(
            cell.ljust(width) if column < num_texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
