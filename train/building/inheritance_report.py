"""Report of what a student inherited: a line for the stage's summary, and the table of all tensors."""

from collections import Counter
from collections.abc import Sequence

from mtpd.detectors.inheritance import Inheritance, shape_text

_HEADINGS = ('outcome', 'student', 'shape', 'teacher', 'why')


def inheritance_summary(plan: Sequence[Inheritance]) -> str:
    """`inherited 37 tensors from the teacher, tiled 2, skipped 30 (22 later cascade stage, ...; 8 another shape)`."""
    outcomes = Counter(entry.outcome for entry in plan)
    reasons = Counter(entry.reason for entry in plan if entry.outcome == 'skipped')
    why = '; '.join(f'{count} {reason}' for reason, count in reasons.most_common())
    return (
        f'inherited {outcomes["inherited"]} tensors from the teacher, tiled {outcomes["tiled"]}, '
        f'skipped {outcomes["skipped"]}' + (f' ({why})' if why else '')
    )


def inheritance_table(plan: Sequence[Inheritance]) -> str:
    """One line for each tensor, in columns, under headings and above the summary."""
    rows = [_HEADINGS, *(_row(entry) for entry in plan)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ['  '.join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return '\n'.join([*lines, '', inheritance_summary(plan), ''])


def _row(entry: Inheritance) -> tuple[str, ...]:
    why = f'{entry.reason}: {entry.detail}' if entry.detail else entry.reason
    return entry.outcome, entry.student or '-', shape_text(entry.shape), entry.teacher or '-', why
