r"""Variational autoencoders with several stochastic layers, as Pyro programs.

The model draws from the top down to the data, layer 1 being the nearest to x,

.. math:: p(x, z_1, \dots, z_L) = p(z_L)\, p(z_{L-1}|z_L) \cdots p(z_1|z_2)\, p(x|z_1),

and there are two guides. The bottom-up guide draws each layer from the one below it,

.. math:: q(z_1, \dots, z_L|x) = q(z_1|x)\, q(z_2|z_1) \cdots q(z_L|z_{L-1}).

The top-down guide, a ladder, first computes features of x without drawing, layer by layer, then draws in the model's
own order. At each layer it multiplies what the data say, a Normal message :math:`m_l(z_l; x)`, with what the model
says:

.. math:: q(z_L|x) = m_L(z_L; x), \qquad q(z_l|z_{l+1}, x) \propto m_l(z_l; x)\, p(z_l|z_{l+1}).

References:
    Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", 2016, https://arxiv.org/abs/1509.00519 (bottom-up)
    Sønderby, Raiko, Maaløe, Sønderby, Winther, "Ladder Variational Autoencoders", 2016,
    https://arxiv.org/abs/1602.02282 (top-down)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn

from pyro_vae import checks, conditionals, priors
from pyro_vae.conditionals import Conditional, DiagonalNormal
from pyro_vae.likelihoods import Likelihood
from pyro_vae.models.program import (
    ProgramModule,
    RootModule,
    check_batch,
    check_inputs,
    check_observed,
    check_part,
    check_same,
    check_support,
    data_size,
    for_decoder,
    for_network,
)
from pyro_vae.priors import Prior

Inference = Literal["bottom-up", "top-down"]
Draw = Callable[[str, TorchDistribution], Tensor]
"""From a site's name and distribution to a draw: ``pyro.sample``, or a stand-in outside of Pyro."""

_NAME = "HierarchicalVAE"


class HierarchicalModel(RootModule):
    """The model p(zL) ... p(z1|z2) p(x|z1) with sites ``"zL"``, ..., ``"z1"`` and ``"x"`` in the plate ``"data"``.

    Args:
        prior: p(zL).
        conditionals: p(z1|z2), p(z2|z3), ...: the layer nearest to x first.
        likelihood: p(x|z1).
    """

    def __init__(self, prior: Prior, conditionals: Sequence[Conditional], likelihood: Likelihood) -> None:
        super().__init__()
        self.prior = prior
        self.conditionals = nn.ModuleList(conditionals)
        self.likelihood = likelihood

    def forward(self, x: Tensor | None = None, *context: Tensor, size: int | None = None) -> Tensor:
        """Runs the model.

        Args:
            x: observed data (N, \\*event_shape), or None to generate.
            context: what the likelihood takes beside z1, (N, ...) each.
            size: number of data when there is no x; the context's, else 1, when left out.

        Returns:
            x, observed or sampled.
        """
        likelihood, conditionals = self.likelihood, self.conditionals
        check_observed(likelihood, x, context)
        with pyro.plate("data", data_size(_NAME, x, context, size)):
            z = for_decoder(self.prior, pyro.sample(f"z{len(conditionals) + 1}", self.prior()))
            for level in range(len(conditionals), 0, -1):
                conditional = conditionals[level - 1]
                z = for_decoder(conditional, pyro.sample(f"z{level}", conditional(z)))
            return pyro.sample("x", likelihood(z, *context), obs=x)


