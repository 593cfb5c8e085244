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
def test_the_second_signal_interrupts(number: signal.Signals) -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


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
