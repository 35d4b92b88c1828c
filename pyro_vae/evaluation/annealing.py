r"""Annealed importance sampling: log p(x) along a path from the prior, or the guide, to the posterior.

Shapes: N data, K chains, T temperatures.

Chains start from the prior and pass through :math:`\pi_t(z) \propto p(z) p(x|z)^{\beta_t}`, :math:`0 = \beta_0 <
\dots < \beta_T = 1`, by transitions that leave each as it is. The product of the ratios on the way is an unbiased
estimate of p(x), so the logarithm of its average is a lower bound on average:

.. math:: \log p(x) \ge E\Big[\log \frac1K \sum_k \prod_t p(x|z_{k,t-1})^{\beta_t - \beta_{t-1}}\Big]

A path may start at the guide instead, :math:`\pi_t(z) \propto q(z|x)^{1 - \beta_t} p(x, z)^{\beta_t}`, with
p(x, z)/q(z|x) in the place of p(x|z): it is shorter by as much as the guide is nearer to the posterior than the prior.

The same path walked backwards from an exact draw of the posterior gives an unbiased estimate of 1/p(x), and an upper
bound. Exact draws are at hand for data that the model itself made: the latents they were made from.

References:
    Neal, "Annealed importance sampling", 2001, https://arxiv.org/abs/physics/9803008
    Grosse, Ghahramani, Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo", 2015,
    https://arxiv.org/abs/1511.02543
    Wu, Burda, Salakhutdinov, Grosse, "On the quantitative analysis of decoder-based generative models", 2017,
    https://arxiv.org/abs/1611.04273
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import checks
from pyro_vae.evaluation.hmc import TemperedPosterior
from pyro_vae.evaluation.importance import log_mean
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.results import Estimate, Result
from pyro_vae.evaluation.runs import in_parts
from pyro_vae.evaluation.shares import by_share, is_first, joined
from pyro_vae.evaluation.simulation import Simulation
from pyro_vae.models import Program

_ACCEPTANCE = 0.8
"""What step sizes are adapted to: more than for a chain at rest, since one that is refused falls behind the path."""

_FIRST_STEP_SIZE = 0.5  # of a prior of unit scale
_RATE = 0.25  # of adaptation, in logarithms: fast enough to follow a posterior that narrows over some tens of steps
_WARM_UP = 20
_LEAST_DEVIATION = 1e-6  # nats: an exact guide, whose log-weights are all equal, has a path too

Start: TypeAlias = Literal["prior", "guide"]


@dataclass(frozen=True)
class AnnealedImportanceSampling(Result):
    """Estimates of log p(x), lower bounds on average; every tensor has shape (N,).

    Shapes: N data, K chains, T temperatures.

    Attributes:
        value: in nats.
        standard_error: of ``value`` through the noise of the chains, by the delta method.
        effective_sample_size: of the chains' weights, from 1 to K.
        acceptance: share of transitions accepted.
        num_particles: K, chains per datum.
        num_temperatures: T.
        num_leapfrog_steps: per transition.
        unit: of ``value`` and ``standard_error``.
    """

    value: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    acceptance: Tensor
    num_particles: int
    num_temperatures: int
    num_leapfrog_steps: int
    unit: str = field(default="nats", init=False)

    def estimates(self) -> dict[str, Estimate]:
        k = self.num_particles
        return {
            "log_marginal_likelihood": Estimate.of(self.value, k),
            "effective_sample_size": Estimate.of(self.effective_sample_size / k, k, "of K"),
            "acceptance": Estimate.of(self.acceptance, k, "of transitions"),
        }


@dataclass(frozen=True)
class BidirectionalMonteCarlo(Result):
    """Bounds of log p(x) for simulated data; every tensor has shape (N,).

    Shapes: N data, K chains, T temperatures.

    One datum's bounds hold on average over the chains' noise, so it is the means that enclose the mean log p(x).

    Attributes:
        lower: from annealing forwards, in nats.
        upper: from annealing backwards, from the latents that the data were made from.
        acceptance: share of transitions accepted, in both directions.
        num_particles: K, chains per datum and direction.
        num_temperatures: T.
        num_leapfrog_steps: per transition.
        unit: of the bounds.
    """

    lower: Tensor
    upper: Tensor
    acceptance: Tensor
    num_particles: int
    num_temperatures: int
    num_leapfrog_steps: int
    unit: str = field(default="nats", init=False)

    @property
    def gap(self) -> Estimate:
        """How far the bounds are apart."""
        return Estimate.of(self.upper - self.lower, self.num_particles)

    def estimates(self) -> dict[str, Estimate]:
        k = self.num_particles
        return {
            "lower": Estimate.of(self.lower, k),
            "upper": Estimate.of(self.upper, k),
            "gap": self.gap,
            "acceptance": Estimate.of(self.acceptance, k, "of transitions"),
        }


@in_evaluation_mode
@torch.no_grad()
def ais(
    program: Program,
    x: Tensor,
    *context: Tensor,
    start: Start = "prior",
    num_particles: int = 16,
    num_temperatures: int = 500,
    num_leapfrog_steps: int = 5,
    memory: int | None = None,
    plate: str = "data",
    progress: bool = True,
) -> AnnealedImportanceSampling:
    """Estimates log p(x) for every datum by annealed importance sampling with HMC; a check that needs no guide.

    Shapes: N data, K chains, T temperatures.

    Temperatures, and step sizes for each datum and temperature, are adapted in a first pass of the same length and
    then held fixed, so that the transitions of the pass that counts leave their distributions as they are.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``; all of its latents are real
            vectors. The guide is run only where chains start there.
        x: data (N, ...), the first argument of the model.
        context: its further arguments.
        start: where chains start, at the ``"prior"`` or at the ``"guide"``. The guide is no longer checked then: what
            it leaves out of the posterior, few temperatures do not find.
        num_particles: K, chains per datum, at least 2, all run at once.
        num_temperatures: T.
        num_leapfrog_steps: gradients per transition.
        memory: bytes that the chains in flight may take; None for an amount that is fast. Data that do not fit are run
            one part after another, with temperatures of their own.
        plate: name of the plate over the data.
        progress: show a bar.

    Raises:
        ValueError: a latent that is discrete or constrained; densities that are random; a number below 1; a budget for
            less than one datum.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> program, x = SimpleNamespace(model=model, guide=lambda x: None), torch.tensor([1.0])
        >>> short = {"num_temperatures": 10, "num_leapfrog_steps": 2, "progress": False}
        >>> result = ais(program, x, num_particles=5000, **short)
        >>> round(result.value.item(), 1), round(dist.Normal(0.0, 2**0.5).log_prob(x).item(), 1)
        (-1.5, -1.5)
    """
    _check_counts("ais", num_particles, num_temperatures, num_leapfrog_steps)
    checks.choice("ais", "start", start, get_args(Start))
    progress = progress and is_first()

    def path(args: tuple[Tensor, ...]) -> _Path:
        guide = program.guide if start == "guide" else None
        target = TemperedPosterior("ais", program.model, args, num_particles, plate, guide)
        return _Path(target, num_temperatures, num_leapfrog_steps)

    def annealed(part: tuple[Tensor, ...], bar: tqdm) -> tuple[Tensor, ...]:
        along = path(part)
        along.adapt(bar)
        log_weights, acceptance = along.forwards(bar)
        return *_averaged(log_weights), acceptance

    def shared(*own: Tensor) -> tuple[Tensor, ...]:
        parts = in_parts("ais", own, lambda args: path(args).step(), memory)
        total = len(parts) * (_WARM_UP + 2 * num_temperatures - 1)
        with tqdm(total=total, disable=not progress, unit="temperature") as bar:
            return joined([annealed(part, bar) for part in parts])

    value, error, ess, acceptance = joined(by_share("ais", program, (x, *context), shared))
    return AnnealedImportanceSampling(
        value, error, ess, acceptance, num_particles, num_temperatures, num_leapfrog_steps
    )


@in_evaluation_mode
@torch.no_grad()
def bdmc(
    program: Program,
    simulation: Simulation,
    *,
    start: Start = "prior",
    num_particles: int = 16,
    num_temperatures: int = 500,
    num_leapfrog_steps: int = 5,
    plate: str = "data",
    progress: bool = True,
) -> BidirectionalMonteCarlo:
    """Bounds log p(x) from both sides, on average, for data that the model made.

    Shapes: N data, K chains, T temperatures.

    The gap tells how good :func:`ais` of these settings is, and so how far to trust it on real data.

    Args:
        program: see :func:`ais`.
        simulation: of :func:`~pyro_vae.evaluation.simulate`.
        start: of the path, at the ``"prior"`` or at the ``"guide"``.
        num_particles: K, chains per datum; those that run backwards all start at the datum's own latents.
        num_temperatures: T.
        num_leapfrog_steps: gradients per transition.
        plate: name of the plate over the data.
        progress: show a bar.

    Raises:
        ValueError: as :func:`ais`.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_vae.evaluation import simulate
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> program = SimpleNamespace(model=model, guide=lambda x: None)
        >>> simulation = simulate(program, torch.zeros(50))
        >>> short = {"num_temperatures": 10, "num_leapfrog_steps": 2, "progress": False}
        >>> bounds = bdmc(program, simulation, num_particles=50, **short)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(simulation.x)
        >>> [abs(bound.mean() - exact.mean()).item() < 0.1 for bound in (bounds.lower, bounds.upper)]
        [True, True]
    """
    _check_counts("bdmc", num_particles, num_temperatures, num_leapfrog_steps)
    checks.choice("bdmc", "start", start, get_args(Start))
    guide = program.guide if start == "guide" else None
    target = TemperedPosterior("bdmc", program.model, simulation.args, num_particles, plate, guide)
    path = _Path(target, num_temperatures, num_leapfrog_steps)
    with tqdm(total=_WARM_UP + 3 * num_temperatures - 2, disable=not progress, unit="temperature") as bar:
        path.adapt(bar)
        forwards, acceptance = path.forwards(bar)
        backwards, back_acceptance = path.backwards(simulation.latents, bar)
    return BidirectionalMonteCarlo(
        _averaged(forwards)[0],
        -_averaged(-backwards)[0],
        (acceptance + back_acceptance) / 2,
        num_particles,
        num_temperatures,
        num_leapfrog_steps,
    )


class _Path:
    """The temperatures, and the transitions at each."""

    def __init__(self, target: TemperedPosterior, num_temperatures: int, num_leapfrog_steps: int) -> None:
        self._target = target
        self._num_leapfrog_steps = num_leapfrog_steps
        self._num_temperatures = num_temperatures
        self._betas: list[float] = []
        self._step_sizes: list[Tensor] = []

    def step(self) -> None:
        """One transition: what a path takes at a time."""
        z = self._target.draw()
        _, log_weight, *_ = self._target(0.0, z)
        self._target.transition(0.0, z, torch.full_like(log_weight[0], _FIRST_STEP_SIZE), 1)

    def adapt(self, bar: tqdm) -> None:
        """Finds temperatures and step sizes on a pass of its own.

        The best temperatures are equally far apart in the standard deviation of the log-weight times the step in beta
        (Gelman, Meng, "Simulating normalizing constants", 1998, https://doi.org/10.1214/ss/1028905934).
        """
        z = self._target.draw()
        _, log_weight, *_ = self._target(0.0, z)
        lowest = 0.1 / log_weight.std(0).mean().clamp(min=1).item()  # nothing changes below it
        pilot = torch.logspace(math.log10(lowest), 0, self._num_temperatures, dtype=torch.float64)
        log_step = torch.full_like(log_weight[0], math.log(_FIRST_STEP_SIZE))
        deviations, log_steps = [log_weight.std(0).mean()], []
        for i in [0] * _WARM_UP + list(range(len(pilot))):
            z, log_weight, accepted = self._target.transition(
                pilot[i].item(), z, log_step.exp(), self._num_leapfrog_steps
            )
            log_step = log_step + _RATE * (accepted.mean(0) - _ACCEPTANCE)
            deviations.append(log_weight.std(0).mean())
            log_steps.append(log_step)
            bar.update()
        grid = torch.cat([pilot.new_zeros(1), pilot])
        deviation = torch.stack([deviations[0], *deviations[1 + _WARM_UP :]]).to(grid).clamp(min=_LEAST_DEVIATION)
        length = torch.cat([grid.new_zeros(1), torch.cumulative_trapezoid(deviation, grid)])
        betas = _interpolated(length, grid, torch.linspace(0, 1, self._num_temperatures + 1).to(length) * length[-1])
        self._betas = [0.0, *betas[1:-1].tolist(), 1.0]
        steps = torch.stack(log_steps[_WARM_UP:])
        self._step_sizes = list(_interpolated(pilot.log(), steps, betas[1:-1].log()).exp())

    def forwards(self, bar: tqdm) -> tuple[Tensor, Tensor]:
        """Log-weights (K, N) of chains from the start, and their acceptance (N,)."""
        target = self._target
        z = target.draw()
        _, log_weight, *_ = target(0.0, z)
        log_weights = self._betas[1] * log_weight
        acceptance = torch.zeros_like(log_weight[0])
        for t, step_size in enumerate(self._step_sizes, 1):
            z, log_weight, accepted = target.transition(self._betas[t], z, step_size, self._num_leapfrog_steps)
            log_weights = log_weights + (self._betas[t + 1] - self._betas[t]) * log_weight
            acceptance = acceptance + accepted.mean(0)
            bar.update()
        return log_weights, acceptance / len(self._step_sizes)

    def backwards(self, latents: dict[str, Tensor], bar: tqdm) -> tuple[Tensor, Tensor]:
        """The same for chains from the posterior, at these latents; their inverse weights average to 1 / p(x)."""
        target = self._target
        z = target.lay_out(latents)
        _, log_weight, *_ = target(1.0, z)
        log_weights = (1 - self._betas[-2]) * log_weight
        acceptance = torch.zeros_like(log_weight[0])
        for t in range(len(self._step_sizes), 0, -1):
            step_size = self._step_sizes[t - 1]
            z, log_weight, accepted = target.transition(self._betas[t], z, step_size, self._num_leapfrog_steps)
            log_weights = log_weights + (self._betas[t] - self._betas[t - 1]) * log_weight
            acceptance = acceptance + accepted.mean(0)
            bar.update()
        return log_weights, acceptance / len(self._step_sizes)


def _interpolated(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Values at new points of piecewise linear functions through (x, y[:, i]), with x ascending."""
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    share = ((at - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1).to(y)
    share = share.reshape(-1, *[1] * (y.dim() - 1))
    return y[right - 1] * (1 - share) + y[right] * share


def _averaged(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return log_mean(log_weights.logsumexp(0), (2 * log_weights).logsumexp(0), len(log_weights))


def _check_counts(subject: str, num_particles: int, num_temperatures: int, num_leapfrog_steps: int) -> None:
    for name, value, least in (
        ("num_particles", num_particles, 2),
        ("num_temperatures", num_temperatures, 2),
        ("num_leapfrog_steps", num_leapfrog_steps, 1),
    ):
        if value < least:
            raise ValueError(f"{subject}: expected {name} at least {least}; got {value}. Give a larger number.")
