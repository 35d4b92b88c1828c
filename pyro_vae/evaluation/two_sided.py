r"""Bounds of log p(x) from both sides by importance sampling, for data that the model made.

With :math:`z_1, \dots, z_K` from the guide, :math:`\log \frac1K \sum_k w_k` is at most log p(x) on average. With one
more draw :math:`z_0`, from the posterior,

.. math:: \log p(x) \le E_{p(z_0|x) \prod_k q(z_k|x)}\Big[\log \frac{1}{K + 1} \sum_{k=0}^K w_k\Big],

and the latent that a datum was made from is such a draw. Both need the guide alone, no annealing.

References:
    Sobolev, Vetrov, "Importance weighted hierarchical variational inference", 2019, https://arxiv.org/abs/1905.03290
    Brekelmans, Huang, Ghassemi, Ver Steeg, Grosse, Makhzani, "Improving mutual information estimation with annealed
    and energy-based bounds", 2022, https://arxiv.org/abs/2303.06992
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vae.evaluation.importance import log_marginal_likelihood
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.results import Estimate, Result
from pyro_vae.evaluation.runs import at_latents, one_run
from pyro_vae.evaluation.simulation import Simulation
from pyro_vae.models import Program
from pyro_vae.traces.densities import log_densities


@dataclass(frozen=True)
class ImportanceBounds(Result):
    """Bounds of log p(x) for simulated data; every tensor has shape (N,).

    One datum's bounds hold on average over the draws, so it is the means that enclose the mean log p(x).

    Attributes:
        lower: from K draws of the guide, in nats.
        upper: from these and the latent that the datum was made from.
        num_particles: K.
        unit: of the bounds.
    """

    lower: Tensor
    upper: Tensor
    num_particles: int
    unit: str = field(default="nats", init=False)

    @property
    def gap(self) -> Estimate:
        """How far the bounds are apart."""
        return Estimate.of(self.upper - self.lower, self.num_particles)

    def estimates(self) -> dict[str, Estimate]:
        k = self.num_particles
        return {"lower": Estimate.of(self.lower, k), "upper": Estimate.of(self.upper, k), "gap": self.gap}


@in_evaluation_mode
@torch.no_grad()
def importance_bounds(
    program: Program, simulation: Simulation, *, num_particles: int = 5000, plate: str = "data"
) -> ImportanceBounds:
    """Bounds log p(x) from both sides, on average, for data that the model made.

    The gap tells how good :func:`~pyro_vae.evaluation.log_marginal_likelihood` is at so many draws; where it is wide,
    :func:`~pyro_vae.evaluation.bdmc` has a narrower one at more work.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        simulation: of :func:`~pyro_vae.evaluation.simulate`.
        num_particles: K, draws of the guide per datum.
        plate: name of the plate over the data.

    Raises:
        ValueError: latents of the guide that the model has not made; as
            :func:`~pyro_vae.evaluation.log_marginal_likelihood`.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_vae.evaluation import simulate
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the posterior, at which every draw tells log p(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> program = SimpleNamespace(model=model, guide=guide)
        >>> bounds = importance_bounds(program, simulate(program, torch.zeros(50)), num_particles=100)
        >>> abs(bounds.gap.value) < 1e-5
        True
    """
    run = one_run(program, simulation.args)
    names = {name for name, _, _ in run.latents()}
    if names - simulation.latents.keys() or run.enumerated:
        raise ValueError(
            f"importance_bounds: expected a guide that draws the latents of the model, {sorted(simulation.latents)}; "
            f"got one of {sorted(names)}. Use log_marginal_likelihood, a lower bound alone."
        )
    exact = log_densities(at_latents(run, {name: simulation.latents[name] for name in names}), plate).log_weights[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of k-hat, whose place the gap takes
        result = log_marginal_likelihood(
            program, *simulation.args, num_particles=num_particles, plate=plate, progress=False
        )
    k = num_particles
    upper = torch.logaddexp(result.value + math.log(k), exact) - math.log(k + 1)
    return ImportanceBounds(result.value, upper, k)
