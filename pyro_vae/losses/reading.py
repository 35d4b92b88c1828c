"""explain: a loss, its averages and weights, and data, made into an explanation."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vae import checks, distributions
from pyro_vae.losses.errors import Absolute, Binary, Categories, Error, Huber, LearnedNormal, Squared
from pyro_vae.losses.explanation import Explanation, Found
from pyro_vae.nets import Shape, as_size

Reconstruction = Literal["mse", "l1", "huber", "smooth_l1", "bce", "cross_entropy", "gaussian_nll"]
Reduction = Literal["sum", "mean", "batchmean"]

_MOST_PRINCIPAL = 4096  # elements of a datum of which principal components are looked for
_MAX_LOGIT = 10.0  # of likelihoods.ContinuousBernoulli


@partial(checks.arguments, "explain")
def explain(
    reconstruction: Reconstruction,
    *,
    reduction: Reduction,
    kl_reduction: Reduction,
    event_shape: Shape,
    kl_weight: float = 1.0,
    reconstruction_weight: float = 1.0,
    latent_dim: int | None = None,
    batch_size: int | None = None,
    delta: float | None = None,
    num_categories: int | None = None,
    data: Tensor | None = None,
) -> Explanation:
    r"""Reads the loss of a variational autoencoder as a likelihood and a beta.

    The loss is ``reconstruction_weight * reconstruction + kl_weight * KL``, each term reduced in its own way: ``"sum"``
    over all, ``"mean"`` over all (elements, or latents, and the batch), ``"batchmean"``: summed over the elements or
    latents of a datum, and averaged over the batch.

    ================= ==================================================== ===========================
    reconstruction    error e of an element, as in torch.nn.functional     likelihood
    ================= ==================================================== ===========================
    ``mse``           squared error, not halved                            Normal
    ``l1``            absolute error                                       Laplace
    ``huber``         ``huber_loss(..., delta=delta)``                     Huber
    ``smooth_l1``     ``smooth_l1_loss(..., beta=delta)``                  Huber
    ``bce``           binary cross-entropy, of probabilities or of logits  Bernoulli
    ``cross_entropy`` cross-entropy of one of several categories           Categorical
    ``gaussian_nll``  ``gaussian_nll_loss``: the scale is learned as well  Normal, scale per element
    ================= ==================================================== ===========================

    What a framework averages on its own is a weight: Keras' ``binary_crossentropy`` averages over the last axis, which
    for 3 channels is ``reconstruction_weight=1/3``.

    Args:
        reconstruction: the error, a word of the table.
        reduction: of the reconstruction.
        kl_reduction: of the KL.
        event_shape: shape of one datum; of categories, not of their one-hot vectors.
        kl_weight: in front of the KL, at least 0.
        reconstruction_weight: in front of the reconstruction, above 0.
        latent_dim: number of latents of a datum; needed where the KL is averaged over them.
        batch_size: needed where one term is summed over the batch and the other averaged.
        delta: where the tails of ``huber`` and ``smooth_l1`` begin, in the units of x; torch's 1 when left out.
        num_categories: of ``cross_entropy``, which needs it.
        data: (N, \*event_shape), to say what the scale is in gray levels, what normalizer is missing on gray pixels,
            and what the KL can be at most.

    Returns:
        the loss as it stands; :meth:`Explanation.at <pyro_vae.losses.Explanation.at>` reads it at another beta.

    Raises:
        TypeError: an argument of another type.
        ValueError: a word that is none of these; a number out of range, or one that the loss needs and that is missing,
            or does not have; data of another shape, or that the loss cannot be of.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2014, https://arxiv.org/abs/1312.6114 (the reconstruction
        term as a log-likelihood); Rybkin, Daniilidis, Levine, "Simple and Effective VAE Training with Calibrated
        Decoders", 2021, https://arxiv.org/abs/2006.13202 (the variance as a beta); Loaiza-Ganem, Cunningham, "The
        continuous Bernoulli: fixing a pervasive error in variational autoencoders", 2019,
        https://arxiv.org/abs/1907.06845

    Example:
        >>> loss = explain("mse", reduction="mean", kl_reduction="batchmean", event_shape=(1, 28, 28))
        >>> print(loss)
        Squared error is -log p(x|z) of a Normal of scale 19.8 (variance 392), for each of 784 elements,
          independent given z, but for a constant. That scale is 5,049 gray levels, 1/255 of [0, 1] each.
        The loss, averaged over the batch, is -ELBO(beta=1) - 3,061, in nats.
        >>> from pyro_vae import nets
        >>> loss.likelihood(nets.MLP(20, [400])).accepts
        'finite real values'
    """
    shape = as_size(event_shape)
    a = checks.number("explain", "reconstruction_weight", reconstruction_weight, above=0)
    k = checks.number("explain", "kl_weight", kl_weight, at_least=0)
    if reduction == "mean":
        a /= shape.numel()
    if kl_reduction == "mean":
        k /= _needed("latent_dim", latent_dim, "kl_reduction='mean'")
    averaged = reduction != "sum"
    size = None
    if averaged != (kl_reduction != "sum"):
        size = _needed("batch_size", batch_size, "one term summed over the batch and the other averaged")
        k = k * size if averaged else k / size  # reduced over the batch as the reconstruction is
    error = _error(reconstruction, delta, num_categories)
    temperature = 1.0 if error.scale(1.0) is None else 1 / a
    found = None if data is None else _look(data, error, shape)
    return Explanation(error, shape, a, k, averaged, temperature, size, found)


def _error(reconstruction: str, delta: float | None, num_categories: int | None) -> Error:
    """The error of a name, with the one option that it may have."""
    for name, value, kinds in (
        ("delta", delta, ("huber", "smooth_l1")),
        ("num_categories", num_categories, ("cross_entropy",)),
    ):
        if value is not None and reconstruction not in kinds:
            raise ValueError(
                f"explain: expected no {name} with reconstruction={reconstruction!r}; got {value}. Leave it out, or "
                f"use {' or '.join(kinds)}."
            )
    if reconstruction in ("huber", "smooth_l1"):
        tail = 1.0 if delta is None else checks.number("explain", "delta", delta, above=0)
        return Huber(tail, over_delta=reconstruction == "smooth_l1")
    if reconstruction == "cross_entropy":
        return Categories(_needed("num_categories", num_categories, "reconstruction='cross_entropy'", 2))
    return {"mse": Squared, "l1": Absolute, "bce": Binary, "gaussian_nll": LearnedNormal}[reconstruction]()


def _needed(name: str, value: int | None, where: str, minimum: int = 1) -> int:
    if value is None:
        raise ValueError(f"explain: expected {name} with {where}; got None. Give {name}=...")
    return checks.whole("explain", name, value, minimum)


def _look(data: Tensor, error: Error, shape: Size) -> Found:
    """What the sentences say of data."""
    if data.dim() == 0 or data.shape[1:] != shape or not len(data):
        raise ValueError(
            f"explain: expected data of shape (N, {', '.join(map(str, shape))}), N at least 1; got "
            f"{tuple(data.shape)}. Give the event_shape of the data."
        )
    if not data.is_floating_point():
        raise TypeError(f"explain: expected floating point data; got {data.dtype}. Give what the loss is computed of.")
    if not bool((error.support.check(data) & data.isfinite()).all()):
        finite = data[data.isfinite()]
        span = f"[{finite.min():.4g}, {finite.max():.4g}]" if finite.numel() else "no finite value"
        lost = data.numel() - finite.numel()
        raise ValueError(
            f"explain: expected {error.accepts}; got values in {span}"
            f"{f' and {lost} NaN or infinite' if lost else ''}. Give what the loss is computed of."
        )
    gray = isinstance(error, Binary) and not bool(constraints.boolean.check(data).all())
    missing = _missing_normalizer(data) if gray else None
    width = float(data.max().double() - data.min().double())
    return Found(width, error.excess(data), missing, _largest_variance(data) if isinstance(error, Squared) else None)


def _largest_variance(data: Tensor) -> float | None:
    """Of the first principal component; a linear decoder uses none whose variance is below the noise's.

    References:
        Tipping, Bishop, "Probabilistic principal component analysis", 1999,
        https://doi.org/10.1111/1467-9868.00196
    """
    x = data.flatten(1).double()
    if not 1 < x.shape[1] <= _MOST_PRINCIPAL or len(x) < 2:
        return None
    return float(torch.linalg.eigvalsh(torch.cov(x.T, correction=0))[-1])


def _missing_normalizer(data: Tensor) -> float:
    """The mean over data in [0, 1] of the continuous Bernoulli's log-normalizer at p = x."""
    total = 0.0
    for part in data.split(1024):  # in double precision, a part at a time
        x = part.double()
        logits = (x.log() - (-x).log1p()).clamp(-_MAX_LOGIT, _MAX_LOGIT)  # torch.logit takes four times as long
        total += float(distributions.ContinuousBernoulli(logits).log_normalizer.sum())
    return total / len(data)
