"""Runs of programs that are to leave no trace, and what they tell of programs that do not broadcast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

FAILURES = (RuntimeError, ValueError, IndexError, AssertionError)
"""What programs raise that do not broadcast."""


@contextlib.contextmanager
def dry_run(args: tuple[Any, ...]) -> Iterator[None]:
    """Context manager in which programs run unseen, without gradients; puts random generators and buffers back."""
    devices = sorted({a.device.index for a in args if isinstance(a, Tensor) and a.is_cuda})
    with torch.random.fork_rng(devices=devices), torch.no_grad(), poutine.block(), _unchanged_buffers():
        yield


def where_it_fails(run: Callable[[], object], single: Callable[[], object], args: tuple[Any, ...]) -> str:
    """The site at which, or just before which, programs fail that serve a single draw.

    Args:
        run: runs them as they fail.
        single: runs them for a single draw.
        args: their arguments.

    Returns:
        Its name; empty where a single draw fails too.
    """
    visits, seen = _Visits(), _Visits()
    with dry_run(args):
        try:
            with visits:
                single()
        except FAILURES:
            return ""
        with contextlib.suppress(*FAILURES), seen:
            run()
    return visits.names[min(len(seen.names), len(visits.names) - 1)]


class _Visits(Messenger):
    """Lists the sites that programs get past."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self.names.append(msg["name"])


@contextlib.contextmanager
def _unchanged_buffers() -> Iterator[None]:
    """Restores the buffers of every module that is called within it, whichever way a program reaches it."""
    before: dict[Tensor, Tensor] = {}

    def keep(module: nn.Module, _: Any) -> None:
        before.update((buffer, buffer.clone()) for buffer in module.buffers(recurse=False) if buffer not in before)

    hook = register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
        for buffer, value in before.items():
            buffer.copy_(value)
