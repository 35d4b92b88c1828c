"""One thread at a time runs Pyro's programs: its stack of handlers and its param store are global."""

import threading
from contextlib import AbstractContextManager

_lock = threading.RLock()


def running_programs() -> AbstractContextManager[object]:
    """Context manager in which no other thread runs a program through this package; it waits for its turn."""
    return _lock
