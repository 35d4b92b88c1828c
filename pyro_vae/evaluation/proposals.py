r"""Proposals for importance sampling that cover the posterior better than the guide.

.. math:: p(x) = E_{r(z)}\Big[\frac{p(x, z)}{r(z)}\Big]

for any r that is not 0 where p(x, z) is not. A guide trained on the ELBO is narrower than the posterior, so that rare
draws have most of the weight. A mixture bounds the weights; a refined guide is fitted again to each datum. What fits it
are draws of its own: those that estimate p(x) know nothing of it, or the estimate would be too high.

Shapes: N data, K particles.

References:
    Hesterberg, "Weighted average importance sampling and defensive mixture distributions", 1995,
    https://doi.org/10.1080/00401706.1995.10484303
    Kim, Wiseman, Miller, Sontag, Rush, "Semi-amortized variational autoencoders", 2018,
    https://arxiv.org/abs/1802.02550
    Tucker, Lawson, Gu, Maddison, "Doubly reparameterized gradient estimators for Monte Carlo objectives", 2019,
    https://arxiv.org/abs/1810.04152
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import AffineTransform
from tqdm.auto import tqdm

from pyro_vae import checks
from pyro_vae.elbo import ELBO, IWELBO
from pyro_vae.evaluation.hmc import is_real, prior_of
from pyro_vae.evaluation.refinement import Refinement
from pyro_vae.evaluation.runs import check_arguments, in_parts, weighted_run
from pyro_vae.models import Program
from pyro_vae.traces.densities import log_densities
from pyro_vae.traces.structure import Structure
from pyro_vae.traces.tracing import Site, Traces, across, trace_programs, unchanged_param_store

_WIDER = 1.1
"""What the scales of a refined Normal vector are multiplied by."""


@dataclass(frozen=True)
class Proposed:
    """A model and what it is weighed with, in the place of the program they came of."""

    model: Callable[..., Any]
    guide: Callable[..., Any]


class Proposal:
    """The base class: the guide as it is. Another proposal overrides one of the two methods."""

    how_to_make = "Give proposals.Refined() or proposals.Defensive()."

    def fit(
        self,
        subject: str,
        program: Program,
        args: tuple[Tensor, ...],
        *,
        memory: int | None,
        plate: str,
        progress: bool,
    ) -> tuple[Program, tuple[Tensor, ...]]:
        """Another program of the same model, and its arguments, of N rows each."""
        return program, args

    def weigh(
        self, program: Program, args: tuple[Tensor, ...], num_particles: int, structure: Structure, plate: str
    ) -> tuple[Traces, Tensor]:
        """A run of a program, and log-weights (K, N) of its draws."""
        return weighted_run(program, args, num_particles, structure, plate)


class Refined(Proposal):
    r"""The guide's distributions, with parameters fitted again to each datum; they start where the guide puts them.

    A vector of independent Normals gets correlations and is fitted by the ELBO, with stl gradients; then its scales are
    a tenth wider, since the ELBO's optimum is narrower than the posterior. Other distributions, which may be far from
    any posterior, are fitted by the importance-weighted bound of K draws, with dreg gradients: its optimum covers the
    posterior. Latents may depend on one another: each is moved by the same for all draws of a datum.

    Args:
        num_steps: of Adam, for each datum.
        num_particles: K, draws of each step.
        learning_rate: the first, for parameters without constraints; it falls to 0.
        full_rank: give vectors of Normals correlations. Their offsets take D (D + 3) / 2 numbers for each datum of D
            latent dims.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> from pyro_vae.evaluation import log_marginal_likelihood
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the posterior has the scale 0.71, and the mean x / 2
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.4 * x, 0.6))
        >>> program, x = SimpleNamespace(model=model, guide=guide), torch.tensor([0.0, 2.0])
        >>> _ = torch.manual_seed(0)
        >>> refined = Refined(num_steps=100, num_particles=10)
        >>> result = log_marginal_likelihood(program, x, num_particles=100, proposal=refined, progress=False)
        >>> result.value.round(decimals=1)  # log Normal(x; 0, 2) is -1.27 and -2.27
        tensor([-1.3000, -2.3000])
    """

    def __init__(
        self,
        num_steps: int = 200,
        num_particles: int = 10,
        learning_rate: float = 0.05,
        *,
        full_rank: bool = True,
    ) -> None:
        self.num_steps = checks.whole("Refined", "num_steps", num_steps)
        self.num_particles = checks.whole("Refined", "num_particles", num_particles)
        self.learning_rate = checks.number("Refined", "learning_rate", learning_rate, above=0)
        self.full_rank = checks.flag("Refined", "full_rank", full_rank)

    def fit(
        self,
        subject: str,
        program: Program,
        args: tuple[Tensor, ...],
        *,
        memory: int | None,
        plate: str,
        progress: bool,
    ) -> tuple[Program, tuple[Tensor, ...]]:
        check_arguments(subject, program, args)
        covering = IWELBO(self.num_particles, gradient="dreg", plate=plate)
        nearest = ELBO(self.num_particles, gradient="stl", plate=plate)

        def refined(part: tuple[Tensor, ...], num_steps: int, bar: tqdm | None = None) -> Refinement:
            refinement = Refinement(subject, program, part, plate, full_rank=self.full_rank)
            loss = nearest if refinement.is_full_rank else covering
            refinement.fit(loss, num_steps, self.learning_rate, bar)
            refinement.widen(_WIDER)
            return refinement

        with unchanged_param_store():
            parts = in_parts(subject, args, lambda part: refined(part, 2), memory)  # the second has Adam's averages too
            with tqdm(total=len(args[0]) * self.num_steps, disable=not progress, unit="step", unit_scale=True) as bar:
                fitted = [refined(part, self.num_steps, bar) for part in parts]
        offsets = [torch.cat(rows).detach() for rows in zip(*(part.offsets for part in fitted), strict=True)]
        n, moved = len(args), fitted[0].moved

        def model(*given: Tensor) -> Any:
            return program.model(*given[:n])

        def guide(*given: Tensor) -> Any:
            return moved(given[n:])(*given[:n])

        return Proposed(model, guide), (*args, *offsets)


class Defensive(Proposal):
    r"""A mixture of the guide, the prior, and the guide widened about its mean.

    .. math:: r(z) = (1 - a - b)\, q(z|x) + a\, p(z) + b\, q_c(z|x)

    No weight is above p(x|z) / a, nor above p(x, z) / q(z|x) by more than a factor. It is a mixture of all latents of
    a datum together, in whatever order model and guide draw them.

    Args:
        prior: a, the share of the prior.
        widened: b, the share of the widened guide.
        factor: c, by which its latents are farther from their means; they are real and have means in closed form,
            unless b is 0.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> from pyro_vae.evaluation import log_marginal_likelihood
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # far too narrow: the posterior has the scale 0.71
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.2))
        >>> program, x = SimpleNamespace(model=model, guide=guide), torch.tensor([0.0, 2.0])
        >>> _ = torch.manual_seed(0)
        >>> result = log_marginal_likelihood(program, x, proposal=Defensive(prior=0.5), progress=False)
        >>> result.value.round(decimals=1), result.unreliable  # log Normal(x; 0, 2) is -1.27 and -2.27
        (tensor([-1.3000, -2.3000]), [])
    """

    def __init__(self, prior: float = 0.1, widened: float = 0.4, factor: float = 1.2) -> None:
        self.prior = checks.number("Defensive", "prior", prior, at_least=0, below=1)
        self.widened = checks.number("Defensive", "widened", widened, at_least=0, below=1 - self.prior)
        self.factor = checks.number("Defensive", "factor", factor, above=1)

    def weigh(
        self, program: Program, args: tuple[Tensor, ...], num_particles: int, structure: Structure, plate: str
    ) -> tuple[Traces, Tensor]:
        trace = partial(trace_programs, args=args, kwargs={}, num_particles=num_particles)
        alone = replace(structure, enumerated=frozenset())
        starts = {
            "guide": (1 - self.prior - self.widened, program.guide),
            "prior": (self.prior, prior_of(program.model)),
            "widened": (self.widened, _Widened(self.factor)(program.guide)),
        }
        starts = {name: start for name, start in starts.items() if start[0]}
        drawn = [trace(start, start, structure=alone) for _, start in starts.values()]
        shares = args[0].new_tensor([share for share, _ in starts.values()], dtype=torch.float64)
        values = _chosen(drawn, shares, plate)
        run = trace(program.model, program.guide, structure=structure, subsamples=values)
        densities = log_densities(run, plate)
        at_values = {"guide": densities.guide}
        if self.prior:
            at_values["prior"] = _prior_density(densities)
        if self.widened:
            widened = starts["widened"][1]
            again = trace(widened, widened, structure=alone, subsamples=values)
            at_values["widened"] = log_densities(again, plate).guide
        terms = [at_values[name] + math.log(share) for name, (share, _) in starts.items()]
        return run, densities.joint - torch.stack(terms).logsumexp(0)


def _chosen(drawn: list[Traces], shares: Tensor, plate: str) -> Trace:
    """The guide's trace with, for each draw and datum, all latents of one of the runs, by lot in these shares."""
    like = log_densities(drawn[0], plate).guide
    lot = torch.bucketize(torch.rand_like(like, dtype=torch.float64), shares.cumsum(0)[:-1])
    values = drawn[0].guide.copy()
    sites = [{name: site for name, _, site in run.latents()} for run in drawn]
    for name, site in sites[0].items():
        value = site["value"]
        for i, others in enumerate(sites[1:], 1):
            if name not in others:
                raise ValueError(
                    f"Defensive: expected a guide that draws the model's latents; got {name!r}, which the model has "
                    "not. Use prior=0."
                )
            mask = across(site, lot == i, drawn[0].particle_dim, plate)
            value = torch.where(mask, others[name]["value"], value)
        values.nodes[name] = site | {"value": value}
    return values


def _prior_density(densities: Any) -> Tensor:
    if densities.tied:
        raise ValueError(
            f"Defensive: expected a prior that stands apart; got latents {list(densities.tied)} tied to others by one "
            "that the model sums over. Use prior=0."
        )
    prior: Tensor = densities.prior
    return prior


class _Widened(Messenger):
    """Moves the draws of distributions away from their means by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def _pyro_sample(self, msg: Site) -> None:
        if site_is_subsample(msg) or msg["is_observed"]:
            return
        fn = msg["fn"]
        try:
            mean = fn.mean if is_real(fn.support) and not fn.support.is_discrete else None
        except NotImplementedError:
            mean = None
        if mean is None:
            raise ValueError(
                f"Defensive: expected real latents of a mean in closed form, to widen them; got {type(fn).__name__} at "
                f"site {msg['name']!r}. Use widened=0."
            )
        move = AffineTransform((1 - self._factor) * mean, self._factor, event_dim=fn.event_dim)
        msg["fn"] = dist.TransformedDistribution(fn, [move])
