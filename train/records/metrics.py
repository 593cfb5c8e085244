"""`metrics.jsonl`: what a run measured, one JSON object a line; plots and tables are made from it.

Every record has `kind`, `stage` (from 1), `step` (optimizer steps of the stage so far) and `epoch` (from 1).
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mtpd.errors import InputError, UnavailableError
from mtpd.system.files import write_atomically

Value = TypeVar('Value')


@dataclass(frozen=True)
class TrainRecord:
    """The training steps since the last record."""

    kind: ClassVar[str] = 'train'

    stage: int
    step: int
    epoch: int  # that the step belongs to
    # Means since the last record, weighted and decayed as they entered the sum, and `total`.
    losses: Mapping[str, float]
    lr: float  # of the last step
    decay: Mapping[str, float]  # name of each decaying loss -> the factor of its weight in the last step
    images_per_second: float
    data_wait: float  # share of the time in which the step waited for data, from 0 to 1
    peak_memory: int  # bytes; of tensors on the GPU in this stage, on a CPU of the process
    seconds: float | None = None  # since the last record, without evaluations; runs of earlier versions have none
    grad_norm: float | None = None  # L2 norm of the last gradient before clipping; None: not computed


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation of the student."""

    kind: ClassVar[str] = 'evaluation'

    stage: int
    step: int
    epoch: int  # epochs trained
    metrics: Mapping[str, float]  # COCO's numbers by name, such as `box/AP`, from 0 to 1; -1: there is nothing to find
    seconds: float
    # AP of each class by kind and name, such as `{'box': {'person': 0.5}}`; runs of earlier versions have none.
    class_ap: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


Record = TrainRecord | EvaluationRecord
KINDS: Mapping[str, type[Record]] = {one.kind: one for one in (TrainRecord, EvaluationRecord)}


def append_record(path: Path, record: Record) -> None:
    """Appends a complete record, immediately visible to readers; creates the file if needed."""
    # JSON has no NaN: a number that is not finite is null, and its name is in `not_finite`.
    not_finite: list[str] = []
    content = _finite({'kind': record.kind, **dataclasses.asdict(record)}, not_finite)
    content |= {'not_finite': not_finite} if not_finite else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(content, allow_nan=False) + '\n')
    except OSError as error:
        raise UnavailableError(
            f'{path}: cannot be written ({error.strerror}); free some space, then run the same command with --resume'
        ) from error


def truncate_metrics(path: Path, *, stage: int, step: int, epoch: int) -> None:
    """Drops the records after a checkpoint, so that a resumed run writes them again without duplicates.

    The checkpoint is of `step` of `stage`, whose records stay; evaluations after `epoch` finished epochs go. Raises an
    InputError if a line other than the last, which may be torn, is not a record.
    """
    if not path.exists():
        return

    def is_kept(line: bytes) -> bool:
        record = json.loads(line)
        place = _value(record['stage'], int), _value(record['step'], int)
        is_repeated = (record['kind'], place[0]) == ('evaluation', stage) and _value(record['epoch'], int) > epoch
        return line.endswith(b'\n') and place <= (stage, step) and not is_repeated

    content = path.read_bytes()
    parsed = _parsed(path, content, is_kept, advice='move the file away to resume')
    kept = b''.join(line for line, keep in parsed if keep)
    if len(kept) < len(content):
        write_atomically(path, kept)


def read_records(path: Path) -> list[Record]:
    """Reads the records of a run in their order; kinds and fields that this version does not know are left out.

    A number that is null, because it was not finite, is NaN. Raises as `truncate_metrics`, and without the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); give the folder of a run of mtpd-train') from None
    found = _parsed(path, content, _record, advice='remove the line from the file')
    return [record for _, record in found if record is not None]


def _parsed(
    path: Path, content: bytes, parse: Callable[[bytes], Value], *, advice: str
) -> Iterator[tuple[bytes, Value]]:
    """Each line of a file and what `parse` makes of it; without the last line if it is torn, as after a kill."""
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            found = parse(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines):
                break
            raise InputError(f'{path} line {number} is not a metrics record; {advice}') from None
        yield line, found


def _record(line: bytes) -> Record | None:
    content = json.loads(line)
    kind = KINDS.get(content['kind'])
    if kind is None:
        return None
    types = {field.name: field.type for field in dataclasses.fields(kind) if field.name in content}
    return kind(**{name: _value(content[name], one) for name, one in types.items()})


def _value(value: Any, kind: Any) -> Any:
    """The value of a field of this type: an int, a float (null is NaN), an optional float, or numbers by name."""
    if kind is int:
        is_valid = type(value) is int
    elif kind in (float, float | None):
        is_valid = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    else:
        is_valid = isinstance(value, dict)
    if not is_valid:
        raise TypeError(f'expected {kind}')
    if isinstance(value, dict):
        return {name: _value(one, dict if isinstance(one, dict) else float) for name, one in value.items()}
    return math.nan if value is None and kind is float else value


def _finite(value: Any, not_finite: list[str], name: str = '') -> Any:
    """The value with null for each number that is not finite, whose dotted name is added to `not_finite`."""
    if isinstance(value, Mapping):
        return {key: _finite(one, not_finite, f'{name}.{key}' if name else key) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        not_finite.append(name)
        return None
    return value
