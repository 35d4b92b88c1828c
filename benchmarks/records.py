"""Figures of benchmarks kept as JSON: a row by name, each with its settings, versions and machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

import pyro_vae

FOLDER = Path(__file__).parent / "results"


def about() -> dict[str, Any]:
    """When, with what and where a row is run."""
    return {
        "date": date.today().isoformat(),
        "version": pyro_vae.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads",
    }


def read(path: Path) -> dict[str, Any]:
    """The rows of a file by name; none where there is no file."""
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def keep(path: Path | None, row: str, figures: Mapping[str, Any], alike: tuple[str, ...] = ()) -> None:
    """Writes a row to a file, in place of one of this name; other rows stay.

    Args:
        path: the file; None for none.
        row: its name.
        figures: and settings.
        alike: settings that all rows of the file must share.

    Raises:
        SystemExit: the file has rows of other settings.
    """
    if path is None:
        return
    rows = read(path)
    for name in alike:
        others = {each: its[name] for each, its in rows.items() if each != row and its[name] != figures[name]}
        if others:
            raise SystemExit(f"{path}: expected rows of {name} {figures[name]}; got {others}. Give another file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows | {row: {**figures, **about()}}, indent=2) + "\n", "utf-8")


def line(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, with errors on the lines of their figures."""
    return "\n".join(line(cells) for cells in (columns, ["---"] * len(columns), *rows)).replace(" ± ", "\u00a0±\u00a0")
