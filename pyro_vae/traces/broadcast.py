"""Whether programs that are run over all values of their latents compute what they compute of each by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae import internals
from pyro_vae.traces.dry_run import dry_run
from pyro_vae.traces.modules import modules_of
from pyro_vae.traces.structure import Structure
from pyro_vae.traces.tracing import PyroProgram, Site, Traces, trace_programs

# Rounding differs between sizes of matrix products; what mixes the values of a latent is far off.
_TOLERANCE = 1e-3


def check_sums(
    model: PyroProgram,
    guide: PyroProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    structure: Structure,
    num_particles: int,
    summed: Collection[str],
) -> None:
    """Raises for programs that mix the values of a latent that is summed over, as ``x.mean()`` without a dim does.

    The latents take their first and their last values, and the log-densities of all sites are compared with those that
    a run over all values has there. Modules are in evaluation mode meanwhile; programs that are random beside their
    sites are passed. Generators and buffers are left as they were.

    Args:
        model: a Pyro program, module or function.
        guide: likewise.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        structure: of :func:`~pyro_vae.traces.tracing.inspect`.
        num_particles: K, of one pass.
        summed: sites of the guide that take every value of their support.

    Raises:
        ValueError: naming the first site whose log-density is another one.
    """
    traced = partial(trace_programs, model, guide, args, kwargs, num_particles=num_particles, structure=structure)
    device = next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
    with dry_run(args), _evaluation((model, guide)), torch.autocast(device, enabled=False):
        run = traced(enumerate_=summed)
        dims = [internals.enumerate_dim(site) for name, _, site in run.latents() if name in summed]
        together = _log_probs(run)
        for last in (False, True):
            draws = run.guide.copy()
            for name, _, site in run.latents():
                fn = site["fn"]
                value = _as_drawn(_at(site["value"], dims, len(fn.event_shape), last), fn, dims)
                node: Site = {**site, "value": value}
                draws.nodes[name] = node
            first, second = (_log_probs(traced(subsamples=draws)) for _ in range(2))
            if first.keys() != second.keys() or any(not torch.equal(first[name], second[name]) for name in first):
                return
            for name in first:
                if name in together and not _same(_at(together[name], dims, 0, last), first[name]):
                    raise ValueError(
                        f"Site {name!r}: expected programs that keep the values of {list(summed)} apart, in dims left "
                        "of all plates; got a log-density that is another one where they are run together. Reduce over "
                        f"dims by number, as x.mean(-1) does and x.mean() does not, or use 'score' at {list(summed)}."
                    )


def _log_probs(run: Traces) -> dict[str, Tensor]:
    guide: dict[str, Site] = {f"{name} of the guide": site for name, _, site in run.latents()}
    return {name: site["log_prob"] for name, site in (*run.of_model(), *guide.items())}


def _at(tensor: Tensor, dims: Collection[int], event_dim: int, last: bool) -> Tensor:
    """A tensor at the first or the last value of every latent that is summed over, without their dims."""
    for dim in dims:
        place = dim - event_dim
        if tensor.dim() >= -place:
            tensor = tensor.narrow(place, tensor.shape[place] - 1 if last else 0, 1)
    while tensor.dim() >= event_dim - max(dims):
        tensor = tensor[0]
    return tensor


def _as_drawn(value: Tensor, fn: Any, dims: Collection[int]) -> Tensor:
    """A value in the shape of a draw where nothing is summed over."""
    num_plates = -max(dims) - 1
    shape = fn.batch_shape[max(len(fn.batch_shape) - num_plates, 0) :] + fn.event_shape
    while value.dim() > len(shape):
        value = value[0]
    return value.expand(shape)


def _same(one: Tensor, other: Tensor) -> bool:
    try:
        one, other = torch.broadcast_tensors(one, other)
    except RuntimeError:
        return False
    return torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)


@contextlib.contextmanager
def _evaluation(programs: tuple[PyroProgram, PyroProgram]) -> Iterator[None]:
    """Context manager in which the programs' modules are in evaluation mode."""
    training = [module for module in modules_of(programs) if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
