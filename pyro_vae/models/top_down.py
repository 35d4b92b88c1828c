r"""A deep hierarchy of latents that shares one path from the top down to the data, as very deep VAEs do.

Groups of latents :math:`z_0, \dots, z_N` are drawn from coarse to fine. A deterministic state h of feature maps runs
through all of them, and each group adds its own,

.. math::
    p(x, z) = p(x|h_{N+1}) \prod_i p(z_i|h_i), \qquad q(z|x) = \prod_i q(z_i|h_i, f_i(x)), \qquad
    h_{i+1} = b_i(h_i + a_i(h_i) + e_i(z_i)),

with Normals whose parameters are residual networks of :math:`h_i`, which is a function of :math:`z_0, \dots, z_{i-1}`,
and of features :math:`f_i` of the data at the group's resolution. Model and guide share the path, so that a latent may
depend on all that are above it and the guide has little left to learn: the posterior differs from the prior where the
data tell something new.

Shapes: C channels, H rows, W columns.

References:
    Child, "Very deep VAEs generalize autoregressive models and can outperform them on images", 2021,
    https://arxiv.org/abs/2011.10650
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn

from pyro_vae import checks
from pyro_vae.family import positive
from pyro_vae.likelihoods import Likelihood
from pyro_vae.models.program import (
    ProgramModule,
    RootModule,
    check_batch,
    check_observed,
    check_part,
    data_size,
)
from pyro_vae.nets.layers import halvings
from pyro_vae.nets.top_down import Features, Group, Posterior, run

_NAME = "TopDownVAE"

Draw = Callable[[str, TorchDistribution], Tensor]
"""From a site's name and distribution to a draw: ``pyro.sample``, or a stand-in outside of Pyro."""


class TopDownModel(RootModule):
    """The model with sites ``"z0"``, ..., ``"zN"`` and ``"x"`` in the plate ``"data"``.

    Args:
        start: (C, H, W) of the state that the path begins with.
        groups: of latents, coarsest first.
        likelihood: p(x|h) of the last state.
        checkpoint: compute the path's activations anew when gradients are taken.
    """

    def __init__(self, start: Size, groups: Sequence[Group], likelihood: Likelihood, *, checkpoint: bool) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.start = nn.Parameter(torch.zeros(start))
        self.groups = nn.ModuleList(groups)
        self.likelihood = likelihood

    def path(self, draw: Callable[[int, Tensor, TorchDistribution], Tensor]) -> Tensor:
        """The last state, (\\*lead, C, H, W).

        Args:
            draw: from a group's number, the state that it finds and its prior to its latents.
        """
        h = cast(Tensor, self.start)
        for number, group in enumerate(cast(list[Group], list(self.groups))):
            h = group.enlarged(h)
            parameters = run(group.prior, h, again=self.checkpoint)
            loc, log_scale, added = parameters.split([group.latent_channels, group.latent_channels, h.shape[-3]], -3)
            z = draw(number, h, _normal(loc, log_scale))
            h = run(group.after, h + added, z, again=self.checkpoint)
        return h

    def forward(self, x: Tensor | None = None, *context: Tensor, size: int | None = None) -> Tensor:
        """Runs the model.

        Args:
            x: observed data (N, \\*event_shape), or None to generate.
            context: what the likelihood takes beside the state, (N, ...) each.
            size: number of data when there is no x; the context's, else 1, when left out.

        Returns:
            x, observed or sampled.
        """
        likelihood = self.likelihood
        check_observed(likelihood, x, context)
        with pyro.plate("data", data_size(_NAME, x, context, size)):
            h = self.path(lambda number, _, prior: pyro.sample(f"z{number}", prior))
            return pyro.sample("x", likelihood(h, *context), obs=x)


class TopDownGuide(RootModule):
    """The guide over ``"z0"``, ..., ``"zN"``, drawn in the model's order, in the plate ``"data"``.

    Args:
        features: of the data, at every resolution.
        posteriors: a network from state and features to the parameters of q, for each group.
        levels: the resolution of each group, as the place of its features.
        model: whose path the guide runs through.
    """

    def __init__(
        self, features: Features, posteriors: Sequence[nn.Module], levels: Sequence[int], model: TopDownModel
    ) -> None:
        super().__init__()
        self.features = features
        self.posteriors = nn.ModuleList(posteriors)
        self.levels = tuple(levels)
        # A tuple, because a second registration would put the model's parameters into the state_dict twice.
        self._model = (model,)

    def infer(self, x: Tensor, draw: Draw) -> tuple[dict[str, Tensor], Tensor]:
        """The draws by name, in their order, and the last state, for x of shape (\\*lead, \\*event_shape)."""
        (model,) = self._model
        _check_image(x, model.likelihood.event_shape, model.start)
        maps = self.features(torch.where(x.isnan(), 0.0, x) if model.likelihood.missing else x)
        draws: dict[str, Tensor] = {}

        def posterior(number: int, h: Tensor, _: TorchDistribution) -> Tensor:
            network, seen = self.posteriors[number], maps[self.levels[number]]
            loc, log_scale = run(network, h, seen, again=model.checkpoint).chunk(2, -3)
            z = draws[f"z{number}"] = draw(f"z{number}", _normal(loc, log_scale))
            return z

        return draws, model.path(posterior)

    def forward(self, x: Tensor | None = None, *context: Tensor, size: int | None = None) -> dict[str, Tensor]:
        """Draws every latent for data x of shape (N, \\*event_shape); takes the model's arguments."""
        if x is None:
            raise ValueError("Guide: expected data x; got None. q(z|x) has no draw without x: run the model instead.")
        (model,) = self._model
        check_batch(_NAME, x, model.likelihood.event_shape)
        with pyro.plate("data", data_size(_NAME, x, context, size)):
            return self.infer(x, pyro.sample)[0]


