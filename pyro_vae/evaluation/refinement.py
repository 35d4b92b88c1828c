"""Parameters of a guide's distributions, moved for each datum from where the guide's network puts them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, Normal, transform_to
from tqdm.auto import tqdm

from pyro_vae.elbo import Estimator
from pyro_vae.evaluation.runs import guide_run
from pyro_vae.models import Program
from pyro_vae.traces.layout import data_dim
from pyro_vae.traces.tracing import Site

_BELOW = "below"
"""Offsets of the elements below the diagonal of a Cholesky factor."""


@dataclass(frozen=True)
class _Parameter:
    """One parameter of the distribution at one site, and the (negative) dim in which it has the data."""

    site: str
    key: str
    dim: int


class Refinement:
    """Offsets of the parameters of a guide's distributions, each taken without its constraint, for each datum.

    A distribution that depends on another latent keeps doing so: it is moved by the same for all draws of a datum.

    Args:
        subject: who asks, for messages.
        program: a model and a guide.
        args: their arguments, of N rows each.
        plate: name of the plate over the data.
        full_rank: give vectors of independent Normals correlations too, 0 at first.

    Attributes:
        offsets: (N, ...) for each parameter, 0 until :meth:`fit`.

    Raises:
        ValueError: a latent whose distribution has no parameters, or no reparameterized draws.
    """

    def __init__(
        self, subject: str, program: Program, args: tuple[Tensor, ...], plate: str, *, full_rank: bool = False
    ) -> None:
        self._program, self._args = program, args
        self._parameters: list[_Parameter] = []
        self.offsets: list[Tensor] = []
        with torch.no_grad():
            run = guide_run(program.guide, args, 1)
        for name, _, site in run.latents():
            base, parameters = parameters_of(site)
            if not parameters or not base.has_rsample:
                raise ValueError(
                    f"{subject}: expected a reparameterized distribution with parameters at site {name!r}; got "
                    f"{type(base).__name__}. Use log_marginal_likelihood with the guide as it is."
                )
            free = {key: transform_to(base.arg_constraints[key]).inv(value) for key, value in parameters.items()}
            if full_rank and isinstance(base, Normal) and len(site["fn"].event_shape) == 1:
                size = site["fn"].event_shape[0]
                free[_BELOW] = free["loc"][..., :1].expand(*site["fn"].batch_shape, size * (size - 1) // 2)
            for key, value in free.items():
                dim = data_dim(site, plate) + len(site["fn"].batch_shape) - value.dim()
                self._parameters.append(_Parameter(name, key, dim))
                start = torch.zeros_like(value.movedim(dim, 0), memory_format=torch.contiguous_format)
                self.offsets.append(start.requires_grad_())

    @property
    def is_full_rank(self) -> bool:
        """Whether a site has correlations."""
        return any(parameter.key == _BELOW for parameter in self._parameters)

    def widen(self, factor: float) -> None:
        """Multiplies the scales of all sites with correlations."""
        sites = {parameter.site for parameter in self._parameters if parameter.key == _BELOW}
        for parameter, offset in zip(self._parameters, self.offsets, strict=True):
            if parameter.key == "scale" and parameter.site in sites:
                offset.detach().add_(math.log(factor))  # positive parameters are the exponential of what is offset

    def moved(self, offsets: Sequence[Tensor]) -> Callable[..., Any]:
        """The guide with its parameters moved by offsets like :attr:`offsets`, for as many data."""
        by_site: dict[str, dict[str, Tensor]] = {}
        for parameter, rows in zip(self._parameters, offsets, strict=True):
            by_site.setdefault(parameter.site, {})[parameter.key] = rows.movedim(0, parameter.dim)
        guide: Callable[..., Any] = _Moved(by_site)(self._program.guide)
        return guide

    def fit(self, loss: Estimator, num_steps: int, learning_rate: float, bar: tqdm | None = None) -> None:
        """Minimizes a loss by Adam, with a learning rate that falls to 0.

        Raises:
            ValueError: offsets that have diverged.
        """
        with torch.enable_grad():  # offsets are seen through views
            guide = self.moved(self.offsets)
        optimizer = torch.optim.Adam(self.offsets, lr=learning_rate)
        # Adam's steps are as long as the rate, also at the optimum, so it falls to 0.
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, num_steps, power=2)
        for _ in range(num_steps):
            with torch.enable_grad(), pyro.validation_enabled(False):
                objective = loss.differentiable_loss(self._program.model, guide, *self._args)
                gradients = torch.autograd.grad(objective, self.offsets)
            for offset, gradient in zip(self.offsets, gradients, strict=True):
                offset.grad = gradient
            optimizer.step()
            schedule.step()
            if bar is not None:
                bar.update(len(self._args[0]))
        finite = torch.cat([offset.detach().unsqueeze(-1).flatten(1).isfinite() for offset in self.offsets], 1).all(1)
        if lost := int((~finite).sum()):
            raise ValueError(
                f"Refined: expected parameters that stay finite; got NaN or infinite ones of {lost} of "
                f"{len(self._args[0])} data within {num_steps} steps. Give a learning_rate below {learning_rate:g}."
            )


def parameters_of(site: Site) -> tuple[Any, dict[str, Tensor]]:
    """The distribution of single elements at a site, and its parameters by name."""
    base = site["fn"].base_dist if isinstance(site["fn"], Independent) else site["fn"]
    return base, {key: base.__dict__[key] for key in base.arg_constraints if key in base.__dict__}


class _Moved(Messenger):
    """Moves the parameters of distributions by offsets, by site and name."""

    def __init__(self, offsets: dict[str, dict[str, Tensor]]) -> None:
        super().__init__()
        self._offsets = offsets

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self._offsets:
            base, parameters = parameters_of(msg)
            offsets = self._offsets[msg["name"]]
            for key in parameters:
                transform = transform_to(base.arg_constraints[key])
                parameters[key] = transform(transform.inv(parameters[key]) + offsets[key])
            if _BELOW in offsets:
                msg["fn"] = _correlated(**parameters, below=offsets[_BELOW])
                return
            ndims = msg["fn"].reinterpreted_batch_ndims if isinstance(msg["fn"], Independent) else 0
            msg["fn"] = type(base)(**parameters).to_event(ndims)


def _correlated(loc: Tensor, scale: Tensor, below: Tensor) -> TorchDistribution:
    """A Normal vector whose Cholesky factor has ``scale`` as its diagonal, and ``scale`` times ``below`` under it."""
    size = loc.shape[-1]
    row, column = torch.tril_indices(size, size, -1, device=loc.device)
    entry = torch.eye(size, dtype=torch.long, device=loc.device)  # 0 above the diagonal, 1 on it
    entry = entry.index_put((row, column), torch.arange(2, 2 + len(row), device=loc.device))
    known = torch.tensor([0.0, 1.0], dtype=below.dtype, device=below.device).expand(*below.shape[:-1], 2)
    unit = torch.cat([known, below], -1)[..., entry.flatten()].reshape(*below.shape[:-1], size, size)
    return dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * unit)
