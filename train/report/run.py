"""The commands of `mtpd-report`, from options to files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtpd.errors import UnavailableError
from mtpd.system.console import say
from mtpd.system.environment import choose_device
from mtpd.system.files import write_atomically
from mtpd.system.text import format_bytes
from mtpd_train.report.compare import compare_page, compare_records, compare_text
from mtpd_train.report.page import run_page
from mtpd_train.report.run_log import read_run
from mtpd_train.report.tensorboard import export

PAGE_FILE, TENSORBOARD_FOLDER = 'report.html', 'tensorboard'


def write_page(options: Mapping[str, Any]) -> None:
    """`mtpd-report RUN`."""
    run = read_run(options['run'])
    device = choose_device(options['device'])
    page = run_page(run, num_images=options['images'], min_score=options['min_score'], device=device)
    _write(options['out'] or run.folder / PAGE_FILE, page)


def compare(options: Mapping[str, Any]) -> None:
    """`mtpd-report compare RUN...`."""
    runs = [read_run(folder) for folder in options['runs']]
    if options['html'] is not None:
        _write(options['html'], compare_page(runs))
    print(json.dumps(compare_records(runs), indent=1) if options['as_json'] else compare_text(runs))


def export_events(options: Mapping[str, Any]) -> None:
    """`mtpd-report tensorboard RUN`."""
    run = read_run(options['run'])
    out = options['out'] or run.folder / TENSORBOARD_FOLDER
    try:
        count = export(run, out)
    except OSError as error:
        raise UnavailableError(f'--out {out}: cannot be written ({error.strerror}); choose another path') from error
    say(
        f'{out}: {count} values; view them with tensorboard --logdir {out}'
        if count
        else f'{out}: nothing to export yet'
    )


def _write(out: Path, page: str) -> None:
    content = page.encode(errors='replace')  # Names in JSON may hold halves of characters.
    try:
        write_atomically(out, content)
    except OSError as error:
        raise UnavailableError(f'{out}: cannot be written ({error.strerror}); choose another path') from error
    say(f'{out}: {format_bytes(len(content))}; open it in a browser')
