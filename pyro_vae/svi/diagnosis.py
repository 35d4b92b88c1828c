"""Where a loss, or a gradient, that is not finite comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.distributed import whole
from pyro_vae.svi.optimizers import listed
from pyro_vae.traces.tracing import PyroProgram

_REMEDY = (
    "Lower the learning rate, clip gradients (max_grad_norm), bound the scale that runs away, or leave such steps out: "
    "fit(nonfinite='skip')."
)


def check_gradients(named: Mapping[str, Tensor], step: int) -> None:
    """Raises before a step would move parameters by a gradient that is not finite.

    Args:
        named: the parameters, with their gradients, by name.
        step: the number of steps taken.

    Raises:
        FloatingPointError: naming them.
    """
    # A sum is NaN or infinite where a term is, and takes one pass.
    if math.isfinite(sum(float(whole(p.grad.sum())) for p in named.values() if p.grad is not None)):
        return
    lost = [name for name, p in named.items() if p.grad is not None and not bool(p.grad.isfinite().all())]
    if lost:
        raise FloatingPointError(
            f"SVI: expected finite gradients at step {step}; got NaN or infinity in those of {listed(lost)}, though "
            f"the loss is finite. The parameters are as they were. {_REMEDY}"
        )


@torch.no_grad()
def diagnosis(
    model: PyroProgram,
    guide: PyroProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    named: dict[str, Tensor],
    rows: Tensor | None = None,
) -> str:
    """Names the sites, data and parameters that are not finite when the programs are run again, and what may help.

    Args:
        model: a Pyro program.
        guide: likewise.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        named: the parameters by name.
        rows: numbers of the data of the batch, (N,); None to count within it.
    """
    parameters = [name for name, p in named.items() if not bool(torch.isfinite(p).all())]
    sites = []
    with pyro.validation_enabled(False):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        for role, trace in (("guide", guide_trace), ("model", model_trace)):
            trace.compute_log_prob()
            sites += [
                f"{name!r} of the {role}{_at(site['log_prob'], rows)}"
                for name, site in trace.nodes.items()
                if site["type"] == "sample" and not bool(torch.isfinite(site["log_prob_sum"]))
            ]
    inputs = [
        f"argument {place}{_at(value, rows, data_first=True)}"
        for place, value in [*enumerate(args), *kwargs.items()]
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all())
    ]
    return (
        f"Sites with a log-density that is not finite: {', '.join(sites) or 'none when run again'}. "
        f"{f'Not finite among what was given: {listed(inputs)}. ' if inputs else ''}"
        f"Parameters that are not finite: {listed(parameters) or 'none'}. {_REMEDY}"
    )


def _at(values: Tensor, rows: Tensor | None, *, data_first: bool = False) -> str:
    """The data in which a tensor is not finite: along its last dim, or its first."""
    if values.dim() == 0:
        return ""
    lost = ~values.isfinite()
    lost = lost.flatten(1).any(1) if data_first and lost.dim() > 1 else lost.reshape(-1, lost.shape[-1]).any(0)
    found = lost.nonzero()[:, 0]
    if rows is not None and rows.shape == lost.shape:
        found = rows[found.to(rows.device)]
    return f" at data {listed([str(int(i)) for i in found])}"
