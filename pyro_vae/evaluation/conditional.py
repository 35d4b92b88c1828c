r"""The density of values that are missing given those that are observed: :math:`\log p(x_m|x_o)`.

Shapes: N data, K particles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluation.importance import LogMarginalLikelihood, listed, warn_unreliable, weighted_draws
from pyro_vae.evaluation.likelihood_of_draws import check_likelihood, check_made
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.results import Estimate, Result
from pyro_vae.models import Program


@dataclass(frozen=True)
class LogConditionalLikelihood(Result):
    """Estimates of log p(x_missing|x_observed) for given values, one for each datum; every tensor has shape (N,).

    Shapes: N data.

    Attributes:
        value: log p(values) - log p(x), in nats; 0 where ``values`` add nothing.
        standard_error: of ``value``; the two estimates are of independent draws.
        complete: log p(values), of all that is known.
        observed: log p(x).
        unit: of ``value`` and ``standard_error``.
    """

    value: Tensor
    standard_error: Tensor
    complete: LogMarginalLikelihood
    observed: LogMarginalLikelihood
    unit: str = field(default="nats", init=False)

    @property
    def mean(self) -> Estimate:
        """The average over the data."""
        return Estimate.of(self.value, self.observed.num_particles)

    @property
    def unreliable(self) -> list[int]:
        """The data of which either estimate has a k-hat above 0.7."""
        return sorted({*self.complete.unreliable, *self.observed.unreliable})

    def estimates(self) -> dict[str, Estimate]:
        return {"log_conditional_likelihood": self.mean}


@in_evaluation_mode
def log_conditional_likelihood(
    program: Program,
    x: Tensor,
    *context: Tensor,
    values: Tensor,
    num_particles: int = 5000,
    memory: int | None = None,
    batch_size: int | None = None,
    plate: str = "data",
    progress: bool = True,
) -> LogConditionalLikelihood:
    r"""Estimates :math:`\log p(x_\mathrm{missing}|x_\mathrm{observed})` for given values of what is missing, in nats.

    It is :math:`\log p(x_\mathrm{missing}, x_\mathrm{observed}) - \log p(x_\mathrm{observed})`, each by importance
    sampling with the guide at what it conditions on.

    Args:
        program: see :func:`~pyro_vae.evaluation.impute`, as are all other arguments.
        x: data (N, ...), NaN marks what is missing.
        context: further arguments of model and guide.
        values: the same data with values in the place of some NaN, or of all.
        num_particles: K.
        memory: bytes that the draws in flight may take.
        batch_size: data to run at once.
        plate: name of the plate over the data.
        progress: show a bar.

    Warns:
        UserWarning: k-hat of either estimate is above 0.7, naming the data.

    Raises:
        ValueError: ``values`` that differ from x where it is observed; else as
            :func:`~pyro_vae.evaluation.impute`.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_vae.distributions import MissingAtRandom
        >>> def model(x):  # two values that share z: of variance 2 each, and covariance 1
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         normal = dist.Normal(z[..., None].expand(*z.shape, 2), 1.0).to_event(1)
        ...         pyro.sample("x", MissingAtRandom(normal, torch.tensor(0.0)), obs=x)
        >>> def guide(x):  # the posterior of what is observed
        ...     with pyro.plate("data", len(x)):
        ...         precision = 1 + (~x.isnan()).sum(-1)
        ...         pyro.sample("z", dist.Normal(x.nansum(-1) / precision, precision**-0.5))
        >>> program = SimpleNamespace(model=model, guide=guide)
        >>> x, values = torch.tensor([[2.0, torch.nan]]), torch.tensor([[2.0, 4.0]])
        >>> result = log_conditional_likelihood(program, x, values=values, num_particles=10, progress=False)
        >>> result.value, dist.Normal(1.0, 1.5**0.5).log_prob(torch.tensor(4.0))  # p(x_2|x_1), of variance 3/2
        (tensor([-4.1217]), tensor(-4.1217))
    """
    subject = "log_conditional_likelihood"
    if values.shape != x.shape or values.dtype != x.dtype:
        raise ValueError(
            f"{subject}: expected values like x, {x.dtype} of shape {tuple(x.shape)}; got {values.dtype} of "
            f"{tuple(values.shape)}. Fill the gaps of x.clone()."
        )
    different = (~x.isnan() & (values != x)).flatten(1).any(1)
    if bool(different.any()):
        raise ValueError(
            f"{subject}: expected values equal to x where it is observed; got others in rows "
            f"{listed(torch.nonzero(different).flatten().tolist())}. Fill the gaps of x.clone()."
        )
    how: dict[str, Any] = {
        "num_particles": num_particles,
        "memory": memory,
        "batch_size": batch_size,
        "plate": plate,
        "progress": progress,
    }
    check_likelihood(subject, program, (x, *context), batch_size)
    complete, _ = weighted_draws(subject, program, (values, *context), **how)
    observed, _ = weighted_draws(subject, program, (x, *context), **how)
    check_made(subject, observed.value)
    added = (x.isnan() & ~values.isnan()).flatten(1).any(1)
    error = (complete.standard_error.square() + observed.standard_error.square()).sqrt()
    value = complete.value - observed.value
    result = LogConditionalLikelihood(
        torch.where(added, value, 0.0), torch.where(added, error, 0.0), complete, observed
    )
    warn_unreliable(subject, result.unreliable, len(x))
    return result
