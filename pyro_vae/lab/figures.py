"""The lab's figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.lab.rows import RacePoint, Row
from pyro_vae.lab.verdicts import Verdict
from pyro_vae.style import COLORS, SMALL, WIDTH, cycle, plain_log, ticks_at

_NOTHING = 1e-12  # of the largest variance: rounding


def snr_figure(rows: Sequence[Row]) -> Figure:
    """Signal-to-noise ratio of a gradient against K, a line for each bound and gradient.

    Estimators without noise, whose ratio is infinite, have no point, and are named instead.

    Raises:
        ValueError: there is no row, or none with noise.
    """
    shown = _with_noise("snr_figure", rows)
    figure, axes = _log_log("particles K", "signal-to-noise ratio of a gradient")
    for place, (family, members) in enumerate(_families(shown)):
        k, snr, error = zip(*((row.num_particles, row.snr, row.snr_error) for row in members), strict=True)
        axes.errorbar(k, snr, yerr=error, capsize=2, label=family, **cycle(place))
    _name_those_without_noise(axes, rows, shown)
    ticks_at(axes.xaxis, (row.num_particles for row in shown))
    plain_log(axes.yaxis)
    figure.legend(loc="outside upper center", ncols=2, fontsize=SMALL + 1)
    return figure


def cost_figure(rows: Sequence[Row]) -> Figure:
    """Variance of a gradient against the time of a step, by K; along a gray line, both multiply to the same.

    Raises:
        ValueError: there is no row, or none with noise.
    """
    shown = _with_noise("cost_figure", rows)
    figure, axes = _log_log("milliseconds per step", "variance of a gradient, nats² summed over parameters")
    for place, (family, members) in enumerate(_families(shown)):
        time, variance, error = zip(*((r.milliseconds, r.variance, r.variance_error) for r in members), strict=True)
        axes.errorbar(time, variance, yerr=error, capsize=2, label=family, **cycle(place))
    _name_those_without_noise(axes, rows, shown)
    costs = torch.tensor([row.milliseconds * row.variance for row in shown]).log10()
    times = torch.tensor([row.milliseconds for row in shown])
    ends = torch.stack([times.min() / 1.5, times.max() * 1.5])
    for cost in torch.linspace(float(costs.min()), float(costs.max()), 5):
        axes.plot(ends, 10**cost / ends, color="0.85", linewidth=0.8, zorder=0)
    plain_log(axes.xaxis)
    figure.legend(loc="outside upper center", ncols=2, fontsize=SMALL + 1)
    figure.draw_without_rendering()  # which settles where the points are
    _name_points(axes, shown)
    return figure


def _with_noise(subject: str, rows: Sequence[Row]) -> list[Row]:
    most = max((row.variance for row in rows), default=0.0)
    shown = [row for row in rows if row.variance > _NOTHING * most and math.isfinite(row.snr) and row.snr > 0]
    if not shown:
        raise ValueError(
            f"{subject}: expected estimators whose gradients vary from draw to draw; got {len(rows)} of which none "
            "does. Name a group of parameters of the comparison, at weights that are not optimal."
        )
    return shown


def _name_those_without_noise(axes: Axes, rows: Sequence[Row], shown: Sequence[Row]) -> None:
    for row in rows:
        if row not in shown:
            axes.plot([], [], " ", label=f"{row.estimator}: no noise")


def _name_points(axes: Axes, rows: Sequence[Row]) -> None:
    """K beside each point, above or below it or further off, where it is clear of points and of other names."""
    points = [tuple(axes.transData.transform((row.milliseconds, row.variance))) for row in rows]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    scale = axes.figure.dpi / 72
    for (x, y), row in zip(points, rows, strict=True):
        name = f"K={row.num_particles}"
        width, height = 0.65 * SMALL * len(name) * scale, 1.1 * SMALL * scale
        w = width / scale
        offsets = [
            (dx * scale, dy * scale)
            for far in (6, 18, 30, 42)
            for dx in (far, -far - w, -w / 2)
            for dy in ((4, -12) if dx != -w / 2 else (far + 2, -far - 8))
        ]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in offsets]
        free = next((i for i, box in enumerate(boxes) if not any(_meet(box, other) for other in taken)), 0)
        taken.append(boxes[free])
        dx, dy = offsets[free]
        axes.annotate(
            name, (row.milliseconds, row.variance), (dx / scale, dy / scale), textcoords="offset points", fontsize=SMALL
        )


def _meet(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _log_log(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
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
    figure = Figure(figsize=(WIDTH + 2, 4), layout="constrained")
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
                at, [value.value for value in values], label=None if seed else label, markersize=4, **cycle(entry)
            )
        axes.set_title(title, fontsize=SMALL + 2)
        axes.set(xlabel=by, ylabel="nats per datum")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, fontsize=SMALL + 1)
    return figure


def ranking_figure(by_seed: Mapping[str, Sequence[float]], verdicts: Sequence[Verdict], quantity: str) -> Figure:
    """Figures of each seed, best entry first, and the difference of each pair with its interval."""
    figure = Figure(figsize=(WIDTH + 2, 1.5 + 0.3 * max(len(by_seed), len(verdicts))), layout="constrained")
    entries, pairs = figure.subplots(1, 2)
    for place, values in enumerate(by_seed.values()):
        entries.plot(values, [place] * len(values), "o", color=COLORS[0], alpha=0.6, markersize=5)
        entries.plot(sum(values) / len(values), place, "|", color="black", markersize=14)
    entries.set(xlabel=f"{quantity}, nats per datum", yticks=range(len(by_seed)), yticklabels=list(by_seed))
    for place, verdict in enumerate(verdicts):
        look = {"fmt": "o", "color": COLORS[0]} if verdict.better else {"fmt": "s", "color": "0.55", "mfc": "white"}
        pairs.errorbar(verdict.difference, place, xerr=verdict.margin, capsize=2, **look)
    pairs.axvline(0, color="0.8", zorder=0)
    pairs.set(
        xlabel="difference, nats per datum\n(open squares: cannot tell)",
        yticks=range(len(verdicts)),
        yticklabels=[f"{v.first} - {v.second}" for v in verdicts],
    )
    for axes, count in ((entries, len(by_seed)), (pairs, len(verdicts))):
        axes.set_ylim(max(count, 1) - 0.5, -0.5)
    return figure
