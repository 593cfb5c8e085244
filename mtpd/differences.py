"""Comparing two JSON values field by field."""

from typing import Any


def differences(found: Any, wanted: Any, *, prefix: str = '') -> list[tuple[str, Any, Any]]:
    """(dotted field, found, wanted) for every leaf that differs; a field that one side lacks counts as None there."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        rows = []
        for key in sorted(found.keys() | wanted.keys()):
            rows += differences(found.get(key), wanted.get(key), prefix=f'{prefix}.{key}' if prefix else key)
        return rows
    return [] if found == wanted else [(prefix, found, wanted)]
