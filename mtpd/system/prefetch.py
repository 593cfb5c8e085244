"""Working ahead in threads, in order and within bounds."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')


def prefetched(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int, depth: int
) -> Generator[Result, None, None]:
    """Yields `function(item)` for every item in order, computing up to `depth` results ahead.

    With no threads it computes each result when it is requested. An exception of `function` is raised where its result
    would have come. Close the generator to drop what was computed ahead.
    """
    if num_threads == 0:
        yield from map(function, items)
        return
    for [result] in prefetched_groups(([partial(function, item)] for item in items), num_threads, depth=depth):
        yield result


def prefetched_groups(
    groups: Iterable[Iterable[Callable[[], Result]]], num_threads: int, *, depth: int
) -> Generator[list[Result], None, None]:
    """Yields the results of each group of calls, computing up to `depth` groups ahead; the calls of a group share the
    threads. As `prefetched` otherwise."""
    pending: deque[list[Future[Result]]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix='prefetch') as executor:
        try:
            for calls in groups:
                pending.append([executor.submit(call) for call in calls])
                if len(pending) > depth:
                    yield [one.result() for one in pending.popleft()]
            while pending:
                yield [one.result() for one in pending.popleft()]
        finally:
            for future in itertools.chain.from_iterable(pending):
                future.cancel()


class BackgroundQueue:
    """Runs calls one after another in a thread, at most `depth` of them waiting.

    When a call has failed, those behind it are dropped, and `submit`, `wait` or leaving the context raises its error.
    Leaving the context waits for all calls, unless the user interrupts, which drops those that have not begun.
    """

    def __init__(self, *, depth: int) -> None:
        self._depth = depth
        self._executor = ThreadPoolExecutor(1, thread_name_prefix='background')
        self._pending: deque[Future[None]] = deque()
        self._has_failed = False

    def __enter__(self) -> 'BackgroundQueue':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, Exception):
                self.wait()
        finally:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, call: Callable[[], object]) -> None:
        while len(self._pending) >= self._depth:
            self._pending.popleft().result()
        self._pending.append(self._executor.submit(self._run, call))

    def wait(self) -> None:
        while self._pending:
            self._pending.popleft().result()

    def _run(self, call: Callable[[], object]) -> None:
        if self._has_failed:
            return
        try:
            call()
        except BaseException:
            self._has_failed = True
            raise
