"""Data from a model with the latents they came from: the one case in which exact posterior draws are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.graphs.recording import random_state
from pyro_vae.models import Program
from pyro_vae.traces.tracing import unchanged_param_store


@dataclass(frozen=True)
class Simulation:
    """N data drawn from a model; see :func:`simulate`.

    Attributes:
        x: the data.
        context: further arguments of model and guide.
        latents: where the data came from, by site, with the shapes of the sites. Given x alone, they are an exact draw
            from the posterior p(z|x).
    """

    x: Tensor
    context: tuple[Tensor, ...]
    latents: dict[str, Tensor]

    @property
    def args(self) -> tuple[Tensor, ...]:
        """Arguments of model and guide."""
        return (self.x, *self.context)


@in_evaluation_mode
@torch.no_grad()
def simulate(program: Program, x: Tensor, *context: Tensor) -> Simulation:
    """Draws latents from the prior and data from the likelihood.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: data (N, ...) that the simulated ones are to be like in number and shape; their values do not matter.
        context: what the model takes beside x; where the model observes it, it is simulated too.

    Raises:
        ValueError: the model observes something that is not one of its arguments.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))
        ...         pyro.sample("x", dist.Poisson(1000 * z), obs=x)
        >>> simulation = simulate(SimpleNamespace(model=model, guide=lambda x: None), torch.zeros(4))
        >>> ((simulation.x > 0) == simulation.latents["z"]).tolist()
        [True, True, True, True]
    """
    args = [x, *context]
    # Unchecked, since the values that are given here need not be such as the model could have made.
    with unchanged_param_store(), pyro.validation_enabled(False):
        with random_state(args):
            given = poutine.trace(program.model).get_trace(*args)
        drawn: Any = poutine.trace(poutine.uncondition(program.model)).get_trace(*args).nodes
    for name in given.observation_nodes:
        position = next((i for i, arg in enumerate((x, *context)) if arg is given.nodes[name]["value"]), None)
        if position is None:
            raise ValueError(
                f"simulate: expected the observed value of site {name!r} to be an argument of the model, so that a "
                "drawn one can take its place; got another. Pass it to the model as it is."
            )
        args[position] = drawn[name]["value"]
    latents = {
        name: drawn[name]["value"]
        for name in given.stochastic_nodes
        if name in drawn and not site_is_subsample(drawn[name])
    }
    return Simulation(args[0], tuple(args[1:]), latents)
