"""Being asked to stop by a signal: at once, patiently, or too late to matter."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from bench.errors import StoppedError
from bench.stop import SIGNALS, Stop


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_the_work(number):
    stop = Stop()
    stop.listen(60.0, lambda: None)
    assert not stop()
    with pytest.raises(StoppedError):
        _send(number)
    assert stop()
    assert stop.signal == number


@pytest.mark.parametrize("number", SIGNALS)
def test_patient_work_goes_on_and_is_told_when_it_asks(number):
    stop = Stop()
    stop.listen(60.0, lambda: None)
    with stop.patiently():
        _send(number)
        assert stop()


def test_work_that_does_not_end_in_time_is_left():
    stop, left = Stop(), threading.Event()
    stop.listen(0.01, left.set)
    with stop.patiently():
        _send(signal.SIGUSR2)
        assert left.wait(10)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_work_changes_nothing(number):
    stop = Stop()
    stop.listen(0.0, lambda: pytest.fail("left"))
    stop.listen_no_more()
    _send(number)
    assert not stop()
