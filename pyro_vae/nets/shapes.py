"""Shapes of events, and which shapes broadcast to them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import Size

from pyro_vae import checks

Shape = int | Sequence[int]


def as_size(shape: Shape) -> Size:
    """``50`` -> ``Size([50])``, ``(1, 28, 28)`` -> ``Size([1, 28, 28])``; refuses sizes below 1."""
    sizes = [shape] if isinstance(shape, int) or not isinstance(shape, Sequence) else shape
    whole = [checks.whole("Shape", "every size", size, -sys.maxsize) for size in sizes]
    if any(size < 1 for size in whole):
        raise ValueError(f"Shape: expected every size at least 1; got {tuple(whole)}. Give positive sizes.")
    return Size(whole)


def broadcasts(shape: Size, event_shape: Size) -> bool:
    """Whether a tensor of a shape broadcasts to an event's without adding to it."""
    return len(shape) <= len(event_shape) and all(
        own in (1, size) for own, size in zip(reversed(shape), reversed(event_shape), strict=False)
    )
