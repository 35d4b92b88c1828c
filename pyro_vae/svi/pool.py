"""Running means of a loss in a step in parts, and of ranks: as they would be after the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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

    def join_parts(self) -> None:
        """To be called after the last part, if there was one."""
        if self._after:
            self.join(list(zip(*self._after, strict=True)))

    def after(self) -> list[Tensor]:
        """The buffers of this rank after its parts; zeros, which count nothing, where it had none."""
        return [buffer if self._after else torch.zeros_like(buffer) for buffer in self._buffers()]

    def join(self, after: Sequence[Sequence[Tensor]]) -> None:
        """Makes each buffer what it would be after the whole.

        Args:
            after: of each buffer, what it was after each part.
        """
        owners = [gradient for gradient in self._gradients for _ in gradient.buffers()]
        before = self._before or self._buffers()  # of a rank without data yet, which were zeros
        for gradient, buffer, old, new in zip(owners, self._buffers(), before, after, strict=True):
            buffer.copy_(gradient.pooled(old, new))

    def _buffers(self) -> list[Tensor]:
        return [buffer for gradient in self._gradients for buffer in gradient.buffers()]
