"""Pictures of what is right and wrong with a program: its units, its importance weights, its ranks, its verdicts.

Shapes: N data, K particles.
"""

from __future__ import annotations

import math
import textwrap
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyro_vae import checks
from pyro_vae.evaluation import Calibration, LogMarginalLikelihood, PredictiveChecks, Report, active_units
from pyro_vae.evaluation.pareto import RELIABLE
from pyro_vae.evaluation.units import ActiveUnits
from pyro_vae.lab import Comparison
from pyro_vae.plots.runs import PLATE, View, viewed
from pyro_vae.style import COLORS, FAULT, SMALL, panels, whole_ticks

_BINS = 20
_DRAWS = 20  # of each datum, where a mean has no closed form
_MARKED: dict[str, Any] = {"color": "white", "edgecolor": FAULT, "hatch": "////"}
_NAMED = 24  # units that have their names below them


@partial(checks.arguments, "plots.units")
def units(
    program: Any, data: Any, *context: Tensor, threshold: float = 0.01, max_data: int = 1000, seed: int = 0
) -> Figure:
    """KL of each unit, averaged over the data, the active units marked: those of Var_x(E_q[z|x]) above the threshold.

    Units that are not independent in prior and guide, as those of a flow, a mixture or a sphere, have no KL of their
    own: of these the variance itself is shown, against the threshold.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        data: a Dataset or x, the first argument of model and guide, at least 2.
        context: their further arguments.
        threshold: above which a unit is active.
        max_data: look at so many of the data, chosen by the seed.
        seed: of all draws; the global generators are left as they were.

    Raises:
        ValueError: fewer than 2 data, or data that are not the program's.
    """
    checks.number("plots.units", "threshold", threshold, above=0)
    checks.whole("plots.units", "max_data", max_data, 2)
    with viewed("plots.units", program, data, context, seed, most=max_data, by_lot=True) as view:
        if len(view.x) < 2:
            raise ValueError("plots.units: expected at least 2 data; got 1. Pass more.")
        divergences = {name: kl_by_unit(view, name) for name in view.latents}
        found = active_units(program, *view.args, threshold=threshold, num_particles=_DRAWS, plate=PLATE)
    figure, axes = panels(len(divergences), 1, height=3.0)
    for own, (name, kl) in zip(axes, divergences.items(), strict=True):
        _bars(own, name, kl, found)
    return figure


def kl_by_unit(view: View, name: str) -> Tensor | None:
    """KL(q(z_i|x) || p(z_i)) of each unit, averaged over the data, of the shape of the event; None where none is."""
    prior, guide = view.latents[name]
    bases: list[Any] = []
    for fn in (prior["fn"], guide["fn"]):
        if not isinstance(fn, Independent) or fn.base_dist.event_shape:
            return None
        bases.append(fn.base_dist)
    value: Tensor = guide["value"]
    try:
        each = kl_divergence(bases[1], bases[0])
    except NotImplementedError:
        each = bases[1].log_prob(value) - bases[0].log_prob(value)  # at a draw, of which the mean is the KL
    return view.rows(name, each.expand(value.shape)).mean(0)


def _bars(axes: Axes, name: str, kl: Tensor | None, found: ActiveUnits) -> None:
    variance, active = found.variance[name].flatten().cpu(), found.active[name].flatten().cpu()
    heights = variance if kl is None else kl.flatten().cpu()
    order = heights.argsort(descending=True)
    marked = active[order]
    kinds = ((marked, "active, Var_x(E_q[z|x]) >", {"color": COLORS[0]}), (~marked, "inactive, ≤", _MARKED))
    for rows, words, look in kinds:
        places = torch.nonzero(rows).flatten()
        if len(places):
            axes.bar(
                places.tolist(),
                heights[order][rows].tolist(),
                label=f"{words} {found.threshold:g}: {len(places)}",
                **look,
            )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=SMALL + 1, frameon=False)
    if len(order) <= _NAMED:
        names = [f"{name}[{i}]" if len(order) <= 10 else str(i) for i in order.tolist()]
        axes.set_xticks(range(len(order)), names, fontsize=SMALL + 1)
    axes.set_xlabel(f"unit of {name}, the largest first" if len(order) > 1 else f"unit of {name}")
    if kl is not None:
        axes.set_ylabel("KL, nats per datum")
        return
    axes.axhline(found.threshold, color="black", linewidth=1, linestyle="--")
    axes.set(ylabel="Var_x(E_q[z|x]),\nsquared unit of z")
    if bool((heights > 0).all()):
        axes.set(yscale="log", ylim=(min(float(heights.min()), found.threshold) / 3, float(heights.max()) * 2))


