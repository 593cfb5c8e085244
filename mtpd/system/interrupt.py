"""Signals: stopping long work at a point from which it can be resumed."""

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

# Ctrl-C, a scheduler, a closed terminal or connection.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# A launcher forwards what the terminal or the scheduler sent to all processes: two within so many seconds count as one.
ONE_PRESS_SECONDS = 1.0


class StopRequested(Exception):
    """Work broke off because a `StopFlag` was set."""


class StopFlag:
    """True once the user has asked the program to stop."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def __bool__(self) -> bool:
        return self._is_set


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turns `STOP_SIGNALS` into a flag; another Ctrl-C, some time later, interrupts immediately. Main thread only."""
    flag = StopFlag()
    first = 0.0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal first
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
    """Raises KeyboardInterrupt for each of `STOP_SIGNALS`, as for Ctrl-C. Outside the main thread it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled(signal.default_int_handler):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    handled = set(STOP_SIGNALS)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        handled.remove(signal.SIGHUP)  # nohup: the work continues without its terminal.
    previous = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def signals_blocked_in_children(*, forked: bool = True) -> Iterator[None]:
    """Blocks `STOP_SIGNALS` in processes that are started within; their parent stops them.

    Else they would end in the middle of work that the parent wants to finish. They must call `end_with_parent`.
    Unless they are `forked`, a process that other start methods need is started first.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        if not forked:
            # Other start methods need it. Starting it unblocks the signals.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """For a child with blocked signals: only a SIGTERM of its parent ends it; outside Linux, any SIGTERM."""
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
