"""Memory that a computation takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_vae.internals import TorchDispatchMode, storage_key, tree_leaves


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes of the tensors that a function makes, at the moment when they are most; those it starts from not counted.

    It adds up storages while they live, on any device, so the answer is the same on every machine. What a kernel takes
    for itself while it runs, and what an allocator keeps for later, is not in it.
    """
    with _LiveBytes() as live:
        function()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._watches: list[weakref.finalize[Any, Any]] = []
        self._total = 0
        self.peak = 0

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for watch in self._watches:  # parameters outlive the count, and would hold it for as long as they live
            watch.detach()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            self._enter(value, given=True)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            self._enter(value, given=False)
        return result

    def _enter(self, value: object, *, given: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key = storage_key(value)
        if key not in self._sizes:
            self._sizes[key] = 0 if given else storage.nbytes()
            self._total += self._sizes[key]
            self.peak = max(self.peak, self._total)
            self._watches.append(weakref.finalize(storage, self._leave, key))

    def _leave(self, key: int) -> None:
        self._total -= self._sizes.pop(key)
