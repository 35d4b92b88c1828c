"""Densities of data in the unit interval: ContinuousBernoulli, Beta, LogitNormal."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vae import distributions
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.location_scale import LocationScale, Scale
from pyro_vae.nets import Body, Shape


class _OpenUnitInterval(constraints.Constraint):
    """0 < x < 1: torch's unit interval is closed, and these densities are 0 or infinite at its ends."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


class ContinuousBernoulli(Likelihood):
    r"""Elements in [0, 1] with density :math:`C(p) p^x (1 - p)^{1 - x}`, p = sigmoid(logits).

    What "cross-entropy on gray pixels" leaves out is the normalizer C(p): without it the loss is no density's.
    ``mean`` is not p. Accepts x in [0, 1]. The network makes ``logits``, of the event's shape.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        data_mean: per-element mean of the data, of a shape that broadcasts to ``event_shape``; the output bias starts
            at its logit, clipped to [.001, .999]. Without it, training from black images' steep gradients may start
            with a collapse.
        max_logit: logits are clamped to this absolute value. The density at 0 and at 1 rises without bound, as the
            logarithm of the logit: on images with black pixels a network without a clamp spends its training on blacker
            blacks, and its latents collapse (on MNIST to logits of -685 and a KL that jumped between 14 and 235 nats).

    Raises:
        ValueError: ``max_logit`` is not positive.

    References:
        Loaiza-Ganem, Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders",
        2019, https://arxiv.org/abs/1907.06845

    Example:
        >>> from pyro_vae.nets import MLP
        >>> likelihood = ContinuousBernoulli(MLP(2, [8]), 1)
        >>> p = likelihood.distribution(logits=torch.tensor([1.0986]))  # log 3, of which the sigmoid is 0.75
        >>> p.mean, p.log_prob(torch.ones(1)).exp()  # 1.5 - 1 / log 3, and C = 2 log 3 times 0.75
        (tensor([0.5898]), tensor(1.6479))
    """

    support = constraints.unit_interval
    accepts = "values in [0, 1]"
    remedy = "Scale the data to [0, 1], or use Normal for unbounded values"

    def __init__(
        self, body: Body, event_shape: Shape, *, data_mean: Tensor | None = None, max_logit: float = 10.0
    ) -> None:
        if not max_logit > 0:
            raise ValueError(
                f"ContinuousBernoulli likelihood: expected max_logit above 0; got {max_logit}. Give a positive number."
            )
        self.max_logit = max_logit
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
        logits = logits.clamp(-self.max_logit, self.max_logit)
        return distributions.ContinuousBernoulli(logits).to_event(len(self.event_shape))


_OPEN_REMEDY = (
    "Discrete data such as pixel levels reach 0 and 1: wrap the likelihood in Dequantized, or use ContinuousBernoulli"
)


class Beta(LocationScale):
    r"""Elements in (0, 1), :math:`x_d \sim \mathrm{Beta}(1 + m_d / s^2, 1 + (1 - m_d) / s^2)`, m = sigmoid(loc(z)).

    m is the mode. Both concentrations are above 1, so the density is bounded and 0 at the ends; a smaller scale s is a
    sharper peak, of standard deviation close to :math:`s \sqrt{m (1 - m)}`. Accepts x in the open interval.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        scale: s: a positive float (fixed), ``"learned"`` or ``"per_element"``; without a unit.
        min_scale: lower bound of a scale that is not fixed; see :class:`LocationScale`. At .01 the concentrations reach
            10^4, beyond which their log-gamma functions lose the digits that matter in single precision.

    Example:
        >>> from pyro_vae.nets import MLP
        >>> likelihood = Beta(MLP(2, [8]), 1, scale=1.0)
        >>> p = likelihood.distribution(loc=torch.zeros(1))  # Beta(3/2, 3/2), a half circle
        >>> p.log_prob(torch.tensor([0.5])).exp(), p.log_prob(torch.tensor([0.1])).exp()  # 8 sqrt(x (1 - x)) / pi
        (tensor(1.2732), tensor(0.7639))
    """

    support = _OpenUnitInterval()
    accepts = "values in (0, 1), without 0 and 1"
    remedy = _OPEN_REMEDY

    def __init__(self, body: Body, event_shape: Shape, *, scale: Scale = "learned", min_scale: float = 1e-2) -> None:
        super().__init__(body, event_shape, scale=scale, min_scale=min_scale)

    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return distributions.Beta(1 + loc.sigmoid() / scale**2, 1 + (-loc).sigmoid() / scale**2)


class LogitNormal(LocationScale):
    r"""Elements in (0, 1), :math:`\mathrm{logit}(x_d) \sim \mathrm{Normal}(\mathrm{loc}_d(z), \mathrm{scale}^2)`.

    loc is the logit of the median. ``mean`` is taken numerically, to 1e-6. Accepts x in the open interval.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        scale: a positive float (fixed), ``"learned"`` or ``"per_element"``, in logits.
        min_scale: lower bound of a scale that is not fixed, in logits; see :class:`LocationScale`.

    References:
        Aitchison, Shen, "Logistic-normal distributions: some properties and uses", 1980,
        https://doi.org/10.1093/biomet/67.2.261

    Example:
        >>> from pyro_vae.nets import MLP
        >>> likelihood = LogitNormal(MLP(2, [8]), 1, scale=1.0)
        >>> p = likelihood.distribution(loc=torch.zeros(1))
        >>> p.log_prob(torch.tensor([0.5])).exp()  # 1 / sqrt(2 pi), divided by x (1 - x)
        tensor(1.5958)
    """

    support = _OpenUnitInterval()
    accepts = "values in (0, 1), without 0 and 1"
    remedy = _OPEN_REMEDY

    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return distributions.LogitNormal(loc, scale)
