"""A picture of adaptation costs: the matrix, and the way through it that was chosen."""

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from mtpd.errors import InputError, UnavailableError
from mtpd.system.files import write_atomically

COLOURS, PATH_COLOUR = 'viridis_r', '#e4572e'


def require_png(out: Path) -> None:
    """Checks the name of the file before anything is measured.

    Raises:
        InputError: it does not end in .png.
    """
    if out.suffix.lower() != '.png':
        raise InputError(f'--plot {out}: the picture is a PNG file; use a name that ends in .png')


def save_picture(
    out: Path,
    *,
    names: Sequence[str],
    costs: Tensor,
    deviations: Tensor | None,
    student: str | None,
    order: Sequence[str],
) -> None:
    """Draws the matrix of costs with the steps of the order framed and numbered.

    Args:
        out: the PNG file.
        names: of the models, rows and columns of the matrix; nothing is adapted to the student, so it has no column.
        costs: (M, M).
        deviations: (M, M), or None.
        student: its name, or None.
        order: the chosen teachers, the first to teach first.

    Raises:
        UnavailableError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    targets = [name for name in names if name != student]
    columns = [names.index(name) for name in targets]
    values = costs.numpy()[:, columns].copy()
    for row, source in enumerate(names):
        if source in targets:
            values[row, targets.index(source)] = np.nan
    figure = Figure(figsize=(3.2 + 1.25 * len(targets), 2.4 + 0.8 * len(names)), layout='constrained')
    axes = figure.add_subplot()
    highest = float(np.nanmax(values))
    image = axes.imshow(values, cmap=COLOURS, vmin=0, vmax=max(highest, 1e-6), aspect='auto')
    axes.set_xticks(range(len(targets)), targets, rotation=20, ha='right')
    axes.set_yticks(range(len(names)), [f'{name} (student)' if name == student else name for name in names])
    axes.set_xlabel('to')
    axes.set_ylabel('from')
    for row, column in np.argwhere(~np.isnan(values)):
        text = f'{values[row, column]:.3f}'
        if deviations is not None:
            text += f'\n± {deviations[row, columns[column]]:.3f}'
        dark = values[row, column] > 0.55 * highest
        axes.text(column, row, text, ha='center', va='center', fontsize=9, color='white' if dark else 'black')
    path = [*([student] if student is not None else []), *order]
    for number, (source, target) in enumerate(pairwise(path), start=1):
        row, column = names.index(source), targets.index(target)
        corner = (column - 0.47, row - 0.46)
        axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor=PATH_COLOUR, linewidth=3))
        axes.text(column - 0.4, row - 0.4, str(number), va='top', fontsize=9, weight='bold', color=PATH_COLOUR)
    figure.colorbar(image, ax=axes, label='unexplained fraction of variance')
    figure.suptitle('adaptation cost\n' + ' → '.join(path), fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format='png', dpi=150)
    try:
        write_atomically(out, content.getvalue())
    except OSError as error:
        raise UnavailableError(f'--plot {out}: cannot be written ({error.strerror}); choose another path') from error
