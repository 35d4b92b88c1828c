"""The figures of an epoch: the terms of the ELBO at beta = 1, whatever is optimized."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.data import Dataset, Stream
from pyro_vae.traces.densities import log_densities
from pyro_vae.traces.possible import check_possible
from pyro_vae.traces.structure import UndrawnLatentError
from pyro_vae.traces.terms import terms_of
from pyro_vae.traces.tracing import PyroProgram, Traces, inspect, trace_programs
from pyro_vae.training.history import Row

EVALUATION_BATCH = 1_000


def figures(
    prefix: str, model: PyroProgram, guide: PyroProgram, dataset: Dataset | Stream, plate: str, seed: int = 0
) -> Row:
    """ELBO, E_q[log p(x|z)] and KL in nats per datum, one draw of the latents for each.

    Args:
        prefix: of the names of the figures.
        model: a Pyro program.
        guide: likewise.
        dataset: its data.
        plate: name of the data plate, for the check that the figures are possible; where a site is outside of it the
            program is taken as a whole.
        seed: of the draws.

    Raises:
        ValueError: an ELBO above 0 of data that have probabilities, naming the site whose density is wrong.
    """
    log_likelihoods, divergences = [], []
    traces: Traces | None = None
    # The same random numbers at every epoch, and none of training's: figures do not change what is learned.
    with seeded(seed, dataset.device) as generator, torch.no_grad(), pyro.validation_enabled(False):
        for batch in dataset.batches(EVALUATION_BATCH, generator=generator):
            traces = _traces(model, guide, batch)
            _take_scales_off(traces)
            log_likelihood, kl = _terms(traces, plate)
            log_likelihoods.append(log_likelihood)
            divergences.append(kl)
        assert traces is not None
        log_likelihood, kl = torch.cat(log_likelihoods), torch.cat(divergences)
        elbo = log_likelihood - kl
        if len(elbo) == len(dataset):
            check_possible(f"fit, {prefix} data", elbo, lambda: traces, plate)
    n = len(dataset)
    sums = {"elbo": elbo, "expected_log_likelihood": log_likelihood, "kl": kl}
    return {f"{prefix}_{name}": float(value.double().sum()) / n for name, value in sums.items()}


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[torch.Generator]:
    """Seeds the global generators for a while, and yields one of its own for the order and binarization of the data."""
    generator = torch.Generator(device)
    if seed is None:
        yield generator.manual_seed(int(torch.randint(2**62, ())))
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield generator.manual_seed(seed)


def _traces(model: PyroProgram, guide: PyroProgram, batch: tuple[Tensor, ...]) -> Traces:
    try:
        return trace_programs(model, guide, batch, {})
    except UndrawnLatentError:  # those the model sums over
        return trace_programs(model, guide, batch, {}, structure=inspect(model, guide, batch, {}))


def _terms(traces: Traces, plate: str) -> tuple[Tensor, Tensor]:
    """E_q[log p(x|z)] and KL of each datum; or their sums, as one, where they cannot be told apart."""
    try:
        terms = terms_of([traces], plate)
    except ValueError:  # a site outside of the plate, or priors that are a part of the likelihood
        return _terms_apart_from_sites(traces, plate)
    return terms.expected_log_likelihood, terms.kl


def _terms_apart_from_sites(traces: Traces, plate: str) -> tuple[Tensor, Tensor]:
    try:
        densities = log_densities(traces, plate)
    except ValueError:
        densities = log_densities(traces, None)
    kl = densities.guide if densities.tied else densities.guide - densities.prior
    return densities.likelihood[0], kl[0]


def _take_scales_off(traces: Traces) -> None:
    """Leaves sites the scales of their plates alone: those of ``poutine.scale`` weigh an objective, as beta does."""
    for trace in (traces.model, traces.guide):
        for site in trace.nodes.values():
            if site["type"] != "sample" or "unscaled_log_prob" not in site:
                continue
            frames: list[Any] = [f for f in site["cond_indep_stack"] if f.full_size is not None]
            scale = math.prod(frame.full_size / frame.size for frame in frames)
            if isinstance(site["scale"], Tensor) or abs(site["scale"] - scale) > 1e-9 * scale:
                site["scale"] = scale
                site["log_prob"] = scale_and_mask(site["unscaled_log_prob"], scale, site["mask"])
                site["log_prob_sum"] = site["log_prob"].sum()
