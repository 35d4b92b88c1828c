"""Models whose evidence, posterior, bounds and gradients are known in closed form, in float64.

Each class is a program (``model``, ``guide``, ``latents``, ``observed``) or makes one, with its truths beside it.
Nothing here calls an estimator of the package. ``test_oracles.py`` checks the formulas against numbers from quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from torch import Size, Tensor, nn

from pyro_vae import VAE
from pyro_vae.conditionals import Conditional, DiagonalNormal
from pyro_vae.likelihoods import MissingAtRandom, Normal
from pyro_vae.nets import MLP
from pyro_vae.priors import StandardNormal

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class SimpleProgram:
    """Any model and guide, as a program."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    latents: tuple[str, ...] = ("z",)
    observed: tuple[str, ...] = ("x",)


class NormalNormal:
    """z ~ Normal(0, 1), x|z ~ Normal(z, 1) for each of N data; q(z|x) = Normal(loc, scale^2) with a loc and scale each.

    Args:
        loc: (N,).
        scale: (N,); the guide's parameter is its logarithm.
        functions: model and guide are functions with ``pyro.param``, not modules.
    """

    latents = ("z",)
    observed = ("x",)

    # L_K = E[log mean_k w_k] at x = 1 with the prior as the proposal, from quadrature.
    bound_of_prior = {
        1: -1.91893853,
        2: -1.65347379,
        5: -1.55741058,
        10: -1.53494159,
        50: -1.51919852,
        100: -1.51734391,
    }

    def __init__(self, loc: Tensor, scale: Tensor, *, functions: bool = False) -> None:
        self.model: Any = _normal_normal if functions else _NormalNormalModel()
        self.guide: Any = (
            _normal_guide(loc.double(), scale.double()) if functions else _NormalGuide(loc.double(), scale.double())
        )

    @classmethod
    def exact(cls, x: Tensor, *, functions: bool = False) -> NormalNormal:
        """With the posterior of x as the guide."""
        return cls(*cls.posterior(x), functions=functions)

    @staticmethod
    def posterior(x: Tensor) -> tuple[Tensor, Tensor]:
        """Loc and scale of p(z|x)."""
        return x / 2, torch.full_like(x, math.sqrt(0.5))

    @staticmethod
    def log_marginal_likelihood(x: Tensor) -> Tensor:
        """log p(x), (N,)."""
        return -(LOG_2PI + math.log(2)) / 2 - x**2 / 4

    @staticmethod
    def elbo(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """E_q[log p(x, z) - log q(z)], (N,); its gradient is (x - 2 loc, 1 - 2 scale^2) in (loc, log scale)."""
        return -LOG_2PI / 2 + 0.5 + scale.log() - ((x - loc) ** 2 + loc**2) / 2 - scale**2

    @staticmethod
    def renyi_of_prior(x: Tensor, alpha: float) -> Tensor:
        """Renyi's bound of order alpha < 2, not 1, for K to infinity, with the prior as the proposal."""
        g = 1 - alpha
        return -LOG_2PI / 2 - math.log(1 + g) / (2 * g) - x**2 / (2 * (1 + g))

    @staticmethod
    def tvo_of_prior(x: Tensor, num_partitions: int) -> tuple[Tensor, Tensor]:
        """Left and right Riemann sums of the thermodynamic integral from the prior to the joint density."""
        betas = torch.linspace(0, 1, num_partitions + 1, dtype=x.dtype).unsqueeze(-1)
        expected = -LOG_2PI / 2 - ((x - x * betas / (1 + betas)) ** 2 + 1 / (1 + betas)) / 2
        return expected[:-1].mean(0), expected[1:].mean(0)

    @staticmethod
    def gradient_variances(x: Tensor) -> dict[str, Tensor]:
        """Variance of one-sample ELBO gradients at the exact posterior, (N, 2) for (loc, log scale)."""
        loc, scale = NormalNormal.posterior(x)
        return {
            "pathwise": torch.full((len(x), 2), 2.0, dtype=x.dtype),
            "analytic_kl": torch.stack([scale**2, scale**2 * (x - loc) ** 2 + 2 * scale**4], -1),
        }


def _normal_normal(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class _NormalNormalModel(PyroModule):
    def forward(self, x: Tensor) -> None:
        _normal_normal(x)


class _NormalGuide(PyroModule):
    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(scale.log())

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))


def _normal_guide(loc: Tensor, scale: Tensor) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        means = pyro.param("loc", loc.clone)
        log_scales = pyro.param("log_scale", scale.log)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(means, log_scales.exp()))

    return guide


