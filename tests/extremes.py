"""Distributions at parameters from mild to extreme, in single precision, with KL(q || p) in double precision.

Each case is a function that returns q, p, the divergence, and how many draws to make. The divergence is a number in
closed form, or log q - log p as a function of the draws, in double precision by scipy or mpmath.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import pyro.distributions as dist
import torch
from scipy import integrate, special, stats
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae import conditionals, distributions, likelihoods, nets, priors

Case = tuple[Any, Any, float | Callable[[Tensor], Tensor], int]

TEMPERATURES = (1e-3, 1e-2, 0.1, 0.5, 1.0, 10.0)
LOGITS = (0.1, 1.0, 5.0, 10.0, 50.0)
SCALES = (1e-6, 1e-3, 1.0, 1e3, 1e6)
CONCENTRATIONS = (1e-3, 1e-2, 0.1, 1.0, 30.0, 1e3, 1e6)


def _num_draws(dims: int) -> int:
    return 20_000 if dims <= 64 else 1_000


def _logits(spread: float, dims: int) -> Tensor:
    """Logits over [-spread, spread], in an order without pattern."""
    return spread * torch.linspace(-1, 1, dims)[torch.randperm(dims, generator=torch.Generator().manual_seed(1))]


def relaxed_one_hot_divergence(logits: Tensor) -> float:
    """KL of relaxed one-hot vectors from those of equal logits, at any common temperature.

    With E_i standard exponentials, log q - log p is sum(l) - d [log sum E_i - log sum e^-l_i E_i], and
    E log X = int (e^-t - E e^-tX) / t dt for positive X.
    """
    values = logits.double().numpy()
    d, low = len(values), float(values.min())
    c = np.exp(low - values)  # in (0, 1], so that the integrand has one scale

    def integrand(u: float) -> float:  # t = e^u
        t = math.exp(u)
        return math.exp(-t) - math.exp(-float(np.log1p(c * t).sum()))

    # beyond t = e^u of -40 and of 700 the integrand vanishes, the latter where prod (1 + c t) is above e^40
    value = integrate.quad(integrand, -40, 200, limit=2000, points=[-5, 0, 5, 20, 60, 120])[0]
    return float(values.sum()) - d * float(special.digamma(d)) + d * (value - low)


def relaxed_bernoulli_divergence(logit: float) -> float:
    """KL(Logistic(a, 1) || Logistic(0, 1)) = a coth(a / 2) - 2, at any common temperature."""
    return logit / math.tanh(logit / 2) - 2 if logit else 0.0


def von_mises_fisher_divergence(dims: int, concentration: float) -> float:
    """KL from the uniform distribution: kappa A_d(kappa) + log C_d(kappa) + log area, in 50 digits."""
    with mpmath.workdps(50):
        nu, kappa = mpmath.mpf(dims) / 2 - 1, mpmath.mpf(concentration)
        log_bessel = mpmath.log(mpmath.besseli(nu, kappa))
        ratio = mpmath.besseli(nu + 1, kappa) / mpmath.besseli(nu, kappa)
        log_c = nu * mpmath.log(kappa) - (nu + 1) * mpmath.log(2 * mpmath.pi) - log_bessel
        log_area = mpmath.log(2) + (nu + 1) * mpmath.log(mpmath.pi) - mpmath.loggamma(nu + 1)
        return float(kappa * ratio + log_c + log_area)


def _by_scipy(q: Any, p: Any, method: str = "logpmf") -> Callable[[Tensor], Tensor]:
    """Log q - log p of independent elements by scipy."""

    def ratio(x: Tensor) -> Tensor:
        value = getattr(q, method)(x.numpy()) - getattr(p, method)(x.numpy())
        return torch.from_numpy(value).sum(-1)

    return ratio


def huber_divergence(delta: float, shift: float) -> float:
    """KL between two Huber densities of scale 1 whose locations are ``shift`` apart, by quadrature in 30 digits."""
    with mpmath.workdps(30):
        d, shift = mpmath.mpf(delta), mpmath.mpf(shift)
        h = lambda t: t**2 / 2 if abs(t) <= d else d * (abs(t) - d / 2)  # noqa: E731
        ends = sorted({-d, d, shift - d, shift + d, mpmath.mpf(0), shift})
        tails = [ends[0] - 80 / min(d, 1), *ends, ends[-1] + 80 / min(d, 1)]
        z = mpmath.quad(lambda t: mpmath.exp(-h(t)), tails)
        return float(mpmath.quad(lambda t: mpmath.exp(-h(t)) * (h(t - shift) - h(t)), tails) / z)


def _body(dims: int = 2) -> nets.MLP:
    return nets.MLP(2, [])


def _of(kind: Any, shape: Any, **options: Any) -> Any:
    return kind(_body(), shape, **options)


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """All cases by name."""
    yield from _relaxed()
    yield from _normals()
    yield from _proportions()
    yield from _spheres()
    yield from _discrete()
    yield from _counts()
    yield from _bounded()
    yield from _flows()
    yield from _tails()


def _relaxed() -> Iterator[tuple[str, Callable[[], Case]]]:
    for t, spread, dims in itertools.product(TEMPERATURES, LOGITS, (2, 10, 5000)):

        def one_hot(t: float = t, spread: float = spread, dims: int = dims) -> Case:
            logits = _logits(spread, dims)
            q = _of(conditionals.RelaxedOneHotCategorical, dims, temperature=t).distribution(logits=logits)
            p = priors.RelaxedOneHotCategorical(dims, temperature=t)()
            return q, p, relaxed_one_hot_divergence(logits), _num_draws(dims)

        yield f"RelaxedOneHotCategorical t={t:g} logits={spread:g} dims={dims}", one_hot
    for t, spread, dims in itertools.product(TEMPERATURES, LOGITS, (1, 20, 5000)):

        def bernoulli(t: float = t, spread: float = spread, dims: int = dims) -> Case:
            logits = _logits(spread, dims) if dims > 1 else torch.tensor([spread])
            q = _of(conditionals.RelaxedBernoulli, dims, temperature=t).distribution(logits=logits)
            p = priors.RelaxedBernoulli(dims, temperature=t)()
            return q, p, sum(map(relaxed_bernoulli_divergence, logits.tolist())), _num_draws(dims)

        yield f"RelaxedBernoulli t={t:g} logits={spread:g} dims={dims}", bernoulli


def _normals() -> Iterator[tuple[str, Callable[[], Case]]]:
    for scale, dims in itertools.product(SCALES, (1, 10, 5000)):

        def diagonal(scale: float = scale, dims: int = dims) -> Case:
            loc, log_scale = 10 * scale * torch.ones(dims), torch.full((dims,), math.log(scale))
            q = _of(conditionals.DiagonalNormal, dims).distribution(loc=loc, log_scale=log_scale)
            p = priors.StandardNormal(dims)()
            return q, p, dims * ((101 * scale**2 - 1) / 2 - math.log(scale)), _num_draws(dims)

        def laplace(scale: float = scale, dims: int = dims) -> Case:
            q, p = priors.Laplace(dims, scale=scale)(), dist.Laplace(torch.zeros(dims), 1.0).to_event(1)
            return q, p, dims * (scale - 1 - math.log(scale)), _num_draws(dims)

        yield f"DiagonalNormal scale={scale:g} dims={dims}", diagonal
        yield f"Laplace prior scale={scale:g} dims={dims}", laplace
    for scale in SCALES:

        def full(scale: float = scale) -> Case:
            below = scale * torch.linspace(-1, 1, 45)
            conditional = _of(conditionals.FullRankNormal, 10)
            q = conditional.distribution(
                loc=torch.zeros(10), log_scale=torch.full((10,), math.log(scale)), below_diagonal=below
            )
            p = dist.MultivariateNormal(torch.zeros(10), torch.eye(10))
            double = dist.MultivariateNormal(torch.zeros(10).double(), scale_tril=q.scale_tril.double())
            prior = dist.MultivariateNormal(torch.zeros(10).double(), torch.eye(10).double())
            return q, p, float(kl_divergence(double, prior)), 20_000

        def mixture(scale: float = scale) -> Case:
            loc = torch.linspace(-3, 3, 12).reshape(4, 3) * scale
            q = _of(conditionals.MixtureOfNormals, 3, num_components=4).distribution(
                logits=_logits(5.0, 4), loc=loc, log_scale=torch.full((4, 3), math.log(scale))
            )
            p = priors.StandardNormal(3)()

            def ratio(z: Tensor) -> Tensor:
                each = dist.Normal(loc.double(), scale).log_prob(z[:, None]).sum(-1)
                log_q = (each + _logits(5.0, 4).double().log_softmax(-1)).logsumexp(-1)
                return log_q - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)

            return q, p, ratio, 20_000

        yield f"FullRankNormal scale={scale:g}", full
        yield f"MixtureOfNormals scale={scale:g}", mixture


def _proportions() -> Iterator[tuple[str, Callable[[], Case]]]:
    for a, dims in itertools.product(CONCENTRATIONS, (2, 10, 5000)):

        def dirichlet(a: float = a, dims: int = dims) -> Case:
            concentration = a * torch.linspace(1, 2, dims)
            q, p = distributions.LogDirichlet(concentration), priors.Dirichlet(dims, concentration=a)()
            double = dist.Dirichlet(concentration.double()), dist.Dirichlet(torch.full((dims,), a).double())
            return q, p, float(kl_divergence(*double)), _num_draws(dims)

        yield f"Dirichlet concentration={a:g} dims={dims}", dirichlet
    for scale, dims in itertools.product(SCALES[1:], (2, 10, 5000)):

        def logistic_normal(scale: float = scale, dims: int = dims) -> Case:
            free = torch.zeros(dims - 1)
            q = _of(conditionals.LogisticNormal, dims).distribution(loc=free, log_scale=free + math.log(2 * scale))
            p = priors.LogisticNormal(dims, scale=scale)()
            return q, p, (dims - 1) * (1.5 - math.log(2)), _num_draws(dims)

        yield f"LogisticNormal scale={scale:g} dims={dims}", logistic_normal


def _spheres() -> Iterator[tuple[str, Callable[[], Case]]]:
    for kappa, dims in itertools.product((1e-3, 1.0, 30.0, 1e3, 1e6), (2, 3, 4, 20, 5000)):

        def sphere(kappa: float = kappa, dims: int = dims) -> Case:
            loc = torch.nn.functional.normalize(torch.linspace(-1, 2, dims), dim=-1)
            q = distributions.VonMisesFisher(loc, torch.tensor(kappa))
            p = priors.HypersphericalUniform(dims)()
            return q, p, von_mises_fisher_divergence(dims, kappa), 20_000 if dims <= 64 else 2_000

        yield f"VonMisesFisher concentration={kappa:g} dims={dims}", sphere


def _discrete() -> Iterator[tuple[str, Callable[[], Case]]]:
    for spread, dims in itertools.product(LOGITS, (2, 10, 5000)):

        def bernoulli(spread: float = spread, dims: int = dims) -> Case:
            logits = _logits(spread, dims)
            q, p = _of(conditionals.Bernoulli, dims).distribution(logits=logits), priors.Bernoulli(dims)()
            log_p = special.log_expit(logits.double().numpy()), special.log_expit(-logits.double().numpy())
            return q, p, lambda x: (torch.from_numpy(np.where(x == 1, *log_p)) + math.log(2)).sum(-1), _num_draws(dims)

        def one_hot(spread: float = spread, dims: int = dims) -> Case:
            logits = _logits(spread, dims)
            q = _of(conditionals.OneHotCategorical, dims).distribution(logits=logits)
            log_q = torch.from_numpy(special.log_softmax(logits.double().numpy()))
            return q, priors.OneHotCategorical(dims)(), lambda x: log_q[x.argmax(-1)] + math.log(dims), 1_000

        yield f"Bernoulli logits={spread:g} dims={dims}", bernoulli
        yield f"OneHotCategorical logits={spread:g} dims={dims}", one_hot


def _counts() -> Iterator[tuple[str, Callable[[], Case]]]:
    for mean, theta, dims in itertools.product((1e-2, 1.0, 1e3, 1e6), (1e-3, 1.0, 400.0, 1e4), (1, 2000)):

        def negative_binomial(mean: float = mean, theta: float = theta, dims: int = dims) -> Case:
            likelihood = _of(likelihoods.NegativeBinomial, dims)

            def both(m: float) -> tuple[Any, Any]:
                ones = torch.ones(dims)
                with torch.no_grad():
                    likelihood.log_dispersion.fill_(math.log(theta))
                made = likelihood.distribution(logits=ones * math.log(m))
                counts = made.base_dist
                n, minus = (part.detach().double().numpy() for part in (counts.total_count, -counts.logits))
                return made, stats.nbinom(n, special.expit(minus))

            (q, exact_q), (p, exact_p) = both(mean), both(1.5 * mean)
            return q, p, _by_scipy(exact_q, exact_p), _num_draws(dims)

        yield f"NegativeBinomial mean={mean:g} dispersion={theta:g} dims={dims}", negative_binomial
    for mean, dims in itertools.product((1e-2, 1.0, 1e3, 1e6), (1, 2000)):

        def poisson(mean: float = mean, dims: int = dims) -> Case:
            likelihood = _of(likelihoods.Poisson, dims)
            q, p = (likelihood.distribution(logits=torch.full((dims,), math.log(m))) for m in (mean, 1.5 * mean))
            return q, p, dims * (mean * math.log(1 / 1.5) + 0.5 * mean), _num_draws(dims)

        yield f"Poisson mean={mean:g} dims={dims}", poisson
    for total, logit in itertools.product((1, 255, 10**6), (-50.0, -5.0, 0.0, 5.0, 50.0)):

        def binomial(total: int = total, logit: float = logit) -> Case:
            likelihood = _of(likelihoods.Binomial, 4, total_count=total, spacing=1.0)
            q, p = (likelihood.distribution(logits=torch.full((4,), value)) for value in (logit, logit + 0.5))
            heads = special.log_expit(logit) - special.log_expit(logit + 0.5)
            tails = special.log_expit(-logit) - special.log_expit(-logit - 0.5)
            return q, p, lambda x: (x * heads + (total - x) * tails).sum(-1), 20_000

        yield f"Binomial total_count={total} logit={logit:g}", binomial


def _flows() -> Iterator[tuple[str, Callable[[], Case]]]:
    kinds = {
        **{
            name: {"num_layers": 2, "hidden": [4], "context_dim": 3}
            for name in ("InverseAutoregressiveFlow", "RealNVP")
        },
        "NeuralSpline": {"num_layers": 2, "hidden": [4], "num_bins": 4, "context_dim": 3},
        "Householder": {},
        "Planar": {},
        "Sylvester": {},
    }
    for (name, options), spread in itertools.product(kinds.items(), (0.1, 1.0, 3.0)):

        def flow(name: str = name, options: dict[str, Any] = options, spread: float = spread) -> Case:
            torch.manual_seed(0)
            conditional = getattr(conditionals, name)(nets.MLP(2, [3]), 5, **options)
            with torch.no_grad():
                for parameter in conditional.parameters():
                    parameter.mul_(spread)
            y, double = torch.ones(2), copy.deepcopy(conditional).double()
            q, p = conditional(y), priors.StandardNormal(5)()
            # The same code in double precision, by its own draws: Planar flows have no inverse at given values.
            with torch.no_grad():
                exact = double(y.double())
                z = exact.sample(torch.Size([400_000]))
                ratio = exact.log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
            return q, p, float(ratio.mean()), 20_000

        yield f"{name} weights={spread:g}", flow


def _tails() -> Iterator[tuple[str, Callable[[], Case]]]:
    for scale, where in itertools.product((1e-3, 1e-2, 0.1, 1.0), (-8.0, 0.0, 8.0)):

        def beta(scale: float = scale, where: float = where) -> Case:
            likelihood = _of(likelihoods.Beta, 3, scale=scale)
            q, p = (likelihood.distribution(loc=torch.full((3,), value)) for value in (where, where + 0.1))
            exact = [stats.beta(*(part.double().numpy() for part in _concentrations(d))) for d in (q, p)]
            return q, p, _by_scipy(exact[0], exact[1], "logpdf"), 20_000

        yield f"Beta scale={scale:g} loc={where:g}", beta
    for df, scale in itertools.product((1.5, 30.0, 1e4, 1e8), (1e-3, 1.0, 1e3)):

        def student(df: float = df, scale: float = scale) -> Case:
            likelihood = _of(likelihoods.StudentT, 3, df=df, scale=scale)
            q, p = (likelihood.distribution(loc=torch.full((3,), value * scale)) for value in (0.0, 0.5))
            exact = [
                stats.t(np.float64(np.float32(df)), loc * np.float32(scale), np.float32(scale)) for loc in (0.0, 0.5)
            ]
            return q, p, _by_scipy(exact[0], exact[1], "logpdf"), 20_000

        yield f"StudentT df={df:g} scale={scale:g}", student
    for delta, scale in itertools.product((1e-3, 0.3, 3.0, 50.0), SCALES):

        def huber(delta: float = delta, scale: float = scale) -> Case:
            likelihood = _of(likelihoods.Huber, 3, delta=delta, scale=scale)
            q, p = (likelihood.distribution(loc=torch.full((3,), value * scale)) for value in (0.0, 0.5))
            return q, p, 3 * huber_divergence(delta, 0.5), 20_000

        yield f"Huber delta={delta:g} scale={scale:g}", huber
    for loc, log_scale in itertools.product((-10.0, 0.0, 0.5, 1.0, 10.0), (1e-3, 0.05, 1.0, 1e3)):

        def discretized(loc: float = loc, scale: float = log_scale) -> Case:
            ones = torch.ones(3)
            q, p = (distributions.DiscretizedLogistic(loc * ones, s * scale * ones).to_event(1) for s in (1.0, 1.5))
            exact = [_bins(loc, np.float64(np.float32(s * scale))) for s in (1.0, 1.5)]
            level = lambda x: (x * 255).round().long()  # noqa: E731
            return q, p, lambda x: (exact[0][level(x)] - exact[1][level(x)]).sum(-1), 20_000

        yield f"DiscretizedLogistic loc={loc:g} scale={log_scale:g}", discretized


def _concentrations(d: Any) -> tuple[Tensor, Tensor]:
    return d.base_dist.concentration1.detach(), d.base_dist.concentration0.detach()


def _bins(loc: float, scale: float) -> Tensor:
    """Log-probabilities of 256 levels in [0, 1] of a logistic whose tails are folded in, in 50 digits."""
    with mpmath.workdps(400):
        edges = [(mpmath.mpf(2 * k + 1) / 510 - loc) / mpmath.mpf(float(scale)) for k in range(255)]
        below = [mpmath.mpf(0), *(1 / (1 + mpmath.exp(-edge)) for edge in edges), mpmath.mpf(1)]
        return torch.tensor([float(mpmath.log(b - a)) for a, b in itertools.pairwise(below)], dtype=torch.float64)


def _bounded() -> Iterator[tuple[str, Callable[[], Case]]]:
    for logit in (-50.0, -10.0, -1e-3, 0.0, 1e-2, 3.0, 10.0, 50.0):

        def continuous_bernoulli(logit: float = logit) -> Case:
            q, p = (distributions.ContinuousBernoulli(torch.full((3,), value)).to_event(1) for value in (logit, 0.0))
            with mpmath.workdps(50):
                a = mpmath.mpf(logit)
                # density a e^{a x} / (e^a - 1) on [0, 1]; its mean is 1 / (1 - e^-a) - 1 / a
                if a:
                    mean = 1 / (1 - mpmath.exp(-a)) - 1 / a
                    log_c = mpmath.log(a / mpmath.expm1(a))
                else:
                    mean, log_c = mpmath.mpf(1) / 2, mpmath.mpf(0)
                return q, p, float(3 * (a * mean + log_c)), 20_000

        yield f"ContinuousBernoulli logit={logit:g}", continuous_bernoulli
