"""Devices of benchmarks: which there are, and how long something takes on one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch


def device(name: str) -> torch.device:
    """A device by name, for a command line.

    Raises:
        ArgumentTypeError: there is no such device.
    """
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        words = str(error).partition("\n")[0]
        raise argparse.ArgumentTypeError(
            f"expected a device of this machine; got {name!r} ({words}). Give --device cpu."
        ) from error
    return found


def milliseconds(function: Callable[[], object], on: torch.device) -> float:
    """Time that a function takes, to the end of what it has asked a GPU for, by CUDA's events there."""
    if on.type != "cuda":
        before = time.perf_counter()
        function()
        return (time.perf_counter() - before) * 1e3
    torch.cuda.synchronize(on)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(on):
        start.record()
        function()
        end.record()
    end.synchronize()
    return start.elapsed_time(end)


def description(of: torch.device) -> str:
    """The device in words."""
    name = torch.cuda.get_device_name(of) if of.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"
