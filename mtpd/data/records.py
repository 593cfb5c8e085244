"""Reads JSON that people and other programs wrote: the document, its lists of records, and fields of a checked type.

Nothing is guessed: a field has the expected type, or one line names the record, the key, the value found and
what was wanted.
"""

import gc
import json
import math
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mtpd.errors import InputError

Record = TypeVar('Record')
Fields = dict[str, Any]

MAX_WHOLE = 2**63 - 1  # an int64, as ids are kept in caches
MAX_SHOWN = 80  # characters of a value in a message


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses the garbage collector: looking through millions of new objects again and again takes half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def parse_json(path: Path, content: bytes) -> Any:
    """The value that a JSON file holds; UTF-8, UTF-16 and UTF-32, with or without a byte order mark."""
    if not content.strip():
        raise InputError(f'{path}: is empty; fetch the file again')
    try:
        return json.loads(content, object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        raise InputError(
            f'{path}: not valid JSON: not UTF-8 text ({error}); fetch it again or save it as UTF-8'
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(f'{path}: not valid JSON ({error}); the file may be truncated, fetch it again') from None
    except RecursionError:
        raise InputError(f'{path}: is nested too deeply for an annotation file') from None
    except ValueError as error:  # a repeated key, or a number of thousands of digits
        raise InputError(f'{path}: cannot be used: {error}') from None


def parse_each(path: Path, document: Fields, key: str, parse: Callable[[Fields], Record]) -> Iterator[Record]:
    """What `parse` makes of each record of a list; it raises ValueError for what it cannot use."""
    records = document.get(key)
    if not isinstance(records, list):
        found = f'is {shown(records)}' if key in document else 'is missing'
        raise InputError(
            f"{path}: has no list '{key}' (it {found}); a COCO annotation file needs images, annotations and categories"
        )
    for index, record in enumerate(records):
        try:
            if not isinstance(record, dict):
                raise ValueError(f'it is a {type(record).__name__}, expected an object')
            parsed = parse(record)
        except ValueError as error:
            raise InputError(f'{path}: {key}[{index}]: {error}') from None
        yield parsed


def shown(value: object) -> str:
    """A value of any size and depth for a message: one short line."""
    return f'{reprlib.repr(value):.{MAX_SHOWN}}'


def required(record: Fields, key: str) -> Any:
    if key not in record:
        raise ValueError(f'{key!r} is missing')
    return record[key]


def text(record: Fields, key: str) -> str:
    """A text of at least one character."""
    value = required(record, key)
    if not isinstance(value, str) or not value:
        raise ValueError(f'{key} is {shown(value)}, expected a string')
    if not value.isascii() and any('\ud800' <= character <= '\udfff' for character in value):
        raise ValueError(f'{key} is {shown(value)}, with a lone surrogate character, expected valid Unicode')
    return value


def whole(record: Fields, key: str, least: int, most: int = MAX_WHOLE) -> int:
    """A whole number; 480.0 is one, as JSON does not tell it from 480."""
    value = required(record, key)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f'{key} is {shown(value)}, expected a whole number from {least} to {most}')
    return value


def flag(record: Fields, key: str) -> bool:
    """A truth value: 0 or 1, false or true; missing and null are false. Text is none: "0" would be true."""
    value = record.get(key)
    if value is None:
        return False
    if type(value) not in (int, bool, float) or value not in (0, 1):
        raise ValueError(f'{key} is {shown(value)}, expected 0 or 1')
    return bool(value)


def number(record: Fields, key: str) -> float | None:
    """A finite number; None where it is missing or null."""
    value = record.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not -MAX_WHOLE <= value <= MAX_WHOLE:
        raise ValueError(f'{key} is {shown(value)}, expected a finite number')
    return float(value)


def numbers(record: Fields, key: str, count: int, *, limit: float, meaning: str) -> list[float]:
    """A list of `count` numbers from -`limit` to `limit`; `meaning` says which."""
    values = required(record, key)
    if (
        not isinstance(values, list)
        or len(values) != count
        or not {*map(type, values)} <= {int, float}
        or not (-limit <= min(values) and max(values) <= limit and not math.isnan(sum(values)))
    ):
        raise ValueError(f'{key} is {shown(values)}, expected {meaning}: {count} finite numbers')
    return list(map(float, values))


def _without_repeats(pairs: list[tuple[str, Any]]) -> Fields:
    content = dict(pairs)
    if len(content) < len(pairs):
        for key, value in pairs:
            if content[key] != value and not _both_nan(content[key], value):
                raise ValueError(f'the key {shown(key)} appears twice in one object, with different values; remove one')
    return content


def _both_nan(one: object, other: object) -> bool:
    return all(isinstance(value, float) and math.isnan(value) for value in (one, other))
