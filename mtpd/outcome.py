"""What a program says and returns when its work ends in an exception. Used by every command line."""

from mtpd.errors import MtpdError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class Interrupted(MtpdError):
    """The user stopped the program after it had saved its work; the message says how to go on."""


def exit_code(error: BaseException) -> int:
    """0 done, 1 the run failed, 2 usage (click's own), 130 interrupted."""
    return INTERRUPTED if isinstance(error, Interrupted | KeyboardInterrupt) else FAILED


def message(error: BaseException) -> str:
    """The one line that stderr shows: what a user can act on, or else the kind of the error and how to see more."""
    if isinstance(error, MtpdError):
        text = str(error)
    elif isinstance(error, KeyboardInterrupt):
        text = 'interrupted at once; what was saved before is kept'
    elif isinstance(error, OSError) and error.strerror and error.filename:
        text = f'{error.filename}: {error.strerror}'
    else:
        text = f'{type(error).__name__}: {error} (this is a bug or a broken environment; -v shows where)'
    return ' '.join(text.split())
