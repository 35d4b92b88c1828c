"""The record of a training run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

Row = dict[str, float]


@dataclass
class History:
    """What a training run did, epoch by epoch.

    Attributes:
        settings: how the run was made: data, binarization, loss, epochs or steps, batch size, beta, seed.
        epochs: a row per epoch. ``loss`` is the objective as optimized, per datum, averaged over the epoch's steps;
            ``train_*`` and ``validation_*`` are ``elbo``, ``expected_log_likelihood`` and ``kl`` at the end of the
            epoch, in nats per datum at beta = 1; ``seconds`` is the time of the epoch's steps; ``lr`` and ``beta``
            their last values.
        stopped: why it ended: ``"completed"``, ``"early stopping"`` or ``"interrupted"``.
        best_epoch: the epoch whose weights were restored, where early stopping was asked for.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    epochs: list[Row] = field(default_factory=list)
    stopped: str = "completed"
    best_epoch: int | None = None

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, column: str) -> list[float]:
        """A column, one value per epoch: ``history["validation_elbo"]``."""
        return [row[column] for row in self.epochs]

    def columns(self) -> dict[str, list[float]]:
        """All columns, as ``pandas.DataFrame`` takes them."""
        return {name: self[name] for name in (self.epochs[0] if self.epochs else ())}

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        """An aligned table with a line per epoch, at most 100 wide; the names of columns are stacked above it.

        Example:
            >>> row = {"loss": 152.31, "train_elbo": -131.04, "train_kl": 12.5, "lr": 0.001}
            >>> print(History(epochs=[{"epoch": 1, **row}, {"epoch": 2, **row}]))
                          - train --
            epoch   loss  elbo    kl     lr
                1  152.3  -131  12.5  0.001
                2  152.3  -131  12.5  0.001
        """
        columns = {name: [*_words(name), *map(_shown, values)] for name, values in self.columns().items()}
        height = max(map(len, columns.values()), default=0)
        widths = {name: max(map(len, cells)) for name, cells in columns.items()}
        filled = [[cell.rjust(widths[n]) for cell in [""] * (height - len(c)) + c] for n, c in columns.items()]
        titles = [_title(group, [widths[name] for name in names]) for group, names in groupby(columns, _group)]
        lines = [titles, *zip(*filled, strict=True)] if any(map(str.strip, titles)) else zip(*filled, strict=True)
        return "\n".join("  ".join(line).rstrip() for line in lines)


def _group(column: str) -> str:
    """What a column is a figure of, where it has others beside it."""
    return next((group for group in ("train", "validation") if column.startswith(f"{group}_")), "")


def _words(column: str) -> list[str]:
    return column.removeprefix(_group(column)).strip("_").split("_")


def _title(group: str, widths: list[int]) -> str:
    """A line above columns that belong together."""
    width = sum(widths) + 2 * (len(widths) - 1)
    return f" {group} ".center(width, "-")[:width] if group else " " * width


def _shown(value: float) -> str:
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"
