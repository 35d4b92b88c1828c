"""Pictures of images: in a grid, beside their reconstructions, and as a model draws them.

Shapes: N data, C channels, H rows, W columns.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import checks
from pyro_vae.plots.runs import View, viewed
from pyro_vae.style import SMALL, WIDTH

_ACROSS = 8  # images


def images(x: Tensor, columns: int = 8, *, caption: str = "") -> Figure:
    """A grid of images.

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
    rows = -(-len(x) // columns)
    figure = Figure(figsize=(columns * 0.8, rows * 0.8 * x.shape[2] / x.shape[3]), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(_grid(x, columns), "gray", vmin=0, vmax=1)
    axes.set_axis_off()
    if caption:
        figure.suptitle(caption, fontsize="small", wrap=True)
        figure.set_figheight(figure.get_figheight() + 0.45)
    return figure


def reconstructions(x: Tensor, reconstructed: Tensor, columns: int = 8, *, caption: str = "") -> Figure:
    """Rows of originals, each above a row of their reconstructions.

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


@partial(checks.arguments, "plots.reconstructed")
def reconstructed(program: Any, data: Any, *context: Tensor, num_images: int = 8, seed: int = 0) -> Figure:
    """Originals, the mean of p(x|z) and a draw x' ~ p(x|z) below each, and below these its -log p(x|z) in nats.

    All three are of one draw z ~ q(z|x). A likelihood without a mean, such as one of categories, has draws alone.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        data: images, a Dataset or x, the first argument of model and guide, of which the first are shown.
        context: their further arguments.
        num_images: to show, eight in a row.
        seed: of all draws; the global generators are left as they were.

    Raises:
        ValueError: data that are no images, or not the program's.

    Example:
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     prior=priors.StandardNormal(2),
        ...     likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), event_shape=(1, 4, 4)),
        ...     posterior=conditionals.DiagonalNormal(nets.MLP((1, 4, 4), [8]), 2),
        ... )
        >>> (axes,) = reconstructed(vae, torch.ones(3, 1, 4, 4)).axes
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['x', 'E[x|z]', 'draw']
        >>> len(axes.get_xticklabels()), axes.get_xlabel()
        (3, '−log p(x|z), nats')
    """
    with viewed("plots.reconstructed", program, data, context, seed, most=num_images) as view:
        scale = Scale.of(view)
        kinds = {"x": view.x, "E[x|z]": view.mean(), "draw": view.draw()}
        shown = {name: scale(x) for name, x in kinds.items() if x is not None}
        nats = (-view.log_likelihood()).tolist()
    n, across = len(view.x), min(_ACROSS, len(view.x))
    bands = [slice(i, min(i + across, n)) for i in range(0, n, across)]
    one = next(iter(shown.values()))
    widest = (WIDTH - 0.9) / _ACROSS
    cell = min(widest, widest * one.shape[3] / one.shape[2])
    height = len(bands) * (len(shown) * cell * one.shape[2] / one.shape[3] + 0.5)
    figure = Figure(
        figsize=(max(4.0 if scale.words else 2.6, 0.9 + across * cell), height + 0.35 * bool(scale.words)),
        layout="constrained",
    )
    for place, band in enumerate(bands):
        axes = figure.add_subplot(len(bands), 1, place + 1)
        rows = [padded(x[band], across) for x in shown.values()]
        show(axes, torch.cat(rows), across)
        label(axes, one, list(shown), [f"{v:.1f}" if abs(v) < 1000 else f"{v:.0f}" for v in nats[band]])
        axes.set_xlabel("−log p(x|z), nats")
    if scale.words:
        figure.suptitle(scale.words, fontsize=SMALL + 1)
    return figure


@partial(checks.arguments, "plots.samples")
def samples(
    program: Any, data: Any, *context: Tensor, num_images: int = 24, mean: bool = True, seed: int = 0
) -> Figure:
    """Data, images at latents of the aggregate posterior q(z) = (1/N) sum_n q(z|x_n), and at latents of the prior.

    Where the prior's are worse than the aggregate posterior's, the prior has mass where no datum is encoded.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        data: images, a Dataset or x, the first argument of model and guide; those shown are chosen by the seed.
        context: their further arguments.
        num_images: of each, eight in a row.
        mean: show E[x|z] rather than draws x ~ p(x|z); a likelihood without a mean has draws in any case.
        seed: of all draws; the global generators are left as they were.

    Raises:
        ValueError: data that are no images, or not the program's.
    """
    checks.flag("plots.samples", "mean", mean)
    with viewed("plots.samples", program, data, context, seed, most=num_images, by_lot=True) as view:
        scale, prior = Scale.of(view), view.from_prior()
        mean = mean and view.mean() is not None and prior.mean() is not None
        kind = "E[x|z]" if mean else "x ~ p(x|z)"

        def drawn(run: View) -> Tensor:
            found = run.mean() if mean else None
            return scale(run.draw() if found is None else found)

        shown = {
            f"data: {len(view.x)} by lot": scale(view.x),
            f"{kind} at draws of the aggregate posterior": drawn(view),
            f"{kind} at draws of the prior": drawn(prior),
        }
    one = next(iter(shown.values()))
    across = min(_ACROSS, len(one))
    rows, aspect = -(-len(one) // across), one.shape[2] / one.shape[3]
    cell = min(WIDTH / _ACROSS, WIDTH / _ACROSS / aspect)
    figure = Figure(
        figsize=(max(3.6, across * cell), 3 * (rows * cell * aspect + 0.32) + 0.3 * bool(scale.words)),
        layout="constrained",
    )
    for place, (title, x) in enumerate(shown.items()):
        axes = figure.add_subplot(3, 1, place + 1)
        show(axes, padded(x, across), across)
        axes.set_axis_off()
        axes.set_title(title, fontsize=SMALL + 2, loc="left")
    if scale.words:
        figure.suptitle(scale.words, fontsize=SMALL + 1)
    return figure


class Scale(NamedTuple):
    """Values as grays from 0 to 1, the same for data and draws.

    Attributes:
        low: shown black.
        high: shown white.
        words: that say so, where these are not 0 and 1.
    """

    low: float
    high: float
    words: str

    @classmethod
    def of(cls, view: View) -> Scale:
        """For the data of a run.

        Raises:
            ValueError: they are no images.
        """
        return cls.for_images(view.subject, view.x)

    @classmethod
    def for_images(cls, subject: str, x: Tensor) -> Scale:
        """For data (N, C, H, W) or (N, H, W)."""
        if x.dim() not in (3, 4) or (x.dim() == 4 and x.shape[1] not in (1, 3)):
            raise ValueError(
                f"{subject}: expected images (N, 1 or 3, height, width) or (N, height, width); got {tuple(x.shape)}. "
                "Use plots.marginals and plots.correlations for tables."
            )
        low, high = float(x[~x.isnan()].amin()), float(x[~x.isnan()].amax())
        if low >= 0 and high <= 1:
            return cls(0.0, 1.0, "")
        high = high if high > low else low + 1
        return cls(low, high, f"black is {low:.3g}, white is {high:.3g} in the unit of the data")

    def __call__(self, x: Tensor) -> Tensor:
        x = x if x.dim() == 4 else x.unsqueeze(1)
        return ((x.detach().cpu().float() - self.low) / (self.high - self.low)).nan_to_num(0.5).clamp(0, 1)


def padded(x: Tensor, across: int) -> Tensor:
    """Images and white ones, to a multiple of a row's."""
    return torch.cat([x, x.new_ones(-len(x) % across, *x.shape[1:])])


