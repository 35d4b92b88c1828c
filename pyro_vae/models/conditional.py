r"""The conditional variational autoencoder as two Pyro programs: data x that come with a context c.

.. math:: p(x, z|c) = p(z|c)\, p(x|z, c), \qquad q(z|x, c), \qquad
          E_q[\log p(x|z, c)] - \mathrm{KL}(q(z|x, c) \| p(z|c)) \le \log p(x|c)

The context is given, never modeled: a class, a label, an angle, the part of an image that is known. What it explains
need not be in z.

References:
    Sohn, Lee, Yan, "Learning Structured Output Representation using Deep Conditional Generative Models", 2015,
    https://papers.nips.cc/paper/5775-learning-structured-output-representation-using-deep-conditional-generative-models
"""

from __future__ import annotations

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae import checks, conditionals, priors
from pyro_vae.conditionals import Conditional
from pyro_vae.likelihoods import Likelihood
from pyro_vae.models.program import (
    ProgramModule,
    RootModule,
    check_contexts,
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

_NAME = "ConditionalVAE"


class ConditionalModel(RootModule):
    """The generative model p(z|c) p(x|z, c) with sites ``"z"`` and ``"x"`` in the plate ``"data"``.

    Args:
        prior: p(z), or p(z|c).
        likelihood: p(x|z, c).
    """

    def __init__(self, prior: Prior | Conditional, likelihood: Likelihood) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood

    def forward(self, x: Tensor | None = None, *context: Tensor) -> Tensor:
        """Runs the model.

        Args:
            x: observed data (N, \\*event_shape), or None to generate.
            context: c, one or more tensors (N, ...).

        Returns:
            x, observed or sampled.
        """
        prior, likelihood = self.prior, self.likelihood
        check_observed(likelihood, x, context)
        with pyro.plate("data", data_size(_NAME, x, context, None)):
            z = pyro.sample("z", _of_context(prior, context))
            return pyro.sample("x", likelihood(for_decoder(prior, z), *context), obs=x)


class ConditionalGuide(RootModule):
    """The approximate posterior q(z|x, c) with site ``"z"`` in the plate ``"data"``.

    Args:
        posterior: q(z|x, c).
        missing: whether NaN in x stands for a missing value, which the networks are given as 0.
    """

    def __init__(self, posterior: Conditional, *, missing: bool = False) -> None:
        super().__init__()
        self.posterior = posterior
        self.missing = missing

    def encode(self, x: Tensor, *context: Tensor) -> TorchDistribution:
        """q(z|x, c) for data of shape (\\*lead, \\*event_shape) and contexts (\\*lead, \\*context_shape)."""
        event, *shapes = self.posterior.body.input_shapes
        check_contexts(_NAME, x.shape[: x.dim() - len(event)], shapes, context)
        return _of_context(self.posterior, context, for_network(x, self.posterior.body, missing=self.missing))

    def forward(self, x: Tensor | None = None, *context: Tensor) -> Tensor:
        """Draws z ~ q(z|x, c) for data x of shape (N, \\*event_shape); takes the model's arguments."""
        if x is None:
            raise ValueError(
                "Guide: expected data x; got None. q(z|x, c) has no draw without x: run the model instead."
            )
        with pyro.plate("data", data_size(_NAME, x, context, None)):
            return pyro.sample("z", self.encode(x, *context))


class ConditionalVAE(ProgramModule):
    """A variational autoencoder whose parts know a context c: p(x|z, c), q(z|x, c) and, if wanted, p(z|c).

    A plain ``nn.Module`` that holds the two programs ``model`` and ``guide``, as :class:`~pyro_vae.VAE` does. The
    bodies take c as further inputs: ``nets.MLP(shape, hidden, context_shapes=[10])``. What the likelihood takes beside
    its body's inputs, such as a library size, follows c and goes to the likelihood alone. In training the context
    comes with the data: ``fit(vae, train.conditioned_on(c))``.

    Args:
        prior: p(z), of :mod:`pyro_vae.priors`; or p(z|c), of :mod:`pyro_vae.conditionals` with a body on c.
        likelihood: p(x|z, c), of :mod:`pyro_vae.likelihoods`.
        posterior: q(z|x, c), of :mod:`pyro_vae.conditionals`.

    Raises:
        TypeError: a part is not what its place asks for.
        ValueError: the parts disagree about the shape of z, x or c or the support of z, or there is no c.

    References:
        See :mod:`pyro_vae.models.conditional`.

    Example:
        >>> from pyro_vae import conditionals, likelihoods, nets, priors
        >>> vae = ConditionalVAE(
        ...     prior=priors.StandardNormal(2),
        ...     likelihood=likelihoods.Bernoulli(nets.MLP(2, [8], context_shapes=[10]), (1, 4, 4)),
        ...     posterior=conditionals.DiagonalNormal(nets.MLP((1, 4, 4), [8], context_shapes=[10]), 2),
        ... )
        >>> vae.sample(torch.eye(10)).shape  # one of each class
        torch.Size([10, 1, 4, 4])
    """

    latents = ("z",)
    observed = ("x",)

    def __init__(self, prior: Prior | Conditional, likelihood: Likelihood, posterior: Conditional) -> None:
        super().__init__()
        if not isinstance(prior, Conditional):
            check_part(_NAME, "prior", prior, Prior, "priors")
        check_part(_NAME, "likelihood", likelihood, Likelihood, "likelihoods")
        check_part(_NAME, "posterior", posterior, Conditional, "conditionals")
        latent_shape, *context_shapes = likelihood.body.input_shapes
        if not context_shapes:
            raise ValueError(
                f"{_NAME}: expected a likelihood whose body takes a context; got one that takes z alone. Build it "
                "with context_shapes=[...], or use VAE."
            )
        check_support(_NAME, prior, posterior, priors, conditionals)
        if isinstance(prior, Prior):
            prior.bind(posterior)
        check_same(_NAME, "the latent shape of prior and posterior", prior.event_shape, posterior.event_shape)
        check_same(_NAME, "the latent shape of prior and likelihood body", prior.event_shape, latent_shape)
        check_inputs(_NAME, "the posterior", posterior.body.input_shapes, [likelihood.event_shape, *context_shapes])
        if isinstance(prior, Conditional):
            check_inputs(_NAME, "the prior", prior.body.input_shapes, context_shapes)
        self.model = ConditionalModel(prior, likelihood)
        self.guide = ConditionalGuide(posterior, missing=likelihood.missing)

    @property
    def prior(self) -> Prior | Conditional:
        """p(z), or p(z|c)."""
        return self.model.prior

    @property
    def likelihood(self) -> Likelihood:
        """p(x|z, c)."""
        return self.model.likelihood

    @property
    def posterior(self) -> Conditional:
        """q(z|x, c)."""
        return self.guide.posterior

    def encode(self, x: Tensor, *context: Tensor) -> TorchDistribution:
        """q(z|x, c) for data of shape (\\*lead, \\*event_shape) and contexts (\\*lead, \\*context_shape)."""
        return self.guide.encode(x, *context)

    def decode(self, z: Tensor, *context: Tensor) -> TorchDistribution:
        """p(x|z, c) for latents of shape (\\*lead, \\*latent_shape) and contexts (\\*lead, \\*context_shape)."""
        return self.likelihood(for_decoder(self.prior, z), *context)

    @torch.no_grad()
    def sample(self, *context: Tensor, mean: bool = False) -> Tensor:
        """Draws x from p(z|c) p(x|z, c), one for each row of the context (N, ...).

        Args:
            context: c, one or more tensors (N, ...).
            mean: return E[x|z, c] in place of the draw of x, as pictures in papers do.
        """
        checks.flag(f"{_NAME}.sample", "mean", mean)
        shapes = self.likelihood.body.input_shapes[1:]
        given = [tuple(c.shape) if isinstance(c, Tensor) else type(c).__name__ for c in context]
        if len(context) < len(shapes) or [shape[1:] for shape in given[: len(shapes)]] != [
            tuple(shape) for shape in shapes
        ]:
            raise (ValueError if all(isinstance(c, Tensor) for c in context) else TypeError)(
                f"{_NAME}.sample: expected contexts of shapes {[('N', *shape) for shape in shapes]}; got {given}. Give "
                "a row for each datum to draw."
            )
        prior = _of_context(self.prior, context)
        z = prior.expand((data_size(_NAME, None, context, None),)).sample()
        distribution = self.decode(z, *context)
        return distribution.mean if mean else distribution.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *context: Tensor) -> Tensor:
        """E[x' | z, c] at one draw z ~ q(z|x, c), of the shape of x."""
        return self.decode(self.encode(x, *context).sample(), *context).mean

    def check_data(self, x: Tensor, *context: Tensor) -> None:
        """Raises for data the likelihood cannot have produced, and contexts the bodies do not take.

        Called by ``fit`` before the first step.

        Raises:
            TypeError, ValueError: with the remedy.
        """
        shapes = self.likelihood.body.input_shapes[1:]
        if [c.shape[1:] for c in context[: len(shapes)]] != list(shapes):
            raise ValueError(
                f"{_NAME}: expected contexts of shapes {[('N', *shape) for shape in shapes]}; got "
                f"{[tuple(c.shape) for c in context]}. Give them with the data: train.conditioned_on(c)."
            )
        for c in context[: len(shapes)]:
            if not c.is_floating_point():
                raise TypeError(
                    f"{_NAME}: expected a floating point context; got {c.dtype}. Give classes as one-hot rows, "
                    "torch.nn.functional.one_hot(labels).float()."
                )
            if not bool(c.isfinite().all()):
                raise ValueError(
                    f"{_NAME}: expected a finite context; got {int((~c.isfinite()).sum())} NaN or infinite values. "
                    "Leave out these data."
                )
        self.likelihood.check_data(x, *context)


def _of_context(part: Prior | Conditional, context: tuple[Tensor, ...], *x: Tensor) -> TorchDistribution:
    """A part's distribution given x and as many contexts as its body takes; a prior without a body takes none."""
    if not isinstance(part, Conditional):
        return part()
    return part(*x, *context[: len(part.body.input_shapes) - len(x)])
