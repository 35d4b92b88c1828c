"""Probabilities of pixel levels under binned logistics: DiscretizedLogistic and PixelCNN++'s mixture of them."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vae import distributions
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.location_scale import LocationScale, Scale
from pyro_vae.nets import Body, Shape


class DiscretizedLogistic(LocationScale):
    r"""Elements x = k / (levels - 1) with the probability of their bin under Logistic(loc(z), scale).

    The outer bins take the tails, so the probabilities of all levels sum to 1. ``-log_prob`` is in nats of discrete
    data. Accepts the levels k / (levels - 1) in [0, 1]. The network makes ``loc``, and ``raw_scale`` where the scale is
    per element, both of the event's shape and in units of x.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        levels: number of levels, 256 for 8-bit images.
        scale: a positive float (fixed), ``"learned"`` or ``"per_element"``, in the units of x.
        min_scale: lower bound of a scale that is not fixed, in the units of x. A probability is at most 1, so the floor
            is for the gradient alone, which grows as 1 / scale.

    Raises:
        ValueError: ``levels`` below 2, or a scale as in :class:`LocationScale`.

    References:
        Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow", 2016,
        https://arxiv.org/abs/1606.04934

    Example:
        >>> import torch
        >>> from pyro_vae.nets import MLP
        >>> likelihood = DiscretizedLogistic(MLP(2, [8]), 1, levels=3, scale=0.25)
        >>> p = likelihood.distribution(loc=torch.tensor([0.5]))
        >>> [round(p.log_prob(torch.tensor([x])).exp().item(), 4) for x in (0.0, 0.5, 1.0)]  # sigmoid(1) = 0.7311
        [0.2689, 0.4621, 0.2689]
    """

    def __init__(
        self,
        body: Body,
        event_shape: Shape,
        *,
        levels: int = 256,
        scale: Scale = "learned",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(body, event_shape, scale=scale, min_scale=min_scale)
        self.levels = levels
        self.support, self.accepts, self.remedy = _levels_in_unit_interval(self, levels)

    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return distributions.DiscretizedLogistic(loc, scale, self.levels)


class MixtureOfDiscretizedLogistics(Likelihood):
    r"""Images (C, H, W) of levels, each pixel a mixture of M discretized logistics with coupled channels.

    Shapes: M components, C channels, H rows, W columns.

    The PixelCNN++ likelihood; see :class:`pyro_vae.distributions.MixtureOfDiscretizedLogistics` for the formula.
    Accepts the levels k / (levels - 1) in [0, 1]. For every pixel the network makes M ``logits``, M C ``loc``, M C
    ``log_scale`` and M C (C - 1) / 2 ``coefficients``: 100 numbers for M = 10 and RGB, from a 1x1 convolution where the
    body is one of feature maps. As in PixelCNN++ they count in pixels scaled to [-1, 1]: in units of x in [0, 1] the
    location is (1 + loc) / 2, the scale exp(log_scale) / 2 with log_scale kept within -7 and 7, and the coefficients
    are tanh of the network's.

    Args:
        body: network from z to features.
        event_shape: (C, H, W).
        num_components: M.
        levels: number of levels of each channel, 256 for 8-bit images.

    Raises:
        ValueError: ``event_shape`` is no image's, ``num_components`` below 1 or ``levels`` below 2.

    References:
        Salimans, Karpathy, Chen, Kingma, "PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture
        Likelihood and Other Modifications", 2017, https://arxiv.org/abs/1701.05517

    Example:
        >>> from pyro_vae.nets import ConvDecoder
        >>> likelihood = MixtureOfDiscretizedLogistics(ConvDecoder(2, (3, 8, 8), [16]), (3, 8, 8))
        >>> likelihood.head.layer
        Conv2d(16, 100, kernel_size=(1, 1), stride=(1, 1))
    """

    def __init__(self, body: Body, event_shape: Shape, *, num_components: int = 10, levels: int = 256) -> None:
        if isinstance(event_shape, int) or len(event_shape) != 3:
            raise ValueError(
                "MixtureOfDiscretizedLogistics likelihood: expected an event_shape (channels, height, width); got "
                f"{event_shape}. Give data without channels one, (1, height, width)."
            )
        if num_components < 1:
            raise ValueError(
                "MixtureOfDiscretizedLogistics likelihood: expected num_components at least 1; got "
                f"{num_components}. PixelCNN++ has 10."
            )
        self.num_components = num_components
        super().__init__(body, event_shape)
        self.levels = levels
        grid, self.accepts, self.remedy = _levels_in_unit_interval(self, levels)
        self.support = constraints.independent(grid, 3)

    def parameter_shapes(self) -> dict[str, Size]:
        channels, height, width = self.event_shape
        per_component = {"logits": 1, "loc": channels, "log_scale": channels}
        if channels > 1:
            per_component["coefficients"] = channels * (channels - 1) // 2
        return {name: Size([self.num_components * n, height, width]) for name, n in per_component.items()}

    def distribution(  # type: ignore[override]
        self, *, logits: Tensor, loc: Tensor, log_scale: Tensor, coefficients: Tensor | None = None
    ) -> TorchDistribution:
        loc = loc.unflatten(-3, (self.num_components, -1))
        return distributions.MixtureOfDiscretizedLogistics(
            logits,
            (1 + loc) / 2,
            log_scale.clamp(-7, 7).exp().unflatten(-3, (self.num_components, -1)) / 2,
            loc[..., :0, :, :]
            if coefficients is None
            else coefficients.tanh().unflatten(-3, (self.num_components, -1)),
            self.levels,
        )


def _levels_in_unit_interval(likelihood: Likelihood, levels: int) -> tuple[constraints.Constraint, str, str]:
    """Support, its words and the remedy."""
    if levels < 2:
        raise ValueError(
            f"{type(likelihood).__name__} likelihood: expected levels at least 2; got {levels}. Use 256 for 8 bits."
        )
    return (
        distributions.lattice(constraints.integer_interval(0, levels - 1), 1 / (levels - 1)),
        f"values k / {levels - 1}, k = 0, ..., {levels - 1}",
        "Scale the levels to [0, 1] and give their number as levels=..., or use ContinuousBernoulli for values between",
    )
