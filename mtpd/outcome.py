"""What a program says and returns when its work ends in an exception. Used by every command line."""

from mtpd.errors import MtpdError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class Interrupted(MtpdError):
    """The user stopped the program after it had saved its work; the message says how to go on."""


def exit_code(error: BaseException) -> int:
    """0 done, 1 the run failed, 2 usage (click's own), 130 interrupted."""
    return INTERRUPTED if isinstance(error, Interrupted | KeyboardInterrupt) else FAILED


def message(error: BaseException) -> str:
    """What stderr shows: the message of an error meant for users, else the error's kind as well."""
    if isinstance(error, MtpdError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return 'interrupted at once; what was committed before is kept'
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text} (this is a bug or a broken environment; -v shows where)'
