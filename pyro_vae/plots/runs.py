"""What pictures show of a program: a run on some data, seen from x, and runs of its model at other latents.

Shapes: N data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_vae import checks
from pyro_vae.data import Dataset, as_dataset
from pyro_vae.evaluation.modes import check_program, check_rows, evaluation_mode, rows_of
from pyro_vae.evaluation.runs import one_run
from pyro_vae.graphs.recording import random_state
from pyro_vae.tables import Table
from pyro_vae.traces.layout import by_draw, to_site
from pyro_vae.traces.tracing import Site, Traces, per_datum, unchanged_param_store, with_values

PLATE = "data"


@dataclass(frozen=True)
class View:
    """A run of a program on one draw of the guide for each datum.

    Attributes:
        subject: who asks, for messages.
        program: a model and a guide.
        args: x and its contexts.
        traces: of the run, whose model may have been run at other latents than the guide's.
        name: of the site of x.
        chosen: places of these data among those that were given.
        num_given: how many these were.
    """

    subject: str
    program: Any
    args: tuple[Tensor, ...]
    traces: Traces
    name: str
    chosen: Tensor
    num_given: int

    @property
    def x(self) -> Tensor:
        """The data."""
        return self.args[0]

    @property
    def latents(self) -> dict[str, tuple[Site, Site]]:
        """The site in the model and that in the guide, of each latent that both have."""
        return {name: (prior, guide) for name, prior, guide in self.traces.latents() if prior is not None}

    def log_likelihood(self) -> Tensor:
        """Log p(x|z) of each datum, (N,), in nats."""
        site = self.traces.model.nodes[self.name]
        return per_datum(self.name, site, site["log_prob"], self.traces, PLATE)[0]

    def rows(self, name: str, value: Tensor) -> Tensor:
        """What has the shape of a latent's site, as (N, ...)."""
        return by_draw(self.traces.guide.nodes[name], value, self.traces, PLATE)[0]

    def drawn(self, name: str) -> Tensor:
        """The values of a latent that the model was run at, (N, ...)."""
        site: Site = self.traces.model.nodes[name]
        return self.rows(name, site["value"])

    def centers(self, name: str) -> Tensor:
        """E_q[z|x] in closed form, or else the draws, (N, ...)."""
        site: Site = self.traces.guide.nodes[name]
        mean = mean_of(site)
        return self.rows(name, site["value"] if mean is None else mean)

    def at(self, latents: dict[str, Tensor]) -> View:
        """The model run at other latents, (N, ...) each."""
        trace = with_values(self.traces.guide, torch.clone)
        for name, rows in latents.items():
            value = to_site(self.traces.guide.nodes[name], rows.unsqueeze(0), self.traces, PLATE)
            trace.nodes[name] = trace.nodes[name] | {"value": value}
        with unchanged_param_store(), pyro.validation_enabled(False):
            return self._with(self.traces.replay("model", trace))

    def from_prior(self) -> View:
        """The model run with latents of its own, as many as there are data."""
        with unchanged_param_store(), pyro.validation_enabled(False):
            return self._with(poutine.trace(poutine.uncondition(self.program.model)).get_trace(*self.args))

    def _with(self, model: Trace) -> View:
        return replace(self, traces=replace(self.traces, model=model))

    def mean(self) -> Tensor | None:
        """E[x|z], of the shape of x; None where the likelihood has none."""
        return mean_of(self.traces.model.nodes[self.name])

    def draw(self) -> Tensor:
        """A draw x' ~ p(x|z), of the shape of x."""
        site: Site = self.traces.model.nodes[self.name]
        drawn: Tensor = site["fn"].sample()
        return drawn.expand(self.x.shape)


def mean_of(site: Site) -> Tensor | None:
    """The mean of a site's distribution, of the shape of its value; None where there is none in closed form."""
    try:
        mean: Tensor = site["fn"].mean
    except (NotImplementedError, AttributeError):
        return None
    return mean.expand(site["value"].shape) if bool(mean.isfinite().all()) else None


@contextlib.contextmanager
def viewed(
    subject: str,
    program: Any,
    data: Any,
    context: tuple[Tensor, ...],
    seed: int,
    *,
    most: int,
    by_lot: bool = False,
    repeat: bool = False,
) -> Iterator[View]:
    """Context manager that runs a program on data, in evaluation mode, without gradients, with draws of a seed.

    Args:
        subject: who asks, for messages.
        program: a model and a guide.
        data: a Dataset, with its contexts, or x as a tensor, array or DataFrame.
        context: what model and guide take beside these.
        seed: of all draws; the global generators are left as they were.
        most: look at so many data at most.
        by_lot: choose them by the seed, rather than the first.
        repeat: take the first datum so often, for pictures of latents of one's own.

    Raises:
        TypeError, ValueError: no program, or data that are not the program's.
    """
    check_program(subject, program)
    seed = checks.whole(subject, "seed", seed, 0)
    args, chosen, length = _arguments(subject, program, data, context, seed, most, by_lot, repeat)
    check_rows(subject, program, args)
    check_data = getattr(program, "check_data", None)
    if check_data is not None:
        check_data(*args)
    with evaluation_mode(program), torch.no_grad(), random_state(args):
        torch.manual_seed(seed)
        traces = one_run(program, args)
        if traces.enumerated:
            raise ValueError(
                f"{subject}: expected latents that the guide draws; got {sorted(traces.enumerated)}, which the model "
                "sums over. Draw them in the guide too."
            )
        yield View(subject, program, args, traces, _site_of(subject, traces, args[0]), chosen, length)


def _arguments(
    subject: str,
    program: Any,
    data: Any,
    context: tuple[Tensor, ...],
    seed: int,
    most: int,
    by_lot: bool,
    repeat: bool,
) -> tuple[tuple[Tensor, ...], Tensor, int]:
    """Some rows of data and contexts, on the device and of the dtype of the parameters; which; of how many."""
    table = getattr(getattr(program, "likelihood", None), "table", None)
    if isinstance(data, Tensor) and data.is_floating_point() and data.dim():
        length = len(data)
    else:
        frame = isinstance(table, Table) and type(data).__name__ == "DataFrame"
        data = as_dataset(data, "x", kinds=table if frame else None)
        length = len(data)
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed)) if by_lot else torch.arange(length)
    chosen = torch.zeros(most, dtype=torch.long) if repeat and length else order[:most]
    for part in context:
        checks.instance(subject, "context", part, Tensor, "Give tensors of a row for each datum.")
        if not part.dim() or len(part) != length:
            raise ValueError(
                f"{subject}: expected contexts of a row for each of {length} data; got {tuple(part.shape)}. Give as "
                "many rows."
            )
    own = rows_of(subject, program, data.subset(chosen), seed) if isinstance(data, Dataset) else (data[chosen],)
    rows = (*own, *(part[chosen.to(part.device)] for part in context))
    like = next(program.parameters(), None) if isinstance(program, nn.Module) else None
    if like is None:
        return rows, chosen, length
    x, *rest = (row.to(like.device) for row in rows)
    return (x.to(like.dtype) if isinstance(data, Dataset) else x, *rest), chosen, length


def _site_of(subject: str, traces: Traces, x: Tensor) -> str:
    """The site that x is observed at."""
    observed = dict(traces.observed())
    same = [name for name, site in observed.items() if site["value"] is x or site["value"].shape == x.shape]
    if "x" in same or len(same) == 1:
        return "x" if "x" in same else same[0]
    raise ValueError(
        f"{subject}: expected a model that observes x, of shape {tuple(x.shape)}, at one site; got {sorted(observed)}. "
        "Pass x to the site as it is."
    )
