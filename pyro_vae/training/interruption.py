"""Signals that end a run between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from pyro_vae.distributed import Ranks


class Interrupted(KeyboardInterrupt):
    """Raised between two steps, where everything is as a checkpoint may hold it."""


class Interruption:
    """Context manager in which SIGINT, and SIGTERM where asked for, end the run at its next step.

    A second SIGINT interrupts at once, as Python does. Handlers that a user has set stay, and so does Python's own
    outside of the main thread. After SIGTERM the process ends as its sender wants, once the run has ended.

    Args:
        terminate: whether to wait for the next step on SIGTERM too.
        ranks: processes that end together, after the step in which one of them was told to.
    """

    def __init__(self, *, terminate: bool, ranks: Ranks | None = None) -> None:
        self.received: int | None = None
        self._terminate = terminate
        self._ranks = ranks
        if ranks is not None:
            ranks.asked = lambda: self.received is not None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            wanted = {signal.SIGINT: signal.default_int_handler}
            if self._terminate:
                wanted[signal.SIGTERM] = signal.SIG_DFL  # type: ignore[assignment]
            for number, default in wanted.items():
                if signal.getsignal(number) == default:
                    self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        if self.received == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)

    def check(self) -> None:
        """Raises between two steps if a signal has come.

        Raises:
            Interrupted: one has.
        """
        if self.received is not None if self._ranks is None else self._ranks.ending:
            raise Interrupted

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
