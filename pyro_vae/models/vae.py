"""The variational autoencoder as two Pyro programs: a model p(z) p(x|z) and a guide q(z|x).

The model says how data are generated: z is drawn from the prior, x from the likelihood given z. The guide approximates
the posterior p(z|x). SVI maximizes

    ELBO(x) = E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z)) <= log p(x),

and nothing in these programs mentions a loss: the first term is there because the model observes ``"x"``.
"""

from __future__ import annotations

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor

from pyro_vae import checks, conditionals, priors
from pyro_vae.conditionals import Conditional
from pyro_vae.likelihoods import Likelihood
from pyro_vae.models.program import (
    ProgramModule,
    RootModule,
    check_batch,
    check_observed,
    check_part,
    check_same,
    check_support,
    data_size,
    for_decoder,
    for_network,
)
from pyro_vae.priors import Prior


class Model(RootModule):
    """The generative model p(z) p(x|z) with sites ``"z"`` and ``"x"`` in the plate ``"data"``.

    Args:
        prior: p(z).
        likelihood: p(x|z).
    """

    def __init__(self, prior: Prior, likelihood: Likelihood) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood

    def forward(self, x: Tensor | None = None, *context: Tensor, size: int | None = None) -> Tensor:
        """Runs the model.

        Args:
            x: observed data (N, \\*event_shape), or None to generate.
            context: what the likelihood takes beside z, (N, ...) each.
            size: number of data when there is no x; the context's, else 1, when left out.

        Returns:
            x, observed or sampled.
        """
        likelihood = self.likelihood
        check_observed(likelihood, x, context)
        with pyro.plate("data", data_size("VAE", x, context, size)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", likelihood(for_decoder(self.prior, z), *context), obs=x)


class Guide(RootModule):
    """The approximate posterior q(z|x) with site ``"z"`` in the plate ``"data"``.

    Args:
        posterior: q(z|x).
        missing: whether NaN in x stands for a missing value, which the posterior's network is given as 0.
    """

    def __init__(self, posterior: Conditional, *, missing: bool = False) -> None:
        super().__init__()
        self.posterior = posterior
        self.missing = missing

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(z|x) for data of shape (\\*lead, \\*event_shape)."""
        return self.posterior(for_network(x, self.posterior.body, missing=self.missing))

    def forward(self, x: Tensor | None = None, *context: Tensor, size: int | None = None) -> Tensor:
        """Draws z ~ q(z|x) for data x of shape (N, \\*event_shape); takes the model's arguments."""
        if x is None:
            raise ValueError("Guide: expected data x; got None. q(z|x) has no draw without x: run the model instead.")
        check_batch("VAE", x, self.posterior.body.input_shapes[0])
        with pyro.plate("data", data_size("VAE", x, context, size)):
            return pyro.sample("z", self.encode(x))


class VAE(ProgramModule):
    """A prior, a likelihood and a posterior, joined into a model and a guide.

    A plain ``nn.Module``: it holds the two programs, and Pyro's tools are given ``vae.model`` and ``vae.guide``.

    Args:
        prior: p(z), of :mod:`pyro_vae.priors`.
        likelihood: p(x|z), of :mod:`pyro_vae.likelihoods`.
        posterior: q(z|x), of :mod:`pyro_vae.conditionals`.

    Raises:
        TypeError: a part is not what its place asks for.
        ValueError: the parts disagree about the shape or the support of z, or about the shape of x.

    Example:
        >>> from pyro_vae import conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     prior=priors.StandardNormal(2),
        ...     likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), event_shape=(1, 4, 4)),
        ...     posterior=conditionals.DiagonalNormal(nets.MLP((1, 4, 4), [8]), 2),
        ... )
        >>> vae.sample(3).shape
        torch.Size([3, 1, 4, 4])
    """

    latents = ("z",)
    observed = ("x",)

    def __init__(self, prior: Prior, likelihood: Likelihood, posterior: Conditional) -> None:
        super().__init__()
        for role, part, kind in (
            ("prior", prior, Prior),
            ("likelihood", likelihood, Likelihood),
            ("posterior", posterior, Conditional),
        ):
            check_part("VAE", role, part, kind, f"{kind.__name__.lower()}s")
        check_support("VAE", prior, posterior, priors, conditionals)
        prior.bind(posterior)
        check_same("VAE", "the latent shape of prior and posterior", prior.event_shape, posterior.event_shape)
        check_same(
            "VAE", "the latent shape of prior and likelihood body", prior.event_shape, likelihood.body.input_shapes[0]
        )
        check_same(
            "VAE",
            "the data shape of likelihood and posterior body",
            likelihood.event_shape,
            posterior.body.input_shapes[0],
        )
        self.model = Model(prior, likelihood)
        self.guide = Guide(posterior, missing=likelihood.missing)
        prior.bind(posterior, self.guide)

    @property
    def prior(self) -> Prior:
        """p(z)."""
        return self.model.prior

    @property
    def likelihood(self) -> Likelihood:
        """p(x|z)."""
        return self.model.likelihood

    @property
    def posterior(self) -> Conditional:
        """q(z|x)."""
        return self.guide.posterior

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(z|x) for data of shape (\\*lead, \\*event_shape)."""
        return self.guide.encode(x)

    def decode(self, z: Tensor, *context: Tensor) -> TorchDistribution:
        """p(x|z) for latents of shape (\\*lead, \\*latent_shape)."""
        return self.likelihood(for_decoder(self.prior, z), *context)

    @torch.no_grad()
    def sample(self, size: int, *context: Tensor, mean: bool = False) -> Tensor:
        """Draws (size, \\*event_shape) data from p(z) p(x|z).

        Args:
            size: number of data.
            context: what the likelihood takes beside z, (size, ...) each.
            mean: return E[x|z] in place of the draw of x, as pictures in papers do.
        """
        size = checks.whole("VAE.sample", "size", size)
        checks.flag("VAE.sample", "mean", mean)
        conditional = self.decode(self.prior().sample(Size((size,))), *context)
        return conditional.mean if mean else conditional.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *context: Tensor, mean: bool = True) -> Tensor:
        """E[x' | z] at one draw z ~ q(z|x), of the shape of x; without ``mean`` a draw x' ~ p(x|z).

        For categories, of which a mean is no value, ask for the draw.
        """
        checks.flag("VAE.reconstruct", "mean", mean)
        conditional = self.decode(self.encode(x).sample(), *context)
        return conditional.mean if mean else conditional.sample()
