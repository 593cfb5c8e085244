"""`metrics.jsonl`: what a run measured, one JSON object a line; plots and tables are made from it.

Every record has `kind`, `stage` (from 1), `step` (optimizer steps of the stage so far) and `epoch` (from 1).
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mtpd.errors import InputError, UnavailableError
from mtpd.system.files import write_atomically


@dataclass(frozen=True)
class TrainRecord:
    """What the training steps since the last record did.

    Attributes:
        kind: `train`.
        stage: number of the stage, from 1.
        step: optimizer steps of the stage so far.
        epoch: epoch that the step belongs to, from 1.
        losses: each loss by name, weighted and decayed as it entered the sum, and `total`; means since the last record.
        lr: learning rate of the last step.
        decay: what the weights of decaying losses were multiplied by in the last step, by the loss's name.
        images_per_second: training images per second, since the last record.
        data_wait: share of that time in which the step waited for data, from 0 to 1.
        peak_memory: in bytes, the most that tensors have taken on the GPU in this stage; on a CPU the most that the
            process has ever.
        seconds: of training since the last record, without evaluations; runs of earlier versions have none.
        grad_norm: L2 norm of the last gradient before clipping; None where it was not computed.
    """

    kind: ClassVar[str] = 'train'

    stage: int
    step: int
    epoch: int
    losses: Mapping[str, float]
    lr: float
    decay: Mapping[str, float]
    images_per_second: float
    data_wait: float
    peak_memory: int
    seconds: float | None = None
    grad_norm: float | None = None


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation of the student.

    Attributes:
        kind: `evaluation`.
        stage: number of the stage, from 1.
        step: optimizer steps of the stage so far.
        epoch: epochs trained.
        metrics: COCO's numbers by name, such as `box/AP`, from 0 to 1; -1 is COCO's word for "nothing to find".
        seconds: duration of the evaluation.
        class_ap: AP of each class by kind and name, such as `{'box': {'person': 0.5}}`, from 0 to 1 or -1 likewise;
            runs of earlier versions have none.
    """

    kind: ClassVar[str] = 'evaluation'

    stage: int
    step: int
    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    class_ap: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def append_record(path: Path, record: TrainRecord | EvaluationRecord) -> None:
    """Appends a complete record, immediately visible to readers; creates the file if needed.

    JSON has no NaN: a number that is not finite is null, and its name is in `not_finite`.

    Raises:
        UnavailableError: the disk is full or cannot be written.
    """
    content, not_finite = _finite({'kind': record.kind, **dataclasses.asdict(record)})
    if not_finite:
        content['not_finite'] = not_finite
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

    The last line may be torn, as after a kill; it is dropped too. A missing file is left missing.

    Args:
        path: the `metrics.jsonl`.
        stage: stage of the checkpoint, from 1.
        step: step of the checkpoint; its own records stay.
        epoch: epochs of the stage that are finished, their evaluations done; later evaluations go.

    Raises:
        InputError: a line other than the last is not a record.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            place = _whole(record['stage']), _whole(record['step'])
            repeated = (record['kind'], place[0]) == ('evaluation', stage) and _whole(record['epoch']) > epoch
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines):
                break
            raise InputError(f'{path} line {number} is not a metrics record; move the file away to resume') from None
        if line.endswith(b'\n') and place <= (stage, step) and not repeated:
            kept.append(line)
    if len(kept) < len(lines):
        write_atomically(path, b''.join(kept))


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError('expected a whole number')
    return value


def _finite(values: Mapping[str, Any], prefix: str = '') -> tuple[dict[str, Any], list[str]]:
    """Copies nested values with null for what is not finite, and the dotted names of those."""
    content: dict[str, Any] = {}
    not_finite: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            content[name], inner = _finite(value, f'{prefix}{name}.')
            not_finite += inner
        elif isinstance(value, float) and not math.isfinite(value):
            content[name] = None
            not_finite.append(f'{prefix}{name}')
        else:
            content[name] = value
    return content, not_finite
