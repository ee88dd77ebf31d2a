from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from alohas2r.core.stop import ALL, ASKING, StopSignal


@pytest.fixture(autouse=True)
def _hangups_are_not_ignored() -> Iterator[None]:
    """Also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_asks_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    asked = []
    with StopSignal(lambda: asked.append(True), signals=ALL, same_s=60) as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert asked == [True]
        os.kill(os.getpid(), number)  # within a second it is the same wish
        assert asked == [True]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", ASKING)
def test_elsewhere_the_second_signal_interrupts_at_once(number: signal.Signals) -> None:
    """As where arms move."""
    asked = []
    with StopSignal(lambda: asked.append(True)) as stop:
        signal.raise_signal(number)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert asked == [True]


@pytest.mark.parametrize("number", ALL)
def test_only_another_ctrl_c_after_a_second_interrupts(number: signal.Signals) -> None:
    now = [0.0]
    with StopSignal.patient(lambda: now[0]) as stop:
        signal.raise_signal(signal.SIGTERM)
        now[0] = 0.9
        signal.raise_signal(number)
        now[0] = 1.1
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        else:
            signal.raise_signal(number)
        assert stop


def test_a_hangup_that_was_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal.patient() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_stop_signal_outside_of_the_main_thread_does_nothing() -> None:
    seen = []

    def work() -> None:
        with StopSignal() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
