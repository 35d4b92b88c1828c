"""Figures: images in a grid, reconstructions beside originals, training curves, verdicts on a program."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import checks
from pyro_vae.evaluation import Report
from pyro_vae.training import History


def images(x: Tensor, columns: int = 8, *, caption: str = "") -> Figure:
    """A grid of images.

    Shapes: N data, C channels, H rows, W columns.

    Args:
        x: images (N, C, H, W) with C of 1 or 3 and values in [0, 1]; values outside are shown as the nearest within.
        columns: images per row.
        caption: above the images.

    Raises:
        ValueError: another shape.
    """
    checks.instance("plots.images", "x", x, Tensor, "Give images as a tensor.")
    columns = checks.whole("plots.images", "columns", columns)
    if x.dim() != 4 or x.shape[1] not in (1, 3) or not len(x):
        raise ValueError(
            f"plots.images: expected images (N, 1 or 3, height, width); got {tuple(x.shape)}. Reshape the data."
        )
    n, channels, height, width = x.shape
    rows = -(-n // columns)
    cells = torch.ones(rows * columns, channels, height + 2, width + 2)  # a white border of a pixel around each
    cells[:n, :, 1:-1, 1:-1] = x.detach().cpu().float().clamp(0, 1)
    grid = cells.reshape(rows, columns, channels, height + 2, width + 2).permute(0, 3, 1, 4, 2)
    figure = Figure(figsize=(columns * 0.8, rows * 0.8 * height / width), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(
        grid.reshape(rows * (height + 2), columns * (width + 2), channels).squeeze(-1).numpy(), "gray", vmin=0, vmax=1
    )
    axes.set_axis_off()
    if caption:
        figure.suptitle(caption, fontsize="small", wrap=True)
        figure.set_figheight(figure.get_figheight() + 0.45)
    return figure


def reconstructions(x: Tensor, reconstructed: Tensor, columns: int = 8, *, caption: str = "") -> Figure:
    """Rows of originals, each above a row of their reconstructions.

    Shapes: N data, C channels, H rows, W columns.

    Args:
        x: originals (N, C, H, W).
        reconstructed: of the same shape.
        columns: images per row.
        caption: above the images.
    """
    checks.instance("plots.reconstructions", "reconstructed", reconstructed, Tensor, "Give images as a tensor.")
    checks.instance("plots.reconstructions", "x", x, Tensor, "Give images as a tensor.")
    columns = checks.whole("plots.reconstructions", "columns", columns)
    if x.shape != reconstructed.shape or x.dim() != 4:
        raise ValueError(
            f"plots.reconstructions: expected images of one shape (N, 1 or 3, height, width); got {tuple(x.shape)} and "
            f"{tuple(reconstructed.shape)}. Give a reconstruction for each original."
        )
    pairs = [part for i in range(0, len(x), columns) for part in (x[i : i + columns], reconstructed[i : i + columns])]
    blank = [columns - len(part) for part in pairs]
    return images(
        torch.cat(
            [torch.nn.functional.pad(p, (0, 0) * 3 + (0, b), value=1.0) for p, b in zip(pairs, blank, strict=True)]
        ),
        columns,
        caption=caption,
    )


def curves(history: History) -> Figure:
    """-ELBO, -E_q[log p(x|z)] and KL against epochs, on training and validation data, in nats per datum."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    terms = (("elbo", -1, "-ELBO"), ("expected_log_likelihood", -1, "-E_q[log p(x|z)]"), ("kl", 1, "KL"))
    for axes, (term, sign, title) in zip(figure.subplots(1, 3), terms, strict=True):
        for prefix in ("train", "validation"):
            if f"{prefix}_{term}" in history.columns():
                axes.plot(history["epoch"], [sign * value for value in history[f"{prefix}_{term}"]], label=prefix)
        axes.set(title=title, xlabel="epoch", ylabel="nats per datum")
        axes.legend()
    return figure


def verdicts(report: Report) -> Figure:
    """Figures of a report, as far as they were measured; a title in red is that of a fault.

    The ranks of simulated latents among draws of the guide, those of the data's elements among draws of their
    likelihood, which are both flat for a right program (the line), how much each latent unit moves with the data, and
    the tails of the importance weights; lines are the cut-offs of the last two.
    """
    checks.instance("plots.verdicts", "report", report, Report, "Pass evaluation.report(program, x).")
    found = {finding.name for finding in report.found}
    figure = Figure(figsize=(12, 3), layout="constrained")
    guide, likelihood, units, weights = figure.subplots(1, 4)
    if report.calibration is not None:
        ranks = torch.cat([rank.flatten().cpu() for rank in report.calibration.ranks.values()])
        guide.bar(range(0, 100, 5), (torch.bincount(ranks // 5, minlength=20) / len(ranks)).tolist(), 5, align="edge")
        guide.axhline(0.05, color="black", linewidth=1)
    if report.predictive is not None:
        likelihood.bar(range(0, 100, 5), report.predictive.histogram.tolist(), 5, align="edge")
        likelihood.axhline(0.05, color="black", linewidth=1)
    if report.units is not None:
        variances = torch.cat([variance.flatten().cpu() for variance in report.units.variance.values()])
        units.bar(range(len(variances)), variances.sort(descending=True).values.tolist())
        units.axhline(report.units.threshold, color="black", linewidth=1)
    k_hat = report.log_marginal_likelihood.pareto_k.cpu()
    weights.hist(k_hat[k_hat.isfinite()].tolist(), bins=20)
    weights.axvline(0.7, color="black", linewidth=1)
    shape = "(U: too narrow, dome: too wide)"
    spread = {"likelihood of wrong spread", "likelihood of wrong tails"}
    for axes, title, x, y, names in (
        (
            guide,
            "guide",
            f"rank of simulated latents\n{shape}",
            "share",
            {"narrow guide", "wide guide"},
        ),
        (likelihood, "likelihood", f"rank of elements\n{shape}", "share", spread),
        (units, "latent units", "unit, sorted", "Var E_q[z]", {"unused units", "collapsed posterior"}),
        (weights, "importance weights", "Pareto k-hat", "data", {"unreliable importance weights"}),
    ):
        axes.set_title(title, color="red" if names & found else "black")
        axes.set(xlabel=x, ylabel=y)
    return figure
