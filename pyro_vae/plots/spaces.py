"""Pictures of the latents: what lies between two of them, all of a plane, and where the data are.

Shapes: N data, L elements of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Normal

from pyro_vae import checks
from pyro_vae.distributions import log_simplex
from pyro_vae.plots.pictures import Scale, label, show
from pyro_vae.plots.runs import View, viewed
from pyro_vae.style import COLORS, MARKERS, SMALL, WIDTH, panels
from pyro_vae.traces.tracing import Site

Method = Literal["pca", "tsne", "umap"]
Path = Callable[[Tensor, Tensor, float], Tensor]

_HIGH = 6
"""With at least so many elements of a Normal latent, a line between two draws leaves where draws are; see below."""
_CLASSES = 20  # that a legend tells apart


@partial(checks.arguments, "plots.interpolations")
def interpolations(
    program: Any, data: Any, *context: Tensor, num_pairs: int = 5, num_steps: int = 7, seed: int = 0
) -> Figure:
    r"""Images on the way between the latents of two data, each at a draw z ~ q(z|x).

    The way depends on the prior: great circles on a sphere; lines between proportions for latents on the simplex; for
    a Normal of L >= 6 elements great circles too, with lengths that go from one end's to the other's, in units of the
    prior's scales about its mean; lines otherwise. Draws of Normal(0, I) have a length of :math:`\sqrt L \pm 0.7`,
    and the middle of the line between two of them has :math:`\sqrt{L/2}`, which for L = 6 is a standard deviation
    short of it, and for L = 50 three, where hardly any draw is and the decoder was not trained.

    Contexts are those of the left end.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        data: images, a Dataset or x, the first argument of model and guide; the ends are chosen by the seed.
        context: their further arguments.
        num_pairs: rows.
        num_steps: images in a row, beside the two data, at least 2.
        seed: of all draws; the global generators are left as they were.

    Raises:
        ValueError: discrete latents, between which there is nothing; fewer than two data, or no images.

    References:
        White, "Sampling generative networks", 2016, https://arxiv.org/abs/1609.04468
    """
    checks.whole("plots.interpolations", "num_pairs", num_pairs)
    checks.whole("plots.interpolations", "num_steps", num_steps, 2)
    with viewed("plots.interpolations", program, data, context, seed, most=2 * num_pairs, by_lot=True) as view:
        scale, pairs = Scale.of(view), len(view.x) // 2
        if not pairs:
            raise ValueError("plots.interpolations: expected at least 2 data; got 1. Pass more.")
        paths = {name: _path(view.subject, name, prior) for name, (prior, _) in view.latents.items()}
        between = [_between(view, {n: p for n, (p, _) in paths.items()}, i / (num_steps - 1)) for i in range(num_steps)]
        columns = [scale(x[:pairs]) for x in (view.x, *between, view.x[pairs:])]
    words = "; ".join(dict.fromkeys(words for _, words in paths.values()))
    grid = torch.stack(columns, 1).flatten(0, 1)
    across, aspect = num_steps + 2, grid.shape[2] / grid.shape[3]
    cell = WIDTH / across
    figure = Figure(figsize=(WIDTH, pairs * cell * aspect + 0.9), layout="constrained")
    axes = figure.add_subplot()
    show(axes, grid, across)
    middle = [f"{i / (num_steps - 1):.2g}" for i in range(num_steps)]
    label(axes, grid, [], ["x", *middle, "x′"])
    axes.set_xlabel("share of the way from z ~ q(z|x) to z′ ~ q(z|x′)")
    axes.set_title("\n".join(filter(None, (words, scale.words))), fontsize=SMALL + 1, wrap=True)
    return figure


def _between(view: View, paths: dict[str, Path], share: float) -> Tensor:
    """E[x|z], or where there is none x ~ p(x|z), at a share of the way from the first half of the data to the other."""
    half = len(view.x) // 2
    ends = {name: view.drawn(name) for name in paths}
    there = {
        name: torch.cat([path(ends[name][:half], ends[name][half : 2 * half], share)] * 2 + [ends[name][2 * half :]])
        for name, path in paths.items()
    }
    run = view.at(there)
    mean = run.mean()
    return run.draw() if mean is None else mean


def _path(subject: str, name: str, prior: Site) -> tuple[Path, str]:
    """How to go from one latent to another under a prior, and how that is said."""
    fn = prior["fn"]
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support.is_discrete:
        raise ValueError(
            f"{subject}: expected continuous latents; got those of site {name!r}, {type(fn).__name__}, between which "
            "there is nothing. Use plots.samples."
        )
    if support is constraints.sphere:
        return great_circle, "along great circles of the prior's sphere"
    if support is log_simplex:
        return _mixture, "along lines between proportions"
    normal, size = _normal(fn), fn.event_shape.numel()
    if normal is None or size < _HIGH:
        return torch.lerp, "along lines"
    loc, deviation = (part.expand(fn.shape()).flatten(0, -1 - fn.event_dim)[0] for part in (normal.loc, normal.scale))

    def circle(first: Tensor, second: Tensor, share: float) -> Tensor:
        one, other = (((z - loc) / deviation).flatten(1) for z in (first, second))
        return great_circle(one, other, share).reshape(first.shape) * deviation + loc

    return circle, f"along great circles: draws of {size} Normal latents have lengths about √{size} = {size**0.5:.1f}"


def _normal(fn: Any) -> Normal | None:
    """The Normal that a distribution is a product of, the same for all data."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if not isinstance(fn, Normal):
        return None
    parts = [part.expand(fn.batch_shape) for part in (fn.loc, fn.scale)]
    return fn if all(bool((part == part[:1]).all()) for part in parts) else None


