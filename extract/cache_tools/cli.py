"""`mtpd-cache`: the command line. Imports nothing heavy, so that --help is instant."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mtpd import outcome

CONTEXT = {'help_option_names': ['-h', '--help'], 'max_content_width': 110}

EXAMPLES = """
\b
Examples:
  mtpd-cache info cache/r101
  mtpd-cache info --json cache/r101 cache/x101
"""

INFO_EXAMPLES = """
\b
Examples:
  mtpd-cache info cache/r101
  mtpd-cache info --json cache/r101 cache/x101
"""

_caches = click.argument('caches', nargs=-1, required=True, type=click.Path(path_type=Path), metavar='CACHE...')
_verbose = click.option('-v', '--verbose', is_flag=True, help='Tracebacks.')


@contextmanager
def _reported(*, verbose: bool) -> Iterator[None]:
    """Ends the program as the contract says when the work inside raises."""
    try:
        yield
    except BaseException as error:
        if verbose:
            traceback.print_exc()
        prefix = '' if isinstance(error, outcome.Interrupted) else 'Error: '
        click.echo(f'{prefix}{outcome.message(error)}', err=True)
        sys.exit(outcome.exit_code(error))


@click.group(epilog=EXAMPLES, context_settings=CONTEXT)
def main() -> None:
    """Look at caches of teacher features, and prove them sound.

    Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
    """


@main.command(epilog=INFO_EXAMPLES)
@_caches
@click.option('--json', 'as_json', is_flag=True, help='A JSON list with one object for each cache.')
@_verbose
def info(verbose: bool, **options: Any) -> None:
    """Say what each CACHE is, what it holds and what it takes on disk.

    Reads the records only, in no time: whether the data is sound is what `verify` finds out. An unfinished cache may
    be looked at while it is written.
    """
    with _reported(verbose=verbose):
        from mtpd_extract.cache_tools.info import run

        run(options)
