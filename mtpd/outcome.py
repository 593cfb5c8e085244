"""Message and exit code of a program that ends in an exception. Used by every command line."""

from mtpd.errors import MtpdError

FAILED, INTERRUPTED = 1, 130


class Interrupted(MtpdError):
    """The user stopped the program after it had saved its work; the message says how to resume."""


def exit_code(error: BaseException) -> int:
    """1 the run failed, 130 interrupted after saving. The others of the contract, 0 and 2 (usage), are click's own."""
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
