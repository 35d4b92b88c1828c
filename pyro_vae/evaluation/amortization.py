r"""The amortization gap: what is lost because one network finds the guides of all data.

.. math:: \max_{q_n \in Q} \mathrm{ELBO}(x_n; q_n) - \mathrm{ELBO}(x_n; q(z|x_n)) \ge 0

for the family Q of the guide's distributions. What is left between the first term and log p(x) is due to the family.

References:
    Cremer, Li, Duvenaud, "Inference suboptimality in variational autoencoders", 2018, https://arxiv.org/abs/1801.03558
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, transform_to
from tqdm.auto import tqdm

from pyro_vae import checks
from pyro_vae.elbo import ELBO
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.results import Estimate, Result
from pyro_vae.evaluation.shares import by_share, is_first, joined
from pyro_vae.graphs.recording import random_state
from pyro_vae.models import Program
from pyro_vae.traces.densities import log_weights
from pyro_vae.traces.tracing import Site, Traces, inspect, trace_programs, unchanged_param_store


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
    plate: str = "data",
    progress: bool = True,
) -> AmortizationGap:
    """Compares the guide's ELBO with that of distributions optimized for each datum.

    They start where the guide puts them and are optimized by Adam, with sticking-the-landing gradients, whose noise
    vanishes at an exact posterior, and a learning rate that falls to 0.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide, all optimized at once.
        context: their further arguments.
        num_steps: of Adam.
        learning_rate: the first, for the distributions' parameters without constraints.
        num_particles: draws per datum to estimate the two ELBOs with.
        plate: name of the plate over the data.
        progress: show a bar.

    Raises:
        ValueError: a number below 1; a guide with a flow, with discrete latents, or with latents that depend on one
            another, which has no parameters to free for each datum.
    """
    checks.number("amortization_gap", "learning_rate", learning_rate, above=0)
    for name, value in (("num_steps", num_steps), ("num_particles", num_particles)):
        if value < 1:
            raise ValueError(f"amortization_gap: expected {name} at least 1; got {value}. Give a positive number.")
    progress = progress and is_first()

    def elbos(*own: Tensor) -> tuple[Tensor, Tensor]:
        return _elbos(program, own, num_steps, learning_rate, num_particles, plate, progress)

    amortized, optimized = joined(by_share("amortization_gap", program, (x, *context), elbos))
    return AmortizationGap(amortized, optimized, num_particles, num_steps)


def _elbos(
    program: Program,
    args: tuple[Tensor, ...],
    num_steps: int,
    learning_rate: float,
    num_particles: int,
    plate: str,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """The guide's ELBO of each datum, and that of its own distribution."""
    with unchanged_param_store():
        structure = inspect(program.model, program.guide, args, {})
        with torch.no_grad(), random_state(args):
            first, second = (
                trace_programs(program.model, program.guide, args, {}, structure=structure) for _ in range(2)
            )
        freed = _OwnParameters(first, second)
        guide = freed(program.guide)
        loss = ELBO(gradient="stl", plate=plate)
        optimizer = torch.optim.Adam(freed.parameters, lr=learning_rate)
        # Adam's steps are as long as the rate, also at the optimum, so it falls to 0.
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, num_steps, power=2)
        for _ in tqdm(range(num_steps), disable=not progress, unit="step"):
            with torch.enable_grad(), pyro.validation_enabled(False):
                objective = loss.differentiable_loss(program.model, guide, *args)
            gradients = torch.autograd.grad(objective, freed.parameters)
            for parameter, gradient in zip(freed.parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()

        def elbo(guide: Callable[..., Any]) -> Tensor:
            return log_weights(program.model, guide, *args, num_particles=num_particles, plate=plate).mean(0)

        with torch.no_grad(), pyro.validation_enabled(False):
            with random_state(args):
                optimized = elbo(guide)
            return elbo(program.guide), optimized


class _OwnParameters(Messenger):
    """Replaces the distributions of a guide by ones with parameters of their own, which start at the guide's.

    Args:
        first: a run of the program.
        second: another, with other draws.
    """

    def __init__(self, first: Traces, second: Traces) -> None:
        super().__init__()
        self.parameters: list[Tensor] = []
        self._make: dict[str, Callable[[], TorchDistribution]] = {}
        others = {name: site for name, _, site in second.latents()}
        for name, _, site in first.latents():
            self._free(name, site["fn"], others[name]["fn"])

    def _free(self, name: str, fn: Any, other: Any) -> None:
        ndims = fn.reinterpreted_batch_ndims if isinstance(fn, Independent) else 0
        base, other = (d.base_dist if isinstance(d, Independent) else d for d in (fn, other))
        values = {key: base.__dict__[key] for key in base.arg_constraints if key in base.__dict__}
        if not values or not base.has_rsample:
            raise ValueError(
                f"amortization_gap: expected a reparameterized distribution with parameters at site {name!r}; got "
                f"{type(base).__name__}. Use log_marginal_likelihood to see the whole gap."
            )
        if not all(torch.allclose(value, other.__dict__[key]) for key, value in values.items()):
            raise ValueError(
                f"amortization_gap: expected latents that do not depend on one another in the guide; got {name!r}, "
                "which does. Use log_marginal_likelihood to see the whole gap."
            )
        leaves, transforms = {}, {}
        for key, value in values.items():
            transforms[key] = transform_to(base.arg_constraints[key])
            leaves[key] = transforms[key].inv(value).detach().clone().contiguous().requires_grad_()
        self.parameters += leaves.values()
        self._make[name] = lambda: type(base)(**{k: transforms[k](leaf) for k, leaf in leaves.items()}).to_event(ndims)

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self._make:
            msg["fn"] = self._make[msg["name"]]()
