"""Where a loss that is not finite comes from."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.traces.tracing import PyroProgram


@torch.no_grad()
def diagnosis(
    model: PyroProgram, guide: PyroProgram, args: tuple[Any, ...], kwargs: dict[str, Any], named: dict[str, Tensor]
) -> str:
    """Names the sites and the parameters that are not finite when the programs are run again, and what may help.

    Args:
        model: a Pyro program.
        guide: likewise.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        named: the parameters by name.
    """
    parameters = [name for name, p in named.items() if not bool(torch.isfinite(p).all())]
    sites = []
    with pyro.validation_enabled(False):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    for role, trace in (("guide", guide_trace), ("model", model_trace)):
        with pyro.validation_enabled(False):
            trace.compute_log_prob()
        sites += [
            f"{name!r} of the {role}"
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not bool(torch.isfinite(site["log_prob_sum"]))
        ]
    return (
        f"Sites with a log-density that is not finite: {', '.join(sites) or 'none when run again'}. "
        f"Parameters that are not finite: {', '.join(parameters) or 'none'}. Lower the learning rate, clip gradients "
        "(max_grad_norm), or bound the scale that runs away."
    )
