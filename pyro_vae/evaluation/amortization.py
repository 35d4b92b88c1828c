r"""The amortization gap: what is lost because one network finds the guides of all data.

.. math:: \max_{q_n \in Q} \mathrm{ELBO}(x_n; q_n) - \mathrm{ELBO}(x_n; q(z|x_n)) \ge 0

for the family Q of the guide's distributions. What is left between the first term and log p(x) is due to the family.

References:
    Cremer, Li, Duvenaud, "Inference suboptimality in variational autoencoders", 2018, https://arxiv.org/abs/1801.03558
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import checks
from pyro_vae.elbo import ELBO
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.refinement import Refinement, parameters_of
from pyro_vae.evaluation.results import Estimate, Result
from pyro_vae.evaluation.runs import default_memory, guide_run, in_parts
from pyro_vae.evaluation.shares import by_share, is_first, joined
from pyro_vae.graphs.memory import peak_memory
from pyro_vae.graphs.recording import random_state
from pyro_vae.models import Program
from pyro_vae.traces.densities import log_weights
from pyro_vae.traces.tracing import PyroProgram, unchanged_param_store


@dataclass(frozen=True)
class AmortizationGap(Result):
    """ELBOs of the guide and of the best distributions of its family, (N,) each.

    Attributes:
        elbo: of the guide, in nats.
        optimized_elbo: of distributions of the same family, optimized for each datum.
        num_particles: draws per datum that both are estimated with, from the same random numbers.
        num_steps: of the optimization.
        unit: of the ELBOs.
    """

    elbo: Tensor
    optimized_elbo: Tensor
    num_particles: int
    num_steps: int
    unit: str = field(default="nats", init=False)

    @property
    def gap(self) -> Estimate:
        """The gap, averaged over the data."""
        return Estimate.of(self.optimized_elbo - self.elbo, self.num_particles)

    def estimates(self) -> dict[str, Estimate]:
        return {
            "amortization_gap": self.gap,
            "elbo": Estimate.of(self.elbo, self.num_particles),
            "optimized_elbo": Estimate.of(self.optimized_elbo, self.num_particles),
        }


@in_evaluation_mode
def amortization_gap(
    program: Program,
    x: Tensor,
    *context: Tensor,
    num_steps: int = 500,
    learning_rate: float = 0.05,
    num_particles: int = 100,
    memory: int | None = None,
    plate: str = "data",
    progress: bool = True,
) -> AmortizationGap:
    """Compares the guide's ELBO with that of distributions optimized for each datum.

    They start where the guide puts them and are optimized by Adam, with sticking-the-landing gradients, whose noise
    vanishes at an exact posterior, and a learning rate that falls to 0.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide.
        context: their further arguments.
        num_steps: of Adam.
        learning_rate: the first, for the distributions' parameters without constraints.
        num_particles: draws per datum to estimate the two ELBOs with.
        memory: bytes that a step, or the draws in flight, may take; None for an amount that is fast. Data that do not
            fit are optimized one part after another.
        plate: name of the plate over the data.
        progress: show a bar.

    Raises:
        ValueError: a number below 1; a budget for less than one datum; a guide with a flow, with discrete latents, or
            with latents that depend on one another, which has no parameters to free for each datum.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # off by 1 at x = 2
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0 * x, 0.5**0.5))
        >>> program = SimpleNamespace(model=model, guide=guide)
        >>> x = torch.full((1000,), 2.0)
        >>> result = amortization_gap(program, x, num_steps=40, learning_rate=0.3, progress=False)
        >>> round(result.gap.value, 1), round(result.optimized_elbo.mean().item(), 1)  # KL of 1, log p(x) of -2.27
        (1.0, -2.3)
    """
    checks.number("amortization_gap", "learning_rate", learning_rate, above=0)
    for name, value in (("num_steps", num_steps), ("num_particles", num_particles)):
        if value < 1:
            raise ValueError(f"amortization_gap: expected {name} at least 1; got {value}. Give a positive number.")
    progress = progress and is_first()
    loss = ELBO(gradient="stl", plate=plate)
    budget = default_memory(x) if memory is None else memory

    def gap_of(part: tuple[Tensor, ...], steps: int, draws: int, bar: tqdm | None = None) -> list[Tensor]:
        with torch.no_grad():
            _check_independent(program, part)
        refinement = Refinement("amortization_gap", program, part, plate)
        refinement.fit(loss, steps, learning_rate, bar)

        @torch.no_grad()
        def elbo(guide: PyroProgram, count: int, chunk: int) -> Tensor:
            with pyro.validation_enabled(False), random_state(part):
                rows = log_weights(program.model, guide, *part, num_particles=count, plate=plate, chunk_size=chunk)
            return rows.mean(0)

        refined = refinement.moved(refinement.offsets)
        chunk = max(1, budget // peak_memory(lambda: elbo(refined, 1, 1)))
        return [elbo(program.guide, draws, chunk), elbo(refined, draws, chunk)]

    def elbos(*own: Tensor) -> list[Tensor]:
        with unchanged_param_store():
            # 2 steps, for Adam's averages
            parts = in_parts("amortization_gap", own, lambda part: gap_of(part, 2, 1), memory)
            with tqdm(total=num_steps * len(own[0]), disable=not progress, unit="step", unit_scale=True) as bar:
                return joined([gap_of(part, num_steps, num_particles, bar) for part in parts])

    amortized, optimized = joined(by_share("amortization_gap", program, (x, *context), elbos))
    return AmortizationGap(amortized, optimized, num_particles, num_steps)


def _check_independent(program: Program, args: tuple[Tensor, ...]) -> None:
    """Raises for a latent of the guide whose distribution is another with other draws."""
    first, second = (guide_run(program.guide, args, 1).latents() for _ in range(2))
    for (name, _, site), (_, _, other) in zip(first, second, strict=True):
        others = parameters_of(other)[1]
        if not all(torch.allclose(value, others[key]) for key, value in parameters_of(site)[1].items()):
            raise ValueError(
                f"amortization_gap: expected latents that do not depend on one another in the guide; got {name!r}, "
                "which does. Use log_marginal_likelihood to see the whole gap."
            )
