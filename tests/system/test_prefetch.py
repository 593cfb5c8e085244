"""Order, bounds and errors of work that is done ahead in threads."""

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from mtpd.system.prefetch import BackgroundQueue, prefetched


def slow_square(number: int) -> int:
    """The first ones take longest, so that they would come last."""
    time.sleep(max(0.0, 0.01 - 0.002 * number))
    return number * number


def names_of_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(('prefetch', 'background'))]


@pytest.mark.parametrize('num_threads', [0, 1, 3])
@pytest.mark.parametrize('num_items', [0, 1, 20])
def test_results_come_in_order(num_threads: int, num_items: int) -> None:
    results = prefetched(slow_square, range(num_items), num_threads=num_threads, depth=4)
    assert list(results) == [number * number for number in range(num_items)]
    assert not names_of_threads()


def test_it_works_ahead_but_not_without_end() -> None:
    begun: list[int] = []
    results = prefetched(begun.append, range(100), num_threads=2, depth=5)
    next(results)
    time.sleep(0.05)
    assert begun == list(range(6))
    next(results)
    results.close()
    assert len(begun) <= 7


def test_items_are_drawn_as_they_are_needed() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    results = prefetched(slow_square, items(), num_threads=2, depth=3)
    next(results)
    assert drawn == [0, 1, 2, 3]
    results.close()


@pytest.mark.parametrize('num_threads', [0, 2])
def test_an_error_comes_in_its_place(num_threads: int) -> None:
    def fail_at_three(number: int) -> int:
        if number == 3:
            raise ValueError('three')
        return number

    results = prefetched(fail_at_three, range(9), num_threads=num_threads, depth=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match='three'):
        next(results)
    assert not names_of_threads()


def test_closing_drops_what_has_not_begun() -> None:
    release, begun = threading.Event(), []

    def work(number: int) -> int:
        begun.append(number)
        if number > 0:
            release.wait(10)
        return number

    results = prefetched(work, range(50), num_threads=1, depth=8)
    next(results)
    threading.Timer(0.05, release.set).start()
    results.close()
    assert len(begun) <= 2
    assert not names_of_threads()


def test_calls_run_one_after_another_in_another_thread() -> None:
    done: list[int] = []
    threads = set()

    def work(number: int) -> None:
        threads.add(threading.current_thread())
        before = len(done)
        time.sleep(0.001)
        assert len(done) == before
        done.append(number)

    with BackgroundQueue(depth=3) as queue:
        for number in range(20):
            queue.submit(partial(work, number))
    assert done == list(range(20))
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert not names_of_threads()


def test_submit_blocks_while_the_queue_is_full() -> None:
    release = threading.Event()
    with BackgroundQueue(depth=2) as queue:
        queue.submit(partial(release.wait, 10))
        queue.submit(lambda: None)
        start = time.monotonic()
        threading.Timer(0.1, release.set).start()
        queue.submit(lambda: None)
        assert time.monotonic() - start > 0.09


def fail() -> None:
    raise OSError('disk full')


def test_what_comes_behind_a_failed_call_is_dropped() -> None:
    done: list[int] = []
    queue = BackgroundQueue(depth=10)
    queue.submit(lambda: done.append(1))
    queue.submit(fail)
    queue.submit(lambda: done.append(2))
    with pytest.raises(OSError, match='disk full'), queue:
        queue.submit(lambda: done.append(3))
    assert done == [1]
    assert not names_of_threads()


def test_submit_and_wait_raise_the_error() -> None:
    with BackgroundQueue(depth=1) as queue:
        queue.submit(fail)
        with pytest.raises(OSError, match='disk full'):
            queue.submit(fail)
    with BackgroundQueue(depth=5) as queue:
        queue.submit(fail)
        with pytest.raises(OSError, match='disk full'):
            queue.wait()


@pytest.mark.parametrize(('kind', 'expected'), [(ValueError, [1, 2]), (KeyboardInterrupt, [1])])
def test_an_error_elsewhere_lets_the_queue_finish_and_an_interrupt_does_not(
    kind: type[BaseException], expected: list[int]
) -> None:
    done: list[int] = []
    begun = threading.Event()

    def first() -> None:
        begun.set()
        time.sleep(0.05)
        done.append(1)

    def leave() -> None:
        with BackgroundQueue(depth=5) as queue:
            queue.submit(first)
            queue.submit(lambda: done.append(2))
            begun.wait(10)
            raise kind

    with pytest.raises(kind):
        leave()
    assert done == expected
