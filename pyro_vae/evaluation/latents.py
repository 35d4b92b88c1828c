"""The latents of data: where the guide expects them to be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.runs import guide_run
from pyro_vae.evaluation.shares import by_share, joined
from pyro_vae.evaluation.units import means_of
from pyro_vae.models import Program


@in_evaluation_mode
@torch.no_grad()
def latent_means(
    program: Program,
    x: Tensor,
    *context: Tensor,
    num_particles: int = 1,
    batch_size: int = 1000,
    plate: str = "data",
) -> dict[str, Tensor]:
    """E_q[z|x] of every datum and every latent of the guide, by the name of its site.

    The mean is the distribution's. Where that depends on draws of other latents, or has no mean in closed form, it is
    averaged over draws. Proportions are logarithms here, as the guide draws them.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide.
        context: their further arguments, (N, ...) each.
        num_particles: draws per datum; 1 is enough for a single latent with a mean in closed form.
        batch_size: data to run at once; N where the guide's parameters belong to the data.
        plate: name of the plate over the data.

    Returns:
        (N, ...) by the name of the site.

    Raises:
        ValueError: a number below 1; a single draw of a latent without a mean in closed form.

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
        >>> latent_means(SimpleNamespace(model=model, guide=guide), torch.tensor([0.0, 2.0]))
        {'z': tensor([0., 1.])}
    """
    checks.whole("latent_means", "num_particles", num_particles)
    checks.whole("latent_means", "batch_size", batch_size)

    def means(*own: Tensor) -> dict[str, Tensor]:
        parts = []
        for args in zip(*(each.split(batch_size) for each in own), strict=True):
            run = guide_run(program.guide, args, num_particles)
            parts.append({n: means_of("latent_means", site, run, plate)[0].mean(0) for n, _, site in run.latents()})
        return joined(parts)

    whole = batch_size >= len(x)
    return joined(by_share("latent_means", program, (x, *context), means, whole=whole))


def write_latents(
    adata: Any, program: Program, *context: Tensor, key: str = "X_vae", num_particles: int = 1, plate: str = "data"
) -> None:
    """Puts E_q[z|x] of every row of AnnData into its ``obsm``, where scanpy's ``use_rep=key`` finds it.

    A program of several latents has one entry for each, ``X_vae_z1`` and so on. What has been there is replaced.

    Args:
        adata: of X that the program takes; its layers and raw counts are not looked at.
        program: see :func:`latent_means`.
        context: what model and guide take beside X, (N, ...) each, such as library sizes, ``x.sum(-1)``.
        key: of ``obsm``.
        num_particles: see :func:`latent_means`.
        plate: name of the plate over the data.

    Raises:
        TypeError: something else than AnnData.
        ValueError: see :func:`latent_means`.

    Example:
        >>> import anndata, numpy
        >>> from pyro_vae import VAE, conditionals, data, fit, likelihoods, nets, priors
        >>> adata = anndata.AnnData(numpy.random.default_rng(0).poisson(3.0, (20, 5)).astype("float32"))
        >>> vae = VAE(
        ...     priors.StandardNormal(2),
        ...     likelihoods.NegativeBinomial(nets.MLP(2, [8]), 5, library_size=True),
        ...     conditionals.DiagonalNormal(nets.MLP(5, [8], transform="log1p"), 2),
        ... )
        >>> library_size = torch.as_tensor(adata.X).sum(-1)
        >>> history = fit(vae, data.as_dataset(adata).conditioned_on(library_size), epochs=2, progress=False)
        >>> write_latents(adata, vae, library_size)
        >>> adata.obsm["X_vae"].shape
        (20, 2)
    """
    checks.instance("write_latents", "key", key, str, "Give a word.")
    if not all(hasattr(adata, part) for part in ("X", "obsm", "n_obs")):
        raise TypeError(
            f"write_latents: expected AnnData; got {type(adata).__name__}. Use latent_means(program, x) for other data."
        )
    means = latent_means(program, adata, *context, num_particles=num_particles, plate=plate)
    for name, mean in means.items():
        adata.obsm[key if len(means) == 1 else f"{key}_{name}"] = mean.flatten(1).cpu().numpy()
