"""How the programs speak: progress on stderr, lines on stdout, and how they end. The library itself uses none of this.

A terminal gets moving bars, a log file a line now and then. `-q` leaves what was asked for, warnings and errors.
"""

import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from mtpd import outcome

# Seconds from one look of a bar to the next, on a terminal and in a log file.
TERMINAL_INTERVAL, LOG_INTERVAL = 0.5, 30.0

_quiet: ContextVar[bool] = ContextVar('quiet', default=False)


@contextmanager
def reported(*, verbose: bool, quiet: bool = False) -> Iterator[None]:
    """Runs the work of a program, and ends the program as the contract says when the work raises.

    Args:
        verbose: whether an error shows where it came from.
        quiet: whether progress and accounts of it are left out.

    Raises:
        SystemExit: with 1 or 130.
    """
    token = _quiet.set(quiet)
    try:
        yield
    except SystemExit:  # who exits has said why
        raise
    except BaseException as error:
        if verbose:
            traceback.print_exc()
        prefix = '' if isinstance(error, outcome.Interrupted) else 'Error: '
        print(f'{prefix}{outcome.message(error)}', file=sys.stderr)
        sys.exit(outcome.exit_code(error))
    finally:
        _quiet.reset(token)


def hush() -> None:
    """Leaves out progress and accounts of it from now on: of several processes that work together one speaks."""
    _quiet.set(True)


def say(text: str) -> None:
    """Tells on stdout how far the work is, above the bars; not when the user asked for quiet."""
    if not _quiet.get():
        from tqdm import tqdm

        tqdm.write(text)
        sys.stdout.flush()


def warn(text: str) -> None:
    """Tells on stderr what the user should know even when all goes well."""
    print(f'warning: {text}', file=sys.stderr)


def progress_bar(iterable: Iterable[Any] | None = None, *, in_logs: bool = True, **options: Any) -> Any:
    """A tqdm on stderr; in a log file each of its looks is a line of its own, with long intervals.

    Args:
        iterable: what to count, as for tqdm.
        in_logs: whether it is shown where stderr is no terminal.
        options: tqdm's.
    """
    from tqdm import tqdm  # Not at the top: it would slow down --help.

    is_terminal = sys.stderr.isatty()
    if not is_terminal:
        options['leave'] = True  # A log shows the end of all that it shows the beginning of.
    return tqdm(
        iterable,
        file=sys.stderr if is_terminal else _Lines(),
        mininterval=TERMINAL_INTERVAL if is_terminal else LOG_INTERVAL,
        disable=_quiet.get() or not (is_terminal or in_logs),
        **options,
    )


class _Lines:
    """A file for tqdm that makes lines of what would overwrite itself on a terminal."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            sys.stderr.write(f'{line}\n')

    def flush(self) -> None:
        sys.stderr.flush()