@partial(checks.arguments, "plots.weights")
def weights(found: LogMarginalLikelihood) -> Figure:
    """How far importance sampling is to be trusted: Pareto k-hat of each datum, and its effective sample size.

    Args:
        found: of :func:`~pyro_vae.evaluation.log_marginal_likelihood`.

    Raises:
        ValueError: fewer than 21 draws, of which no k-hat is known.

    Example:
        >>> ones = torch.ones(4)
        >>> k_hat = torch.tensor([0.1, 0.2, 0.5, 0.9])
        >>> figure = weights(LogMarginalLikelihood(-ones, ones, 10 * ones, k_hat, 100))
        >>> figure.axes[0].get_title()
        '25% of 4 above 0.7'
    """
    k_hat, size = found.pareto_k.cpu().double(), found.effective_sample_size.cpu().double()
    if bool(k_hat.isnan().all()):
        raise ValueError(
            f"plots.weights: expected a k-hat of some datum; got none, of {found.num_particles} draws each. Use "
            "num_particles of at least 21."
        )
    figure, (tails, sizes) = panels(2, height=3.0)
    _k_hats(tails, k_hat)
    shares = (size / found.num_particles).clamp(min=1 / found.num_particles)
    sizes.hist(
        shares.tolist(),
        bins=torch.logspace(-torch.tensor(found.num_particles).log10(), 0, _BINS + 1).tolist(),
        color=COLORS[0],
    )
    sizes.set(xscale="log", xlabel=f"effective sample size / K\n(K = {found.num_particles:,} draws)", ylabel="data")
    return figure


def _k_hats(axes: Axes, k_hat: Tensor) -> None:
    """A histogram, with the cut-off; what is infinite is counted in its words."""
    finite = k_hat[k_hat.isfinite()]
    if len(finite):
        low, high = min(float(finite.min()), 0.0) - RELIABLE, max(float(finite.max()), 1.0) - RELIABLE
        width = 0.1 * max(1, math.ceil((high - low) / 3))
        places = range(math.floor(low / width), math.floor(high / width) + 1)  # of which 0 begins at the cut-off
        counts = torch.histc((finite - RELIABLE) / width, len(places), places[0], places[-1] + 1)
        for marked, look in ((False, {"color": COLORS[0]}), (True, _MARKED)):
            chosen = [
                (RELIABLE + width * p, c)
                for p, c in zip(places, counts.tolist(), strict=True)
                if (p >= 0) == marked and c
            ]
            axes.bar([x for x, _ in chosen], [c for _, c in chosen], width, align="edge", **look)
    axes.axvline(RELIABLE, color="black", linewidth=1, linestyle="--")
    words = [f"{float((k_hat > RELIABLE).double().mean()):.0%} of {len(k_hat):,} above {RELIABLE}"]
    words += [
        f"{n:,} {word}"
        for n, word in (
            (int((k_hat == -torch.inf).sum()), "of equal weights"),
            (int((k_hat == torch.inf).sum()), "infinite"),
            (int(k_hat.isnan().sum()), "unknown"),
        )
        if n
    ]
    axes.set_title("\n".join(words), fontsize=SMALL + 2)
    axes.set(xlabel="Pareto k-hat", ylabel="data")


@partial(checks.arguments, "plots.calibration")
def calibration(found: Calibration) -> Figure:
    """Ranks of simulated latents among draws of the guide, which are uniform where the guide is the posterior.

    Bars are of all units together, a thin line of each unit; the band holds 99% of the bins of one unit's ranks where
    these are uniform.

    Args:
        found: of :func:`~pyro_vae.evaluation.calibration`.
    """
    figure, (axes,) = panels(1, height=3.2)
    _latent_ranks(axes, found)
    p, inside = found.p_value, found.coverage_90.value
    uniform = f"{p:.2g}" if p > 1e-16 else "below 1e-16"
    words = f"{inside:.0%} of latents in the guide's 90% intervals\np-value of uniform ranks {uniform}"
    axes.set_title(words, fontsize=SMALL + 2)
    axes.legend(fontsize=SMALL + 1, loc="lower center")  # over bars, which tell by their upper ends
    return figure


