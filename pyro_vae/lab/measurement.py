"""Estimators side by side: what they bound, how their gradients err, and what they cost."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.infer
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import checks
from pyro_vae.evaluation import Estimate
from pyro_vae.evaluation import log_marginal_likelihood as estimate_log_p
from pyro_vae.graphs.memory import peak_memory
from pyro_vae.graphs.recording import random_state
from pyro_vae.lab.comparison import Comparison
from pyro_vae.lab.draws import Sampler, named_parameters, unchanged
from pyro_vae.lab.moments import Moments
from pyro_vae.lab.references import (
    Estimators,
    Reference,
    References,
    describe,
    family,
    named_estimators,
    references_of,
)
from pyro_vae.lab.rows import Row
from pyro_vae.traces.structure import check_programs
from pyro_vae.traces.tracing import PyroProgram, unchanged_param_store

_MIN_DRAWS = 100  # beyond which the noise of a variance does not blur a p-value
_TIMED_STEPS = 15


@partial(checks.arguments, "compare")
def compare(
    model: PyroProgram,
    guide: PyroProgram,
    x: Tensor | tuple[Tensor, ...],
    estimators: Estimators,
    *,
    draws: int = 1000,
    reference: References | None = None,
    reference_draws: int | None = None,
    log_marginal_likelihood: Tensor | None = None,
    groups: Mapping[str, Collection[str]] | None = None,
    plate: str = "data",
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Compares gradient estimators at the present parameters, which stay as they are.

    Args:
        model: a Pyro program, module or function.
        guide: likewise, taking the same arguments.
        x: their arguments: data (N, ...), or a tuple of data and contexts.
        estimators: ours or any of ``pyro.infer``, by name; a sequence is named after its classes and settings.
        draws: of each estimator's gradient. Those that cannot be drawn many at once, Pyro's among them, are drawn
            2,000 times at most.
        reference: what an estimator's gradient should be on average: another estimator, whose average over
            ``reference_draws`` is taken, or exact gradients of the bound by parameter name; one for all, or one for
            each by name. What is left out is compared with the same bound and a gradient known to be unbiased. A bound
            of your own has itself with a pathwise or VIMCO gradient: to find an error in it, give a reference.
        reference_draws: 10 times ``draws`` when left out.
        log_marginal_likelihood: log p(x) of each datum, (N,), where it is known; estimated by importance sampling with
            5,000 draws otherwise.
        groups: names of further groups of parameters, and patterns for the names in each: ``guide.*.head.*``.
        plate: name of the plate over the data, for log p(x) and for references of Pyro's estimators.
        seed: of the draws; the global generators are left as they were.
        progress: show a bar.

    Raises:
        TypeError: data or estimators are something else.
        ValueError: fewer than 100 draws; a pattern or a name that fits nothing; an estimator that needs a reference.

    References:
        Rainforth et al., "Tighter variational bounds are not necessarily better", 2018,
        https://arxiv.org/abs/1802.04537 (signal-to-noise ratio)

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import elbo
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", lambda: torch.tensor(1.0))  # the posterior's, at x = 2
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc.expand(len(x)), 0.5**0.5))
        >>> both = {"pathwise": elbo.ELBO(), "stl": elbo.ELBO(gradient="stl")}
        >>> found = compare(model, guide, torch.tensor([2.0]), both, draws=500, progress=False)
        >>> round(found.row("stl").bound, 4)  # log Normal(2; 0, 2)
        -2.2655
        >>> round(found.row("pathwise").variance), round(found.row("stl").variance, 6)
        (2, 0.0)
    """
    args = x if isinstance(x, tuple) else (x,)
    if not all(isinstance(arg, Tensor) and arg.dim() for arg in args):
        raise TypeError(
            f"compare: expected x a tensor (N, ...) or a tuple of them; got {x!r}. A single datum has N = 1."
        )
    reference_draws = 10 * draws if reference_draws is None else reference_draws
    for name, value in (("draws", draws), ("reference_draws", reference_draws)):
        if value < _MIN_DRAWS:
            raise ValueError(
                f"compare: expected {name} at least {_MIN_DRAWS}, for variances and p-values; got {value}. Draw more."
            )
    named = named_estimators("compare", estimators)
    check_programs("compare", model, guide)
    with unchanged_param_store(), random_state(args), unchanged(model, guide):
        torch.manual_seed(seed)
        lab = _Lab(model, guide, args, groups or {})
        references = references_of(named, reference, plate, lambda bound: bound.loss(model, guide, *args))
        log_p = lab.log_p(log_marginal_likelihood, plate)
        samplers = {name: Sampler(e, model, guide, args, lab.leaves) for name, e in named.items()}
        costs = _costs(samplers, args)
        rows: list[Row] = []
        for name, sampler in tqdm(samplers.items(), disable=not progress, unit="estimator"):
            long_run, targets = lab.target(references[name], reference_draws)
            bounds, moments = lab.sample(sampler, draws, targets)
            rows += lab.rows(name, named[name], bounds, moments, long_run, log_p, costs[name])
    said = {name: describe(target) for name, target in references.items()}
    return Comparison(tuple(rows), log_p, log_marginal_likelihood is not None, said, len(args[0]))


