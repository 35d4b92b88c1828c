"""What the tests of estimators share: every bound with its definition in plain torch, and guides whose draws are given.

A bound's definition here is written as its paper has it, in loops over draws, and calls nothing of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from oracles import LOG_2PI, NormalNormal, TwoStates
from pyro.nn import PyroModule
from torch import Size, Tensor, nn

from pyro_vae.elbo import (
    CIWELBO,
    ELBO,
    IWELBO,
    MIWELBO,
    Estimator,
    JackknifeELBO,
    RenyiELBO,
    ThermodynamicELBO,
    VRMax,
)

Bound = Callable[[Tensor], Tensor]

# Every bound, by a factory that takes K (even) and a gradient.
BOUNDS: dict[str, Callable[[int, Any], Estimator]] = {
    "ELBO": lambda k, gradient: ELBO(k, gradient=gradient),
    "ELBO, beta": lambda k, gradient: ELBO(k, beta=0.7, gradient=gradient),
    "IWELBO": IWELBO,
    "MIWELBO": lambda k, gradient: MIWELBO(k // 2, gradient, num_bounds=2),
    "CIWELBO": lambda k, gradient: CIWELBO(k, gradient, beta=0.3),
    "RenyiELBO": lambda k, gradient: RenyiELBO(k, gradient, alpha=0.6),
    "RenyiELBO, negative": lambda k, gradient: RenyiELBO(k, gradient, alpha=-1.5),
    "VRMax": VRMax,
    "JackknifeELBO": JackknifeELBO,
    "TVO, left": lambda k, gradient: ThermodynamicELBO(k, partitions=3, first=0.1, gradient=gradient),
    "TVO, right": lambda k, gradient: ThermodynamicELBO(k, partitions=[0.2, 0.7], sum="right", gradient=gradient),
}


def log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.exp().mean(0).log()


def jackknife(log_weights: Tensor) -> Tensor:
    k = len(log_weights)
    without = [log_mean(torch.cat([log_weights[:j], log_weights[j + 1 :]])) for j in range(k)]
    return k * log_mean(log_weights) - (k - 1) / k * sum(without, torch.zeros(()))


def thermodynamic(log_weights: Tensor, betas: list[float], widths: list[float]) -> Tensor:
    total = torch.zeros(())
    for beta, width in zip(betas, widths, strict=True):
        weights = log_weights.exp() ** beta
        total = total + width * (weights * log_weights).sum(0) / weights.sum(0)
    return total


# The same bounds of log-weights (K, N); "ELBO, beta" weighs the latents' terms and not the log-weights.
DEFINITIONS: dict[str, Bound] = {
    "ELBO": lambda log_weights: log_weights.mean(0),
    "ELBO, beta": lambda log_weights: log_weights.mean(0),
    "IWELBO": log_mean,
    "MIWELBO": lambda log_weights: sum(map(log_mean, log_weights.chunk(2)), torch.zeros(())) / 2,
    "CIWELBO": lambda log_weights: 0.3 * log_weights.mean(0) + 0.7 * log_mean(log_weights),
    "RenyiELBO": lambda log_weights: log_mean(0.4 * log_weights) / 0.4,
    "RenyiELBO, negative": lambda log_weights: log_mean(2.5 * log_weights) / 2.5,
    "VRMax": lambda log_weights: log_weights.amax(0),
    "JackknifeELBO": jackknife,
    "TVO, left": lambda log_weights: thermodynamic(
        log_weights, [0.0, 0.1, math.sqrt(0.1)], [0.1, math.sqrt(0.1) - 0.1, 1 - math.sqrt(0.1)]
    ),
    "TVO, right": lambda log_weights: thermodynamic(log_weights, [0.2, 0.7, 1.0], [0.2, 0.5, 0.3]),
}

SMOOTH = [name for name in BOUNDS if name != "VRMax"]


class Noise:
    """Noise for K draws of N data: all of it for a vectorized draw, one row after the other for single ones.

    Args:
        values: (K, N).
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.used = 0

    def take(self, shape: Size) -> Tensor:
        if len(shape) == self.values.dim():
            return self.values
        self.used += 1
        return self.values[(self.used - 1) % len(self.values)]


