"""How programs run: one thread at a time, and with errors of one line."""

import contextlib
import threading
from collections.abc import Iterator

_lock = threading.RLock()


@contextlib.contextmanager
def running_programs() -> Iterator[None]:
    """Context manager in which no other thread runs a program through this package; it waits for its turn.

    Pyro's stack of handlers and its param store are global. To the errors of this package, which say what to do, it
    appends the shapes of all sites; they are taken off.
    """
    with _lock:
        try:
            yield
        except (TypeError, ValueError) as error:
            message, shapes, _ = str(error).partition("Trace Shapes:")
            if shapes and ": expected " in message:
                raise type(error)(message.strip()) from error
            raise
