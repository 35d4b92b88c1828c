"""What every check asks in the same words, with draws that leave the global generators alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def require(condition: bool, expected: str, got: object) -> None:
    """Raises an ``AssertionError`` where a condition does not hold, in the words of all checks."""
    if not condition:
        raise AssertionError(f"Contract: expected {expected}; got {got}.")


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of log-densities are one, up to what single precision does to them."""
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager in which draws follow a seed, and after which torch's global generator is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