class GivenNormal(dist.Normal):
    """A Normal whose noise is given."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Noise) -> None:
        super().__init__(*torch.broadcast_tensors(loc, scale))
        self.noise = noise

    def expand(self, batch_shape: Any, _instance: None = None) -> GivenNormal:
        return GivenNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise.take(self.batch_shape)


class TwoLayers:
    """top ~ Normal(prior + shared, 1), bottom|top ~ Normal(slope top, .8^2), x|bottom ~ Normal(bottom, noise^2).

    The guide draws bottom ~ Normal(a x + c + shared, s1^2), then top|bottom ~ Normal(b bottom + d, s2^2): an encoder
    that is shared with a learned prior. It starts at the exact posterior, moved by ``off``.

    Args:
        x: (N,).
        noise: given noise of bottom and top, (2, K, N); None for random draws.
        off: 0 for the exact posterior.
    """

    def __init__(self, x: Tensor, noise: Tensor | None = None, *, off: float = 0.0) -> None:
        self.x = x
        self.noise = None if noise is None else [Noise(layer) for layer in noise]
        start = {"prior": 0.2, "shared": 0.3, "slope": 0.7, "log_noise": -0.5}
        mean, slope, variance = 0.5, 0.7, math.exp(-1.0)  # of top; of bottom given top; of x given bottom
        marginal = slope**2 + 0.64
        s1 = 1 / (1 / marginal + 1 / variance)
        s2 = 1 / (1 + slope**2 / 0.64)
        start |= {"a": s1 / variance, "c": s1 * slope * mean / marginal - 0.3, "log_s1": math.log(s1) / 2}
        start |= {"b": s2 * slope / 0.64, "d": s2 * mean, "log_s2": math.log(s2) / 2}
        of_guide = ("a", "c", "log_s1", "b", "d", "log_s2")
        self.parameters = {
            name: nn.Parameter(torch.tensor(value + (off if name in of_guide else 0.0), dtype=torch.float64))
            for name, value in start.items()
        }
        self.model = _Function(self._model, {n: p for n, p in self.parameters.items() if n not in of_guide})
        self.guide = _Function(self._guide, {n: p for n, p in self.parameters.items() if n in (*of_guide, "shared")})

    @property
    def guide_parameters(self) -> list[str]:
        """Names of those that only the guide has."""
        return [name for name in self.guide.own if name != "shared"]

    def log_marginal_likelihood(self) -> Tensor:
        """log p(x), (N,), differentiable in the model's parameters."""
        p = self.parameters
        variance = p["slope"] ** 2 + 0.64 + (2 * p["log_noise"]).exp()
        loc = p["slope"] * (p["prior"] + p["shared"])
        return -(LOG_2PI + variance.log() + (self.x - loc) ** 2 / variance) / 2

    def draws(self, detach: bool = False) -> tuple[Tensor, Tensor]:
        """Bottom and top, (K, N) each, of the given noise."""
        assert self.noise is not None
        p = self.parameters
        bottom = p["a"] * self.x + p["c"] + p["shared"] + p["log_s1"].exp() * self.noise[0].values
        top = p["b"] * bottom + p["d"] + p["log_s2"].exp() * self.noise[1].values
        return (bottom.detach(), top.detach()) if detach else (bottom, top)

    def log_likelihood(self, bottom: Tensor, top: Tensor) -> Tensor:
        return log_normal(self.x, bottom, self.parameters["log_noise"])

    def log_prior(self, bottom: Tensor, top: Tensor) -> Tensor:
        p = self.parameters
        return log_normal(top, p["prior"] + p["shared"], torch.zeros(())) + log_normal(
            bottom, p["slope"] * top, torch.tensor(0.8, dtype=torch.float64).log()
        )

    def log_q(self, bottom: Tensor, top: Tensor) -> Tensor:
        p = self.parameters
        return log_normal(bottom, p["a"] * self.x + p["c"] + p["shared"], p["log_s1"]) + log_normal(
            top, p["b"] * bottom + p["d"], p["log_s2"]
        )

    def gradients(self, objective: Tensor) -> dict[str, Tensor]:
        """By parameter, 0 for one that takes no part."""
        values = torch.autograd.grad(objective, list(self.parameters.values()), allow_unused=True)
        return {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(self.parameters.items(), values, strict=True)
        }

    def _model(self, x: Tensor) -> None:
        p = self.model.own
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(p["prior"] + p["shared"], 1.0))
            bottom = pyro.sample("bottom", dist.Normal(p["slope"] * top, 0.8))
            pyro.sample("x", dist.Normal(bottom, p["log_noise"].exp()), obs=x)

    def _guide(self, x: Tensor) -> None:
        p = self.guide.own
        with pyro.plate("data", len(x)):
            bottom = pyro.sample("bottom", self._normal(0, p["a"] * x + p["c"] + p["shared"], p["log_s1"].exp()))
            pyro.sample("top", self._normal(1, p["b"] * bottom + p["d"], p["log_s2"].exp()))

    def _normal(self, layer: int, loc: Tensor, scale: Tensor) -> dist.Normal:
        return dist.Normal(loc, scale) if self.noise is None else GivenNormal(loc, scale, self.noise[layer])


