"""The lab's figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pyro_vae.lab.comparison import Row
    from pyro_vae.lab.race import Race

_NOTHING = 1e-12  # of the largest variance: rounding


def snr_figure(rows: Sequence[Row]) -> Figure:
    """Signal-to-noise ratio of a gradient against K, a line for each bound and gradient."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    for family in dict.fromkeys(row.family for row in rows):
        members = sorted((row for row in rows if row.family == family), key=lambda row: row.num_particles)
        axes.errorbar(
            [row.num_particles for row in members],
            [row.snr for row in members],
            yerr=[row.snr_error for row in members],
            marker="o",
            capsize=2,
            label=family,
        )
    axes.set(xscale="log", yscale="log", xlabel="particles K", ylabel="signal-to-noise ratio of a gradient")
    axes.legend(fontsize="small")
    return figure


def cost_figure(rows: Sequence[Row]) -> Figure:
    """Variance of a gradient against the time of a step; along a grey line, both multiply to the same."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    most = max(row.variance for row in rows)
    shown = [row for row in rows if row.variance > _NOTHING * most]
    for row in rows:
        if row in shown:
            axes.errorbar(
                row.milliseconds, row.variance, yerr=row.variance_error, marker="o", capsize=2, label=row.estimator
            )
        else:
            axes.plot([], [], " ", label=f"{row.estimator}: 0")
    if shown:
        costs = torch.tensor([row.milliseconds * row.variance for row in shown]).log10()
        times = torch.tensor([row.milliseconds for row in shown])
        ends = torch.stack([times.min() / 1.5, times.max() * 1.5])
        for cost in torch.linspace(float(costs.min()), float(costs.max()), 5):
            axes.plot(ends, 10**cost / ends, color="0.85", linewidth=0.8, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="milliseconds per step", ylabel="variance of a gradient")
    axes.legend(fontsize="small")
    return figure


def race_figure(race: Race) -> Figure:
    """-ELBO and importance-weighted NLL against what was equal for all: steps, or seconds."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    by = "seconds" if race.seconds is not None else "step"
    for axes, field, title in zip(
        figure.subplots(1, 2),
        ("negative_elbo", "nll"),
        ("-ELBO", f"-log p(x), importance-weighted, K = {race.num_particles}"),
        strict=True,
    ):
        for name, points in race.curves.items():
            values = [getattr(point, field) for point in points]
            at = [getattr(point, by) for point in points]
            axes.plot(at, [value.value for value in values], marker=".", label=name)
        axes.set(title=title, xlabel=by, ylabel="nats per datum")
        axes.legend(fontsize="small")
    return figure