class _Lab:
    """A program with its parameters in groups, and the references that several estimators share.

    Shapes: N data, D draws, P parameters.
    """

    def __init__(
        self,
        model: PyroProgram,
        guide: PyroProgram,
        args: tuple[Tensor, ...],
        patterns: Mapping[str, Collection[str]],
    ) -> None:
        self._programs, self._args = (model, guide), args
        self._parameters = named_parameters(model, guide, args)
        if not self._parameters:
            raise ValueError("compare: expected parameters to differentiate by; got none. Give the guide some.")
        self.leaves = list({id(leaf): leaf for leaf in self._parameters.values()}.values())
        self._starts, start = {}, 0
        for leaf in self.leaves:
            self._starts[id(leaf)] = start
            start += leaf.numel()
        self._groups: dict[str, Tensor] = {}
        for group, wanted in {"guide": ["guide.*"], "model": ["model.*"], **patterns}.items():
            fitting = [name for name in self._parameters if any(fnmatchcase(name, pattern) for pattern in wanted)]
            if fitting:
                self._groups[group] = torch.cat([self._places(name) for name in fitting]).unique()
            elif group in patterns:
                raise ValueError(
                    f"compare: expected parameters that fit {list(wanted)} for group {group!r}; got "
                    f"{', '.join(self._parameters)}. Change the patterns."
                )
        self._long_runs: dict[int, dict[str, Moments]] = {}

    def log_p(self, given: Tensor | None, plate: str) -> Estimate:
        """Log p(x) averaged over the data, with the error that its estimate has for these data."""
        n = len(self._args[0])
        if given is not None:
            if given.shape != (n,):
                raise ValueError(
                    f"compare: expected log_marginal_likelihood of shape ({n},); got {tuple(given.shape)}. Give one "
                    "value for each datum."
                )
            return Estimate(given.mean().item(), 0.0, "nats", n, 0)
        program = SimpleNamespace(model=self._programs[0], guide=self._programs[1])
        result = estimate_log_p(program, *self._args, batch_size=n, memory=2**28, plate=plate, progress=False)
        error = result.standard_error.square().sum().sqrt().item() / n
        return Estimate(result.value.mean().item(), error, "nats", n, result.num_particles)

    def target(self, reference: Reference, draws: int) -> tuple[dict[str, Moments] | None, dict[str, Tensor]]:
        """The gradient that a reference has on average, by group, and the draws that tell it if it is not exact."""
        if not isinstance(reference, pyro.infer.ELBO):
            exact = self._exact(reference)
            return None, {group: exact[places] for group, places in self._groups.items()}
        if id(reference) not in self._long_runs:
            sampler = Sampler(reference, *self._programs, self._args, self.leaves)
            self._long_runs[id(reference)] = self.sample(sampler, draws, {})[1]
        long_run = self._long_runs[id(reference)]
        return long_run, {group: moments.mean for group, moments in long_run.items()}

    def sample(self, sampler: Sampler, draws: int, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Moments]]:
        """Bounds (D,) and gradients, by group, of as many draws."""
        bounds: list[Tensor] = []
        moments = {group: Moments(targets.get(group)) for group in self._groups}

        def consume(bound: Tensor, gradients: Tensor) -> None:
            bounds.append(bound.double())
            for group, places in self._groups.items():
                moments[group].add(gradients[:, places])

        sampler.draw(draws, consume)
        return torch.cat(bounds), moments

    def rows(
        self,
        name: str,
        estimator: pyro.infer.ELBO,
        bounds: Tensor,
        moments: Mapping[str, Moments],
        long_run: Mapping[str, Moments] | None,
        log_p: Estimate,
        cost: tuple[float, int],
    ) -> Iterator[Row]:
        """A row for each group."""
        n = len(self._args[0])
        bound, error = bounds.mean().item() / n, bounds.std().item() / n / math.sqrt(len(bounds))
        for group, found in moments.items():
            bias = found.bias(None if long_run is None else long_run[group], n * abs(bound))
            snr, cosine = found.snr(), found.cosine()
            yield Row(
                estimator=name,
                family=family(estimator),
                group=group,
                num_parameters=len(self._groups[group]),
                num_particles=estimator.num_particles,
                draws=found.count,
                bound=bound,
                bound_error=error,
                gap=log_p.value - bound,
                gap_error=math.hypot(error, log_p.standard_error),
                bias=bias[0],
                bias_error=bias[1],
                bias_p_value=bias[2],
                mean=found.mean.norm().item(),
                variance=found.variance,
                variance_error=found.variance_error,
                snr=snr[0],
                snr_error=snr[1],
                cosine=cosine[0],
                cosine_error=cosine[1],
                milliseconds=cost[0],
                peak_bytes=cost[1],
            )

    def _exact(self, reference: Mapping[str, Tensor]) -> Tensor:
        shapes = {name: leaf.shape for name, leaf in self._parameters.items()}
        if {name: gradient.shape for name, gradient in reference.items()} != shapes:
            raise ValueError(
                f"compare: expected exact gradients {_shapes(self._parameters)}; got {_shapes(reference)}. Give one "
                "for each parameter, of its shape."
            )
        exact = self.leaves[0].new_zeros(sum(leaf.numel() for leaf in self.leaves), dtype=torch.float64)
        for name, gradient in reference.items():
            exact[self._places(name)] = gradient.to(exact).flatten()
        return exact

    def _places(self, name: str) -> Tensor:
        """Where a parameter is in a gradient."""
        leaf = self._parameters[name]
        start = self._starts[id(leaf)]
        return torch.arange(start, start + leaf.numel(), device=leaf.device)


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())


def _costs(samplers: Mapping[str, Sampler], args: tuple[Tensor, ...]) -> dict[str, tuple[float, int]]:
    """Milliseconds and bytes of a step; the estimators take turns, because the speed of a machine drifts."""
    times: dict[str, list[float]] = {name: [] for name in samplers}
    with pyro.validation_enabled(False):
        for _ in range(_TIMED_STEPS):
            for name, sampler in samplers.items():
                start = time.perf_counter()
                sampler.step()
                if args[0].is_cuda:
                    torch.cuda.synchronize(args[0].device)
                times[name].append(time.perf_counter() - start)
        return {name: (statistics.median(times[name]) * 1e3, peak_memory(s.step)) for name, s in samplers.items()}
