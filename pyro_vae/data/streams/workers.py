"""Reading ahead: in worker processes, and in a thread."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """An error in a worker process or thread, with which it comes to the one that waits for its results."""

    error: BaseException


class ReadBy(TorchDataset[Any]):
    """What a worker reads for each thing that it is asked for; or the error.

    Args:
        read: makes a result of a request.
    """

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __getitem__(self, request: Any) -> Any:
        try:
            return self._read(request)
        except Exception as error:  # noqa: BLE001 - raised where the result is waited for
            return Failure(_portable(error))


class Reading(IterableDataset[Any]):
    """What a worker reads one after the other; or the error.

    Args:
        results: what is read.
    """

    def __init__(self, results: Iterable[Any]) -> None:
        self._results = results

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._results
        except Exception as error:  # noqa: BLE001 - raised where the result is waited for
            yield Failure(_portable(error))


def _portable(error: Exception) -> Exception:
    """An error of a kind that every process knows, with the same words."""
    kind = type(error) if type(error) in (ValueError, TypeError, FileNotFoundError, OSError) else None
    if kind is not None:
        return kind(str(error))
    return ValueError(str(error)) if isinstance(error, ValueError) else RuntimeError(f"{type(error).__name__}: {error}")


def of_workers(name: str, loader: Iterable[T]) -> Iterator[T]:
    """The results of a loader with workers.

    Args:
        name: of the stream.
        loader: of torch.

    Raises:
        RuntimeError: a worker has died.
    """
    results = iter(loader)
    try:
        for result in results:
            if isinstance(result, Failure):
                raise result.error
            yield result
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"Stream {name!r}: expected worker processes that live; got one that died ({error}). If the system "
            "killed it for want of memory, use fewer workers; then go on from the last checkpoint."
        ) from error
    finally:
        del results  # else an error holds the workers


def announced(requests: Iterable[T], announce: Callable[[T], None], depth: int) -> Iterator[T]:
    """Requests, of each of which someone is told so many requests before it is made."""
    waiting: deque[T] = deque()
    for request in requests:
        announce(request)
        waiting.append(request)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def ahead(results: Iterator[T], depth: int) -> Iterator[T]:
    """The same results, made in a thread before they are asked for, so many together.

    Handed over one by one, the thread would be woken at each, and whoever asks, a training step, would then have to
    wait for the interpreter's lock. Whoever waits for the first ones does nothing else meanwhile, so that the thread
    may use global generators for them.
    """
    made: queue.Queue[list[T | Failure | None]] = queue.Queue(1)
    stop = threading.Event()

    def give(several: list[T | Failure | None]) -> bool:
        while not stop.is_set():
            try:
                made.put(several, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        several: list[T | Failure | None] = []
        try:
            for result in results:
                several.append(result)
                if len(several) == depth:
                    if not give(several):
                        return
                    several = []
            give([*several, None])
        except BaseException as error:  # noqa: BLE001 - raised where the result is waited for
            give([*several, Failure(error)])

    thread = threading.Thread(target=make, name="pyro_vae stream", daemon=True)
    thread.start()
    try:
        while True:
            for result in made.get():
                if result is None:
                    return
                if isinstance(result, Failure):
                    raise result.error
                yield result
    finally:
        stop.set()
        thread.join()
