"""Signals become a flag, once."""

import os
import signal

import pytest

from mtpd.interrupt import stop_on_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
        monkeypatch.setattr('mtpd.interrupt.ONE_PRESS_SECONDS', -1.0)
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
    monkeypatch.setattr('mtpd.interrupt.ONE_PRESS_SECONDS', -1.0)
    with stop_on_signals() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop


def test_a_program_can_stop_itself() -> None:
    with stop_on_signals() as stop:
        stop.set()
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