class Nested:
    """z ~ Normal(0, 1) per datum; in an inner plate of R, u ~ Normal(z, 1), x|u ~ Normal(u, 1). The guide is exact.

    Args:
        inner_dim: of the inner plate; the data plate takes the other one.
        size: of the full data; None for a plate over the rows.
        off: how far the guide's means are from the posterior's; one number, or (N, 1) for an inner dim of -1.
    """

    def __init__(self, inner_dim: int = -1, size: int | None = None, off: float | Tensor = 0.0) -> None:
        self.inner_dim, self.size, self.off = inner_dim, size, off

    def plates(self, x: Tensor) -> tuple[Any, Any]:
        data = pyro.plate("data", self.size or len(x), subsample_size=len(x), dim=-3 - self.inner_dim)
        return data, pyro.plate("repeats", x.shape[1], dim=self.inner_dim)

    def laid_out(self, x: Tensor) -> Tensor:
        return x if self.inner_dim == -1 else x.T

    def model(self, x: Tensor) -> None:
        data, repeats = self.plates(x)
        with data:
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            with repeats:
                u = pyro.sample("u", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(u, 1.0), obs=self.laid_out(x))

    def guide(self, x: Tensor) -> None:
        data, repeats = self.plates(x)
        precision = 1 + x.shape[1] / 2
        with data:
            mean = self.laid_out(x).sum(self.inner_dim, keepdim=True) / 2 / precision
            z = pyro.sample("z", dist.Normal(mean + self.off, precision**-0.5))
            with repeats:
                pyro.sample("u", dist.Normal((z + self.laid_out(x)) / 2 + self.off, 0.5**0.5))

    @staticmethod
    def log_marginal_likelihood(x: Tensor) -> Tensor:
        n = x.shape[1]
        covariance = torch.ones(n, n, dtype=x.dtype) + 2 * torch.eye(n, dtype=x.dtype)
        return torch.distributions.MultivariateNormal(torch.zeros(n, dtype=x.dtype), covariance).log_prob(x)