class HierarchicalGuide(RootModule):
    """A guide over ``"z1"``, ..., ``"zL"`` in the plate ``"data"``; subclasses say how, in :meth:`infer`.

    Args:
        posteriors: the parts of the guide, the layer nearest to x first.
        missing: whether NaN in x stands for a missing value, which the networks are given as 0.
    """

    def __init__(self, posteriors: Sequence[Conditional], *, missing: bool = False) -> None:
        super().__init__()
        self.missing = missing
        self.posteriors = nn.ModuleList(posteriors)

    def infer(self, x: Tensor, draw: Draw) -> dict[str, Tensor]:
        """The draws by name, in the order in which they are made, for x without missing values."""
        raise NotImplementedError

    def forward(self, x: Tensor | None = None, *context: Tensor, size: int | None = None) -> dict[str, Tensor]:
        """Draws every latent for data x of shape (N, \\*event_shape); takes the model's arguments."""
        if x is None:
            raise ValueError("Guide: expected data x; got None. q(z|x) has no draw without x: run the model instead.")
        check_batch(_NAME, x, self.parts[0].body.input_shapes[0])
        with pyro.plate("data", data_size(_NAME, x, context, size)):
            return self.infer(self.seen(x), pyro.sample)

    def seen(self, x: Tensor) -> Tensor:
        """X as the first network is given it."""
        return for_network(x, self.parts[0].body, missing=self.missing)

    @property
    def posterior(self) -> Conditional:
        """The posterior of the top layer."""
        return self.parts[-1]

    @property
    def parts(self) -> list[Conditional]:
        """The posteriors as a list, the layer nearest to x first."""
        return cast(list[Conditional], list(self.posteriors))


class BottomUpGuide(HierarchicalGuide):
    """q(z1|x) q(z2|z1) ... q(zL|zL-1), drawn in this order."""

    def infer(self, x: Tensor, draw: Draw) -> dict[str, Tensor]:
        draws: dict[str, Tensor] = {}
        below = x
        for level, posterior in enumerate(self.parts, 1):
            draws[f"z{level}"] = draw(f"z{level}", posterior(below))
            below = for_decoder(posterior, draws[f"z{level}"])
        return draws


class TopDownGuide(HierarchicalGuide):
    """q(zL|x) q(zL-1|zL, x) ... q(z1|z2, x), drawn in this order; see the module's formula.

    Args:
        posteriors: the messages m_l. The body of each takes the features that the body before it makes; the first x.
        model: whose p(z1|z2), p(z2|z3), ... the guide shares.
        missing: whether NaN in x stands for a missing value, which the networks are given as 0.
    """

    def __init__(self, posteriors: Sequence[Conditional], model: HierarchicalModel, *, missing: bool = False) -> None:
        super().__init__(posteriors, missing=missing)
        # A tuple, because a second registration would put the model's parameters into the state_dict twice.
        self._model = (model,)

    def infer(self, x: Tensor, draw: Draw) -> dict[str, Tensor]:
        (model,) = self._model
        features, messages = x, []
        for posterior in self.parts:
            features = posterior.body(features)
            messages.append(posterior.made(x, **posterior.head(features)))
        top = len(messages)
        above = draw(f"z{top}", messages[-1])
        draws = {f"z{top}": above}
        for level in range(top - 1, 0, -1):
            posterior = _product(messages[level - 1], model.conditionals[level - 1](above))
            above = draws[f"z{level}"] = draw(f"z{level}", posterior)
        return draws


