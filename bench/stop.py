"""Being asked to stop: by a cluster's signals, or because another process has taken the work over."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from bench.errors import StoppedError
from bench.say import say

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Stop:
    """Whether work is to end: says so when it is called, and interrupts what does not run `patiently`."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.patient = False
        self.lost: Callable[[], bool] = lambda: False

    def __call__(self) -> bool:
        return self.signal is not None or self.lost()

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """Leave it to the work in this context to ask often enough, and to save its state before it ends."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False

    def listen(self, grace: float, leave: Callable[[], None]) -> None:
        """Heed both signals; call `leave` where the work has not ended `grace` seconds after the first."""

        def heard(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                return
            self.signal = number
            say(f"{signal.Signals(number).name}: saving and leaving")
            timer = threading.Timer(grace, leave)
            timer.daemon = True
            timer.start()
            if not self.patient:
                raise StoppedError("left")

        for number in SIGNALS:
            signal.signal(number, heard)

    def listen_no_more(self) -> None:
        """Ignore these signals: the work is done, and a process that is just ending must not fail by one."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
