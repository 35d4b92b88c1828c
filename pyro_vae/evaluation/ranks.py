"""Simulation-based calibration of the guide.

For x drawn with its latent from the model, the latent is a draw from the posterior. If the guide is that posterior,
the latent's rank among draws of the guide is uniform. Ranks pile up at both ends for a guide that is too narrow, and
in the middle for one that is too wide, which neither the ELBO nor k-hat tells apart from other faults.

References:
    Talts, Betancourt, Simpson, Vehtari, Gelman, "Validating Bayesian inference algorithms with simulation-based
    calibration", 2018, https://arxiv.org/abs/1804.06788
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.results import Estimate, Result
from pyro_vae.evaluation.runs import guide_run, in_parts
from pyro_vae.evaluation.simulation import Simulation
from pyro_vae.models import Program
from pyro_vae.traces.layout import by_draw, for_each_draw, of_data

_NUM_DRAWS = 99  # so that a latent has 100 ranks
_NUM_BINS = 20


@dataclass(frozen=True)
class Calibration(Result):
    """Ranks of true latents among the guide's draws.

    Attributes:
        ranks: 0 to 99, (N, ...) by site.
        p_values: of each unit's ranks being uniform: a chi-squared test of 20 bins.
        coverage_50: share of latents within the guide's central interval of probability .50, over all units.
        coverage_90: the same of .90; lower than that means a guide too narrow, higher one too wide.
        num_particles: draws of the guide per datum.
    """

    ranks: dict[str, Tensor]
    p_values: dict[str, Tensor]
    coverage_50: Estimate
    coverage_90: Estimate
    num_particles: int

    @property
    def p_value(self) -> float:
        """Of all units' ranks being uniform: the smallest, times the number of units (Bonferroni)."""
        p = torch.cat([values.flatten() for values in self.p_values.values()])
        return min(1.0, p.min().item() * len(p))

    def __str__(self) -> str:
        return f"{super().__str__()}\np-value of uniform ranks, over all units: {self.p_value:.2g}"


@in_evaluation_mode
@torch.no_grad()
def calibration(
    program: Program, simulation: Simulation, *, memory: int | None = None, plate: str = "data"
) -> Calibration:
    """Ranks the latents of simulated data among 99 draws of the guide.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        simulation: of :func:`~pyro_vae.evaluation.simulate`; some hundreds of data, for the test to have power.
        memory: bytes that the draws in flight may take; None for an amount that is fast. Data that do not fit are run
            one part after another.
        plate: name of the plate over the data.

    Raises:
        ValueError: fewer than 100 data, for which the test does not hold; a budget for less than one datum.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_vae.evaluation import simulate
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(scale):
        ...     def posterior(x):
        ...         with pyro.plate("data", len(x)):
        ...             pyro.sample("z", dist.Normal(x / 2, scale * 0.5**0.5))
        ...
        ...     return posterior
        >>> for scale in (1.0, 0.41):  # the posterior, and a guide that is too narrow
        ...     program = SimpleNamespace(model=model, guide=guide(scale))
        ...     result = calibration(program, simulate(program, torch.zeros(5000)))
        ...     print(round(result.coverage_50.value, 1), round(result.coverage_90.value, 1), result.p_value > 1e-6)
        0.5 0.9 True
        0.2 0.5 False
    """
    if len(simulation.x) < 5 * _NUM_BINS:
        raise ValueError(
            f"calibration: expected at least {5 * _NUM_BINS} data, five for each bin; got {len(simulation.x)}. "
            "Simulate more."
        )

    def ranked(rows: tuple[Tensor, ...]) -> dict[str, Tensor]:
        *args, index = rows
        run = guide_run(program.guide, tuple(args), _NUM_DRAWS)
        ranks = {}
        for name, _, site in run.latents():
            if name not in simulation.latents:
                continue  # no latent of the model
            draws = by_draw(site, site["value"], run, plate)
            own = of_data(site, simulation.latents[name], index, plate)
            truth = by_draw(site, for_each_draw(site, own), run, plate)
            below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
            ranks[name] = below + (torch.rand_like(draws[0], dtype=torch.float64) * (equal + 1)).long()  # ties, by lot
        return ranks

    index = torch.arange(len(simulation.x), device=simulation.x.device)
    parts = [ranked(part) for part in in_parts("calibration", (*simulation.args, index), ranked, memory)]
    ranks = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    p_values = {name: _p_values(rank) for name, rank in ranks.items()}
    together = torch.cat([rank.reshape(len(rank), -1) for rank in ranks.values()], 1)

    def coverage(percent: int) -> Estimate:
        outside = (100 - percent) // 2
        inside = (together >= outside) & (together < 100 - outside)
        return Estimate.of(inside.double().mean(1), _NUM_DRAWS, "of latents")

    return Calibration(ranks, p_values, coverage(50), coverage(90), _NUM_DRAWS)


def _p_values(ranks: Tensor) -> Tensor:
    """Of Pearson's chi-squared statistic of each unit, for ranks (N, ...)."""
    bins = torch.arange(_NUM_BINS, device=ranks.device).reshape(-1, *[1] * ranks.dim())
    counts = (ranks // ((_NUM_DRAWS + 1) // _NUM_BINS) == bins).sum(1).double()
    expected = len(ranks) / _NUM_BINS
    statistic = ((counts - expected) ** 2 / expected).sum(0)
    return torch.special.gammaincc(torch.full_like(statistic, (_NUM_BINS - 1) / 2), statistic / 2)
