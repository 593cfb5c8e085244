"""Stopping long work where it can be taken up again."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

# Ctrl-C, the wish of a scheduler, the end of a terminal or of a connection.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

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
    """Turns `STOP_SIGNALS` into a flag; another Ctrl-C, some time later, interrupts immediately. Main thread only."""
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

    with _handled(handle):
        yield flag


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Makes of every one of `STOP_SIGNALS` what Ctrl-C is: a KeyboardInterrupt. Outside the main thread, nothing."""

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled(handle):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    heard = set(STOP_SIGNALS)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        heard.remove(signal.SIGHUP)  # By nohup: the work continues without its terminal.
    previous = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def deaf_children(*, forked: bool = True) -> Iterator[None]:
    """Processes that are started within do not hear `STOP_SIGNALS`: who asks a whole job to stop asks them, too.

    They would end in the middle of the work that their parent wants to finish. They must call `end_with_parent`.

    Args:
        forked: whether they are forked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        if not forked:
            # What other children need first. As it starts it has its parent hear again.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """In a child that is deaf: its parent alone ends it by SIGTERM. Needs Linux, elsewhere it hears SIGTERM again."""
    if sys.platform != 'linux':
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return

    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
