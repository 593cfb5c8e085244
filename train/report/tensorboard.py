"""A run's records as TensorBoard's event files. Steps count over all stages."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtpd.errors import InputError, UnavailableError
from mtpd.system.console import say
from mtpd.system.files import unwritable
from mtpd_train.records.metrics import Record
from mtpd_train.report.run_log import known, read_run

EVENTS = 'events.out.tfevents.'
FOLDER = 'tensorboard'


def export(folder: Path, *, out: Path | None) -> None:
    """`mtpd-report tensorboard RUN`: writes event files in place of earlier ones; refuses a folder of others."""
    run, out = read_run(folder), out or folder / FOLDER
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UnavailableError(
            f'the export needs tensorboard, which is not installed ({error}): pip install tensorboard'
        ) from error
    count = 0
    try:
        earlier = list(out.iterdir()) if out.is_dir() else []
        if any(not path.name.startswith(EVENTS) for path in earlier):
            raise InputError(f'{out}: holds files other than TensorBoard events; choose another --out')
        for path in earlier:
            path.unlink()
        writer: Any = SummaryWriter(log_dir=str(out))
        with writer:
            for stage in run.begun:
                for record in stage.records:
                    for tag, value in _scalars(record):
                        writer.add_scalar(tag, value, global_step=stage.first_step + record.step)
                        count += 1
    except OSError as error:
        raise unwritable(out, error, option='--out') from error
    way = f'{count} values; view them with tensorboard --logdir {out}' if count else 'nothing to export yet'
    say(f'{out}: {way}')


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
