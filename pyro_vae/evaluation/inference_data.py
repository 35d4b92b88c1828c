"""Draws of a program as ArviZ's ``InferenceData``.

Shapes: N data, K draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae import checks
from pyro_vae.evaluation.likelihood_of_draws import site_of
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.runs import guide_run, one_run
from pyro_vae.models import Program
from pyro_vae.traces.densities import log_densities
from pyro_vae.traces.layout import by_draw
from pyro_vae.version import __version__

_SUBJECT = "to_inference_data"


@in_evaluation_mode
@torch.no_grad()
def to_inference_data(
    program: Program, x: Tensor, *context: Tensor, num_samples: int = 1000, batch_size: int = 100, plate: str = "data"
) -> Any:
    """Draws of guide, prior and likelihood, and their densities, for ArviZ: ``az.summary``, ``az.plot_ppc`` and so on.

    - ``posterior``: K draws of the guide for each datum; they are of q(z|x), and of the posterior as far as that is.
    - ``posterior_predictive``: of x, at these draws.
    - ``log_likelihood``: log p(x|z) of each datum at these draws, summed over its elements.
    - ``sample_stats``: ``log_weight``, log p(x, z) - log q(z|x). ``az.psislw`` smooths it, and its k-hat tells how far
      the draws are from the posterior.
    - ``prior``, ``prior_predictive``: K draws of the model for each datum, given its context.
    - ``observed_data``, ``constant_data``: x, and the contexts.

    Dims are chain, draw, the plate, and those of the event, such as ``z_dim_0``. All draws are independent, in one
    chain, so that R-hat and effective sample sizes say nothing about the guide.

    Parameters of the networks are held fixed. Given them data are independent, and leaving one out changes nothing for
    the others: ``az.loo`` then estimates log p(x) of each datum, by the harmonic mean of its likelihoods, where draws
    are of the exact posterior. :func:`~pyro_vae.evaluation.log_marginal_likelihood` does so for any guide, and better.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide.
        context: their further arguments, (N, ...) each.
        num_samples: K.
        batch_size: data to run at once; N where the guide's parameters belong to the data.
        plate: name of the plate over the data, and of its dim.

    Raises:
        ImportError: no arviz before version 1: ``pip install 'pyro-vae[arviz]'``.
        ValueError: a number below 1; x that is not observed as it is at one site, or counted in part; a site outside
            the plate; a latent that the guide does not draw.

    References:
        Kumar, Carroll, Hartikainen, Martin, "ArviZ a unified library for exploratory analysis of Bayesian models in
        Python", 2019, https://doi.org/10.21105/joss.01143

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> program = SimpleNamespace(model=model, guide=guide)
        >>> found = to_inference_data(program, torch.tensor([0.0, 2.0]), num_samples=10)
        >>> dict(found.posterior.sizes), found.sample_stats["log_weight"].values[0, 0].round(4)  # log Normal(x; 0, 2)
        ({'chain': 1, 'draw': 10, 'data': 2}, array([-1.2655, -2.2655], dtype=float32))
    """
    checks.whole(_SUBJECT, "num_samples", num_samples)
    checks.whole(_SUBJECT, "batch_size", batch_size)
    arviz, xarray = _imported()
    parts = [
        _draws(program, batch, num_samples, plate)
        for batch in zip(*(each.split(batch_size) for each in (x, *context)), strict=True)
    ]
    observed = next(iter(parts[0]["posterior_predictive"]))
    coordinates = {"chain": [0], "draw": np.arange(num_samples), plate: np.arange(len(x))}

    def group(values: dict[str, Tensor], lead: tuple[str, ...] = ("chain", "draw")) -> Any:
        arrays = {}
        for name, value in values.items():
            array = value.cpu().numpy()[None] if lead else value.cpu().numpy()
            events = [f"{name}_dim_{i}" for i in range(array.ndim - len(lead) - 1)]
            arrays[name] = ([*lead, plate, *events], array)
        kept = {name: values for name, values in coordinates.items() if name in (*lead, plate)}
        return xarray.Dataset(arrays, kept, {"inference_library": "pyro_vae", "inference_library_version": __version__})

    groups = {
        kind: group({name: torch.cat([part[kind][name] for part in parts], 1) for name in parts[0][kind]})
        for kind in parts[0]
    }
    groups["observed_data"] = group({observed: x}, ())
    if context:
        groups["constant_data"] = group({f"context{i}": each for i, each in enumerate(context)}, ())
    return arviz.InferenceData(**groups)


def _draws(program: Program, args: tuple[Tensor, ...], k: int, plate: str) -> dict[str, dict[str, Tensor]]:
    """Draws and densities (K, N, ...), by group and by name."""
    run = one_run(program, args, k)
    if run.enumerated:
        raise ValueError(
            f"{_SUBJECT}: expected a guide that draws every latent of the model; got {sorted(run.enumerated)}, which "
            "the model sums out. Draw them in the guide."
        )
    site = site_of(_SUBJECT, run.model, args[0])
    observed = site["name"]
    densities = log_densities(run, plate)
    prior = guide_run(poutine.uncondition(program.model), args, k)
    drawn = {name: by_draw(each, each["value"], prior, plate) for name, _, each in prior.latents()}
    latents = {name: by_draw(each, each["value"], run, plate) for name, _, each in run.latents()}
    return {
        "posterior": latents,
        "posterior_predictive": {observed: by_draw(site, site["fn"].sample(), run, plate)},
        "log_likelihood": {observed: densities.likelihood},
        "sample_stats": {"log_weight": densities.log_weights},
        "prior": {name: value for name, value in drawn.items() if name in latents},
        "prior_predictive": {observed: drawn[observed]},
    }


def _imported() -> tuple[Any, Any]:
    try:
        import arviz
        import xarray

        arviz.InferenceData  # noqa: B018 - which version 1 has no more
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"{_SUBJECT}: expected arviz before version 1 to be installed; got {error}. Use pip install "
            "'pyro-vae[arviz]'."
        ) from error
    return arviz, xarray
