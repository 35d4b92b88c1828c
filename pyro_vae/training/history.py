"""The record of a training run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

Row = dict[str, float]

_UNUSED = 0.1  # nats of KL, below which the latents tell nothing to speak of
_STILL_RISING = 0.02  # of the whole rise of the ELBO, in the last tenth of the epochs


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

    Example:
        >>> history = History(epochs=[{"epoch": 1, "train_elbo": -131.0}, {"epoch": 2, "train_elbo": -120.5}])
        >>> len(history), history["train_elbo"]
        (2, [-131.0, -120.5])
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

    def telling(self) -> list[str]:
        """The three most telling lines of a run, from its own figures: on new data, on the latents, on the end.

        They are sizes without standard errors; :func:`pyro_vae.evaluation.report` has verdicts.

        Example:
            >>> rows = [{"epoch": e, "train_elbo": -90.0 - 10 / e, "train_kl": 0.01} for e in (1, 2, 3, 4)]
            >>> print(*History(epochs=rows).telling(), sep="\\n")
            -ELBO 92.50 nats of training data; pass validation data to see how new ones compare
            KL 0.01 nats: the latents tell nothing about the data; raise beta from 0, or use free_bits
            completed after 4 epochs; the last 1 brought 11% of the rise of the ELBO: train longer
        """
        row = next((row for row in self.epochs if row.get("epoch") == self.best_epoch), None) or next(
            reversed(self.epochs), {}
        )
        if "train_elbo" not in row:
            return []
        prefix = "validation" if "validation_elbo" in row else "train"
        return [_new_data(row), _latents(row[f"{prefix}_kl"]), self._end(self[f"{prefix}_elbo"])]

    def _end(self, elbos: list[float]) -> str:
        """How training ended, and what its last tenth was good for."""
        epochs, last = len(elbos), -(-len(elbos) // 10)
        best = max(range(epochs), key=elbos.__getitem__) + 1
        line = f"{self.stopped} after {epochs} epoch{'s' * (epochs != 1)}"
        if best <= epochs - last:
            return f"{line}; the ELBO was best after {best}" + ("" if self.best_epoch else ": use patience")
        if epochs == last or elbos[-1] <= elbos[0]:
            return line
        share = (elbos[-1] - elbos[-1 - last]) / (elbos[-1] - elbos[0])
        advice = ": train longer" if share > _STILL_RISING else ""
        return f"{line}; the last {last} brought {max(0.0, share):.0%} of the rise of the ELBO{advice}"

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


def _new_data(row: Row) -> str:
    line = f"-ELBO {-row['train_elbo']:.2f} nats of training data"
    if "validation_elbo" not in row:
        return f"{line}; pass validation data to see how new ones compare"
    worse = row["train_elbo"] - row["validation_elbo"]
    return (
        f"{line}, {-row['validation_elbo']:.2f} of validation data, {abs(worse):.2f} {'more' if worse > 0 else 'less'}"
    )


def _latents(kl: float) -> str:
    nothing = "the latents tell nothing about the data; raise beta from 0, or use free_bits"
    return f"KL {kl:.2f} nats: {nothing if kl < _UNUSED else 'the latents tell that much about a datum, at most'}"


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
