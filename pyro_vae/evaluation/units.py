r"""Active units: latents whose posterior mean moves with the data.

Shapes: N data, K particles.

Unit i is active where :math:`\mathrm{Var}_x(E_{q(z|x)}[z_i])` is above a threshold. An inactive one tells the decoder
nothing, and a program without it should be as good: :meth:`ActiveUnits.cut` makes that program.

References:
    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", 2016, section 5.2, https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.results import Result, table
from pyro_vae.evaluation.runs import guide_run
from pyro_vae.evaluation.shares import by_share, joined
from pyro_vae.models import Program
from pyro_vae.traces.layout import by_draw
from pyro_vae.traces.tracing import Site, Traces


@dataclass(frozen=True)
class ActiveUnits(Result):
    """Activity of each latent; tensors have the shape of a site's event.

    Attributes:
        variance: of E_q[z|x] over the data, in the squared unit of z, by site.
        standard_error: of the variance, for data as a draw from their population.
        mean: of E_q[z|x] over the data.
        threshold: above which a unit is active.
        num_data: N.
        num_particles: draws per datum.
        estimator: how E_q[z|x] was had, by site.
    """

    variance: dict[str, Tensor]
    standard_error: dict[str, Tensor]
    mean: dict[str, Tensor]
    threshold: float
    num_data: int
    num_particles: int
    estimator: dict[str, str]

    @property
    def active(self) -> dict[str, Tensor]:
        """Which units are, by site."""
        return {name: variance > self.threshold for name, variance in self.variance.items()}

    @property
    def count(self) -> int:
        """Active units of all sites."""
        return sum(int(active.sum()) for active in self.active.values())

    def cut(self, program: Program) -> CutProgram:
        """The program without its inactive units, which are held at their mean and leave the densities.

        Give it to :func:`~pyro_vae.evaluation.log_marginal_likelihood` to see what the cut costs. Running it raises a
        ``ValueError`` where units of a site are not independent in prior or guide, so that none can be taken out.
        """
        return CutProgram(_cut(self, program.model), _cut(self, program.guide))

    def __str__(self) -> str:
        rows = [
            [name, f"{int(active.sum())} of {active.numel()}", f"{self.threshold:g}", f"{self.num_data:,}", str(k), how]
            for (name, active), how, k in zip(
                self.active.items(), self.estimator.values(), [self.num_particles] * len(self.active), strict=True
            )
        ]
        return table(["site", "active", "threshold", "data", "particles", "Var_x(E_q[z|x]) by"], rows)


@dataclass(frozen=True)
class CutProgram:
    """A model and a guide without some of their units."""

    model: Callable[..., Any]
    guide: Callable[..., Any]


@in_evaluation_mode
@torch.no_grad()
def active_units(
    program: Program,
    x: Tensor,
    *context: Tensor,
    threshold: float = 0.01,
    num_particles: int = 1,
    plate: str = "data",
) -> ActiveUnits:
    """Finds the units whose posterior means vary over the data.

    The mean of a site is its distribution's. Where the distribution depends on draws of other latents, or has no mean
    in closed form, it is averaged over draws, and the noise that this adds to the variance is subtracted.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide, N at least 2.
        context: their further arguments.
        threshold: variance above which a unit is active.
        num_particles: draws per datum; 1 is enough for a single latent with a mean in closed form.
        plate: name of the plate over the data.

    Raises:
        ValueError: fewer than 2 data, a number below 1; a single draw of a latent without a mean in closed form.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.stack([x / 2, 0 * x], -1), 1.0).to_event(1))
        >>> units = active_units(SimpleNamespace(model=model, guide=guide), torch.tensor([-1.0, 0.0, 1.0]))
        >>> units.variance["z"], units.active["z"]
        (tensor([0.1667, 0.0000]), tensor([ True, False]))
    """
    if len(x) < 2 or num_particles < 1:
        raise ValueError(
            f"active_units: expected at least 2 data and 1 particle; got {len(x)} and {num_particles}. Pass more."
        )
    args = (x, *context)

    def of_guide(*own: Tensor) -> dict[str, tuple[Tensor, str]]:
        run = guide_run(program.guide, own, num_particles)
        return {name: means_of("active_units", site, run, plate) for name, _, site in run.latents()}

    variance, error, mean, how = {}, {}, {}, {}
    found = joined(by_share("active_units", program, args, of_guide), dim=1)
    for name, (means, how[name]) in found.items():
        averages = means.mean(0)
        centered = averages - averages.mean(0)
        biased = centered.square().mean(0)
        noise = means.var(0).mean(0) / num_particles if num_particles > 1 else torch.zeros_like(biased)
        variance[name] = biased - noise
        error[name] = ((centered**4).mean(0) - biased.square()).clamp(min=0).div(len(x)).sqrt()
        mean[name] = averages.mean(0)
    return ActiveUnits(variance, error, mean, threshold, len(x), num_particles, how)


def means_of(subject: str, site: Site, run: Traces, plate: str) -> tuple[Tensor, str]:
    """E_q[z|x] given the draws of other latents, (K, N, ...), or the draws themselves; and which of these it is."""
    try:
        mean = site["fn"].mean
    except NotImplementedError:
        mean = None
    if mean is not None and bool(mean.isfinite().all()):
        return by_draw(site, mean.expand(site["value"].shape), run, plate), "means in closed form"
    if run.num_particles < 2:
        raise ValueError(
            f"{subject}: expected several draws at site {site['name']!r}, whose distribution has no mean in closed "
            "form; got 1. Use num_particles=100."
        )
    return by_draw(site, site["value"], run, plate), "means of draws"


def _cut(units: ActiveUnits, program: Callable[..., Any]) -> Callable[..., Any]:
    return _Cut(units.active, units.mean)(program)


class _Cut(Messenger):
    """Takes inactive units out of the density of their site, and passes on their mean in place of their value."""

    def __init__(self, active: dict[str, Tensor], mean: dict[str, Tensor]) -> None:
        super().__init__()
        self._active, self._mean = active, mean

    def _pyro_sample(self, msg: Site) -> None:
        active = self._active.get(msg["name"])
        if active is None or bool(active.all()):
            return
        fn = msg["fn"]
        if not (isinstance(fn, Independent) and not fn.base_dist.event_shape and fn.event_shape == active.shape):
            raise ValueError(
                f"ActiveUnits.cut: expected independent units at site {msg['name']!r}; got {fn}. Cut a program whose "
                "prior and guide are products over their units."
            )
        msg["fn"] = fn.base_dist.mask(active).to_event(fn.reinterpreted_batch_ndims)

    def _pyro_post_sample(self, msg: Site) -> None:
        active = self._active.get(msg["name"])
        if active is not None:
            msg["value"] = torch.where(active, msg["value"], self._mean[msg["name"]])
