"""Times of ours over a peer's, from blocks that ran side by side, and the files that keep them.

What may be compared between two runs, or two machines, are ratios: a shared machine is at times half as fast. On one
thread of a CPU ratios are of processor time, of which other programs take nothing; else of time elapsed.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from devices import description, milliseconds

import pyro_vae


def timed(function: Callable[[], object], on: torch.device) -> tuple[float, float]:
    """Milliseconds elapsed, and those that ratios are of."""
    start = time.process_time()
    elapsed = milliseconds(function, on)
    processor = (time.process_time() - start) * 1e3
    return elapsed, processor if on.type == "cpu" and torch.get_num_threads() == 1 else elapsed


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The median over blocks, and its standard error, which is 1.25 of a mean's, from the quartiles."""
    every = [a / b for a, b in zip(ours, theirs, strict=True)]
    lower, median, upper = statistics.quantiles(every, n=4) if len(every) > 1 else every * 3
    return {"ratio": median, "error": 1.25 * (upper - lower) / 1.35 / math.sqrt(len(every))}


def write(path: Path | None, on: torch.device, setting: dict[str, Any], rows: dict[str, dict[str, float]]) -> None:
    """Keeps the rows of a table, by ``ours / peer``, with what they were measured on; nowhere for no path."""
    if path is None:
        return
    about = {
        **setting,
        "device": description(on),
        "machine": platform.machine(),
        "pyro_vae": pyro_vae.__version__,
        "date": date.today().isoformat(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"setting": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