def _grid(x: Tensor, columns: int) -> Any:
    """Images (N, C, H, W) side by side, each with a white border of a pixel, as matplotlib takes them."""
    n, channels, height, width = x.shape
    rows = -(-n // columns)
    cells = torch.ones(rows * columns, channels, height + 2, width + 2)
    cells[:n, :, 1:-1, 1:-1] = x.detach().cpu().float().clamp(0, 1)
    grid = cells.reshape(rows, columns, channels, height + 2, width + 2).permute(0, 3, 1, 4, 2)
    return grid.reshape(rows * (height + 2), columns * (width + 2), channels).squeeze(-1).numpy()


def show(axes: Axes, x: Tensor, columns: int) -> None:
    """Images (N, C, H, W) with values in [0, 1] side by side, so many in a row."""
    axes.imshow(_grid(x, columns), "gray", vmin=0, vmax=1, interpolation="nearest")


def label(axes: Axes, one: Tensor, rows: list[str], columns: list[str], every: int = 1) -> None:
    """Names of the rows of a grid at its left, and of its columns below it, or of some of them."""
    height, width = one.shape[2] + 2, one.shape[3] + 2
    for axis, names, size in ((axes.yaxis, rows, height), (axes.xaxis, columns, width)):
        places = range(0, len(names), every)
        axis.set_ticks([(i + 0.5) * size - 0.5 for i in places], [names[i] for i in places], fontsize=SMALL + 1)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
