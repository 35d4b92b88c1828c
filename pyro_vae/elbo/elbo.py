r"""The evidence lower bound.

For a model p(x, z) and a guide q(z|x), Jensen's inequality gives

.. math::  \log p(x) \ge E_{q(z|x)}[\log p(x|z)] - \mathrm{KL}(q(z|x) \| p(z)).

The first term is what a loss function would call reconstruction. Here it is the log-density of the sites that the
model observes, whatever they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.checks import flag, number
from pyro_vae.elbo.draws import Call
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.gradients import Pathwise, check_reparameterized
from pyro_vae.elbo.names import GradientChoice
from pyro_vae.traces.densities import LogDensities, log_densities
from pyro_vae.traces.structure import Structure
from pyro_vae.traces.terms import analytic_kl as closed_form_kl
from pyro_vae.traces.terms import check_order
from pyro_vae.traces.tracing import mask_of, per_datum


class ELBO(Estimator):
    r"""The negative ELBO as a loss.

    .. math::
        -\frac1K \sum_k \Big[\log p(x|z_k) + \beta \sum_i (\log p(z_{ik}) - \log q(z_{ik}|x))\Big],
        \quad z_k \sim q(z|x)

    summed over the data, in nats, as all of Pyro's objectives are. At ``beta=1`` it is the loss of
    ``pyro.infer.Trace_ELBO``, and with ``analytic_kl=True`` that of ``pyro.infer.TraceMeanField_ELBO``.

    Args:
        num_particles: K, draws per datum.
        gradient: see :class:`~pyro_vae.elbo.estimator.Estimator`; ``"enumerate"`` sums over discrete latents, and a
            mapping such as ``{"k": "enumerate", "z": "pathwise"}`` gives each site of the guide its own, which a guide
            of discrete and continuous latents needs: no mixture is chosen unasked.
        beta: weight of the latents' terms. An objective with beta != 1 is not a bound for beta < 1, and a looser one
            for beta > 1 (Higgins et al., "beta-VAE", 2017, https://openreview.net/forum?id=Sy2fzU9gl).
        analytic_kl: take KL(q || p) in closed form in place of a difference of log-densities at the draw. There is no
            fallback: a pair of distributions without a closed form is an error, and so is a guide that draws its
            latents in another order than the model.
        free_bits: with a value lambda > 0 in nats, each site's and datum's KL counts as max(lambda, KL), in closed
            form: it needs ``analytic_kl=True``. The result is an objective, and no bound (Kingma et al., "Improved
            variational inference with inverse autoregressive flow", 2016, https://arxiv.org/abs/1606.04934).
        plate: name of the data plate; needed by free bits only, used by score gradients where there is one.
        vectorize: make the draws of a pass at once.
        chunk_size: draws of a pass at most, see :class:`~pyro_vae.elbo.estimator.Estimator`.

    Raises:
        TypeError: a number or truth value that is none.
        ValueError: a number out of range; a combination of the options that is none; when run, a latent without a
            pathwise gradient, or without a closed-form KL where one was asked for.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2014, https://arxiv.org/abs/1312.6114

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the posterior, at which every draw tells log p(x)
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor(2.0)
        >>> round(ELBO().loss(model, guide, x), 4), round(-dist.Normal(0.0, 2**0.5).log_prob(x).item(), 4)
        (2.2655, 2.2655)
    """

    def __init__(
        self,
        num_particles: int = 1,
        gradient: GradientChoice = "pathwise",
        *,
        beta: float = 1.0,
        analytic_kl: bool = False,
        free_bits: float = 0.0,
        plate: str = "data",
        vectorize: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        self.beta = beta
        self.analytic_kl = analytic_kl
        self.free_bits = free_bits
        super().__init__(num_particles, gradient, plate=plate, vectorize=vectorize, chunk_size=chunk_size)

    def checked(self, name: str, value: Any) -> Any:
        bound = type(self).__name__
        if name in ("beta", "free_bits"):
            value = number(bound, name, value, at_least=0)
        elif name == "analytic_kl":
            value = flag(bound, name, value)
        value = super().checked(name, value)
        after = {**vars(self), name: value}
        if after.get("free_bits") and not after.get("analytic_kl"):
            raise ValueError(
                f"{bound}: expected analytic_kl=True with free_bits; got False. Free bits bound a KL in closed form "
                "from below: pass both, or no free_bits."
            )
        if after.get("analytic_kl") and not isinstance(after.get("gradient", Pathwise()), Pathwise):
            raise ValueError(
                f"{bound}: expected gradient='pathwise' with analytic_kl=True; got {type(after['gradient']).__name__}. "
                "Use one or the other."
            )
        if after.get("analytic_kl") and after.get("chunk_size") is not None:
            raise ValueError(
                f"{bound}: expected chunk_size None with analytic_kl=True; got {after['chunk_size']}. Use "
                "one or the other; a KL in closed form needs few draws."
            )
        return value

    @property
    def latent_weight(self) -> float:  # type: ignore[override]
        """Beta."""
        return self.beta

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether the objective is a mean of log-densities at the draws."""
        return not self.analytic_kl

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.mean(0)

    def path_scale(self, log_weights: Tensor) -> Tensor:
        return torch.ones_like(log_weights)

    def signal(self, log_weights: Tensor) -> Tensor:
        return log_weights / self.num_particles  # a draw adds to the average on its own

    def weigh(self, densities: LogDensities) -> Tensor:
        if densities.tied and self.beta == 1:  # else beta may be an input of a compiled step, which is not compared
            return densities.log_weights
        return densities.likelihood + self.beta * (densities.prior - densities.guide)

    def loss_of(self, call: Call) -> Tensor:
        return self._closed_form(call) if self.analytic_kl else super().loss_of(call)

    def _closed_form(self, call: Call) -> Tensor:
        """The loss with each latent's KL in closed form."""
        draws = call.draw()
        check_reparameterized(draws, self, self.gradient)
        check_order(draws.runs[0])
        densities = [log_densities(run, call.plate) for run in draws.runs]
        scale = densities[0].scale
        kls: dict[str, list[Tensor]] = {}
        floors: dict[str, Tensor] = {}
        for run in draws.runs:
            for name, model_site, site in run.latents():
                kl = closed_form_kl(name, model_site, site)
                rows = per_datum(name, site, kl / scale, run, call.plate)
                if self.free_bits:  # what is masked out has no KL, and no floor
                    floors.setdefault(
                        name, per_datum(name, site, mask_of(site), run, call.plate).gt(0) * self.free_bits
                    )
                kls.setdefault(name, []).append(rows)
        by_site = {name: torch.cat(rows).mean(0) for name, rows in kls.items()}
        if self.free_bits:
            by_site = {name: torch.maximum(kl, floors[name][0].to(kl)) for name, kl in by_site.items()}
        kl = sum((rows.sum() for rows in by_site.values()), torch.zeros(()))
        likelihood = torch.cat([part.likelihood for part in densities]).mean(0).sum()
        return scale * (self.beta * kl - likelihood)

    def _needs_structure(self) -> bool:
        return self.num_particles > 1 or not self.gradient.linear or self.free_bits > 0

    def _plate(self, structure: Structure) -> str | None:
        if self.free_bits:
            return super()._plate(structure)
        # A sum needs no weights per datum; a score gradient gains from them where it can have them.
        needed = not self.gradient.linear and structure.outside.get(self.plate, "absent") is None
        return self.plate if needed else None
