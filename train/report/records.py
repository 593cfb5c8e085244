"""Reads a run's metrics.jsonl, the source of all tables and curves. The last line may be partial."""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

from mtpd.errors import InputError
from mtpd_train.records.metrics import EvaluationRecord, TrainRecord

Record = TrainRecord | EvaluationRecord
AnyRecord = TypeVar('AnyRecord', TrainRecord, EvaluationRecord)

KINDS: Mapping[str, type[Record]] = {TrainRecord.kind: TrainRecord, EvaluationRecord.kind: EvaluationRecord}
WHOLE_NUMBERS = {'stage', 'step', 'epoch', 'peak_memory'}
NUMBERS = {'lr', 'images_per_second', 'data_wait', 'seconds', 'grad_norm'}


def read_records(path: Path) -> list[Record]:
    """The records of a run in their order; kinds and fields that this version does not know are left out.

    A number that is null, because it was not finite, is NaN.

    Raises:
        InputError: there is no such file, or a line other than the last is not a record.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); give the folder of a run of mtpd-train') from None
    found: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = _parse(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines):
                break
            raise InputError(f'{path} line {number} is not a metrics record; remove the line from the file') from None
        if record is not None:
            found.append(record)
    return found


def _parse(content: Any) -> Record | None:
    if not isinstance(content, dict):
        raise TypeError('a record must be an object')
    kind = KINDS.get(content['kind'])
    return (
        None
        if kind is None
        else kind(**{one.name: _value(one, content) for one in fields(kind) if _is_set(one, content)})
    )


def _is_set(field: Field[Any], content: Mapping[str, Any]) -> bool:
    """Whether a field is in the record; one without a default must be."""
    return field.name in content or (field.default is MISSING and field.default_factory is MISSING)


def _value(field: Field[Any], content: Mapping[str, Any]) -> Any:
    value = content[field.name]
    if field.name in WHOLE_NUMBERS:
        if type(value) is not int:
            raise TypeError('expected a whole number')
        return value
    if field.name in NUMBERS:
        is_optional = field.default is None
        return None if value is None and is_optional else _number(value)
    return _numbers(value)


def _numbers(value: Any) -> dict[str, Any]:
    """Numbers by name, or such mappings by name."""
    if not isinstance(value, dict):
        raise TypeError('expected an object')
    return {name: _numbers(one) if isinstance(one, dict) else _number(one) for name, one in value.items()}


def _number(value: Any) -> float | int:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError('expected a number')
    return value
