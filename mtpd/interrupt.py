"""Stopping long work where it can be taken up again."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# A launcher passes on what the terminal or the scheduler sent to all processes: twice within so many seconds is once.
ONE_PRESS_SECONDS = 1.0


class StopRequested(Exception):
    """Work broke off because a `StopFlag` was set."""


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
    """Turns Ctrl-C and SIGTERM into a flag; another Ctrl-C, some time later, interrupts at once. Main thread only."""
    flag = StopFlag()
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        del frame
        now = time.monotonic()
        if flag and number == signal.SIGINT and now - first > ONE_PRESS_SECONDS:
            raise KeyboardInterrupt
        if not flag:
            first = now
        flag.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
