"""The contract of likelihoods, priors and conditionals, as checks to call in a test of your own class.

    def test_my_likelihood() -> None:
        check_likelihood(MyLikelihood(nets.MLP(3, [5]), (1, 2, 2)))

Each check raises an ``AssertionError`` that says what was expected. All of them hold over any number of leading dims,
in single and double precision, after a round trip through ``state_dict``; and :func:`check_density` compares a density
with 1 and with its samples, by quadrature or by summing over all outcomes. Give small members: events of a few
elements, or a joint density of at most three dims. Nothing here draws from torch's global generators.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from functools import partial

import safetensors.torch
import torch
from pyro.distributions import Independent
from pyro.distributions import constraints as pyro_constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Size, Tensor, nn
from torch.distributions import biject_to, constraints

from pyro_vae import checks, distributions
from pyro_vae.conditionals import Conditional
from pyro_vae.family import Family
from pyro_vae.likelihoods import Likelihood
from pyro_vae.priors import Prior

__all__ = [
    "check_conditional",
    "check_density",
    "check_distribution",
    "check_likelihood",
    "check_own_draws",
    "check_prior",
]

Parents = Callable[[Size], list[Tensor]]

_LEADS = (Size(), Size([4]), Size([2, 4]))
_MAX_OUTCOMES = 200_000
_CHUNK = 20_000
_NUM_POINTS = 2**14


@partial(checks.arguments, "check_likelihood")
def check_likelihood(likelihood: Likelihood, *, density: bool = True, seed: int = 0) -> None:
    """Checks a likelihood p(x|z): calls, gradients, ``state_dict``, precision, density, and the data it accepts.

    Args:
        likelihood: a small one, whose contexts, if any, may be whole numbers from 1 on.
        density: also check the density, see :func:`check_density`; False for one whose ``log_prob`` is random.
        seed: of all draws.

    Raises:
        AssertionError: naming what was expected.
    """

    def parents(lead: Size) -> list[Tensor]:
        inputs = [torch.randn(lead + shape) for shape in likelihood.body.input_shapes]
        return inputs + [torch.randint(1, 6, lead).float() for _ in likelihood.contexts]

    with _seeded(seed), torch.no_grad():
        given = parents(Size([6]))
        x = likelihood(*given).sample()
        likelihood.check_data(x, *given[1:])
        mean = likelihood(*given).mean
        _require(mean.shape == x.shape and bool(mean.isfinite().all()), "a finite mean of the shape of x", mean)
    with _seeded(seed):
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
    """

    def parents(lead: Size) -> list[Tensor]:
        return [torch.randn(lead + shape) for shape in conditional.body.input_shapes]

    with _seeded(seed):
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
    """
    with _seeded(seed):
        d = prior(*context)
        check_distribution(d, Size(), prior.event_shape)
        _check_module(prior, list(context), d.sample(Size([4])), pathwise=False)
        if density:
            check_density(copy.deepcopy(prior).double()(*(value.double() for value in context)), seed=seed)


def check_distribution(d: TorchDistribution, batch_shape: Size, event_shape: Size) -> None:
    """Checks shapes, support and ``expand`` of a distribution.

    Raises:
        AssertionError: naming what was expected.
    """
    _require(isinstance(d, TorchDistributionMixin), "a pyro TorchDistribution", type(d).__name__)
    _require(d.batch_shape == batch_shape, f"batch_shape {tuple(batch_shape)}", tuple(d.batch_shape))
    _require(d.event_shape == event_shape, f"event_shape {tuple(event_shape)}", tuple(d.event_shape))
    _require(bool(repr(d)), "a repr", "none")
    with torch.no_grad():
        x = d.sample()
        _require(x.shape == batch_shape + event_shape, f"a sample of shape {batch_shape + event_shape}", x.shape)
        _require(bool(_support(d).check(x).all()), "samples in the support", x)
        many = d.sample(Size([5]))
        _require(many.shape == Size([5]) + x.shape, f"5 samples of shape {tuple(x.shape)}", tuple(many.shape))
        log_prob = d.log_prob(x)
        _require(log_prob.shape == batch_shape, f"log_prob of shape {tuple(batch_shape)}", tuple(log_prob.shape))
        _require(bool(log_prob.isfinite().all()), "a finite log_prob of a sample", log_prob)
        wider = d.expand(Size([3]) + batch_shape)
        _require(type(wider) is type(d), f"expand to keep the type {type(d).__name__}", type(wider).__name__)
        _require(wider.batch_shape == Size([3]) + batch_shape, "expand to add a batch dim", tuple(wider.batch_shape))
        _require(wider.sample().shape == Size([3]) + x.shape, "samples of the expanded shape", wider.sample().shape)
        _require(_close(wider.log_prob(x), log_prob.expand(wider.batch_shape)), "expand to keep log_prob", wider)
    if d.has_rsample:
        _require(d.rsample().shape == x.shape, "rsample of the shape of sample", tuple(d.rsample().shape))


def check_density(d: TorchDistribution, *, num_samples: int = 100_000, tolerance: float = 1e-3, seed: int = 0) -> None:
    r"""Checks that a density integrates (a probability sums) to 1, and that its samples come from it.

    The integral is taken in the unconstrained coordinates of the support, centered on samples: over each element, where
    the density is a product over them, by a trapezoid rule that reaches far into heavy tails; jointly by a quasi-random
    rule, whose error in three dims is near 1e-5. A sum runs over all outcomes, or far beyond the largest sample.
    Samples are compared with the density through :math:`E \cos(w x)` and :math:`E \sin(w x)` at several frequencies w,
    which exist for every distribution, for each element and for the whole event.

    Args:
        d: of ``batch_shape`` (), in double precision.
        num_samples: draws to compare.
        tolerance: largest error of the integral; also added to the five standard errors that a mean over samples may be
            off, each of which a right sampler exceeds with probability 6e-7.
        seed: of the draws.

    Raises:
        AssertionError: naming what was expected.
        ValueError: a density too large, or a support without a rule.
    """
    with _seeded(seed), torch.no_grad():
        for factor in _factors(d):
            factor = factor if factor.event_shape else Independent(factor, 0)
            samples = factor.sample(Size([num_samples]))
            center, spread = _location(samples)
            elementwise = isinstance(factor, Independent) and not factor.base_dist.event_shape
            if elementwise:
                points, log_weights = _elementwise_rule(factor, samples)
                log_prob = distributions.elementwise_log_prob(factor, points)
            else:
                points, log_weights = _joint_rule(factor, samples)
                log_prob = torch.cat([factor.log_prob(chunk) for chunk in points.split(_CHUNK)])
            mass = (log_prob + log_weights).exp()
            error = float((mass.sum(0) - 1).abs().max())
            _require(error <= tolerance, f"a density of integral 1 within {tolerance:g}", f"an error of {error:.2g}")
            points, samples = ((x - center) / spread for x in (points, samples))
            if elementwise:
                for frequency in (0.5, 1.0, 2.0, 4.0):
                    expected = (mass * torch.exp(1j * frequency * points)).sum(0)
                    _compare(torch.exp(1j * frequency * samples), expected, tolerance)
            for _ in range(8):
                direction = torch.randn(factor.event_shape, dtype=samples.dtype)
                if elementwise:
                    expected = (mass * torch.exp(1j * direction * points)).sum(0).prod()
                else:
                    expected = (mass * torch.exp(1j * (direction * points).reshape(len(points), -1).sum(-1))).sum()
                _compare(torch.exp(1j * (direction * samples).reshape(num_samples, -1).sum(-1)), expected, tolerance)


def check_own_draws(
    q: TorchDistribution,
    p: TorchDistribution,
    divergence: float | Callable[[Tensor], Tensor],
    *,
    num_draws: int = 20_000,
    seed: int = 0,
) -> float:
    r"""Checks a density where its own sampler goes: :math:`E_q[\log q - \log p]` by draws is KL(q || p).

    A draw that is rounded or clamped has the density of another point, and a bound that is computed from it may lie on
    the wrong side of log p(x). Run it at the ends of the parameters' range, in single precision.

    Args:
        q: the distribution to check, of ``batch_shape`` ().
        p: another one of the same support, such as the prior.
        divergence: KL(q || p) in nats, in closed form; or log q - log p in double precision by other code, a function
            of the draws (num_draws, \\*event_shape), where there is no closed form.
        num_draws: draws of q.
        seed: of the draws.

    Returns:
        The error in standard errors of the mean over draws; at most 5, which a right density exceeds with probability
        6e-7.

    Raises:
        AssertionError: a log-density of a draw is not finite, or the error is larger.

    Example:
        >>> from pyro.distributions import Normal
        >>> q, p = Normal(1.0, 0.5).to_event(0), Normal(0.0, 1.0).to_event(0)
        >>> check_own_draws(q, p, 0.81814718) < 5
        True
    """
    with _seeded(seed), torch.no_grad():
        draws = q.sample(Size([num_draws]))
        log_q, log_p = q.log_prob(draws).double(), p.log_prob(draws).double()
    for name, log_prob in (("q", log_q), ("p", log_p)):
        _require(bool(log_prob.isfinite().all()), f"a finite log_prob under {name} of draws of q", log_prob)
    ratio = log_q - log_p
    exact = divergence(draws.double()) if callable(divergence) else torch.full_like(ratio, divergence)
    error = float((ratio - exact).mean().abs())
    # The rounding of equal log-densities is no error; it is far below what a bound is read to.
    standard_error = float(ratio.std()) / math.sqrt(num_draws) + 1e-6 * (1 + float(log_q.abs().mean()))
    _require(
        error <= 5 * standard_error,
        f"E_q[log q - log p] of {float(exact.mean()):.6g} within 5 x {standard_error:.2g}",
        f"{float(ratio.mean()):.6g}",
    )
    return error / standard_error


def _check_family(family: Family, parents: Parents, *, pathwise: bool, density: bool) -> None:
    for lead in _LEADS:
        check_distribution(family(*parents(lead)), lead, family.event_shape)
    # K particles of z against one batch of data and contexts: what a vectorised estimator calls.
    first, *others = parents(Size([4]))
    particles = torch.stack([first, torch.randn_like(first)])
    with torch.no_grad():
        x = family(first, *others).sample()
        if density:
            together = family(particles, *others).log_prob(x)
            each = torch.stack([family(particle, *others).log_prob(x) for particle in particles])
            _require(_close(together, each), "log_prob of K particles to be that of each", (together, each))
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
        _require(grad is not None and bool(grad.isfinite().all()), f"a finite gradient of {name}", grad)
    with torch.no_grad():
        single = module(*parents)
        for tensor in copied.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1)
        copied.load_state_dict(safetensors.torch.load(safetensors.torch.save(module.state_dict())))
        if density:
            same = bool((copied(*parents).log_prob(x) == single.log_prob(x)).all())
            _require(same, "the same density after a state_dict round trip", copied)
        double = copied.double()(*(value.double() for value in parents))
        x = double.sample()
        in_double, in_single = double.log_prob(x), single.log_prob(x.float())
        _require(x.dtype == torch.float64, "a float64 sample of a module in float64", x.dtype)
        _require(in_double.dtype == torch.float64, "a float64 log_prob of a module in float64", in_double.dtype)
        if density:
            _require(
                _close(in_single.double(), in_double), "one density in float32 and float64", (in_single, in_double)
            )
    name = type(module).__name__
    _require(repr(module).startswith(name), f"a repr that starts with {name}", repr(module))


def _factors(d: TorchDistribution) -> Iterator[TorchDistribution]:
    """The independent parts of a density that are checked by themselves."""
    if isinstance(d, distributions.Joint):
        for _, part in d.parts:
            yield from _factors(part)
    elif isinstance(d, distributions.MissingAtRandom):
        yield from _factors(d.base_dist)
    else:
        yield d


def _location(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Median and half the width of the middle two thirds of every element, never 0."""
    low, center, high = samples.quantile(torch.tensor([1 / 6, 0.5, 5 / 6], dtype=samples.dtype), 0)
    spread = (high - low) / 2
    # A discrete element may hold one value in most samples.
    return center, torch.where(spread > 0, spread, samples.std(0).clamp_min(1e-3))


