"""The terms of the ELBO, per datum and by site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.traces.densities import log_densities
from pyro_vae.traces.structure import describe
from pyro_vae.traces.tracing import Site, Traces, per_datum


@dataclass(frozen=True)
class Terms:
    """Per-datum terms in nats, averaged over the particles, masked and unscaled; every tensor has shape (N,).

    Attributes:
        expected_log_likelihood: E_q[log p(x|z)], what a loss would call the negative reconstruction error.
        kl_by_site: KL(q || p) of each latent site, or its estimate.
        kl: their sum.
        elbo: ``expected_log_likelihood - kl``, a lower bound of log p(x) in expectation.
        num_particles: draws per datum.
        analytic_kl: whether ``kl`` is in closed form; else it is log q - log p at the draws that
            ``expected_log_likelihood`` uses, and may be negative.
    """

    expected_log_likelihood: Tensor
    kl_by_site: dict[str, Tensor]
    kl: Tensor
    elbo: Tensor
    num_particles: int
    analytic_kl: bool


def terms_of(runs: Sequence[Traces], plate: str, *, analytic: bool = False) -> Terms:
    """The terms of some runs of one program.

    Args:
        runs: together they hold the particles.
        plate: name of the data plate.
        analytic: take each KL in closed form.

    Raises:
        ValueError: a site outside the plate; no closed form where one was asked for.
    """
    if analytic:
        for run in runs:
            check_order(run)
    densities = [log_densities(run, plate) for run in runs]
    log_likelihood = torch.cat([part.likelihood for part in densities]).mean(0)
    by_site: dict[str, list[Tensor]] = {}
    for run, part in zip(runs, densities, strict=True):
        if analytic:
            for name, model_site, site in run.latents():
                kl = analytic_kl(name, model_site, site) / part.scale
                by_site.setdefault(name, []).append(per_datum(name, site, kl, run, plate))
        else:
            for name, difference in part.differences().items():
                by_site.setdefault(name, []).append(difference)
    kl_by_site = {name: torch.cat(rows).mean(0) for name, rows in by_site.items()}
    kl = sum(kl_by_site.values(), torch.zeros_like(log_likelihood))
    num_particles = sum(run.num_particles for run in runs)
    return Terms(log_likelihood, kl_by_site, kl, log_likelihood - kl, num_particles, analytic)


def mean_of(parts: Sequence[Terms]) -> Terms:
    """The terms of all particles of some parts, which have them between them."""
    if len(parts) == 1:
        return parts[0]
    total = sum(part.num_particles for part in parts)

    def mean(rows: Iterable[Tensor]) -> Tensor:
        weighed = [row * part.num_particles for row, part in zip(rows, parts, strict=True)]
        return torch.stack(weighed).sum(0) / total

    log_likelihood = mean(part.expected_log_likelihood for part in parts)
    kl_by_site = {name: mean(part.kl_by_site[name] for part in parts) for name in parts[0].kl_by_site}
    kl = sum(kl_by_site.values(), torch.zeros_like(log_likelihood))
    return Terms(log_likelihood, kl_by_site, kl, log_likelihood - kl, total, parts[0].analytic_kl)


def analytic_kl(name: str, model_site: Site | None, guide_site: Site) -> Tensor:
    """KL(q || p) of one latent in closed form, of the shape of the site's ``log_prob``, scaled and masked like it.

    Raises:
        ValueError: there is no closed form for the two distributions.
    """
    mixed = model_site is not None and len(model_site["fn"].batch_shape) > len(guide_site["fn"].batch_shape)
    try:
        if model_site is None or mixed:
            raise NotImplementedError
        kl = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError as error:
        prior = "no distribution" if model_site is None else describe(model_site["fn"])
        if mixed:
            prior = f"a sum of {prior} over an enumerated latent"
        raise ValueError(
            f"Analytic KL: expected a closed form at site {name!r}; got {describe(guide_site['fn'])} against {prior}. "
            "Use analytic_kl=False."
        ) from error
    if not isinstance(kl, Tensor):  # Pyro's, of distributions that are masked out as a whole
        kl = torch.zeros_like(guide_site["log_prob"])
    return scale_and_mask(kl, guide_site["scale"], guide_site["mask"])


def check_order(traces: Traces) -> None:
    """Raises for a closed-form KL where the guide draws its latents in another order than the model.

    There the KL of a site is conditioned on draws that the model has not made yet, and the sum is no bound: on a
    bottom-up hierarchy it was -1.969 at the exact posterior, where log p(x) is -1.635.

    Raises:
        ValueError: naming both orders.
    """
    guide = [name for name, site, _ in traces.latents() if site is not None]
    model = [name for name in traces.model.nodes if name in guide]
    if guide != model:
        raise ValueError(
            f"Analytic KL: expected the guide to draw its latents in the model's order, {model}; got {guide}. "
            "Use analytic_kl=False, or a guide that runs top down."
        )
