"""What a likelihood, a prior or a conditional must do in every program: shapes, gradients, state, precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import safetensors.torch
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Size, Tensor, nn

from pyro_vae import checks
from pyro_vae.conditionals import Conditional
from pyro_vae.family import Family
from pyro_vae.likelihoods import Likelihood
from pyro_vae.priors import Prior
from pyro_vae.testing.densities import check_density
from pyro_vae.testing.quadrature import support_of
from pyro_vae.testing.requirements import close, require, seeded

Parents = Callable[[Size], list[Tensor]]

_LEADS = (Size(), Size([4]), Size([2, 4]))


@partial(checks.arguments, "check_likelihood")
def check_likelihood(likelihood: Likelihood, *, density: bool = True, seed: int = 0) -> None:
    """Checks a likelihood p(x|z): calls, gradients, ``state_dict``, precision, density, and the data it accepts.

    Args:
        likelihood: a small one, whose contexts, if any, may be whole numbers from 1 on.
        density: also check the density, see :func:`check_density`; False for one whose ``log_prob`` is random.
        seed: of all draws.

    Raises:
        AssertionError: naming what was expected.

    Example:
        >>> from pyro_vae import likelihoods, nets
        >>> check_likelihood(likelihoods.Bernoulli(nets.MLP(2, [4]), 2))
    """

    def parents(lead: Size) -> list[Tensor]:
        inputs = [torch.randn(lead + shape) for shape in likelihood.body.input_shapes]
        return inputs + [torch.randint(1, 6, lead).float() for _ in likelihood.contexts]

    with seeded(seed), torch.no_grad():
        given = parents(Size([6]))
        x = likelihood(*given).sample()
        likelihood.check_data(x, *given[1:])
        mean = likelihood(*given).mean
        require(mean.shape == x.shape and bool(mean.isfinite().all()), "a finite mean of the shape of x", mean)
    with seeded(seed):
        _check_family(likelihood, parents, pathwise=False, density=density)


@partial(checks.arguments, "check_conditional")
def check_conditional(conditional: Conditional, *, density: bool = True, seed: int = 0) -> None:
    """Checks a conditional q(z|x): calls, gradients, ``state_dict``, precision, density.

    Args:
        conditional: a small one; of latents with at most three dims where they depend on each other.
        density: also check the density, see :func:`check_density`.
        seed: of all draws.

    Raises:
        AssertionError: naming what was expected.

    Example:
        >>> from pyro_vae import conditionals, nets
        >>> check_conditional(conditionals.DiagonalNormal(nets.MLP(2, [4]), 2))
    """

    def parents(lead: Size) -> list[Tensor]:
        return [torch.randn(lead + shape) for shape in conditional.body.input_shapes]

    with seeded(seed):
        _check_family(conditional, parents, pathwise=conditional(*parents(Size())).has_rsample, density=density)


@partial(checks.arguments, "check_prior")
def check_prior(prior: Prior, *context: Tensor, density: bool = True, seed: int = 0) -> None:
    """Checks a prior p(z): calls, gradients, ``state_dict``, precision, density.

    Args:
        prior: a small one.
        context: what its ``forward`` takes, if anything, without leading dims.
        density: also check the density, see :func:`check_density`.
        seed: of all draws.

    Raises:
        AssertionError: naming what was expected.

    Example:
        >>> from pyro_vae import priors
        >>> check_prior(priors.StandardNormal(2))
    """
    with seeded(seed):
        d = prior(*context)
        check_distribution(d, Size(), prior.event_shape)
        _check_module(prior, list(context), d.sample(Size([4])), pathwise=False)
        if density:
            check_density(copy.deepcopy(prior).double()(*(value.double() for value in context)), seed=seed)


def check_distribution(d: TorchDistribution, batch_shape: Size, event_shape: Size) -> None:
    """Checks shapes, support and ``expand`` of a distribution.

    Raises:
        AssertionError: naming what was expected.

    Example:
        >>> import pyro.distributions as dist
        >>> d = dist.Normal(torch.zeros(4, 3), 1.0)
        >>> check_distribution(d.to_event(1), Size([4]), Size([3]))
        >>> check_distribution(d, Size([4]), Size([3]))
        Traceback (most recent call last):
        AssertionError: Contract: expected batch_shape (4,); got (4, 3).
    """
    require(isinstance(d, TorchDistributionMixin), "a pyro TorchDistribution", type(d).__name__)
    require(d.batch_shape == batch_shape, f"batch_shape {tuple(batch_shape)}", tuple(d.batch_shape))
    require(d.event_shape == event_shape, f"event_shape {tuple(event_shape)}", tuple(d.event_shape))
    require(bool(repr(d)), "a repr", "none")
    with torch.no_grad():
        x = d.sample()
        require(x.shape == batch_shape + event_shape, f"a sample of shape {batch_shape + event_shape}", x.shape)
        require(bool(support_of(d).check(x).all()), "samples in the support", x)
        many = d.sample(Size([5]))
        require(many.shape == Size([5]) + x.shape, f"5 samples of shape {tuple(x.shape)}", tuple(many.shape))
        log_prob = d.log_prob(x)
        require(log_prob.shape == batch_shape, f"log_prob of shape {tuple(batch_shape)}", tuple(log_prob.shape))
        require(bool(log_prob.isfinite().all()), "a finite log_prob of a sample", log_prob)
        wider = d.expand(Size([3]) + batch_shape)
        require(type(wider) is type(d), f"expand to keep the type {type(d).__name__}", type(wider).__name__)
        require(wider.batch_shape == Size([3]) + batch_shape, "expand to add a batch dim", tuple(wider.batch_shape))
        require(wider.sample().shape == Size([3]) + x.shape, "samples of the expanded shape", wider.sample().shape)
        require(close(wider.log_prob(x), log_prob.expand(wider.batch_shape)), "expand to keep log_prob", wider)
    if d.has_rsample:
        require(d.rsample().shape == x.shape, "rsample of the shape of sample", tuple(d.rsample().shape))


def _check_family(family: Family, parents: Parents, *, pathwise: bool, density: bool) -> None:
    for lead in _LEADS:
        check_distribution(family(*parents(lead)), lead, family.event_shape)
    # K particles of z against one batch of data and contexts: what a vectorized estimator calls.
    first, *others = parents(Size([4]))
    particles = torch.stack([first, torch.randn_like(first)])
    with torch.no_grad():
        x = family(first, *others).sample()
        if density:
            together = family(particles, *others).log_prob(x)
            each = torch.stack([family(particle, *others).log_prob(x) for particle in particles])
            require(close(together, each), "log_prob of K particles to be that of each", (together, each))
    _check_module(family, [first, *others], x, pathwise=pathwise, density=density)
    if density:
        check_density(copy.deepcopy(family).double()(*(value.double() for value in parents(Size()))))


def _check_module(module: nn.Module, parents: list[Tensor], x: Tensor, *, pathwise: bool, density: bool = True) -> None:
    """Gradients, ``state_dict``, double precision and repr."""
    copied = copy.deepcopy(module)
    d = copied(*parents)
    parameters = [(name, parameter) for name, parameter in copied.named_parameters() if parameter.requires_grad]
    if parameters:
        d.log_prob(d.rsample() if pathwise else x).sum().backward()
    for name, parameter in parameters:
        grad = parameter.grad
        require(grad is not None and bool(grad.isfinite().all()), f"a finite gradient of {name}", grad)
    with torch.no_grad():
        single = module(*parents)
        for tensor in copied.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1)
        copied.load_state_dict(safetensors.torch.load(safetensors.torch.save(module.state_dict())))
        if density:
            same = bool((copied(*parents).log_prob(x) == single.log_prob(x)).all())
            require(same, "the same density after a state_dict round trip", copied)
        double = copied.double()(*(value.double() for value in parents))
        x = double.sample()
        in_double, in_single = double.log_prob(x), single.log_prob(x.float())
        require(x.dtype == torch.float64, "a float64 sample of a module in float64", x.dtype)
        require(in_double.dtype == torch.float64, "a float64 log_prob of a module in float64", in_double.dtype)
        if density:
            require(close(in_single.double(), in_double), "one density in float32 and float64", (in_single, in_double))
    name = type(module).__name__
    require(repr(module).startswith(name), f"a repr that starts with {name}", repr(module))
