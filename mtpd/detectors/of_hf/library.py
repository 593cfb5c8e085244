"""The package transformers: imported when it is needed, and kept from talking."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mtpd.errors import UnavailableError


def transformers_of(name: str) -> Any:
    """The package, for the detector `name`."""
    try:
        import transformers
    except ImportError as error:
        raise UnavailableError(
            f'{name}: needs transformers, which is not installed: pip install transformers'
        ) from error
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Without the package's progress bars and notes, for the time of the block."""
    logging = transformers_of('hf').utils.logging
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def one_line(error: BaseException, *, length: int = 200) -> str:
    """A message of the package, which may have many lines."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:length]}'