class TopDownVAE(ProgramModule):
    """A variational autoencoder of images with tens of groups of latents at several resolutions.

    Shapes: C channels, H rows, W columns.

    A plain ``nn.Module`` that holds the two programs ``model`` and ``guide``, as :class:`~pyro_vae.VAE` does. At the
    start every prior is a standard Normal, and no group adds to the state by more than 1/sqrt(number of groups), so
    that twenty groups train as one does. Deep hierarchies have a rare step whose gradient is of another order: give
    ``fit`` a ``max_grad_norm``, and ``nonfinite="skip"`` for long runs. Data are taken as they are: on a scale of
    about 1, as pixels in [0, 1] are.

    Args:
        likelihood: p(x|h), of :mod:`pyro_vae.likelihoods`. Its body takes feature maps (C, H, W) of the image's height
            and width, as :class:`~pyro_vae.nets.ResidualMaps` does; C is the number of channels everywhere.
        groups: numbers of groups of latents at each resolution, coarsest first. The last resolution is the image's own,
            each before it has half the height and width, rounded up. For 32x32 pixels ``[2, 3, 4, 5, 4, 2]`` begins at
            1x1.
        latent_channels: of each group; a group has as many latents for each of its pixels.
        blocks: residual blocks of the encoder at each resolution.
        activation: class of the non-linearity.
        checkpoint: compute the activations of the path anew when gradients are taken, in place of holding them: up
            to a third more time for a fraction of the memory, and the same gradients.

    Raises:
        TypeError: no likelihood; a number that is no whole one.
        ValueError: a likelihood whose body takes no feature maps of the image's size, no group at the image's own
            resolution, too many resolutions for the image.

    References:
        Child, "Very deep VAEs generalize autoregressive models and can outperform them on images", 2021,
        https://arxiv.org/abs/2011.10650
        Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost", 2016,
        https://arxiv.org/abs/1604.06174 (checkpoint)

    Example:
        >>> from pyro_vae import likelihoods, nets
        >>> likelihood = likelihoods.DiscretizedLogistic(nets.ResidualMaps((8, 4, 4)), (3, 4, 4))
        >>> vae = TopDownVAE(likelihood, groups=[1, 2, 1], latent_channels=2)
        >>> {name: tuple(q.event_shape) for name, q in vae.encode(torch.zeros(5, 3, 4, 4)).items()}
        {'z0': (2, 1, 1), 'z1': (2, 2, 2), 'z2': (2, 2, 2), 'z3': (2, 4, 4)}
        >>> vae.sample(5).shape
        torch.Size([5, 3, 4, 4])
    """

    observed = ("x",)

    def __init__(
        self,
        likelihood: Likelihood,
        groups: Sequence[int],
        *,
        latent_channels: int = 8,
        blocks: int = 2,
        activation: Callable[[], nn.Module] = nn.SiLU,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        check_part(_NAME, "likelihood", likelihood, Likelihood, "likelihoods")
        checks.flag(_NAME, "checkpoint", checkpoint)
        latents, blocks = (
            checks.whole(_NAME, name, value)
            for name, value in (("latent_channels", latent_channels), ("blocks", blocks))
        )
        channels, sizes = _maps(likelihood, groups)
        levels = [level for level, count in enumerate(groups) for _ in range(count)]
        made = [
            Group(
                channels,
                latents,
                sizes[above + 1 : level + 1] or [sizes[level]],
                len(levels),
                activation,
                enlarge=above < level,
            )
            for above, level in zip([levels[0], *levels], levels, strict=False)
        ]
        start = Size((channels, *sizes[levels[0]]))
        self.model = TopDownModel(start, made, likelihood, checkpoint=checkpoint)
        features = Features(likelihood.event_shape, sizes, channels, blocks, activation, checkpoint=checkpoint)
        posteriors = [Posterior(group, channels, len(levels) ** -0.5, activation) for group in made]
        self.guide = TopDownGuide(features, posteriors, levels, self.model)

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the latent sites, the coarsest, ``"z0"``, first."""
        return tuple(f"z{number}" for number in range(len(self.guide.posteriors)))

    @property
    def likelihood(self) -> Likelihood:
        """p(x|h)."""
        return self.model.likelihood

    def encode(self, x: Tensor) -> dict[str, TorchDistribution]:
        """The guide's distribution of every group, by name, along one draw of those above it.

        Args:
            x: data of shape (\\*lead, \\*event_shape).
        """
        distributions: dict[str, TorchDistribution] = {}

        def draw(name: str, distribution: TorchDistribution) -> Tensor:
            distributions[name] = distribution
            return distribution.rsample()

        self.guide.infer(x, draw)
        return distributions

    def decode(self, latents: Mapping[str, Tensor], *context: Tensor) -> TorchDistribution:
        """p(x|z) for the latents of all groups by name, of shape (\\*lead, latent_channels, H, W) each."""
        if missing := [name for name in self.latents if name not in latents]:
            raise ValueError(
                f"{_NAME}.decode: expected latents {list(self.latents)}; got none for {missing}. Give all of them, as "
                "guide(x) draws them."
            )
        return self.likelihood(self.model.path(lambda number, *_: latents[f"z{number}"]), *context)

    @torch.no_grad()
    def sample(self, size: int, *context: Tensor, mean: bool = False) -> Tensor:
        """Draws (size, \\*event_shape) data from the model.

        Args:
            size: number of data.
            context: what the likelihood takes beside the state, (size, ...) each.
            mean: return E[x|z] in place of the draw of x, as pictures in papers do.
        """
        size = checks.whole(f"{_NAME}.sample", "size", size)
        checks.flag(f"{_NAME}.sample", "mean", mean)

        def draw(_: int, h: Tensor, prior: TorchDistribution) -> Tensor:
            return prior.sample() if h.dim() == 4 else prior.sample(Size((size,)))

        distribution = self.likelihood(self.model.path(draw), *context)
        return distribution.mean if mean else distribution.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *context: Tensor) -> Tensor:
        """E[x' | z] at one draw of the guide, of the shape of x."""
        _, h = self.guide.infer(x, lambda _, distribution: distribution.sample())
        return self.likelihood(h, *context).mean


def _check_image(x: object, event_shape: Size, like: Tensor) -> None:
    checks.instance(_NAME, "x", x, Tensor, "Use torch.as_tensor.")
    assert isinstance(x, Tensor)
    if x.shape[-3:] != event_shape:
        raise ValueError(
            f"{_NAME}: expected data of shape (..., {', '.join(map(str, event_shape))}); got {tuple(x.shape)}. Reshape "
            "the data, or build the networks for their shape."
        )
    if (x.dtype, x.device) != (like.dtype, like.device):
        raise TypeError(
            f"{_NAME}: expected inputs of {like.dtype} on {like.device}, like the parameters; got {x.dtype} on "
            f"{x.device}. Convert with .to({like.dtype}), or move one of them."
        )


def _normal(loc: Tensor, log_scale: Tensor) -> TorchDistribution:
    """Of maps; in single precision under autocast too, because densities are not for eight bits."""
    full = torch.float32 if loc.dtype == torch.bfloat16 else loc.dtype
    try:
        return dist.Normal(loc.to(full), positive(log_scale.to(full))).to_event(3)
    except ValueError as error:
        if "Expected parameter" not in str(error):  # torch's words, with all the values
            raise
        raise ValueError(
            f"{_NAME}: expected networks with finite outputs; got NaN or infinity for latents of shape "
            f"{tuple(loc.shape[-3:])}. Replace what is not finite in the data, and scale them to about 1."
        ) from error


def _maps(likelihood: Likelihood, groups: Sequence[int]) -> tuple[int, list[tuple[int, int]]]:
    """The number of channels, and heights and widths of the resolutions, coarsest first."""
    image, maps = likelihood.event_shape, likelihood.body.input_shapes[0]
    if len(image) != 3 or len(maps) != 3 or maps[1:] != image[1:]:
        raise ValueError(
            f"{_NAME}: expected a likelihood of images (channels, H, W) whose body takes feature maps (C, H, W); got "
            f"data of shape {tuple(image)} and a body of {tuple(maps)}. Use nets.ResidualMaps((16, H, W))."
        )
    checks.instance(_NAME, "groups", groups, Sequence, "Give a list of numbers, coarsest first.")
    counts = [checks.whole(_NAME, "every number of groups", count, 0) for count in groups]
    if not counts or not counts[-1]:
        raise ValueError(
            f"{_NAME}: expected groups of latents at the image's own resolution, the last; got groups={list(groups)}. "
            "Give at least one there."
        )
    sizes = halvings(image, len(counts) - 1)[::-1]
    if len(sizes) > 1 and sizes[0] == sizes[1]:
        raise ValueError(
            f"{_NAME}: expected resolutions that halve the one below; got {len(sizes)} for {image[1]}x{image[2]} "
            f"pixels, {sizes}. Give fewer numbers of groups."
        )
    return maps[0], sizes
