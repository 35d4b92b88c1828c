"""The card of a folder: what a person who finds it reads first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_UNITS = {"lr": "", "beta": "", "skipped": "steps", "seconds": "s"}


def card(program: object, figures: Mapping[str, float], about: Mapping[str, Any]) -> str:
    """A page in Markdown: the program, its figures with units, how to load it.

    Args:
        program: what the folder holds.
        figures: by name.
        about: further lines, by name: the data it was trained on, versions.
    """
    name = type(program).__name__
    lines = [f"# {name}", ""]
    if isinstance(program, nn.Module):
        count = sum(parameter.numel() for parameter in program.parameters())
        lines += [f"A probabilistic program of pyro_vae with {count:,} parameters.", ""]
    if about:
        lines += [*(f"- {key}: {_line(value)}" for key, value in about.items()), ""]
    if figures:
        lines += ["| figure | value | unit |", "| --- | ---: | --- |"]
        lines += [f"| {key} | {value:.6g} | {_UNITS.get(key, 'nats per datum')} |" for key, value in figures.items()]
        lines += [""]
    lines += ["Load it, from the folder that this file is in:", ""]
    lines += ["```python", "import pyro_vae", "", 'program = pyro_vae.load("path/to/this/folder")', "```", ""]
    lines += [
        "Classes of your own that it is built of are given with `classes=[...]`. Nothing here is code, or runs any."
    ]
    return "\n".join(lines) + "\n"


def _line(value: Any) -> str:
    return " ".join(str(value).split())
