"""Reads JSON that people and other programs wrote: the document, its lists of records, and fields of a checked type.

Nothing is guessed: a field has the expected type, or one line names the record, the key, the value found and
what was wanted. A document is read in blocks and a record at a time: as Python objects, one of 0.5 GB takes 3 GB.
"""

import codecs
import gc
import hashlib
import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mtpd.errors import InputError

Fields = dict[str, Any]

MAX_WHOLE = 2**63 - 1  # an int64, as ids are kept in caches
MAX_SHOWN = 80  # characters of a value in a message
BLOCK_BYTES = 2**22
SPACES = ' \t\n\r'
DELIMITERS = {*SPACES, *',:]}'}
_SPACE = re.compile(f'[{SPACES}]*')


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


def read_document(path: Path, parsers: Mapping[str, Callable[[Fields], object]]) -> str:
    """Reads a JSON object with a list of records under each key of `parsers`; returns the sha256 of the file.

    Each record is given to the parser of its list, in the order of the file; it raises ValueError for what it cannot
    use. UTF-8, UTF-16 and UTF-32 are understood, with or without a byte order mark.
    """
    try:
        with path.open('rb') as file:
            document = _Document(file)
            try:
                _read_object(path, document, parsers)
            except UnicodeDecodeError as error:
                raise InputError(
                    f'{path}: not valid JSON: not UTF-8 text ({error}); fetch it again or save it as UTF-8'
                ) from None
            except json.JSONDecodeError as error:
                raise InputError(
                    f'{path}: not valid JSON ({document.place_of(error)}); the file may be truncated, fetch it again'
                ) from None
            except InputError:
                raise
            except RecursionError:
                raise InputError(f'{path}: is nested too deeply for an annotation file') from None
            except ValueError as error:  # a repeated key, or a number of thousands of digits
                raise InputError(f'{path}: cannot be used: {error}') from None
            return document.digest.hexdigest()
    except OSError as error:
        raise InputError(f'{path}: cannot read the annotation file ({error.strerror}); check the path') from None


def _read_object(path: Path, document: '_Document', parsers: Mapping[str, Callable[[Fields], object]]) -> None:
    start = document.peek()
    if not start:
        raise InputError(f'{path}: is empty; fetch the file again')
    if start != '{':
        raise InputError(f'{path}: holds a {_kind(document)}, expected a COCO annotation object')
    read: set[str] = set()
    others: Fields = {}
    for key in document.members():
        if key in read:
            raise ValueError(f'the key {shown(key)} appears twice in one object; remove one')
        if key in parsers and document.peek() == '[':
            read.add(key)
            for index, record in enumerate(document.elements()):
                try:
                    if not isinstance(record, dict):
                        raise ValueError(f'it is a {type(record).__name__}, expected an object')
                    parsers[key](record)
                except ValueError as error:
                    raise InputError(f'{path}: {key}[{index}]: {error}') from None
        else:
            value = document.value()
            _without_repeats([(key, others.get(key, value)), (key, value)])
            others[key] = value
    document.require_end()
    for key in parsers:
        if key not in read:
            found = f'is {shown(others[key])}' if key in others else 'is missing'
            raise InputError(
                f"{path}: has no list '{key}' (it {found}); a COCO annotation file needs images, annotations and "
                'categories'
            )


class _Document:
    """The text of a JSON file, in memory from where it has been read to the end of the last block."""

    def __init__(self, file: BinaryIO) -> None:
        block = file.read(BLOCK_BYTES)
        self.digest = hashlib.sha256(block)
        self._file = file
        self._decoder = codecs.getincrementaldecoder(json.detect_encoding(block))('surrogatepass')
        self._scanner = json.JSONDecoder(object_pairs_hook=_without_repeats)
        self._text = self._decoder.decode(block)
        self._position = 0
        self._line, self._column = 0, 0  # of the beginning of `_text`

    def peek(self) -> str:
        """The next character that is no space; '' at the end."""
        while True:
            character = self._text[self._position : self._position + 1]
            if character and character not in SPACES:
                return character
            match = _SPACE.match(self._text, self._position)
            assert match is not None
            self._position = match.end()
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._extend():
                return ''

    def value(self) -> Any:
        """Reads a value."""
        self.peek()
        while True:
            try:
                value, end = self._scanner.raw_decode(self._text, self._position)
            except json.JSONDecodeError:
                if self._extend():
                    continue
                raise
            # At the end of a block 12 or 1.5 may be the beginning of a longer number, and `1.` is read as 1.
            if self._text[end : end + 1] in DELIMITERS or not self._extend():
                self._position = end
                return value

    def members(self) -> Iterator[str]:
        """The keys of an object; the caller reads the value of each."""
        self._expect('{')
        if self.peek() != '}':
            while True:
                if self.peek() != '"':
                    raise self._error('Expecting property name enclosed in double quotes')
                key = self.value()
                self._expect(':')
                yield key
                if self.peek() != ',':
                    break
                self._expect(',')
        self._expect('}', "Expecting ',' delimiter")

    def elements(self) -> Iterator[Any]:
        """The values of a list."""
        self._expect('[')
        if self.peek() != ']':
            yield self.value()
            while self.peek() == ',':
                self._position += 1
                yield self.value()
        self._expect(']', "Expecting ',' delimiter")

    def require_end(self) -> None:
        """Refuses anything but spaces behind what has been read."""
        if self.peek():
            raise self._error('Extra data')

    def place_of(self, error: json.JSONDecodeError) -> str:
        """What is wrong, and where in the file."""
        column = error.colno + (self._column if error.lineno == 1 else 0)
        return f'{error.msg}: line {self._line + error.lineno} column {column}'

    def _expect(self, character: str, problem: str | None = None) -> None:
        if self.peek() != character:
            raise self._error(problem or f"Expecting '{character}'")
        self._position += 1

    def _error(self, problem: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(problem, self._text, self._position)

    def _extend(self) -> bool:
        """Appends a block and drops what has been read; False at the end of the file."""
        # At least as much again: a value of many blocks is scanned from its beginning every time.
        block = self._file.read(max(BLOCK_BYTES, len(self._text) - self._position))
        self.digest.update(block)
        more = self._decoder.decode(block, final=not block)
        if not block:
            return False
        num_lines = self._text.count('\n', 0, self._position)
        if num_lines:
            self._column = self._position - self._text.rindex('\n', 0, self._position) - 1
        else:
            self._column += self._position
        self._line += num_lines
        self._text, self._position = self._text[self._position :] + more, 0
        return True


def _kind(document: _Document) -> str:
    """What a document is that is no object."""
    if document.peek() != '[':
        return type(document.value()).__name__
    first = next(document.elements(), None)
    is_found = isinstance(first, dict) and 'score' in first and 'image_id' in first
    return 'list that looks like detections (a results file)' if is_found else 'list'


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