def _latent_ranks(axes: Axes, found: Calibration) -> None:
    columns = torch.cat([rank.reshape(len(rank), -1).cpu() for rank in found.ranks.values()], 1)
    n, shares = len(columns), torch.stack([_shares(column) for column in columns.T])
    wide = 2.576 * (1 / _BINS * (1 - 1 / _BINS) / n) ** 0.5
    _rank_bars(axes, shares.mean(0), "all units")
    if len(shares) > 1:
        middles = [place + 2.5 for place in range(0, 100, 100 // _BINS)] * len(shares)
        axes.plot(middles, shares.flatten().tolist(), ".", color="0.3", markersize=3, label="each unit")
    for place, edge in enumerate((1 / _BINS - wide, 1 / _BINS + wide)):
        axes.axhline(edge, color=FAULT, linestyle="--", linewidth=1, label=None if place else "99% of a unit's bins")
    axes.set_xlabel("rank of simulated latents\n(U: narrow, dome: wide)")


@partial(checks.arguments, "plots.predictive")
def predictive(found: PredictiveChecks) -> Figure:
    """Ranks of the data's elements among draws of their likelihood, which are uniform for a right likelihood.

    Args:
        found: of :func:`~pyro_vae.evaluation.predictive_checks`.
    """
    figure, (axes,) = panels(1, height=3.2)
    _element_ranks(axes, found)
    axes.set_title(
        f"{found.inside_50.value:.0%} of elements in their 50% intervals, {found.inside_90.value:.0%} in their 90%",
        fontsize=SMALL + 2,
    )
    return figure


def _element_ranks(axes: Axes, found: PredictiveChecks) -> None:
    _rank_bars(axes, found.histogram.cpu(), "elements")
    axes.set_xlabel("rank of elements of x\n(U: narrow, dome: wide)")


def _shares(ranks: Tensor) -> Tensor:
    """Of ranks from 0 to 99, in bins of five."""
    return torch.bincount(ranks // (100 // _BINS), minlength=_BINS) / len(ranks)


def _rank_bars(axes: Axes, shares: Tensor, label: str) -> None:
    axes.bar(
        range(0, 100, 5),
        shares.tolist(),
        5,
        align="edge",
        color=COLORS[5],
        edgecolor="white",
        linewidth=0.5,
        label=label,
    )
    axes.axhline(1 / _BINS, color="black", linewidth=1)
    axes.set(ylabel="share of ranks", xlim=(0, 100))


@partial(checks.arguments, "plots.snr")
def snr(found: Comparison, group: str = "guide") -> Figure:
    """Signal-to-noise ratio of a gradient against K, for each estimator; no point where there is no noise.

    Args:
        found: of :func:`~pyro_vae.lab.compare`.
        group: of parameters.

    Raises:
        ValueError: no such group.
    """
    return found.snr_figure(group)


def verdicts(report: Report) -> Figure:
    """Figures of a report, as far as they were measured; the title of what has a fault says so, in another color.

    The ranks of simulated latents among draws of the guide, those of the data's elements among draws of their
    likelihood, which are both flat for a right program (the line), how much each latent unit moves with the data, and
    the tails of the importance weights; lines are the cut-offs of the last two.
    """
    checks.instance("plots.verdicts", "report", report, Report, "Pass evaluation.report(program, x).")
    k_hat = report.log_marginal_likelihood.pareto_k.cpu().double()
    wrong = {finding.name for finding in report.found}
    drawn: list[tuple[str, Any, Any, set[str]]] = [
        ("guide", _latent_ranks, report.calibration, {"narrow guide", "wide guide"}),
        ("likelihood", _element_ranks, report.predictive, {"likelihood of wrong spread", "likelihood of wrong tails"}),
        ("latent units", _variances, report.units, {"unused units", "collapsed posterior"}),
        (
            "importance weights",
            _k_hats,
            None if bool(k_hat.isnan().all()) else k_hat,
            {"unreliable importance weights"},
        ),
    ]
    drawn = [entry for entry in drawn if entry[2] is not None]
    if not drawn:
        raise ValueError("plots.verdicts: expected a report of which something was measured; got none. Pass more data.")
    figure, axes = panels(len(drawn), height=3.0)
    for own, (title, draw, measured, names) in zip(axes, drawn, strict=True):
        draw(own, measured)
        faults = sorted(names & wrong)
        words = f"{title}:\n{textwrap.fill(', '.join(faults), 34)}" if faults else f"{title}: no fault"
        own.set_title(words, color=FAULT if faults else "black", fontsize=SMALL + 2)
    return figure


def _variances(axes: Axes, found: ActiveUnits) -> None:
    variances = torch.cat([variance.flatten().cpu() for variance in found.variance.values()])
    axes.bar(range(len(variances)), variances.sort(descending=True).values.tolist(), color=COLORS[0])
    axes.axhline(found.threshold, color="black", linewidth=1, linestyle="--")
    axes.set(xlabel="unit, the largest first", ylabel="Var_x(E_q[z|x]),\nsquared unit of z")
    whole_ticks(axes.xaxis)
