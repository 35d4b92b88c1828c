r"""The log marginal likelihood by importance sampling, with the guide as the proposal.

.. math::
    \log p(x) = \log E_{q(z|x)}[w] \approx \log \frac1K \sum_k w_k, \quad w_k = \frac{p(x, z_k)}{q(z_k|x)}

The estimate is a lower bound on average, and exact for the exact posterior, whose weights are all p(x). How good it is
depends on how the weights vary, which the standard error, the effective sample size and Pareto k-hat tell.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.evaluation.bits import bits_per_dim
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.pareto import RELIABLE, pareto_k, tail_size
from pyro_vae.evaluation.proposals import Proposal
from pyro_vae.evaluation.results import Estimate, Result
from pyro_vae.evaluation.runs import Batch, one_run, reduce_runs
from pyro_vae.models import Program
from pyro_vae.nets import Shape
from pyro_vae.traces.possible import check_possible


@dataclass(frozen=True)
class LogMarginalLikelihood(Result):
    r"""Estimates of log p(x), one for each datum; every tensor has shape (N,).

    Shapes: N data, K particles.

    Attributes:
        value: log of the average weight, in nats.
        standard_error: of ``value`` through the noise of the draws, by the delta method: the standard error of the
            average weight over the average weight. NaN for a single draw.
        effective_sample_size: :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, from 1 to K; 0 where all weights are 0.
        pareto_k: k-hat; above 0.7 value and standard error are not to be trusted. It is -inf for equal weights, inf
            where a few outweigh all others, and NaN for fewer than 21 draws, which show no tail.
        num_particles: K.
        unit: of ``value`` and ``standard_error``.
    """

    value: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor
    num_particles: int
    unit: str = field(default="nats", init=False)

    @property
    def mean(self) -> Estimate:
        """The average over the data."""
        return Estimate.of(self.value, self.num_particles)

    def bits_per_dim(self, event_shape: Shape, *, spacing: float = 1.0) -> Estimate:
        """-log p(x) in bits per element, averaged over the data; see :func:`~pyro_vae.evaluation.bits_per_dim`."""
        return Estimate.of(bits_per_dim(-self.value, event_shape, spacing=spacing), self.num_particles, "bits/dim")

    @property
    def unreliable(self) -> list[int]:
        """The data whose k-hat is above 0.7."""
        return torch.nonzero(self.pareto_k > RELIABLE).flatten().tolist()

    def estimates(self) -> dict[str, Estimate]:
        relative = self.effective_sample_size / self.num_particles
        return {
            "log_marginal_likelihood": self.mean,
            "effective_sample_size": Estimate.of(relative, self.num_particles, "of K"),
            # NaN, which k-hat is of fewer than 21 draws, is neither reliable nor unreliable.
            "unreliable": Estimate.of(
                torch.where(self.pareto_k.isnan(), self.pareto_k, (self.pareto_k > RELIABLE).to(relative)),
                self.num_particles,
                "of N",
            ),
        }


@in_evaluation_mode
def log_marginal_likelihood(
    program: Program,
    x: Tensor,
    *context: Tensor,
    num_particles: int = 5000,
    proposal: Proposal | None = None,
    memory: int | None = None,
    batch_size: int | None = None,
    plate: str = "data",
    progress: bool = True,
) -> LogMarginalLikelihood:
    """Estimates log p(x) for every datum, in nats, by importance sampling.

    Shapes: N data, K particles.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide.
        context: their further arguments, (N, ...) each.
        num_particles: K, draws per datum.
        proposal: what they are drawn from, of :mod:`pyro_vae.evaluation.proposals`; None for the guide.
        memory: bytes that the draws in flight may take, whatever K; None for an amount that is fast.
        batch_size: data to run at once; None chooses it. Pass N where the guide's parameters belong to the data.
        plate: name of the plate over the data.
        progress: show a bar.

    Warns:
        UserWarning: k-hat is above 0.7, naming the data.

    Raises:
        ValueError: a site outside the plate, a number below 1, a budget for not even one draw; data that the model
            cannot have made, or NaN densities.

    References:
        Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", 2016, https://arxiv.org/abs/1509.00519

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the posterior, at which every draw tells log p(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> program, x = SimpleNamespace(model=model, guide=guide), torch.tensor([0.0, 2.0])
        >>> result = log_marginal_likelihood(program, x, num_particles=100, progress=False)
        >>> result.value  # log Normal(x; 0, 2)
        tensor([-1.2655, -2.2655])
        >>> result.effective_sample_size.round()
        tensor([100., 100.])
    """
    result, _ = weighted_draws(
        "log_marginal_likelihood",
        program,
        (x, *context),
        num_particles=num_particles,
        proposal=proposal,
        memory=memory,
        batch_size=batch_size,
        plate=plate,
        progress=progress,
    )
    warn_unreliable("log_marginal_likelihood", result.unreliable, len(x))
    return result


@in_evaluation_mode
def posterior_samples(
    program: Program,
    x: Tensor,
    *context: Tensor,
    num_samples: int = 1,
    num_particles: int = 5000,
    memory: int | None = None,
    batch_size: int | None = None,
    plate: str = "data",
    progress: bool = True,
) -> dict[str, Tensor]:
    """Draws from the posterior p(z|x), by resampling K draws of the guide in proportion to their weights.

    Shapes: N data, K particles, S samples.

    They are the posterior's as K grows, with replacement: where the effective sample size is small, many are equal.

    Args:
        program: see :func:`log_marginal_likelihood`, as are all other arguments.
        x: data (N, ...).
        context: further arguments of model and guide.
        num_samples: S, per datum.
        num_particles: K.
        memory: bytes that the draws in flight may take.
        batch_size: data to run at once.
        plate: name of the plate over the data.
        progress: show a bar.

    Returns:
        (S, N, ...) for each latent, by name.

    Raises:
        ValueError: as :func:`log_marginal_likelihood`.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the prior
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        >>> program = SimpleNamespace(model=model, guide=guide)
        >>> x = torch.full((1000,), 2.0)
        >>> samples = posterior_samples(program, x, num_samples=10, num_particles=500, progress=False)
        >>> round(samples["z"].mean().item(), 1), round(samples["z"].var().item(), 1)  # of p(z|x), Normal(1, 1/2)
        (1.0, 0.5)
    """
    if num_samples < 1:
        raise ValueError(
            f"posterior_samples: expected num_samples at least 1; got {num_samples}. Give a positive number."
        )
    parts = reduce_runs(
        "posterior_samples",
        program,
        (x, *context),
        partial(_Resampled, num_samples),
        num_particles=num_particles,
        memory=memory,
        latents=True,
        batch_size=batch_size,
        plate=plate,
        progress=progress,
    )
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def weighted_draws(
    subject: str,
    program: Program,
    args: tuple[Tensor, ...],
    *,
    num_samples: int = 0,
    num_particles: int,
    proposal: Proposal | None = None,
    memory: int | None,
    batch_size: int | None,
    plate: str,
    progress: bool,
) -> tuple[LogMarginalLikelihood, dict[str, Tensor]]:
    """Estimates of log p(x), and draws from p(z|x) that come of the same K particles.

    Shapes: N data, K particles, S samples.

    Args:
        subject: who asks, for messages.
        program: see :func:`log_marginal_likelihood`, as are the arguments from ``num_particles`` on.
        args: of model and guide.
        num_samples: S, 0 for none.
        num_particles: K.
        proposal: what they are drawn from; None for the guide.
        memory: bytes that the draws in flight may take.
        batch_size: data to run at once.
        plate: name of the plate over the data.
        progress: show a bar.

    Returns:
        The estimates, and (S, N, ...) for each latent, by name.
    """
    num_particles = checks.whole(subject, "num_particles", num_particles)
    tail = tail_size(num_particles) + 1
    proposal = proposal or Proposal()
    proposed, rows = proposal.fit(subject, program, args, memory=memory, plate=plate, progress=progress)
    parts = reduce_runs(
        subject,
        proposed,
        rows,
        partial(_SumsAndDraws, tail, num_samples),
        num_particles=num_particles,
        memory=memory,
        reserve=64 * tail,  # the largest weights, a copy and their indices
        latents=num_samples > 0,
        weigh=proposal.weigh,
        batch_size=batch_size,
        plate=plate,
        progress=progress,
    )
    value, error, ess, k_hat = (torch.cat(column) for column in zip(*(sums for sums, _ in parts), strict=True))
    check_possible(subject, value, partial(one_run, program, args), plate)
    draws = {name: torch.cat([part[name] for _, part in parts], 1) for name in parts[0][1]}
    return LogMarginalLikelihood(value, error, ess, k_hat, num_particles), draws


class _SumsAndDraws:
    """Both of what follows, of the same runs; no draws where S is 0."""

    def __init__(self, num_largest: int, num_samples: int) -> None:
        self._sums = _Sums(num_largest)
        self._draws = _Resampled(num_samples) if num_samples else None

    def add(self, batch: Batch) -> None:
        self._sums.add(batch)
        if self._draws is not None:
            self._draws.add(batch)

    def finish(self) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]:
        return self._sums.finish(), {} if self._draws is None else self._draws.finish()


class _Sums:
    """Sums over log-weights that come in parts, and the largest of them."""

    def __init__(self, num_largest: int) -> None:
        self._num_largest = num_largest
        self._count = 0
        self._sum = torch.tensor(-math.inf)
        self._sum_of_squares = torch.tensor(-math.inf)
        self._largest = torch.empty(0)

    def add(self, batch: Batch) -> None:
        log_weights = batch.log_weights
        if not self._count:
            self._largest = log_weights[:0]
        self._sum = torch.logaddexp(self._sum.to(log_weights), log_weights.logsumexp(0))
        self._sum_of_squares = torch.logaddexp(self._sum_of_squares.to(log_weights), (2 * log_weights).logsumexp(0))
        together = torch.cat([self._largest, log_weights])
        self._largest = together.topk(min(self._num_largest, len(together)), dim=0).values
        self._count += len(log_weights)

    def finish(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Value, standard error, effective sample size and k-hat, (N,) each."""
        value, error, ess = log_mean(self._sum, self._sum_of_squares, self._count)
        return value, error, ess, torch.tensor([pareto_k(largest) for largest in self._largest.T]).to(ess)


class _Resampled:
    """S draws that were kept, each in proportion to its weight among all that were seen."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._sum = torch.tensor(-math.inf)
        self._values: dict[str, Tensor] = {}

    def add(self, batch: Batch) -> None:
        log_weights = batch.log_weights
        share = log_weights.logsumexp(0)
        self._sum = torch.logaddexp(self._sum.to(share), share)
        # Where all weights are 0, any draw serves until there is a better one.
        weights = torch.where(share == -math.inf, torch.ones_like(log_weights), log_weights.softmax(0))
        chosen = torch.multinomial(weights.T, self._num_samples, replacement=True).T  # (S, N)
        # A draw of this part takes an earlier one's place with the probability that is this part's share of all.
        replaces = torch.rand(chosen.shape, device=share.device) < (share - self._sum).exp()
        data = torch.arange(chosen.shape[1], device=chosen.device)
        for name, draws in batch.latents.items():
            new = draws[chosen, data]
            if name in self._values:
                mask = replaces.reshape(*replaces.shape, *[1] * (new.dim() - 2))
                new = torch.where(mask, new, self._values[name])
            self._values[name] = new

    def finish(self) -> dict[str, Tensor]:
        return self._values


def log_mean(log_sum: Tensor, log_sum_of_squares: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the average of k weights, its standard error by the delta method, and the effective sample size.

    Args:
        log_sum: log of the weights' sum.
        log_sum_of_squares: log of the sum of their squares.
        k: their number.
    """
    ess = torch.where(log_sum == -math.inf, 0.0, (2 * log_sum - log_sum_of_squares).exp())
    # Var(mean w) / mean(w)^2 with the unbiased variance; rounding may take that of equal weights below 0.
    relative_variance = (1 / ess - 1 / k).clamp(min=0) * k / (k - 1) if k > 1 else torch.full_like(ess, math.nan)
    return log_sum - math.log(k), relative_variance.sqrt(), ess


def warn_unreliable(subject: str, data: list[int], num_data: int, off: str = "low") -> None:
    """Warns of data whose k-hat is too high; called by what a user calls, one call below the checks of arguments."""
    if data:
        warnings.warn(
            f"{subject}: expected Pareto k-hat at most {RELIABLE}; got more for {len(data)} of {num_data} data: "
            f"{listed(data)}. Their values are likely too {off}, and their standard errors too small. Give "
            "log_marginal_likelihood proposal=proposals.Refined(), draw more particles, or use ais.",
            stacklevel=5,
        )


def listed(data: list[int]) -> str:
    """Numbers of data as a message shows them."""
    return ", ".join(map(str, data[:10])) + (f" and {len(data) - 10} more" if len(data) > 10 else "")
