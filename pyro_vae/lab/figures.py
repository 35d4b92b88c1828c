"""The lab's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.lab.rows import RacePoint, Row
from pyro_vae.lab.verdicts import Verdict

_NOTHING = 1e-12  # of the largest variance: rounding


def snr_figure(rows: Sequence[Row]) -> Figure:
    """Signal-to-noise ratio of a gradient against K, a line for each bound and gradient."""
    figure, axes = _log_log("particles K", "signal-to-noise ratio of a gradient")
    for family, members in _families(rows):
        k, snr, error = zip(*((row.num_particles, row.snr, row.snr_error) for row in members), strict=True)
        axes.errorbar(k, snr, yerr=error, marker="o", capsize=2, label=family)
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    return figure


def cost_figure(rows: Sequence[Row]) -> Figure:
    """Variance of a gradient against the time of a step, by K; along a gray line, both multiply to the same."""
    figure, axes = _log_log("milliseconds per step", "variance of a gradient")
    most = max(row.variance for row in rows)
    shown = [row for row in rows if row.variance > _NOTHING * most]
    for family, members in _families(shown):
        time, variance, error = zip(*((r.milliseconds, r.variance, r.variance_error) for r in members), strict=True)
        axes.errorbar(time, variance, yerr=error, marker="o", capsize=2, label=family)
        for row in members:
            axes.annotate(
                f"K={row.num_particles}",
                (row.milliseconds, row.variance),
                (5, 3),
                textcoords="offset points",
                fontsize=7,
            )
    for row in rows:
        if row not in shown:
            axes.plot([], [], " ", label=f"{row.estimator}: 0")
    if shown:
        costs = torch.tensor([row.milliseconds * row.variance for row in shown]).log10()
        times = torch.tensor([row.milliseconds for row in shown])
        ends = torch.stack([times.min() / 1.5, times.max() * 1.5])
        for cost in torch.linspace(float(costs.min()), float(costs.max()), 5):
            axes.plot(ends, 10**cost / ends, color="0.85", linewidth=0.8, zorder=0)
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    return figure


def _log_log(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def _families(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows of one bound and gradient, by number of particles."""
    for family in dict.fromkeys(row.family for row in rows):
        yield family, sorted((row for row in rows if row.family == family), key=lambda row: row.num_particles)


def race_figure(
    curves: Mapping[str, Sequence[RacePoint]], by: Literal["step", "seconds"], num_particles: int, num_seeds: int
) -> Figure:
    """-ELBO and importance-weighted NLL against what was equal for all; the seeds of an entry have one color."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, field, title in zip(
        figure.subplots(1, 2),
        ("negative_elbo", "nll"),
        ("-ELBO", f"-log p(x), importance-weighted, K = {num_particles}"),
        strict=True,
    ):
        for i, (name, points) in enumerate(curves.items()):
            values = [getattr(point, field) for point in points]
            at = [getattr(point, by) for point in points]
            entry, seed = divmod(i, num_seeds)
            label = name if num_seeds == 1 else name.rpartition(", seed ")[0]
            axes.plot(
                at,
                [value.value for value in values],
                marker=".",
                color=f"C{entry % 10}",
                label=None if seed else label,
            )
        axes.set(title=title, xlabel=by, ylabel="nats per datum")
        axes.legend(fontsize="small")
    return figure


def ranking_figure(by_seed: Mapping[str, Sequence[float]], verdicts: Sequence[Verdict], quantity: str) -> Figure:
    """Figures of each seed, best entry first, and the difference of each pair with its interval."""
    figure = Figure(figsize=(9, 1.5 + 0.3 * max(len(by_seed), len(verdicts))), layout="constrained")
    entries, pairs = figure.subplots(1, 2)
    for place, values in enumerate(by_seed.values()):
        entries.plot(values, [place] * len(values), "o", color="0.5", markersize=4)
        entries.plot(sum(values) / len(values), place, "|", color="black", markersize=14)
    entries.set(xlabel=f"{quantity}, nats per datum", yticks=range(len(by_seed)), yticklabels=list(by_seed))
    for place, verdict in enumerate(verdicts):
        color = "C0" if verdict.better else "0.6"
        pairs.errorbar(verdict.difference, place, xerr=verdict.margin, fmt="o", capsize=2, color=color)
    pairs.axvline(0, color="0.8", zorder=0)
    pairs.set(
        xlabel="difference, nats per datum\n(gray: cannot tell)",
        yticks=range(len(verdicts)),
        yticklabels=[f"{v.first} - {v.second}" for v in verdicts],
    )
    for axes, count in ((entries, len(by_seed)), (pairs, len(verdicts))):
        axes.set_ylim(max(count, 1) - 0.5, -0.5)
    return figure