class HierarchicalVAE(ProgramModule):
    """A variational autoencoder with L stochastic layers z1, ..., zL; z1 is the nearest to x, and L is any number.

    A plain ``nn.Module`` that holds the two programs ``model`` and ``guide``, as :class:`~pyro_vae.VAE` does.

    The lists of parts run from the data upwards. With ``inference="bottom-up"``, ``posteriors`` are q(z1|x), q(z2|z1),
    and so on. The guide then draws in another order than the model, so that a KL in closed form, layer by layer, is no
    part of this ELBO: use an objective of log-densities at the draws.

    With ``inference="top-down"``, each of ``posteriors`` is the message of the data to its layer, and its body goes on
    from the features of the body before it: the second takes what the first one's body makes. Guide and model draw in
    one order, and a KL in closed form is right. Train it with a warm-up, ``beta=schedules.linear(0, 1, epochs=2)`` for
    ``fit``, as the ladder's authors do. Without one the KL may switch off a layer early on, and the gradient of a
    message vanishes along with its precision, so that the layer stays off.

    Args:
        prior: p(zL), of :mod:`pyro_vae.priors`.
        conditionals: p(z1|z2), p(z2|z3), ..., of :mod:`pyro_vae.conditionals`; L - 1 of them.
        likelihood: p(x|z1), of :mod:`pyro_vae.likelihoods`.
        posteriors: the guide's parts, as above, of :mod:`pyro_vae.conditionals`; L of them.
        inference: ``"bottom-up"``, or ``"top-down"``, which multiplies Normals and so takes ``DiagonalNormal`` alone in
            both lists.

    Raises:
        TypeError: a part is not what its place asks for.
        ValueError: the lists' lengths or the parts' shapes or supports do not fit; the message names the layer.

    References:
        See :mod:`pyro_vae.models.hierarchical`.

    Example:
        >>> from pyro_vae.conditionals import DiagonalNormal
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> from pyro_vae.nets import MLP
        >>> from pyro_vae.priors import StandardNormal
        >>> vae = HierarchicalVAE(
        ...     prior=StandardNormal(2),
        ...     conditionals=[DiagonalNormal(MLP(2, [8]), 3)],
        ...     likelihood=Bernoulli(MLP(3, [8]), (1, 4, 4)),
        ...     posteriors=[DiagonalNormal(MLP((1, 4, 4), [8]), 3), DiagonalNormal(MLP(3, [8]), 2)],
        ... )
        >>> vae.latents
        ('z1', 'z2')
        >>> vae.sample(5).shape
        torch.Size([5, 1, 4, 4])
    """

    observed = ("x",)

    def __init__(
        self,
        prior: Prior,
        conditionals: Sequence[Conditional],
        likelihood: Likelihood,
        posteriors: Sequence[Conditional],
        *,
        inference: Inference = "bottom-up",
    ) -> None:
        super().__init__()
        for name, parts in (("conditionals", conditionals), ("posteriors", posteriors)):
            checks.instance(_NAME, name, parts, Sequence, "Give a list.")
        if not isinstance(inference, str) or inference not in get_args(Inference):
            raise ValueError(
                f"{_NAME}: expected inference 'bottom-up' or 'top-down'; got {inference!r}. Use one of these."
            )
        if len(posteriors) != len(conditionals) + 1:
            raise ValueError(
                f"{_NAME}: expected one posterior for every conditional and one for the prior; got {len(posteriors)} "
                f"posteriors and {len(conditionals)} conditionals. Give L and L - 1 of them."
            )
        top_down = inference == "top-down"
        kind = DiagonalNormal if top_down else Conditional
        check_part(_NAME, "prior", prior, Prior, "priors")
        check_part(_NAME, "likelihood", likelihood, Likelihood, "likelihoods")
        for level, conditional in enumerate(conditionals, 1):
            check_part(_NAME, f"p(z{level}|z{level + 1})", conditional, kind, "conditionals")
        for level, posterior in enumerate(posteriors, 1):
            check_part(_NAME, f"the posterior of z{level}", posterior, kind, "conditionals")
        _check_fit(prior, conditionals, likelihood, posteriors, top_down)
        self.model = HierarchicalModel(prior, conditionals, likelihood)
        missing = likelihood.missing
        self.guide: HierarchicalGuide = (
            TopDownGuide(posteriors, self.model, missing=missing)
            if top_down
            else BottomUpGuide(posteriors, missing=missing)
        )
        prior.bind(posteriors[-1], self.guide)

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the latent sites, ``"z1"`` first."""
        return tuple(f"z{level}" for level in range(1, len(self.guide.posteriors) + 1))

    @property
    def prior(self) -> Prior:
        """p(zL)."""
        return self.model.prior

    @property
    def likelihood(self) -> Likelihood:
        """p(x|z1)."""
        return self.model.likelihood

    def encode(self, x: Tensor) -> dict[str, TorchDistribution]:
        """The guide's distribution of every latent, by name, along one draw of the latents it is conditioned on.

        Args:
            x: data of shape (\\*lead, \\*event_shape).
        """
        distributions: dict[str, TorchDistribution] = {}

        def draw(name: str, distribution: TorchDistribution) -> Tensor:
            distributions[name] = distribution
            return distribution.rsample() if distribution.has_rsample else distribution.sample()

        self.guide.infer(self.guide.seen(x), draw)
        return distributions

    def decode(self, z1: Tensor, *context: Tensor) -> TorchDistribution:
        """p(x|z1) for latents of the lowest layer, of shape (\\*lead, \\*latent_shape)."""
        lowest = next(iter(self.model.conditionals), self.prior)
        return self.likelihood(for_decoder(lowest, z1), *context)

    @torch.no_grad()
    def sample(self, size: int, *context: Tensor, mean: bool = False) -> Tensor:
        """Draws (size, \\*event_shape) data from the model.

        Args:
            size: number of data.
            context: what the likelihood takes beside z1, (size, ...) each.
            mean: return E[x|z1] in place of the draw of x, as pictures in papers do.
        """
        size = checks.whole(f"{_NAME}.sample", "size", size)
        checks.flag(f"{_NAME}.sample", "mean", mean)
        above: nn.Module = self.prior
        z = self.prior().sample(Size((size,)))
        for conditional in reversed(self.model.conditionals):
            z, above = conditional(for_decoder(above, z)).sample(), conditional
        distribution = self.decode(z, *context)
        return distribution.mean if mean else distribution.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *context: Tensor) -> Tensor:
        """E[x' | z1] at one draw of the guide, of the shape of x."""
        z1 = self.guide.infer(self.guide.seen(x), lambda _, distribution: distribution.sample())["z1"]
        return self.decode(z1, *context).mean


def _check_fit(
    prior: Prior,
    layers: Sequence[Conditional],
    likelihood: Likelihood,
    posteriors: Sequence[Conditional],
    top_down: bool,
) -> None:
    """Holds every part against the layers, which are what the prior and the conditionals draw."""
    for level, (layer, posterior) in enumerate(zip(layers, posteriors, strict=False), 1):
        check_support(f"{_NAME}, z{level}", layer, posterior, conditionals, conditionals)
    check_support(f"{_NAME}, z{len(posteriors)}", prior, posteriors[-1], priors, conditionals)
    prior.bind(posteriors[-1])
    shapes = [*(layer.event_shape for layer in layers), prior.event_shape]
    check_same(
        _NAME, "the shape of z1 and the input of the likelihood's body", shapes[0], likelihood.body.input_shapes[0]
    )
    for level, (layer, above) in enumerate(zip(layers, shapes[1:], strict=True), 1):
        check_inputs(_NAME, f"p(z{level}|z{level + 1})", layer.body.input_shapes, [above])
    below, source = likelihood.event_shape, "x"
    for level, (posterior, shape) in enumerate(zip(posteriors, shapes, strict=True), 1):
        name = f"the posterior of z{level}"
        check_same(_NAME, f"the shapes of z{level} in the model and in {name}", shape, posterior.event_shape)
        check_inputs(_NAME, f"{name}, given {source},", posterior.body.input_shapes, [below])
        below = posterior.body.feature_shape if top_down else shape
        source = f"the features of {name}" if top_down else f"z{level}"


def _product(first: TorchDistribution, second: TorchDistribution) -> TorchDistribution:
    """The density proportional to the product of two diagonal Normals: precisions add, means average by precision."""
    one, two = first.base_dist, second.base_dist
    precision, other = one.scale**-2, two.scale**-2
    variance = 1 / (precision + other)
    return dist.Normal(variance * (precision * one.loc + other * two.loc), variance.sqrt()).to_event(first.event_dim)
