"""Bernoulli: the likelihood whose negative logarithm is called cross-entropy."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.nets import Body, Shape


class Bernoulli(Likelihood):
    r"""Independent binary elements, :math:`p(x|z) = \prod_d p_d^{x_d} (1 - p_d)^{1 - x_d}`, p = sigmoid(logits).

    ``-log_prob`` *is* the binary cross-entropy summed over the event, in nats. Accepts x in {0, 1}; gray values have no
    probability under it.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        data_mean: per-element mean of the data, of a shape that broadcasts to ``event_shape``; the output bias starts
            at its logit, clipped to [.001, .999] (Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders",
            2016, https://arxiv.org/abs/1509.00519, in the authors' code).

    Example:
        >>> from torch.nn.functional import binary_cross_entropy
        >>> from pyro_vae.nets import MLP
        >>> z, x = torch.zeros(1, 2), torch.ones(1, 3, 4, 4)
        >>> given_z = Bernoulli(MLP(2, [8]), (3, 4, 4))(z)
        >>> torch.allclose(-given_z.log_prob(x), binary_cross_entropy(given_z.mean, x, reduction="sum"))
        True
    """

    support = constraints.boolean
    accepts = "binary values, 0 or 1"
    remedy = (
        'Binarize the data (data.load(..., binarize="dynamic")), or use ContinuousBernoulli for gray values in [0, 1]'
    )

    def __init__(self, body: Body, event_shape: Shape, *, data_mean: Tensor | None = None) -> None:
        super().__init__(body, event_shape)
        if data_mean is not None:
            if not data_mean.is_floating_point():
                raise TypeError(
                    f"{type(self).__name__} likelihood: expected data_mean as floats; got {data_mean.dtype}. Convert."
                )
            self.head.set_bias("logits", torch.logit(data_mean, eps=1e-3))

    def parameter_shapes(self) -> dict[str, Size]:
        return {"logits": self.event_shape}

    def distribution(self, *, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        return dist.Bernoulli(logits=logits).to_event(len(self.event_shape))
