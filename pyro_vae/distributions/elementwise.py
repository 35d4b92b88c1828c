"""Log-densities of the single elements of an event, for densities that are products over them."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent


def elementwise_log_prob(distribution: TorchDistribution, value: Tensor) -> Tensor:
    """The log-density of every element, of the shape of batch and event.

    Args:
        distribution: an ``Independent`` over a distribution of single elements, or one with a method of this name.
        value: (\\*batch, \\*event_shape), or what broadcasts with it.

    Raises:
        TypeError: the density is no product over the elements, or does not say so.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> d = dist.Bernoulli(torch.tensor([0.5, 0.25])).to_event(1)
        >>> x = torch.ones(2)
        >>> elementwise_log_prob(d, x).exp(), d.log_prob(x).exp()
        (tensor([0.5000, 0.2500]), tensor(0.1250))
    """
    if isinstance(distribution, Independent) and not distribution.base_dist.event_shape:
        return distribution.base_dist.log_prob(value)
    if hasattr(distribution, "elementwise_log_prob"):
        return distribution.elementwise_log_prob(value)
    raise TypeError(
        f"elementwise_log_prob: expected a density that is a product over elements; got {type(distribution).__name__}. "
        "Use an Independent distribution, made with to_event."
    )
