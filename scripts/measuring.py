"""What the scripts that measure or sweep share: parser, interleaved rounds, medians of ratios, isolated trials."""

import argparse
import multiprocessing
import resource
import signal
import statistics
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from typing import TypeVar

T = TypeVar('T')
MEMORY_LIMIT = 16 << 30  # bytes of address space of an isolated trial


class TrialEndedError(Exception):
    """An isolated trial gave no result; the text says why."""


def described_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def interleaved(ways: Mapping[str, Callable[[], T]], num_rounds: int) -> list[dict[str, T]]:
    """The results of rounds of all ways in turn, so that what slows the machine slows all; one more round warms up."""
    return [{name: way() for name, way in ways.items()} for _ in range(1 + num_rounds)][1:]


def median_ratio(ones: Iterable[float], others: Iterable[float]) -> float:
    """The median of the ratios of rounds."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def isolated(function: Callable[[], T], *, timeout: float) -> T:
    """Calls a function in a forked process of limited memory.

    Raises:
        TrialEndedError: it took more than `timeout` seconds, or the process died.
    """
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(function, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            raise TrialEndedError(f'took more than {timeout:g} s')
        result: T = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        reason = signal.Signals(-code).name if code < 0 else f'exit code {code}'
        raise TrialEndedError(f'the process died: {reason}') from None
    else:
        return result
    finally:
        process.kill()
        process.join()


def _send(function: Callable[[], object], sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    sender.send(function())