class _Function(PyroModule):
    """A function as a module that holds the parameters it uses."""

    def __init__(self, function: Callable[[Tensor], None], parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.own = parameters
        self.run = function
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> None:
        self.run(x)


def log_normal(value: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    return -(LOG_2PI + ((value - loc) / log_scale.exp()) ** 2) / 2 - log_scale


class GivenNormalNormal(NormalNormal):
    """:class:`oracles.NormalNormal` with given noise (K, N), and its log-weights in plain torch."""

    def __init__(self, x: Tensor, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        super().__init__(loc, scale)
        self.x, self.noise = x, Noise(noise)
        self.loc, self.log_scale = self.guide.loc, self.guide.log_scale
        self.guide = _Function(self._guide, {"loc": self.loc, "log_scale": self.log_scale})

    def _guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", GivenNormal(self.loc, self.log_scale.exp(), self.noise))

    def log_weights(self) -> Tensor:
        """(K, N)."""
        z, zero = self.loc + self.log_scale.exp() * self.noise.values, torch.zeros(())
        return log_normal(z, zero, zero) + self.log_likelihood() - log_normal(z, self.loc, self.log_scale)

    def log_likelihood(self) -> Tensor:
        """(K, N)."""
        return log_normal(self.x, self.loc + self.log_scale.exp() * self.noise.values, torch.zeros(()))


def grid(num_draws: int, step: float = 0.125, reach: float = 8.0) -> tuple[Tensor, Tensor]:
    """Points (num_draws, N) of a standard Normal's quadrature and their probabilities (N,).

    The trapezoidal rule, whose error falls exponentially with the step for what is analytic near the real axis.
    """
    points = torch.arange(-reach, reach + step / 2, step, dtype=torch.float64)
    noise = torch.cartesian_prod(*[points] * num_draws).reshape(-1, num_draws).T
    return noise, (log_normal(noise, torch.zeros(()), torch.zeros(())).sum(0)).exp() * step**num_draws


def quantiles(num_draws: int) -> Tensor:
    """Noise (num_draws, 1) at the quantiles of a standard Normal: a mean over it is an expectation, nearly."""
    level = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    return torch.special.ndtri(level).unsqueeze(-1)


def row_gradients(estimator: Estimator, program: Any, x: Tensor) -> Tensor:
    """Gradients of the bound in (loc, log scale) of each datum of a :class:`oracles.NormalNormal`, (N, 2)."""
    loss = estimator.differentiable_loss(program.model, program.guide, x)
    return -torch.stack(torch.autograd.grad(loss, [program.guide.loc, program.guide.log_scale]), -1)


def tuple_gradients(estimator: Estimator, logit: float = 0.0, num_draws: int | None = None) -> tuple[Tensor, Tensor]:
    """Gradient of the bound of each of the 2^K tuples of :class:`oracles.TwoStates` in its logit, and its probability.

    The gradients are those of the estimator's own loss, of which every tuple is a datum.
    """
    draws = TwoStates.tuples(num_draws or estimator.num_particles)
    program = TwoStates(torch.full((len(draws),), logit, dtype=torch.float64), draws.T.contiguous())
    loss = estimator.differentiable_loss(program.model, program.guide, torch.ones(len(draws), dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, program.guide.logit)
    return -gradient, TwoStates.log_q(draws, torch.tensor(logit, dtype=torch.float64)).sum(-1).exp()


def moments(gradient: Tensor, probability: Tensor) -> tuple[float, float]:
    """Exact mean and variance over tuples."""
    mean = (probability * gradient).sum()
    return mean.item(), (probability * (gradient - mean) ** 2).sum().item()


def exact_expectation(bound: Bound, num_particles: int, logit: Tensor) -> Tensor:
    """E[F(log w_1, ..., log w_K)] over all 2^K tuples of :class:`oracles.TwoStates`, differentiable in the logit."""
    z = TwoStates.tuples(num_particles)
    probability = TwoStates.log_q(z, logit).sum(-1).exp()
    return (probability * bound(TwoStates.log_weights(z, logit).T)).sum()


def exact_gradient(bound: Bound, num_particles: int, logit: float = 0.0) -> float:
    """The derivative of :func:`exact_expectation`."""
    at = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(exact_expectation(bound, num_particles, at), at)[0].item()


def assert_mean(samples: Tensor, expected: Any) -> None:
    """The mean over dim 0 is as expected, within 5 standard errors."""
    errors = samples.std(0) / math.sqrt(len(samples))
    difference = (samples.mean(0) - torch.as_tensor(expected, dtype=samples.dtype)).abs()
    assert bool((difference <= 5 * errors).all()), (samples.mean(0), expected, errors)
