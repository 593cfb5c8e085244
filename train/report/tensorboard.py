"""A run's records as TensorBoard's event files. Steps count over all stages."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtpd.errors import InputError, UnavailableError
from mtpd_train.report.records import Record
from mtpd_train.report.run_log import RunLog
from mtpd_train.report.summary import known

EVENTS = 'events.out.tfevents.'


def export(run: RunLog, out: Path) -> int:
    """Writes the event files, in place of those that are in `out`; returns the number of values.

    Raises:
        InputError: `out` holds something else.
        UnavailableError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UnavailableError(
            f'the export needs tensorboard, which is not installed ({error}): pip install "mtpd[tensorboard]"'
        ) from error
    earlier = list(out.iterdir()) if out.is_dir() else []
    if any(not path.name.startswith(EVENTS) for path in earlier):
        raise InputError(f'{out}: holds files other than TensorBoard events; choose another --out')
    for path in earlier:
        path.unlink()
    count = 0
    writer: Any = SummaryWriter(log_dir=str(out))
    with writer:
        for stage in run.begun:
            records: list[Record] = [*stage.train, *stage.evaluations]
            for record in sorted(records, key=lambda one: one.step):
                step = stage.first_step + int(record.step)
                for tag, value in _scalars(record):
                    writer.add_scalar(tag, value, global_step=step)
                    count += 1
    return count


def _scalars(record: Record) -> Iterator[tuple[str, float]]:
    """The numbers of a record by tag, those that are known."""
    content: Mapping[str, Any] = vars(record)
    for name in ('lr', 'images_per_second', 'data_wait', 'peak_memory', 'grad_norm'):
        value = content.get(name)
        if value is not None and math.isfinite(value):
            yield f'train/{name}', value
    for group, prefix in (('losses', 'loss'), ('decay', 'decay')):
        for name, value in content.get(group, {}).items():
            if math.isfinite(value):
                yield f'{prefix}/{name}', value
    for name, value in content.get('metrics', {}).items():
        if known(value) is not None:
            yield f'evaluation/{name}', value
    for kind, classes in content.get('class_ap', {}).items():
        for name, value in classes.items():
            if known(value) is not None:
                yield f'class/{kind}/{name}', value
    yield 'train/stage', record.stage
