"""Running means of a loss in a step in parts: as they would be after the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vae.elbo import Estimator


class Pool:
    """Lets every part of a step see the buffers that the step began with, and joins what the parts make of them.

    Args:
        loss: of the step; one that is not ours has no buffers.
    """

    def __init__(self, loss: Any) -> None:
        self._gradient = loss.gradient if isinstance(loss, Estimator) else None
        self._before = [buffer.clone() for buffer in self._buffers()]
        self._after: list[list[Tensor]] = []

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """Context manager of a part."""
        yield
        buffers = self._buffers()
        if not self._before:  # made by the first part, from zeros
            self._before = [torch.zeros_like(buffer) for buffer in buffers]
        self._after.append([buffer.clone() for buffer in buffers])
        for buffer, value in zip(buffers, self._before, strict=True):
            buffer.copy_(value)

    def join(self) -> None:
        """To be called after the last part."""
        if self._gradient is not None:
            for buffer, before, after in zip(
                self._buffers(), self._before, zip(*self._after, strict=True), strict=True
            ):
                buffer.copy_(self._gradient.pooled(before, after))

    def _buffers(self) -> list[Tensor]:
        return [] if self._gradient is None else self._gradient.buffers()