def _elementwise_rule(d: TorchDistribution, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Points (Q, *event) and the logarithms of their weights for every element by itself."""
    support = _unwrapped(_support(d))
    if support.is_discrete:
        points = _values(support, samples).reshape(-1, *(1,) * len(d.event_shape))
        return points.expand(-1, *d.event_shape), torch.zeros_like(points)
    transform = biject_to(support)
    center, spread = _location(transform.inv(samples))
    # sinh reaches far into the tails: 1e6 scales on the line, where they may be heavy; elsewhere they are thin.
    t = torch.linspace(-1, 1, 4001, dtype=samples.dtype) * (15 if support is constraints.real else 5)
    t = t.reshape(-1, *(1,) * len(d.event_shape))
    u = center + spread * t.sinh()
    points = transform(u)
    step = t.flatten()[1] - t.flatten()[0]
    return points, (step * spread * t.cosh()).log() + transform.log_abs_det_jacobian(u, points)


def _joint_rule(d: TorchDistribution, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Points (Q, *event) and the logarithms of their weights (Q,) for the whole event."""
    support = _support(d)
    if support.is_discrete:
        values = _values(_unwrapped(support), samples)
        count = d.event_shape.numel()
        if len(values) ** count > _MAX_OUTCOMES:
            raise ValueError(
                f"check_density: expected at most {_MAX_OUTCOMES} outcomes; got {len(values)}^{count}. Give a smaller "
                "member."
            )
        points = torch.cartesian_prod(*[values] * count).reshape(-1, *d.event_shape)
        points = points[support.check(points)]
        return points, points.new_zeros(len(points))
    if support is pyro_constraints.sphere:
        return _sphere_rule(d.event_shape[0], samples.dtype)
    transform = biject_to(support)
    u = transform.inv(samples)
    dims = u.shape[-1]
    if u.dim() != 2 or dims > 3:
        raise ValueError(
            f"check_density: expected at most 3 dims that depend on each other; got {tuple(u.shape[1:])}. Give a "
            "smaller member."
        )
    # The mean of many samples may lie far off in heavy tails; quantiles do not.
    center, spread = _location(u)
    # A quasi-random rule: logistic quantiles, whose tails are heavier than most, along the axes of the samples.
    quantiles = torch.quasirandom.SobolEngine(dims, scramble=True, seed=0).draw(_NUM_POINTS, dtype=u.dtype)
    quantiles = quantiles.clamp(torch.finfo(u.dtype).eps, 1 - torch.finfo(u.dtype).eps)
    axes = torch.linalg.cholesky(torch.corrcoef(u.T).reshape(dims, dims) + 1e-6 * torch.eye(dims, dtype=u.dtype))
    u = center + spread * (quantiles.logit() @ axes.T)
    log_volume = -(quantiles.log() + (1 - quantiles).log()).sum(-1) + spread.log().sum() + axes.diagonal().log().sum()
    points = transform(u)
    return points, log_volume - math.log(_NUM_POINTS) + transform.log_abs_det_jacobian(u, points)


def _sphere_rule(dims: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The unit circle, or the unit sphere by height and longitude."""
    angle = torch.arange(400, dtype=dtype) * (2 * math.pi / 400)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    if dims == 2:
        return circle, torch.full_like(angle, 2 * math.pi / 400).log()
    if dims != 3:
        raise ValueError(f"check_density: expected a sphere in 2 or 3 dims; got {dims}. Give a smaller member.")
    height = (torch.arange(400, dtype=dtype) + 0.5) / 200 - 1
    radius = (1 - height**2).sqrt()
    points = torch.cat([radius[:, None, None] * circle, height[:, None, None].expand(-1, 400, 1)], -1).reshape(-1, 3)
    return points, torch.full_like(points[:, 0], 2 * math.pi / 400 / 200).log()


def _support(d: TorchDistribution) -> constraints.Constraint:
    support = d.support
    if support is None:
        raise AssertionError(f"Contract: expected a distribution with a support; got {type(d).__name__}.")
    # Components of a mixture have one support, and the mixture has it too.
    return support.base_constraint if isinstance(support, constraints.MixtureSameFamilyConstraint) else support


def _unwrapped(support: constraints.Constraint) -> constraints.Constraint:
    """The constraint on single elements."""
    while isinstance(support, (constraints.independent, constraints.MixtureSameFamilyConstraint)):
        support = support.base_constraint
    return support


def _values(support: constraints.Constraint, samples: Tensor) -> Tensor:
    """Values of one element in ascending order; far beyond the largest sample where they do not end."""
    if isinstance(support, distributions.lattice):
        return _values(support.counts, samples / support.spacing) * support.spacing
    largest = float(samples.max())
    if support in (constraints.boolean, constraints.one_hot):
        largest = 1
    elif isinstance(support, constraints.integer_interval):
        largest = float(torch.as_tensor(support.upper_bound).max())
    elif not isinstance(support, distributions.counts_of):
        largest = 4 * largest + 60
    return torch.arange(largest + 1, dtype=samples.dtype)


def _compare(values: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compares the mean of complex values over their first dim with what it should be, part by part."""
    for sampled, truth in ((values.real, expected.real), (values.imag, expected.imag)):
        error = (sampled.mean(0) - truth).abs()
        bound = 5 * sampled.std(0) / math.sqrt(len(sampled)) + tolerance
        _require(bool((error <= bound).all()), "samples from the density", f"a mean off by {float(error.max()):.3g}")


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3)


def _require(condition: bool, expected: str, got: object) -> None:
    if not condition:
        raise AssertionError(f"Contract: expected {expected}; got {got}.")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
