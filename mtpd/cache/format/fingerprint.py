"""Compares what a cache was made from with what is requested, field by field."""

from pathlib import Path
from typing import Any

from mtpd.errors import CacheMismatchError
from mtpd.system.files import differences

# Names and versions are recorded for people; an extraction may be resumed under another version of a library.
INFORMATIONAL = ('provenance',)
DERIVED = ('buckets', 'files')


def require_equal(root: Path, *, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses to mix two extractions in one folder.

    Raises:
        CacheMismatchError: names the first field that differs and both values.
    """
    difference = first_difference(found, wanted)
    if difference:
        raise CacheMismatchError(
            f'{root}: holds another extraction: {difference}; choose another --out, or --overwrite to delete the '
            'existing one'
        )


def first_difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """The field that best describes how two extractions differ, with both values; None for the same extraction."""
    rows = [row for row in differences(found, wanted) if row[0].split('.')[0] not in INFORMATIONAL]
    if not rows:
        return None
    field, old, new = min(rows, key=lambda row: _rank(row[0].split('.')[0]))
    more = f' (and {len(rows) - 1} more fields)' if len(rows) > 1 else ''
    return f'{field} is {_short(old)} there and {_short(new)} here{more}'


def _rank(field: str) -> int:
    """Fingerprint fields first: they are the most informative; buckets and files follow from the rest."""
    return 0 if field == 'fingerprint' else 2 if field in DERIVED else 1


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f'{text[:77]}...'
