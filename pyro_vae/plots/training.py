"""Pictures of training: the terms of the ELBO epoch by epoch, and the way through rate and distortion."""

from __future__ import annotations

import math
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae import checks
from pyro_vae.evaluation import RateDistortion, RateDistortionCurve
from pyro_vae.style import COLORS, SMALL, cycle, panels, whole_ticks
from pyro_vae.training import History

_TERMS = (("elbo", -1, "-ELBO"), ("expected_log_likelihood", -1, "-E_q[log p(x|z)]"), ("kl", 1, "KL"))
_PLAIN = ("ELBO", "Trace_ELBO", None)


@partial(checks.arguments, "plots.curves")
def curves(history: History) -> Figure:
    """-ELBO, -E_q[log p(x|z)] and KL against epochs, on training and validation data, in nats per datum.

    Where the objective is another than -ELBO, for its beta or its bound, it is drawn beside the true -ELBO; and where
    beta was not 1 all along, beta has a panel of its own.

    Args:
        history: of :func:`~pyro_vae.fit`.

    Raises:
        ValueError: a history without an epoch.

    Example:
        >>> rows = [{"epoch": e, "beta": e / 2, "loss": 9.0 - e, "train_elbo": -9.0, "train_kl": 1.0} for e in (1, 2)]
        >>> figure = curves(History(epochs=rows))
        >>> [(axes.get_title(), [line.get_label() for line in axes.lines]) for axes in figure.axes]
        [('-ELBO', ['train', 'objective, train']), ('KL', ['train']), ('beta', ['beta'])]
    """
    columns = history.columns()
    terms = [(term, sign, title) for term, sign, title in _TERMS if f"train_{term}" in columns]
    if not terms:
        raise ValueError(
            "plots.curves: expected a history of at least one epoch, with the figures of fit; got "
            f"{len(history)} epochs of {', '.join(columns) or 'nothing'}. Train for an epoch at least."
        )
    annealed = any(beta != 1 for beta in columns.get("beta", []))
    figure, axes = panels(len(terms) + annealed)
    for own, (term, sign, title) in zip(axes, terms, strict=False):
        for place, prefix in enumerate(("train", "validation")):
            if f"{prefix}_{term}" in columns:
                _line(own, columns["epoch"], [sign * value for value in columns[f"{prefix}_{term}"]], prefix, place)
        other = annealed or history.settings.get("loss") not in _PLAIN
        if term == "elbo" and other and "loss" in columns:
            _line(own, columns["epoch"], columns["loss"], "objective, train", 2)
        own.set(title=title, xlabel="epoch", ylabel="nats per datum")
    if annealed:
        _line(axes[-1], columns["epoch"], columns["beta"], "beta", 3)
        axes[-1].set(title="beta", xlabel="epoch", ylabel="weight of the KL")
    for own in axes:
        if history.best_epoch is not None:
            own.axvline(history.best_epoch, color="0.6", linestyle=":", linewidth=1, label="best epoch")
        whole_ticks(own.xaxis)
        if own.get_title() != "beta":
            own.legend(fontsize=SMALL + 1)
    return figure


def _line(axes: Axes, x: list[float], y: list[float], name: str, place: int) -> None:
    """A line with marks, twenty at most, so that one of a single epoch is seen too."""
    axes.plot(x, y, label=name, markersize=4, markevery=max(1, len(x) // 20), linewidth=1.4, **cycle(place))


@partial(checks.arguments, "plots.rate_distortion")
def rate_distortion(found: RateDistortionCurve | RateDistortion | History) -> Figure:
    """Distortion against rate, in nats per datum; along a gray line -ELBO, their sum, is the same.

    Args:
        found: programs over beta, of :func:`~pyro_vae.evaluation.rate_distortion_curve`, with two standard errors; one
            program; or a history, whose epochs are a path, of validation data where there are some.

    Raises:
        ValueError: a history without an epoch, or without finite figures.

    References:
        Alemi et al., "Fixing a broken ELBO", 2018, https://arxiv.org/abs/1711.00464

    Example:
        >>> rows = [
        ...     {"epoch": e, "train_elbo": -9.0 / e, "train_expected_log_likelihood": -8.0 / e, "train_kl": 1.0 / e}
        ...     for e in (1, 2)
        ... ]
        >>> (axes,) = rate_distortion(History(epochs=rows)).axes
        >>> [list(map(float, values)) for values in axes.lines[0].get_data()]
        [[1.0, 0.5], [8.0, 4.0]]
    """
    figure, (axes,) = panels(1, height=4.2)
    if isinstance(found, History):
        rates, distortions = _path(axes, found)
    else:
        points = found.points if isinstance(found, RateDistortionCurve) else {1.0: found}
        rates, distortions = [p.rate.value for p in points.values()], [p.distortion.value for p in points.values()]
        errors = [[2 * getattr(p, part).standard_error for p in points.values()] for part in ("rate", "distortion")]
        axes.errorbar(rates, distortions, xerr=errors[0], yerr=errors[1], marker="o", capsize=2, color=COLORS[0])
        for beta, point in points.items() if isinstance(found, RateDistortionCurve) else ():
            axes.annotate(f"β={beta:g}", (point.rate.value, point.distortion.value), (6, 6), textcoords="offset points")
    _sums(axes, rates, distortions)
    axes.set(xlabel="rate, KL(q(z|x) ‖ p(z)), nats per datum", ylabel="distortion, −E_q[log p(x|z)], nats per datum")
    return figure


def _path(axes: Axes, history: History) -> tuple[list[float], list[float]]:
    """The epochs of a history as points, the first and the last named."""
    columns = history.columns()
    prefix = "validation" if "validation_kl" in columns else "train"
    if f"{prefix}_kl" not in columns:
        raise ValueError(
            "plots.rate_distortion: expected a history of at least one epoch, with the figures of fit; got "
            f"{len(history)} epochs. Train for an epoch at least."
        )
    pairs = zip(columns["epoch"], columns[f"{prefix}_kl"], columns[f"{prefix}_expected_log_likelihood"], strict=True)
    points = [(epoch, kl, -likelihood) for epoch, kl, likelihood in pairs if math.isfinite(kl + likelihood)]
    if not points:
        raise ValueError("plots.rate_distortion: expected finite figures; got none in the history. Train anew.")
    _, rates, distortions = map(list, zip(*points, strict=True))
    axes.plot(rates, distortions, "-o", color=COLORS[0], markersize=4, label=f"epochs, {prefix} data")
    for (epoch, rate, distortion), marker, place in ((points[0], "s", 1), (points[-1], "D", 2)):
        axes.plot(rate, distortion, marker, color=COLORS[place], markersize=9, label=f"epoch {epoch:g}")
    axes.legend(fontsize=SMALL + 1)
    return rates, distortions


def _sums(axes: Axes, rates: list[float], distortions: list[float]) -> None:
    """Lines of equal -ELBO behind the points, each with its value."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    low, high = left + bottom, right + top
    for share in (0.2, 0.4, 0.6, 0.8):
        total = low + share * (high - low)
        axes.axline((left, total - left), slope=-1, color="0.85", linewidth=0.8, zorder=0)
        x = max(left, total - top) + 0.01 * (right - left)
        below = total - top > left  # of a line that begins at the upper edge
        axes.annotate(
            f"{total:.4g}", (x, total - x), color="0.4", fontsize=SMALL, zorder=0, va="top" if below else "bottom"
        )
    axes.set(xlim=(left, right), ylim=(bottom, top))
