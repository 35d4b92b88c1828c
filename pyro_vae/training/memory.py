"""Steps that need more memory than there is: what would fit, and gradients accumulated over parts of a batch."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.elbo import Estimator
from pyro_vae.internals import is_out_of_memory
from pyro_vae.svi import SVI
from pyro_vae.svi.accounting import check_inside, check_sum, site_scales
from pyro_vae.traces.dry_run import dry_run


def what_fits(svi: SVI, index: Tensor, data: Sequence[Tensor]) -> str:
    """Which smaller batch, and which smaller number of draws, fit into memory, found by trying."""

    def has_room(loss: Any, rows: Tensor) -> bool:
        former = svi.parameters.named
        try:
            with torch.random.fork_rng(devices=[]):
                given = data if svi.prepare is None else svi.prepare(rows, *data)
                with svi.scope():
                    loss.loss_and_grads(svi.model, svi.guide, *given)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return True
        finally:
            for parameter in former.values():
                parameter.grad = None
        gc.collect()  # past the handler, because the error holds the tensors of what has failed
        return False

    n = _largest(len(index) // 2, lambda size: has_room(svi.loss, index[:size]))
    if n == 0:
        return "Not even one datum fits: use a smaller network, or fewer draws (num_particles)."
    words = f"batch_size={n} fits, and so does accumulate={-(-len(index) // n)} with this one (or accumulate='auto')"
    draws = getattr(svi.loss, "num_particles", 1)
    if isinstance(svi.loss, Estimator) and draws > 1:

        def with_draws(k: int) -> bool:
            loss = copy.copy(svi.loss)
            loss.num_particles = k
            return has_room(loss, index)

        k = _largest(draws // 2, with_draws, least=svi.loss.min_particles)
        words += f"; num_particles={k} fits with batches of {len(index)}" if k else ""
    return f"{words}."


def check_parts(
    svi: SVI, parts: int | str, index: Tensor, data: Sequence[Tensor], parted_by: str | None = None
) -> None:
    """Raises for programs and losses whose gradient over a batch is not the sum of those over its parts.

    Args:
        svi: takes the steps.
        parts: how many there are.
        index: of a batch.
        data: what it is of.
        parted_by: what makes the parts, accumulate when left out.

    Raises:
        ValueError: naming the site, the module or the loss.
    """
    if parts == 1:
        return
    by = parted_by or f"accumulate={parts!r}"
    otherwise = "train on one process." if parted_by else "leave accumulate out."
    learned = svi.loss.gradient.modules() if isinstance(svi.loss, Estimator) else []
    check_sum("fit", by, svi.loss, (svi.model, svi.guide, *learned), otherwise)
    plate = getattr(svi.loss, "plate", "data")
    whole, half = (_scales(svi, index[:size], data, plate) for size in (len(index), max(1, len(index) // 2)))
    check_inside("fit", by, whole, plate, otherwise)
    for name, scale in whole.items():
        if scale != half.get(name):
            raise ValueError(
                f"fit: expected a plate {plate!r} of the batch's size for {by}; got one that is subsampled: site "
                f"{name!r} has scale {scale} in a batch and {half.get(name)} in half of it. Otherwise: {otherwise}"
            )


def _scales(svi: SVI, rows: Tensor, data: Sequence[Tensor], plate: str) -> dict[str, float | None]:
    """Of :func:`site_scales`, for some rows of the data."""
    given = tuple(data if svi.prepare is None else svi.prepare(rows, *data))
    with svi.scope():
        with dry_run(given):
            _check_baselines(poutine.trace(svi.guide).get_trace(*given))
        return site_scales(svi.model, svi.guide, given, {}, plate)


def _check_baselines(guide: Trace) -> None:
    nodes: dict[str, Any] = dict(guide.nodes)
    for name, site in nodes.items():
        if site["type"] == "sample" and site["infer"].get("baseline", {}).get("use_decaying_avg_baseline"):
            raise ValueError(
                f"fit: expected baselines that are the same for every part of a batch, for accumulate; got a decaying "
                f"average at site {name!r}. Use elbo.ELBO(gradient=elbo.Score('running_mean')), or leave it out."
            )


def _largest(most: int, has_room: Callable[[int], bool], least: int = 1) -> int:
    """The first of ``most``, half of it, and so on, that fits; 0 where none does."""
    while most >= least and not has_room(most):
        most //= 2
    return most if most >= least else 0
