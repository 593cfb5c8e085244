"""Python code and command lines in forked processes: importing everything again would cost seconds."""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TypeVar

import cv2
import torch

T = TypeVar('T')
TIMEOUT = 60  # seconds


class ProcessDiedError(Exception):
    """A process ended without a result."""


def in_limits(function: Callable[[], T], *, memory: int) -> T:
    """Calls a function in a process that may take `memory` more bytes than it has, and `TIMEOUT` seconds.

    Raises:
        ProcessDiedError: it ended without a result.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(target=_call, args=(function, memory, sender))
    process.start()
    sender.close()
    try:
        result: T = receiver.recv()
    except EOFError:
        process.join()
        raise ProcessDiedError(f'the process ended with {process.exitcode}') from None
    finally:
        process.join()
        process.close()
        receiver.close()
    return result


def _call(function: Callable[[], object], memory: int, sender: Connection) -> None:
    torch.set_num_threads(1)
    signal.alarm(TIMEOUT)
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
    sender.send(function())


@dataclass(frozen=True)
class Child:
    """A process, and the file that gets its stderr."""

    process: ForkProcess
    stderr: Path

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> bool:
        """Kills it with signal 9; whether it was still running."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def require_running(self) -> None:
        """Fails the test if the process has ended."""
        assert self.process.is_alive(), self.stderr.read_text()

    def wait(self) -> tuple[int | None, str]:
        """Exit code and stderr once it has ended."""
        self.process.join()
        return self.process.exitcode, self.stderr.read_text()


@contextmanager
def forked(function: Callable[[], object], stderr: Path, *, file_size_limit: int | None = None) -> Iterator[Child]:
    """A process that calls a function, such as a command line; killed on leaving if it has not ended."""
    stderr.touch()

    def run() -> None:
        # The threads of a parent's pools do not survive a fork.
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        if file_size_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
        with stderr.open('w') as sys.stderr, Path(os.devnull).open('w') as sys.stdout:
            try:
                function()
            except Exception as error:
                print(f'{type(error).__name__}: {error}', file=sys.stderr)
                sys.exit(1)

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    try:
        yield Child(process, stderr)
    finally:
        process.kill()
        process.join()
        process.close()
