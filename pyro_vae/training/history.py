"""The record of a training run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

Row = dict[str, float]


@dataclass
class History:
    """What a training run did, epoch by epoch.

    Attributes:
        settings: how the run was made: data, binarization, loss, epochs or steps, batch size, beta, seed.
        epochs: a row per epoch. ``loss`` is the objective as optimized, per datum, averaged over the epoch's steps;
            ``train_*`` and ``valid_*`` are ``elbo``, ``expected_log_likelihood`` and ``kl`` at the end of the epoch, in
            nats per datum at beta = 1; ``seconds`` is the time of the epoch's steps; ``lr`` and ``beta`` their last
            values.
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
        """An aligned table with a line per epoch."""
        columns = {name: [f"{v:.4g}" for v in values] for name, values in self.columns().items()}
        widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
        lines = ["  ".join(name.rjust(widths[name]) for name in columns)]
        lines += ["  ".join(cells[i].rjust(widths[n]) for n, cells in columns.items()) for i in range(len(self))]
        return "\n".join(lines)
