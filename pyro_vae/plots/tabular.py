"""Pictures of tables: the columns of draws of a model beside those of the data, and how columns go together.

Shapes: N rows, D columns.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import checks
from pyro_vae.data import Dataset
from pyro_vae.plots.runs import viewed
from pyro_vae.style import COLORS, SMALL, WIDTH, panels, plain_log
from pyro_vae.tables import CODED, Column, Table

_BINS = 20
_FEW = 12  # whole values up to which each has a bar of its own
_DRAWN = 5  # times the data, so that the noise of draws is small beside that of the data


class _Both(NamedTuple):
    """Data and draws of the model, column by column.

    Attributes:
        data: (N, D), NaN where a value is missing.
        draws: of the model, whole.
        columns: what they are.
        of: how many columns there are in all.
    """

    data: Tensor
    draws: Tensor
    columns: tuple[Column, ...]
    of: int

    def words(self) -> str:
        """Said of columns that are left out."""
        return f"the first {len(self.columns)} of {self.of} columns" if len(self.columns) < self.of else ""


def _both(
    subject: str, program: Any, data: Any, context: tuple[Tensor, ...], max_columns: int, max_data: int, seed: int
) -> _Both:
    with viewed(subject, program, data, context, seed, most=max_data, by_lot=True) as view:
        if view.x.dim() != 2:
            raise ValueError(
                f"{subject}: expected a table (N, D); got data of shape {tuple(view.x.shape)}. Use plots.reconstructed "
                "and plots.samples for images."
            )
        if len(view.x) < 10:
            raise ValueError(f"{subject}: expected at least 10 data; got {len(view.x)}. Pass more.")
        most = checks.whole(subject, "max_columns", max_columns)
        draws = torch.cat([view.from_prior().draw()[:, :most] for _ in range(_DRAWN)])
        x, size = view.x[:, :most], view.x.shape[1]
    own = getattr(getattr(program, "likelihood", None), "table", None)
    table = data.table if isinstance(data, Dataset) and data.table is not None else own
    if isinstance(table, Table):
        columns = table.columns
    else:
        names = data.columns if isinstance(data, Dataset) and data.columns else [f"x[{i}]" for i in range(size)]
        columns = tuple(Column(name, "real") for name in names)
    return _Both(x.cpu().double(), draws.cpu().double(), columns[:most], size)


@partial(checks.arguments, "plots.marginals")
def marginals(
    program: Any, data: Any, *context: Tensor, max_columns: int = 16, max_data: int = 5000, seed: int = 0
) -> Figure:
    """Each column of a table beside that of draws of the model, of which there are five for each datum.

    Categories, words in an order and whole numbers of few values have a bar for each; others a histogram, on a
    logarithmic axis where they are positive. Missing values are left out of the data's share.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        data: rows (N, D), a Dataset, or a DataFrame of the columns that the program was built for.
        context: further arguments of model and guide.
        max_columns: show the first so many.
        max_data: look at so many of the data, chosen by the seed.
        seed: of all draws; the global generators are left as they were.

    Raises:
        ValueError: data that are no table, or fewer than 10; a column without a value.

    Example:
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     prior=priors.StandardNormal(2),
        ...     likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), 2),
        ...     posterior=conditionals.DiagonalNormal(nets.MLP(2, [8]), 2),
        ... )
        >>> figure = marginals(vae, torch.tensor([[0.0, 1.0], [1.0, 1.0]]).repeat(10, 1))
        >>> [(axes.get_title(), [float(bar.get_height()) for bar in axes.containers[0]]) for axes in figure.axes]
        [('x[0]', [0.5, 0.5]), ('x[1]', [0.0, 1.0])]
    """
    found = _both("plots.marginals", program, data, context, max_columns, max_data, seed)
    figure, axes = panels(len(found.columns), 2, height=1.8)
    for i, (own, column) in enumerate(zip(axes, found.columns, strict=True)):
        x, draws = (part[:, i][~part[:, i].isnan()] for part in (found.data, found.draws))
        if not len(x):
            raise ValueError(
                f"plots.marginals: expected values in column {column.name!r}; got none among {len(found.data)} rows. "
                "Leave the column out, or pass more data."
            )
        whole = column.kind in CODED or bool((x == x.round()).all() and (draws == draws.round()).all())
        few = int(max(x.max(), draws.max()) - min(x.min(), draws.min())) < _FEW if whole else False
        if column.kind in CODED or few:
            _bars(own, column, x, draws)
        else:
            _histograms(own, column, x, draws, whole)
        own.set_title(checks.printable(column.name, 22), fontsize=SMALL + 1)
        own.tick_params(labelsize=SMALL)
    for own in axes[::2]:
        own.set_ylabel("share", fontsize=SMALL + 1)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, title=found.words() or None, fontsize=SMALL + 1)
    return figure


_LOOKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("data", {"color": COLORS[0]}),
    ("draws of the model", {"color": "white", "edgecolor": COLORS[1], "hatch": "////"}),
)


def _bars(axes: Axes, column: Column, x: Tensor, draws: Tensor) -> None:
    """A bar for each whole value, in shares of the data and of the draws."""
    first = 0 if column.values else int(min(x.min(), draws.min()))
    number = len(column.values) or int(max(x.max(), draws.max())) - first + 1
    for shift, values, (label, look) in zip((-0.2, 0.2), (x, draws), _LOOKS, strict=True):
        shares = torch.bincount((values - first).round().long(), minlength=number)[:number] / len(values)
        axes.bar([i + shift for i in range(number)], shares.tolist(), 0.4, label=label, **look)
    names = [checks.printable(value, 10) for value in column.values or range(first, first + number)]
    turned = sum(map(len, names)) > 16
    axes.set_xticks(range(number), names, rotation=40 if turned else 0, ha="right" if turned else "center")
    axes.set_xlabel("value, a category" if column.kind in ("binary", "category") else "value", fontsize=SMALL)


def _histograms(axes: Axes, column: Column, x: Tensor, draws: Tensor, whole: bool) -> None:
    """Over the range of the data and of nearly all draws; rare ones beyond are in the last bins."""
    low = min(float(x.min()), float(draws.quantile(0.005)))
    high = max(float(x.max()), float(draws.quantile(0.995)))
    high = high if high > low else low + 1.0
    positive = column.kind == "positive" and low > 0 and not whole
    edges: Any = np.geomspace(low, high, _BINS + 1) if positive else np.linspace(low, high, _BINS + 1)
    if whole:  # as many values in each bin
        width = math.ceil((high - low + 1) / _BINS)
        edges = np.arange(math.floor(low), math.ceil(high) + width + 1, width) - 0.5
    for values, (label, look), filled in zip((x, draws), _LOOKS, (True, False), strict=True):
        counts, _ = np.histogram(values.clamp(low, high).numpy(), edges)
        shown = (
            {"color": look["color"]}
            if filled
            else {"edgecolor": look["edgecolor"], "linewidth": 1.6, "linestyle": "--"}
        )
        axes.stairs(counts / len(values), edges, fill=filled, label=label, **shown)
    if positive:
        axes.set_xscale("log")
        plain_log(axes.xaxis)
    axes.set_xlabel("value, log scale" if positive else "value", fontsize=SMALL)


@partial(checks.arguments, "plots.correlations")
def correlations(
    program: Any, data: Any, *context: Tensor, max_columns: int = 20, max_data: int = 5000, seed: int = 0
) -> Figure:
    """Rank correlations of the columns of a table, of the data and of draws of the model, and one against the other.

    They are Spearman's, of the rows that have both values, and see monotone relations of any shape. Categories of more
    than two values, which have no order, and columns of one value are left out. The last panel has a point for each
    pair; those of a right model are on the line, within the noise of the data, of about :math:`2 / \\sqrt N`, the band.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        data: rows (N, D), a Dataset, or a DataFrame of the columns that the program was built for.
        context: further arguments of model and guide.
        max_columns: show the first so many.
        max_data: look at so many of the data, chosen by the seed.
        seed: of all draws; the global generators are left as they were.

    Raises:
        ValueError: data that are no table, or fewer than 10; fewer than two columns with an order.
    """
    found = _both("plots.correlations", program, data, context, max_columns, max_data, seed)
    kept = [
        i
        for i, column in enumerate(found.columns)
        if (column.kind != "category" or len(column.values) == 2) and all(_varies(part[:, i]) for part in found[:2])
    ]
    if len(kept) < 2:
        raise ValueError(
            f"plots.correlations: expected at least 2 columns with an order and several values; got {len(kept)}. Use "
            "plots.marginals."
        )
    names = [checks.printable(found.columns[i].name, 14) for i in kept]
    own, drawn = (_spearman(part[:, kept]) for part in found[:2])
    figure = Figure(figsize=(WIDTH, 5.8), layout="constrained")
    upper = figure.add_gridspec(2, 2)
    axes = [figure.add_subplot(upper[0, 0]), figure.add_subplot(upper[0, 1]), figure.add_subplot(upper[1, :])]
    for place, (title, matrix) in enumerate((("data", own), ("draws of the model", drawn))):
        image = axes[place].imshow(matrix.numpy(), "PuOr", vmin=-1, vmax=1)
        axes[place].set_title(title, fontsize=SMALL + 2)
        axes[place].set_xticks(range(len(kept)), names, rotation=90, fontsize=SMALL)
        axes[place].set_yticks(range(len(kept)), names if not place else [], fontsize=SMALL)
    figure.colorbar(image, ax=axes[1], label="rank correlation", shrink=0.7)
    _against(axes[2], own, drawn, len(found.data))
    if found.words():
        figure.suptitle(found.words(), fontsize=SMALL + 1)
    return figure


def _against(axes: Axes, own: Tensor, drawn: Tensor, n: int) -> None:
    above = torch.ones_like(own).triu(1).bool()
    ends = torch.tensor([-1.05, 1.05])
    axes.fill_between(ends, ends - 2 / math.sqrt(n), ends + 2 / math.sqrt(n), color="0.9", label="±2/√N")
    axes.plot(ends, ends, color="black", linewidth=1, label="equal")
    axes.plot(own[above], drawn[above], "o", color=COLORS[0], markersize=4, alpha=0.7, label="a pair of columns")
    axes.set(
        xlabel="rank correlation of the data", ylabel="of draws of the model", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05)
    )
    axes.legend(fontsize=SMALL + 1, loc="upper left")


def _varies(x: Tensor) -> bool:
    x = x[~x.isnan()]
    return len(x) > 2 and bool(x.max() > x.min())


def _spearman(x: Tensor) -> Tensor:
    """Of each pair of columns, over the rows that have both; NaN of pairs of which one is constant there."""
    from scipy.stats import rankdata

    size = x.shape[1]
    matrix = torch.eye(size, dtype=torch.float64)
    for i in range(size):
        for j in range(i):
            both = x[:, [i, j]][~x[:, [i, j]].isnan().any(1)]
            ranks = torch.from_numpy(rankdata(both.numpy(), axis=0)).T
            matrix[i, j] = matrix[j, i] = torch.corrcoef(ranks)[0, 1]
    return matrix
