"""The logistic distribution gathered into bins, and mixtures of it with coupled channels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid
from torch.types import _size

from pyro_vae.distributions.lattices import lattice


class DiscretizedLogistic(TorchDistribution):
    r"""P(x) on x = k / (levels - 1), k = 0, ..., levels - 1: a logistic's probability of the bin around x.

    With :math:`h = 1 / (2 (\mathrm{levels} - 1))`, :math:`a = (x - h - \mathrm{loc}) / \mathrm{scale}` and
    :math:`b = (x + h - \mathrm{loc}) / \mathrm{scale}`,

    .. math:: \log(\sigma(b) - \sigma(a)) = \log\sigma(b) + \log\sigma(-a) + \log(1 - e^{a - b}),

    in which nothing cancels, however far x is from loc. The first and the last bin take the tails, so their
    probabilities are :math:`\sigma(b)` and :math:`\sigma(-a)` and all of them sum to 1.

    Args:
        loc: in units of x, any real number.
        scale: in units of x, positive.
        levels: number of values, at least 2.

    References:
        Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow", 2016,
        https://arxiv.org/abs/1606.04934; Salimans et al., "PixelCNN++", 2017, https://arxiv.org/abs/1701.05517

    Example:
        >>> x = torch.arange(256) / 255
        >>> round(DiscretizedLogistic(torch.tensor(0.02), torch.tensor(0.1)).log_prob(x).exp().sum().item(), 5)
        1.0
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None) -> None:
        # Not broadcast, so that a scale shared by all elements has its logarithms taken once.
        self.loc = loc
        self.scale = scale
        self.levels = levels
        super().__init__(torch.broadcast_shapes(loc.shape, scale.shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return lattice(constraints.integer_interval(0, self.levels - 1), 1 / (self.levels - 1))

    def expand(self, batch_shape: _size, _instance: object = None) -> DiscretizedLogistic:
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return type(self)(loc, scale, self.levels, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return _moments(self.loc, self.scale, self.levels)[0]

    @property
    def variance(self) -> Tensor:
        mean, second = _moments(self.loc, self.scale, self.levels)
        return second - mean**2

    def sample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            return _sample(self.loc.expand(shape), self.scale, self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return _log_prob(value, self.loc, self.scale, self.levels)


class MixtureOfDiscretizedLogistics(TorchDistribution):
    r"""Images (C, H, W) whose pixels are mixtures of M discretized logistics, each channel given those before it.

    Shapes: M components, C channels, H rows, W columns.

    Per pixel, with mixture weights :math:`\pi_m` shared by the channels,

    .. math:: P(x) = \sum_m \pi_m \prod_c \mathrm{DiscretizedLogistic}\Big(x_c;
        \mathrm{loc}_{mc} + \sum_{j<c} r_{mcj} (x_j - \tfrac12), \mathrm{scale}_{mc}\Big).

    For RGB that is the PixelCNN++ likelihood, in units of x in [0, 1] in place of [-1, 1].

    ``mean`` puts each channel's mean given its component in place of the channel that later ones depend on: exact for
    one channel, and otherwise up to the folding of the tails into the outer bins.

    Args:
        logits: log-weights up to a constant, (\*batch, M, H, W).
        loc: (\*batch, M, C, H, W), in units of x.
        scale: (\*batch, M, C, H, W), in units of x, positive.
        coefficients: r, (\*batch, M, C (C - 1) / 2, H, W), ordered 10, 20, 21, ...
        levels: number of values of each channel.

    References:
        Salimans, Karpathy, Chen, Kingma, "PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture
        Likelihood and Other Modifications", 2017, https://arxiv.org/abs/1701.05517

    Example:
        >>> from itertools import product
        >>> logits, loc, r = torch.zeros(2, 1, 1), torch.rand(2, 2, 1, 1), torch.ones(2, 1, 1, 1)
        >>> d = MixtureOfDiscretizedLogistics(logits, loc, torch.full_like(loc, 0.1), r, levels=4)
        >>> images = torch.tensor(list(product(range(4), repeat=2))).reshape(16, 2, 1, 1) / 3  # all of two channels
        >>> round(d.log_prob(images).exp().sum().item(), 4)
        1.0
    """

    arg_constraints = {
        "logits": constraints.independent(constraints.real, 3),
        "loc": constraints.independent(constraints.real, 4),
        "scale": constraints.independent(constraints.positive, 4),
        "coefficients": constraints.independent(constraints.real, 4),
    }

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        coefficients: Tensor,
        levels: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        self.logits = logits
        self.loc = loc
        self.scale = scale
        self.coefficients = coefficients
        self.levels = levels
        super().__init__(loc.shape[:-4], loc.shape[-3:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self) -> constraints.Constraint:
        grid = lattice(constraints.integer_interval(0, self.levels - 1), 1 / (self.levels - 1))
        return constraints.independent(grid, 3)

    def expand(self, batch_shape: _size, _instance: object = None) -> MixtureOfDiscretizedLogistics:
        batch_shape = Size(batch_shape)
        logits, loc, scale, coefficients = (
            value.expand(batch_shape + value.shape[len(self.batch_shape) :])
            for value in (self.logits, self.loc, self.scale, self.coefficients)
        )
        return type(self)(logits, loc, scale, coefficients, self.levels, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = value.unsqueeze(-4)
        locs = [
            loc + sum(r * (x[..., j, :, :] - 0.5) for j, r in enumerate(coefficients))
            for loc, coefficients in self._channels(self.loc, self.coefficients)
        ]
        loc = torch.stack(torch.broadcast_tensors(*locs), -3)
        given_component = _log_prob(x, loc, self.scale, self.levels).sum(-3)
        return (self.logits.log_softmax(-3) + given_component).logsumexp(-3).sum((-2, -1))

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            d = self.expand(Size(sample_shape) + self.batch_shape)
            weights = d.logits.movedim(-3, -1).softmax(-1)
            component = torch.distributions.Categorical(weights).sample().unsqueeze(-3).unsqueeze(-3)
            loc, scale, coefficients = (
                value.take_along_dim(component, -4).squeeze(-4) for value in (d.loc, d.scale, d.coefficients)
            )
            channels: list[Tensor] = []
            for c, (mean, given) in enumerate(self._channels(loc, coefficients)):
                mean = mean + sum(r * (x - 0.5) for r, x in zip(given, channels, strict=True))
                channels.append(_sample(mean, scale[..., c, :, :], self.levels))
            return torch.stack(channels, -3)

    @property
    def mean(self) -> Tensor:
        weights = self.logits.softmax(-3)
        channels: list[Tensor] = []
        for c, (loc, given) in enumerate(self._channels(self.loc, self.coefficients)):
            loc = loc + sum(r * (x - 0.5) for r, x in zip(given, channels, strict=True))
            channels.append(_moments(loc, self.scale[..., c, :, :], self.levels)[0])
        return torch.stack([(weights * channel).sum(-3) for channel in channels], -3)

    @staticmethod
    def _channels(loc: Tensor, coefficients: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """The location of each channel, and its coefficients on the channels before it."""
        rows = coefficients.split(list(range(loc.shape[-3])), -3)
        return ((loc[..., c, :, :], row.unbind(-3)) for c, row in enumerate(rows))


def _log_prob(x: Tensor, loc: Tensor, scale: Tensor, levels: int) -> Tensor:
    spacing = 1 / (levels - 1)
    distance = x - loc
    below = logsigmoid((spacing / 2 - distance) / scale)  # log sigma(-a)
    above = logsigmoid((spacing / 2 + distance) / scale)  # log sigma(b)
    inside = below + above + torch.log(-torch.expm1(-spacing / scale))
    return torch.where(x < spacing / 2, above, torch.where(x > 1 - spacing / 2, below, inside))


def _sample(loc: Tensor, scale: Tensor, levels: int) -> Tensor:
    # Away from 0 and 1, where the logit is infinite.
    u = torch.rand_like(loc).clamp(torch.finfo(loc.dtype).tiny, 1 - torch.finfo(loc.dtype).eps)
    return ((loc + scale * torch.logit(u)) * (levels - 1)).round().clamp(0, levels - 1) / (levels - 1)


def _moments(loc: Tensor, scale: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """E[x] and E[x^2], from P(k > j): a sum over the edges between bins, one at a time to spare memory."""
    mean, second = torch.zeros_like(loc), torch.zeros_like(loc)
    for j in range(levels - 1):
        exceeds = torch.sigmoid((loc - (j + 0.5) / (levels - 1)) / scale)
        mean = mean + exceeds
        second = second + (2 * j + 1) * exceeds
    return mean / (levels - 1), second / (levels - 1) ** 2
