"""Untrusted JSON, read within limits or refused with a one-line error."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mtpd.errors import CacheDamagedError

# The manifest of COCO in shards of 24 images, five levels and two views takes 20 MB.
MAX_BYTES = 2**28
# An empty list takes three bytes in a file and 64 in memory; what extractions write has 50 bytes to a value.
FREE_VALUES, BYTES_PER_VALUE = 100_000, 24
MAX_DEPTH = 32


class StrictRecord(BaseModel):
    """Frozen, validated by pydantic, strict about types and names."""

    model_config = ConfigDict(extra='forbid', frozen=True, strict=True)


def read_json(path: Path) -> Any:
    """Reads a JSON file; CacheDamagedError where it cannot be read, or as `parse_json`."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CacheDamagedError(f'{path}: has {size} bytes, at most {MAX_BYTES} were expected; extract it again')
        return parse_json(path.read_bytes(), name=str(path))
    except OSError as error:
        raise CacheDamagedError(f'{path}: cannot be read ({error.strerror})') from error


def parse_json(content: bytes, *, name: str) -> Any:
    """The value of a JSON document, which takes no more than a few times the memory of the document.

    CacheDamagedError: it is too dense, is not JSON, repeats a key, or has numbers that are not finite.
    """
    num_values = sum(content.count(mark) for mark in (b',', b'[', b'{'))
    if num_values > FREE_VALUES + len(content) // BYTES_PER_VALUE:
        raise CacheDamagedError(
            f'{name}: holds {num_values} values in {len(content)} bytes, not written by an extraction'
        )
    try:
        return json.loads(
            content, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant, parse_float=_finite
        )
    except RecursionError:
        problem = 'nested too deeply'
    except ValueError as error:
        problem = short(error)
    raise CacheDamagedError(f'{name}: not valid JSON ({problem}); restore it, or extract into another folder')


def require_shallow(value: Any, *, depth: int = MAX_DEPTH) -> Any:
    """Returns `value` if its lists and dicts are nested no deeper than `depth`, so that code may recurse into it."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if depth == 0 and children:
        raise ValueError(f'nested more than {MAX_DEPTH} levels deep')
    for child in children:
        require_shallow(child, depth=depth - 1)
    return value


def short(value: object, *, length: int = 120) -> str:
    """A value of unknown origin for a message: one line of printable characters, not too long."""
    text = ''.join(character if character.isprintable() else '?' for character in str(value)[: length + 1])
    return text if len(text) <= length else f'{text[: length - 3]}...'


def first_problem(error: ValidationError) -> str:
    """The first of what pydantic found, with its place, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = '.'.join(map(str, first['loc']))
    return short(f'{where}: {first["msg"]}' if where else first['msg'], length=300)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f'the key {short(repeated)!r} appears twice in one object')
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f'{name} is not a JSON number')


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f'the number {short(text, length=30)} is too large')
    return value
