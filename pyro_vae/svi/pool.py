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
        parts = loss.gradient.parts() if isinstance(loss, Estimator) else []
        self._gradients = parts[1:] or parts  # a mapping from sites comes before the gradients that it is made of
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
        """To be called after the last part, if there was one."""
        if not self._after:
            return
        owners = [gradient for gradient in self._gradients for _ in gradient.buffers()]
        for gradient, buffer, before, *after in zip(owners, self._buffers(), self._before, *self._after, strict=True):
            buffer.copy_(gradient.pooled(before, after))

    def _buffers(self) -> list[Tensor]:
        return [buffer for gradient in self._gradients for buffer in gradient.buffers()]
