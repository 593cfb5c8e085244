"""Output of the programs: progress on stderr, lines on stdout, exit codes. The library itself does not use this.

A terminal gets progress bars, a log file a line at long intervals. `-q` leaves results, warnings and errors.
When the reader of the output is gone (`| head`, Ctrl-C on `tee`, a closed terminal), output is dropped and the work
continues.
"""

import errno
import os
import select
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from mtpd.errors import Interrupted, MtpdError
from mtpd.system.interrupt import interrupted_by_signals

# Seconds between updates of a bar, on a terminal and in a log file.
TERMINAL_INTERVAL, LOG_INTERVAL = 0.5, 30.0
# Exit codes; the others of the contract, 0 and 2 (usage), are click's own.
FAILED, INTERRUPTED = 1, 130

_quiet: ContextVar[bool] = ContextVar('quiet', default=False)


@contextmanager
def reported(*, verbose: bool, quiet: bool = False) -> Iterator[None]:
    """Runs the work of a program; when it raises, prints the error and exits with 1 or 130.

    `verbose` shows tracebacks, `quiet` hides progress and status lines.
    """
    token = _quiet.set(quiet)
    try:
        with interrupted_by_signals():
            yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit:  # the caller has already reported the reason
        raise
    except BaseException as error:
        if _is_stdout_broken(error):
            sys.exit(FAILED)
        prefix = '' if isinstance(error, Interrupted) else 'Error: '
        trace = traceback.format_exc() if verbose else ''
        _write(f'{trace}{prefix}{message(error)}\n', sys.stderr)
        sys.exit(exit_code(error))
    finally:
        _quiet.reset(token)


def exit_code(error: BaseException) -> int:
    """1: the run failed; 130: interrupted after saving."""
    return INTERRUPTED if isinstance(error, Interrupted | KeyboardInterrupt) else FAILED


def message(error: BaseException) -> str:
    """The error as one line for stderr: how to fix it, or else the type of the error and how to see the traceback.

    The one exception is a table, a line followed by indented ones, such as the problems of a stage file.
    """
    if isinstance(error, MtpdError):
        text = str(error)
        rest = text.splitlines()[1:]
        if rest and all(line.startswith('  ') for line in rest):
            return text
    elif isinstance(error, KeyboardInterrupt):
        text = 'interrupted immediately; earlier saves are kept'
    elif type(error).__name__ == 'OutOfMemoryError':  # torch's, known by name because importing torch takes seconds
        text = 'the device has too little memory: use a smaller batch (--batch-size, data.batch_size)'
    elif isinstance(error, OSError) and error.strerror and error.filename:
        text = f'{error.filename}: {error.strerror}'
    else:
        text = f'{type(error).__name__}: {error} (this is a bug or a broken environment; -v shows where)'
    return ' '.join(text.split())


def hush() -> None:
    """Turns off progress and status lines: only one of several processes prints them."""
    _quiet.set(True)


def say(text: str) -> None:
    """Prints a status line on stdout, above the progress bars; not with `-q`."""
    if not _quiet.get():
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stdout):
            _write(f'{text}\n', sys.stdout)


def warn(text: str) -> None:
    """Prints a warning on stderr, also with `-q`."""
    _write(f'warning: {text}\n', sys.stderr)


def progress_bar(iterable: Iterable[Any] | None = None, *, in_logs: bool = True, **options: Any) -> Any:
    """A tqdm on stderr; in a log file each update is a line, at long intervals, or nothing without `in_logs`."""
    from tqdm import tqdm  # Not at the top: it would slow down --help.

    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if not is_terminal:
        options['leave'] = True  # A log that shows the start of a bar shows its end.
    return tqdm(
        iterable,
        file=sys.stderr if is_terminal else _Lines(),
        mininterval=TERMINAL_INTERVAL if is_terminal else LOG_INTERVAL,
        disable=_quiet.get() or not (is_terminal or in_logs),
        **options,
    )


class _Lines:
    """A file for tqdm in which each update is a line."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            _write(f'{line}\n', sys.stderr)

    def flush(self) -> None:
        """Each line is flushed when it is written."""


def _write(text: str, stream: TextIO | None) -> None:
    if stream is None:  # a program without a console
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        # EIO: the terminal is closed.
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        _redirect_to_null(stream)


def _is_stdout_broken(error: BaseException) -> bool:
    """Whether the broken pipe is stdout, and no other one."""
    if not isinstance(error, BrokenPipeError):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    is_lost = any(event & select.POLLERR for _, event in poll.poll(0))
    if is_lost:
        _redirect_to_null(sys.stdout)
    return is_lost


def _redirect_to_null(stream: TextIO) -> None:
    # Else the interpreter fails again when it flushes the stream at exit.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
