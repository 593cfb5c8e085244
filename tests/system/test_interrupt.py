"""Signals become a flag, once."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from typing import Any

import pytest

from mtpd.system.interrupt import deaf_children, end_with_parent, interrupted_by_signals, stop_on_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize('number', SIGNALS)
def test_the_first_signal_sets_the_flag(number: signal.Signals) -> None:
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop


@pytest.mark.parametrize('number', SIGNALS)
def test_a_second_ctrl_c_interrupts(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), number)
        monkeypatch.setattr('mtpd.system.interrupt.ONE_PRESS_SECONDS', -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop


@pytest.mark.parametrize(('first', 'second'), [(one, other) for one in SIGNALS for other in SIGNALS])
def test_what_a_launcher_passes_on_is_no_second_one(first: signal.Signals, second: signal.Signals) -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
        assert stop


def test_a_scheduler_never_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mtpd.system.interrupt.ONE_PRESS_SECONDS', -1.0)
    with stop_on_signals() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop


def test_a_program_can_stop_itself() -> None:
    with stop_on_signals() as stop:
        stop.set()
        assert stop


@pytest.mark.parametrize('number', SIGNALS)
def test_every_signal_is_as_ctrl_c(number: signal.Signals) -> None:
    with interrupted_by_signals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_what_nohup_has_set_stays() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals(), stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_set_no_handlers() -> None:
    found = []

    def work() -> None:
        with interrupted_by_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def wait_for_the_end(ready: Any) -> None:
    """What a deaf child does."""
    end_with_parent()
    ready.set()
    time.sleep(60)


def test_a_deaf_child_is_ended_by_its_parent_alone() -> None:
    context = multiprocessing.get_context('fork')
    ready = context.Event()
    child = context.Process(target=wait_for_the_end, args=(ready,))
    with deaf_children():
        child.start()
    assert ready.wait(30)
    for number in SIGNALS:
        subprocess.run(['kill', f'-{number}', str(child.pid)], check=True)
    child.join(0.5)
    assert child.is_alive()
    child.terminate()
    child.join(30)
    assert child.exitcode == 0


def test_their_parent_hears_again() -> None:
    with stop_on_signals() as stop:
        with deaf_children():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop


@pytest.mark.parametrize('error', [None, ValueError])
def test_handlers_are_put_back(error: type[Exception] | None) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        with stop_on_signals():
            assert [signal.getsignal(number) for number in SIGNALS] != before
            if error is not None:
                raise error
    except ValueError:
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before