class TwoStates:
    """z in {0, 1}, p(z=1) = .3, p(x=1|z) = (.2, .9), and x = 1 for each of N data; q(z=1|x) = sigmoid(logit).

    Every expectation over K draws is a sum over 2^K tuples, so that an estimator's mean and variance are exact. Pass
    one of :meth:`tuples` as ``draws`` and the guide samples it.

    Args:
        logit: (N,), the guide's parameter.
        draws: what the guide samples, of a shape that broadcasts to (K, N); None for random draws.
    """

    latents = ("z",)
    observed = ("x",)

    log_marginal_likelihood = math.log(0.7 * 0.2 + 0.3 * 0.9)
    posterior = 0.3 * 0.9 / (0.7 * 0.2 + 0.3 * 0.9)

    def __init__(self, logit: Tensor, draws: Tensor | None = None) -> None:
        self.model = _two_states
        self.guide = _TwoStatesGuide(logit.double(), draws)

    @staticmethod
    def tuples(num_particles: int) -> Tensor:
        """All draws of K particles, (2^K, K)."""
        return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * num_particles).reshape(
            -1, num_particles
        )

    @staticmethod
    def log_weights(z: Tensor, logit: Tensor) -> Tensor:
        """log p(x=1, z) - log q(z), elementwise."""
        log_joint = torch.where(z > 0, z.new_tensor(0.3 * 0.9), z.new_tensor(0.7 * 0.2)).log()
        return log_joint - TwoStates.log_q(z, logit)

    @staticmethod
    def log_q(z: Tensor, logit: Tensor) -> Tensor:
        """log q(z), elementwise."""
        return nn.functional.logsigmoid(torch.where(z > 0, logit, -logit))

    @staticmethod
    def bound(num_particles: int, logit: Tensor) -> Tensor:
        """L_K = E[log mean_k w_k]; differentiable in the scalar ``logit``, gradient exact."""
        z = TwoStates.tuples(num_particles)
        log_mean = TwoStates.log_weights(z, logit).logsumexp(-1) - math.log(num_particles)
        return (TwoStates.log_q(z, logit).sum(-1).exp() * log_mean).sum()

    @staticmethod
    def moments(
        num_particles: int, logit: Tensor, estimator: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``estimator(log_weights, scores) -> (2^K,)``, of arguments (2^K, K).

        The scores are d log q(z_k) / d logit.
        """
        z = TwoStates.tuples(num_particles)
        value = estimator(TwoStates.log_weights(z, logit), z - logit.sigmoid())
        probability = TwoStates.log_q(z, logit).sum(-1).exp()
        mean = (probability * value).sum()
        return mean, (probability * (value - mean) ** 2).sum()


def _two_states(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
        pyro.sample("x", dist.Bernoulli(torch.where(z > 0, x.new_tensor(0.9), x.new_tensor(0.2))), obs=x)


class _TwoStatesGuide(PyroModule):
    def __init__(self, logit: Tensor, draws: Tensor | None) -> None:
        super().__init__()
        self.logit = nn.Parameter(logit.clone())
        self.draws = draws

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.Bernoulli(logits=self.logit)
                if self.draws is None
                else GivenBernoulli(*torch.broadcast_tensors(self.logit, self.draws)),
            )


class GivenBernoulli(dist.Bernoulli):  # type: ignore[misc]
    """A Bernoulli whose draws are given."""

    def __init__(self, logits: Tensor, draws: Tensor) -> None:
        super().__init__(logits=logits)
        self.draws = draws

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> GivenBernoulli:
        return GivenBernoulli(self.logits.expand(batch_shape), self.draws.expand(batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.draws.expand(*sample_shape, *self.batch_shape)


@dataclass(frozen=True)
class LinearVAE:
    """Probabilistic PCA: z ~ Normal(0, I), x|z ~ Normal(weight z + bias, scale^2 I), D data dims and L latent ones.

    Args:
        weight: (D, L).
        bias: (D,).
        scale: noise.
    """

    weight: Tensor
    bias: Tensor
    scale: float

    @classmethod
    def maximum_likelihood(cls, x: Tensor, latent_dim: int, rotation: Tensor | None = None) -> LinearVAE:
        """The estimate for data (N, D); a rotation (L, L) of the latents leaves the likelihood as it is."""
        bias = x.mean(0)
        values, vectors = torch.linalg.eigh((x - bias).T @ (x - bias) / len(x))
        variance = values[:-latent_dim].mean()
        weight = vectors[:, -latent_dim:] * (values[-latent_dim:] - variance).sqrt()
        return cls(weight if rotation is None else weight @ rotation, bias, variance.sqrt().item())

    @staticmethod
    def maximum_log_likelihood(x: Tensor, latent_dim: int) -> float:
        """log p(x) summed over the data (N, D), at the maximum-likelihood estimate; from the eigenvalues alone."""
        n, d = x.shape
        values = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)) / n)
        log_variance = values[:-latent_dim].mean().log()
        kept = values[-latent_dim:].log().sum()
        return -n / 2 * (d * LOG_2PI + kept + (d - latent_dim) * log_variance + d).item()

    @classmethod
    def random(cls, data_dim: int = 5, latent_dim: int = 2, *, orthogonal: bool = False, seed: int = 0) -> LinearVAE:
        """Drawn parameters; orthogonal columns of ``weight`` make the posterior covariance diagonal."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(data_dim, latent_dim, dtype=torch.float64, generator=generator)
        if orthogonal:
            weight = torch.linalg.qr(weight).Q * torch.arange(1.0, latent_dim + 1, dtype=torch.float64)
        else:
            weight = weight.cumsum(-1)  # far from orthogonal, for the gap of a diagonal guide to be large
        return cls(weight, torch.randn(data_dim, dtype=torch.float64, generator=generator), 0.7)

    @property
    def precision(self) -> Tensor:
        """M = W'W + s^2 I, the posterior precision times s^2, (L, L)."""
        return self.weight.T @ self.weight + self.scale**2 * torch.eye(self.weight.shape[1], dtype=torch.float64)

    def draw(self, num_data: int, seed: int = 0) -> Tensor:
        """Data (N, D) from the model."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(num_data, self.weight.shape[1], dtype=torch.float64, generator=generator)
        noise = torch.randn(num_data, self.weight.shape[0], dtype=torch.float64, generator=generator)
        return z @ self.weight.T + self.bias + self.scale * noise

    def log_marginal_likelihood(self, x: Tensor) -> Tensor:
        """log p(x), (N,)."""
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(len(self.bias), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loc (N, L) and covariance (L, L) of p(z|x)."""
        inverse = torch.linalg.inv(self.precision)
        return (x - self.bias) @ self.weight @ inverse, self.scale**2 * inverse

    def posterior_kl(self, x: Tensor) -> Tensor:
        """KL(p(z|x) || p(z)), (N,)."""
        loc, covariance = self.posterior(x)
        return ((loc**2).sum(-1) + covariance.trace() - len(covariance) - covariance.logdet()) / 2

    def diagonal_scale(self) -> Tensor:
        """Scales of the diagonal Normal that is nearest to the posterior in KL(q || p), (L,)."""
        return self.scale / self.precision.diagonal().sqrt()

    def diagonal_gap(self) -> float:
        """log p(x) less the ELBO of that diagonal Normal; the same for every x."""
        return ((self.precision.diagonal().log().sum() - self.precision.logdet()) / 2).item()

    def vae(self, *, diagonal: bool = False) -> VAE:
        """This model with the exact posterior as its guide, or with the nearest diagonal Normal."""
        data_dim, latent_dim = self.weight.shape
        likelihood = Normal(MLP(latent_dim, []), data_dim, scale=self.scale)
        _set(likelihood.head.layer, self.weight, self.bias)
        to_loc = torch.linalg.solve(self.precision, self.weight.T)
        body = MLP(data_dim, [])
        posterior: Conditional
        if diagonal:
            posterior = DiagonalNormal(body, latent_dim)
            to_loc = torch.cat([to_loc, torch.zeros_like(to_loc)])
            offset = torch.cat([-to_loc[:latent_dim] @ self.bias, self.diagonal_scale().log()])
        else:
            posterior = _FixedCovariance(body, torch.linalg.cholesky(self.posterior(self.bias[None])[1]))
            offset = -to_loc @ self.bias
        _set(posterior.head.layer, to_loc, offset)
        return VAE(StandardNormal(latent_dim), likelihood, posterior).double()


@dataclass(frozen=True)
class FactorAnalysis:
    """z ~ Normal(0, I), x|z ~ Normal(weight z + bias, diag(scale^2)); NaN in x is a missing value.

    Args:
        weight: (D, L).
        bias: (D,).
        scale: (D,).
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor

    @classmethod
    def random(cls, data_dim: int = 5, latent_dim: int = 2, *, seed: int = 0) -> FactorAnalysis:
        """Drawn parameters."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(data_dim, latent_dim, dtype=torch.float64, generator=generator)
        bias = 2 * torch.randn(data_dim, dtype=torch.float64, generator=generator)
        return cls(weight, bias, 0.3 + torch.rand(data_dim, dtype=torch.float64, generator=generator))

    @property
    def covariance(self) -> Tensor:
        """Of x, (D, D)."""
        return self.weight @ self.weight.T + self.scale.square().diag()

    def draw(self, num_data: int, seed: int = 0) -> Tensor:
        """Complete data (N, D) from the model."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(num_data, self.weight.shape[1], dtype=torch.float64, generator=generator)
        noise = torch.randn(num_data, len(self.bias), dtype=torch.float64, generator=generator)
        return z @ self.weight.T + self.bias + self.scale * noise

    def conditional(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the missing values of a row (D,) given its observed ones."""
        m, o = row.isnan(), ~row.isnan()
        covariance = self.covariance
        gain = covariance[m][:, o] @ torch.linalg.inv(covariance[o][:, o])
        return self.bias[m] + gain @ (row - self.bias)[o], covariance[m][:, m] - gain @ covariance[o][:, m]

    def log_marginal_likelihood(self, x: Tensor) -> Tensor:
        """log p of the observed values of each row, (N,)."""
        value = x.new_zeros(len(x))
        for observed in (~x.isnan()).unique(dim=0):
            rows = ((~x.isnan()) == observed).all(1)
            if observed.any():
                covariance = self.covariance[observed][:, observed]
                normal = torch.distributions.MultivariateNormal(self.bias[observed], covariance)
                value[rows] = normal.log_prob(x[rows][:, observed])
        return value

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loc (N, L) and covariance (N, L, L) of p(z|observed values)."""
        observed = (~x.isnan()).to(x) / self.scale.square()
        precision = torch.einsum("nd,di,dj->nij", observed, self.weight, self.weight)
        covariance = torch.linalg.inv(precision + torch.eye(self.weight.shape[1], dtype=x.dtype))
        from_data = torch.einsum("nd,di->ni", observed * torch.nan_to_num(x - self.bias), self.weight)
        return (covariance @ from_data[..., None])[..., 0], covariance

    def vae(self, *, widen: float = 1.0, shift: float = 0.0) -> VAE:
        """This model with its posterior given the observed values as guide, of wider scales and moved if wanted."""
        data_dim, latent_dim = self.weight.shape
        normal = Normal(MLP(latent_dim, []), data_dim, scale="per_element", min_scale=0.0)
        raw_scale = self.scale.expm1().log()
        _set(
            normal.head.layer,
            torch.cat([self.weight, torch.zeros_like(self.weight)]),
            torch.cat([self.bias, raw_scale]),
        )
        guide = _OfObserved(MLP(data_dim, [], masked=True), latent_dim)
        guide.how = (self, widen, shift)
        return VAE(StandardNormal(latent_dim), MissingAtRandom(normal), guide).double()


class _OfObserved(Conditional):
    """z|x ~ Normal with the posterior's moments given what is observed of x, of wider scales and moved."""

    how: tuple[FactorAnalysis, float, float]

    def parameter_shapes(self) -> dict[str, Size]:
        return {"loc": self.event_shape}

    def forward(self, *parents: Tensor) -> TorchDistribution:
        oracle, widen, shift = self.how
        loc, covariance = oracle.posterior(parents[0])
        tril = torch.linalg.cholesky(covariance)
        return dist.MultivariateNormal(loc + shift * tril.sum(-1), scale_tril=widen * tril)


class _FixedCovariance(Conditional):
    """z|x ~ Normal(loc(x), L L') with a covariance that is the same for every x."""

    scale_tril: Tensor

    def __init__(self, body: MLP, scale_tril: Tensor) -> None:
        super().__init__(body, len(scale_tril))
        self.register_buffer("scale_tril", scale_tril)

    def parameter_shapes(self) -> dict[str, Size]:
        return {"loc": self.event_shape}

    def distribution(self, *, loc: Tensor) -> TorchDistribution:  # type: ignore[override]
        return dist.MultivariateNormal(loc, scale_tril=self.scale_tril)


def _set(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Puts values into a linear layer in float64, which a rounding to float32 would spoil."""
    layer.weight, layer.bias = nn.Parameter(weight.contiguous().clone()), nn.Parameter(bias.clone())