def great_circle(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Vectors (..., L) on the way from some to others by turning, with lengths from those of the ones to the others'.

    Args:
        first: where the way begins.
        second: where it ends.
        share: of the way.

    Raises:
        ValueError: opposite ones, between which there is no one way.

    Example:
        >>> great_circle(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0]), 0.5)  # 3 times (cos 45°, sin 45°)
        tensor([2.1213, 2.1213])
    """
    lengths = [z.norm(dim=-1, keepdim=True) for z in (first, second)]
    units = [z / length for z, length in zip((first, second), lengths, strict=True)]
    angle = (units[0] * units[1]).sum(-1, keepdim=True).clamp(-1, 1).acos()
    if bool((angle > math.pi - 1e-3).any()) or bool((torch.cat(lengths) == 0).any()):
        raise ValueError(
            "plots.interpolations: expected latents that are neither 0 nor opposite, between which there is one great "
            "circle; got such. Take another seed."
        )
    small = angle < 1e-3
    safe = torch.where(small, 1.0, angle)
    weights = [torch.where(small, s, (s * safe).sin() / safe.sin()) for s in (1 - share, share)]
    turned = weights[0] * units[0] + weights[1] * units[1]
    return turned * torch.lerp(lengths[0], lengths[1], share)


def _mixture(first: Tensor, second: Tensor, share: float) -> Tensor:
    return torch.lerp(first.exp(), second.exp(), share).log()


@partial(checks.arguments, "plots.manifold")
def manifold(program: Any, data: Any, *context: Tensor, num_steps: int = 15, seed: int = 0) -> Figure:
    """All that a latent of two elements stands for: E[x|z] at quantiles of the prior's marginals.

    The quantiles are (i + 1/2) / ``num_steps``, so that each image stands for as much of the prior as each other where
    the two elements are independent. Contexts are those of the first datum.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        data: images, a Dataset or x, the first argument of model and guide.
        context: their further arguments.
        num_steps: images in a row and in a column.
        seed: of draws of a prior whose quantiles are not known in closed form.

    Raises:
        ValueError: other latents than two real elements, or data that are no images.

    Example:
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     prior=priors.StandardNormal(2),
        ...     likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), event_shape=(1, 4, 4)),
        ...     posterior=conditionals.DiagonalNormal(nets.MLP((1, 4, 4), [8]), 2),
        ... )
        >>> (axes,) = manifold(vae, torch.ones(1, 1, 4, 4), num_steps=3).axes
        >>> [label.get_text() for label in axes.get_xticklabels()]  # the quantiles 1/6, 1/2 and 5/6
        ['-0.97', '0', '0.97']
    """
    steps = checks.whole("plots.manifold", "num_steps", num_steps, 2)
    with viewed("plots.manifold", program, data, context, seed, most=steps**2, repeat=True) as view:
        scale = Scale.of(view)
        name, prior = _of_a_plane(view)
        quantiles = _quantiles(prior, steps)
        across, up = torch.meshgrid(quantiles[:, 0], quantiles[:, 1].flip(0), indexing="xy")
        shape = view.drawn(name).shape
        run = view.at({name: torch.stack([across, up], -1).reshape(shape)})
        mean = run.mean()
        grid = scale(run.draw() if mean is None else mean)
    aspect = grid.shape[2] / grid.shape[3]
    figure = Figure(figsize=(WIDTH, (WIDTH - 0.8) * aspect + 1.0), layout="constrained")
    axes = figure.add_subplot()
    show(axes, grid, steps)
    up_names, across_names = ([f"{q:.2g}" for q in side.tolist()] for side in (up[:, 0], across[0]))
    label(axes, grid, up_names, across_names, every=-(-steps // 8))
    axes.set(xlabel=f"{name}[0]", ylabel=f"{name}[1]")
    kind = "x ~ p(x|z)" if mean is None else "E[x|z]"
    first = f"{kind} at the quantiles {0.5 / steps:.2f}, {1.5 / steps:.2f}, ..., {1 - 0.5 / steps:.2f} of the prior"
    axes.set_title("\n".join(filter(None, (first, scale.words))), fontsize=SMALL + 1)
    return figure


def _of_a_plane(view: View) -> tuple[str, Site]:
    """The latent of two real elements."""
    found = {name: (prior["fn"].event_shape, prior["fn"].support) for name, (prior, _) in view.latents.items()}
    sizes = {name: shape.numel() for name, (shape, _) in found.items()}
    special = any(s in (constraints.sphere, log_simplex) or s.is_discrete for _, s in found.values())
    if list(sizes.values()) != [2] or special:
        raise ValueError(
            f"plots.manifold: expected one latent of 2 real elements; got {sizes} elements"
            f"{', of a sphere, a simplex or discrete' if special else ''}. Use plots.interpolations or plots.samples."
        )
    (name,) = found
    return name, view.latents[name][0]


def _quantiles(prior: Site, steps: int) -> Tensor:
    """(steps, 2) values at equally spaced probabilities of each marginal."""
    fn, shares = prior["fn"], (torch.arange(steps) + 0.5) / steps
    normal = _normal(fn)
    if normal is not None:
        loc, deviation = (part.expand(fn.shape()).reshape(-1, 2)[0] for part in (normal.loc, normal.scale))
        return loc + deviation * torch.special.ndtri(shares).to(loc)[:, None]
    draws = fn.sample((64,)).reshape(-1, 2)
    return draws.quantile(shares.to(draws), dim=0)


@partial(checks.arguments, "plots.latents")
def latents(
    program: Any,
    data: Any,
    *context: Tensor,
    labels: Any = None,
    method: Method = "pca",
    max_data: int = 1000,
    seed: int = 0,
) -> Figure:
    """Where the data are among the latents: E_q[z|x] of each, or a draw where there is no mean, by label.

    Two elements are shown as they are; of more, ``"pca"`` keeps the two directions of most variance, while ``"tsne"``
    and ``"umap"`` keep neighbors together: in these two, distances between groups and their sizes mean nothing.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        data: a Dataset or x, the first argument of model and guide.
        context: their further arguments.
        labels: of the data, (N,): classes, or numbers of any kind; those of the Dataset when left out.
        method: for latents of more than two elements; ``"umap"`` needs ``pip install 'pyro-vae[plots]'``.
        max_data: show so many of the data, chosen by the seed.
        seed: of all draws; the global generators are left as they were.

    Raises:
        ImportError: UMAP is asked for and not installed.
        ValueError: fewer than 5 data; latents that are the same for all data; labels of another length.

    References:
        van der Maaten, Hinton, "Visualizing data using t-SNE", 2008, https://www.jmlr.org/papers/v9/vandermaaten08a.html
        McInnes, Healy, Melville, "UMAP", 2018, https://arxiv.org/abs/1802.03426
    """
    checks.choice("plots.latents", "method", method, ["pca", "tsne", "umap"])
    labels = getattr(data, "labels", None) if labels is None else labels
    with viewed("plots.latents", program, data, context, seed, most=max_data, by_lot=True) as view:
        centers = {name: view.centers(name).flatten(1).cpu().double() for name in view.latents}
        chosen = view.chosen
    groups = None if labels is None else groups_of(labels, view.num_given, chosen)
    if len(chosen) < 5:
        raise ValueError(f"plots.latents: expected at least 5 data; got {len(chosen)}. Pass more.")
    figure, axes = panels(len(centers), height=4.6 if len(centers) == 1 else 3.4)
    for own, (name, z) in zip(axes, centers.items(), strict=True):
        points, names = _plane(name, z, method, seed)
        _scatter(figure, own, points, groups)
        own.set(xlabel=names[0], ylabel=names[1])
    if groups is not None and not isinstance(groups, Tensor):
        marks = axes[0].get_legend_handles_labels()
        place: dict[str, Any] = {"loc": "outside right upper"} if len(axes) == 1 else {"loc": "outside lower center"}
        ncols = 1 if len(axes) == 1 else min(len(groups), 7)
        figure.legend(*marks, **place, ncols=ncols, title="label", fontsize=SMALL + 1, markerscale=1.5)
    return figure


def groups_of(labels: Any, length: int, chosen: Tensor) -> dict[str, Tensor] | Tensor:
    """Which of the chosen data have each label; or their labels as numbers, where these are too many for classes.

    Args:
        labels: of all data.
        length: of the data.
        chosen: places of some.

    Raises:
        ValueError: labels that are not one for each datum, or words of too many kinds.
    """
    try:
        array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        if (
            array.shape != (length,)
            or array.dtype.kind not in "biufU"
            or (array.dtype.kind == "f" and np.isinf(array).any())
        ):
            raise ValueError(f"{array.dtype} of shape {array.shape}")
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"plots.latents: expected labels of shape ({length},), numbers or words; got {error}. Give one for each "
            "datum."
        ) from None
    array = array[chosen.numpy()]
    classes = np.unique(array)
    if len(classes) <= _CLASSES:
        return {str(each): torch.from_numpy(array == each) for each in classes.tolist()}
    if array.dtype.kind == "U":
        raise ValueError(
            f"plots.latents: expected at most {_CLASSES} words as labels; got {len(classes)}. Group them, or give "
            "numbers."
        )
    return torch.from_numpy(array.astype(float))


def _plane(name: str, z: Tensor, method: Method, seed: int) -> tuple[Tensor, tuple[str, str]]:
    """Points of a plane for latents (N, L), and the names of its axes."""
    varies = z.var(0)
    if not bool(varies.max() > 1e-12):
        raise ValueError(
            f"plots.latents: expected latents that differ from datum to datum; got the same {name!r} for all, as of a "
            "collapsed posterior. Raise beta from 0 while training, or use free_bits."
        )
    if z.shape[1] == 1:
        noise = torch.rand(len(z), generator=torch.Generator().manual_seed(seed)).double()
        return torch.stack([z[:, 0], noise], 1), (f"E_q[{name}|x]", "height by lot")
    if z.shape[1] == 2:
        return z, (f"E_q[{name}[0]|x]", f"E_q[{name}[1]|x]")
    if method == "pca":
        from sklearn.decomposition import PCA

        found = PCA(2, svd_solver="full").fit(z.numpy())
        shares = found.explained_variance_ratio_
        axes = [f"direction {i + 1} of E_q[{name}|x]\n({share:.0%} of the variance)" for i, share in enumerate(shares)]
        return torch.from_numpy(found.transform(z.numpy())), (axes[0], axes[1])
    if method == "tsne":
        from sklearn.manifold import TSNE

        fitted = TSNE(2, perplexity=min(30.0, (len(z) - 1) / 3), init="pca", random_state=seed)
    else:
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError(
                "plots.latents: expected umap-learn for method 'umap'; got none. Install it: pip install "
                "'pyro-vae[plots]', or use 'tsne'."
            ) from error
        fitted = UMAP(n_components=2, n_neighbors=min(15, len(z) - 1), random_state=seed, n_jobs=1)
    word = {"tsne": "t-SNE", "umap": "UMAP"}[method]
    return torch.from_numpy(fitted.fit_transform(z.numpy())), (
        f"{word} 1 of {name}, no unit",
        f"{word} 2 of {name}, no unit",
    )


def _scatter(figure: Figure, axes: Axes, points: Tensor, groups: dict[str, Tensor] | Tensor | None) -> None:
    x, y = points.T.numpy()
    size = 16 if len(x) > 500 else 24
    if groups is None:
        axes.scatter(x, y, size, COLORS[0], alpha=0.6, linewidths=0)
    elif isinstance(groups, Tensor):
        known = ~groups.isnan().numpy()
        drawn = axes.scatter(x[known], y[known], size, groups.numpy()[known], cmap="viridis", alpha=0.8)
        figure.colorbar(drawn, ax=axes, label="label")
        if not known.all():
            axes.scatter(x[~known], y[~known], size, "none", edgecolors="0.5", label="no label")
            axes.legend(fontsize=SMALL + 1)
    else:
        for place, (name, rows) in enumerate(groups.items()):
            color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
            larger = 2 if marker == "*" else 1  # whose ink is less
            axes.scatter(x[rows], y[rows], larger * size, color, marker=marker, alpha=0.7, linewidths=0, label=name)
