"""Stopping long work where it can be taken up again."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopFlag:
    """Tells whether the user has asked the program to stop."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Asks for a stop at the next safe point."""
        self._is_set = True

    def __bool__(self) -> bool:
        return self._is_set


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turns the first Ctrl-C (or SIGTERM) into a flag; a second one interrupts at once. Main thread only."""
    flag = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if flag:
            raise KeyboardInterrupt
        flag.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
