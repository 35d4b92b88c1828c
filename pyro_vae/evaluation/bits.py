"""Bits per dimension, the unit in which likelihoods of images are compared."""

from __future__ import annotations

import math
from functools import partial
from typing import TypeVar

from torch import Tensor

from pyro_vae import checks
from pyro_vae.nets import Shape, as_size

Nats = TypeVar("Nats", float, Tensor)


@partial(checks.arguments, "bits_per_dim")
def bits_per_dim(nats: Nats, event_shape: Shape, *, spacing: float = 1.0) -> Nats:
    r"""Bits per element of discrete data, from a negative log-likelihood in nats.

    .. math:: \frac{\mathrm{nats}}{D \log 2} - \log_2 \mathrm{spacing}.

    A probability of discrete data (DiscretizedLogistic, Categorical, Dequantized) needs no correction. A density does:
    a value of the data stands for a cell as wide as ``spacing``, of probability density times width. 8-bit data on
    k / 256 thus cost 8 bits more than their density says; on k / 255, log2 255 = 7.9944.

    Args:
        nats: -log p(x) or an upper bound of it, such as -ELBO, per datum: a number or a tensor.
        event_shape: shape of one datum, of D elements.
        spacing: distance between neighboring values of the data, in the units the density is on; 1 for a probability.

    Returns:
        Of the type and shape of ``nats``.

    Raises:
        ValueError: ``spacing`` is not above 0.

    References:
        Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016,
        https://arxiv.org/abs/1511.01844

    Example:
        >>> round(bits_per_dim(80.0, (1, 28, 28)), 6)
        0.147214
    """
    if not isinstance(nats, Tensor):
        checks.number("bits_per_dim", "nats", nats)
    if not spacing > 0:
        raise ValueError(
            f"bits_per_dim: expected spacing above 0; got {spacing}. Use 1/256 for a density of 8-bit data on [0, 1)."
        )
    return nats / (as_size(event_shape).numel() * math.log(2)) - math.log2(spacing)
