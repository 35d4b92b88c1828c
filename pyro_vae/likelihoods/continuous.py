"""Densities of data on the real line and above 0: Normal, LogNormal, SigmaNormal, Laplace, Huber, StudentT."""

from __future__ import annotations

from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_vae import checks, distributions
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.location_scale import LocationScale, Scale
from pyro_vae.nets import Body, Shape, Standardize, broadcasts

_REAL_REMEDY = "Remove infinite values; where NaN means missing, wrap the likelihood in MissingAtRandom"


class Normal(LocationScale):
    r"""Independent real elements, :math:`x_d \sim \mathrm{Normal}(\mathrm{loc}_d(z), \mathrm{scale}_d^2)`.

    With a fixed scale of 1, ``-log_prob`` is half the summed squared error plus D log(2 pi) / 2; a squared error that
    is not halved is a scale of sqrt(1/2), one averaged over the elements a scale of sqrt(D/2). Accepts any finite x.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        scale: a positive float (fixed), ``"learned"`` (one parameter shared by all elements) or ``"per_element"``
            (made by the network from z), in the units of x.
        min_scale: lower bound of a scale that is not fixed, in the units of x; see :class:`LocationScale`.

    Example:
        >>> from pyro_vae.nets import MLP
        >>> p = Normal(MLP(2, [8]), 3, scale=1.0)(torch.zeros(2))
        >>> half_squared_error = ((p.mean - torch.ones(3)) ** 2).sum() / 2
        >>> bool(torch.isclose(-p.log_prob(torch.ones(3)), half_squared_error + 2.7568156))
        True
    """

    support = constraints.real
    accepts = "finite real values"
    remedy = _REAL_REMEDY

    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Normal(loc, scale)


class LogNormal(LocationScale):
    r"""Independent elements above 0, :math:`\log x_d \sim \mathrm{Normal}(\mathrm{loc}_d(z), \mathrm{scale}_d^2)`.

    Sizes, prices and durations, which vary by factors. ``mean`` is :math:`\exp(\mathrm{loc} + \mathrm{scale}^2 / 2)`.
    Accepts any finite x above 0.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        scale: a positive float (fixed), ``"learned"`` or ``"per_element"``, of the logarithm.
        min_scale: lower bound of a scale that is not fixed; see :class:`LocationScale`.
        standardize: of the logarithms, ``nets.Standardize.of(x.log())``: the network makes standardized logarithms, and
            scale and min_scale are in units of their deviation.

    Raises:
        ValueError: a ``standardize`` of another shape.

    References:
        Aitchison, Brown, "The Lognormal Distribution", 1957.

    Example:
        >>> from pyro_vae.nets import MLP
        >>> p = LogNormal(MLP(2, [8]), 1, scale=1.0)(torch.zeros(2))
        >>> x = torch.tensor([3.0])
        >>> by_hand = dist.Normal(p.base_dist.loc, 1.0).log_prob(x.log()) - x.log()
        >>> bool(torch.isclose(p.log_prob(x), by_hand.sum()))
        True
    """

    support = constraints.positive
    accepts = "finite values above 0"
    remedy = "Shift the data above 0, or use Normal; where NaN means missing, wrap the likelihood in MissingAtRandom"

    def __init__(
        self,
        body: Body,
        event_shape: Shape,
        *,
        scale: Scale = "learned",
        min_scale: float = 1e-3,
        standardize: Standardize | None = None,
    ) -> None:
        super().__init__(body, event_shape, scale=scale, min_scale=min_scale)
        if standardize is not None and not broadcasts(standardize.mean.shape, self.event_shape):
            raise ValueError(
                f"LogNormal likelihood: expected a standardize of shape {tuple(self.event_shape)}; got "
                f"{tuple(standardize.mean.shape)}. Use Standardize.of(x.log()) of the data that the likelihood is of."
            )
        self.standardize = standardize

    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        if self.standardize is not None:
            deviation = self.standardize.deviation
            loc, scale = self.standardize.mean + deviation * loc, deviation * scale
        return dist.LogNormal(loc, scale)


class SigmaNormal(Likelihood):
    r"""The sigma-VAE's Normal: one scale for all elements, in closed form at every epoch and constant in between.

    :math:`x_d \sim \mathrm{Normal}(\mathrm{loc}_d(z), \sigma^2)`, where :math:`\sigma^2` maximizes the likelihood of
    the data at the current network, which the mean squared error does:

    .. math:: \sigma^2 = \frac{1}{N D} \sum_n E_{q(z|x_n)} \lVert x_n - \mathrm{loc}(z) \rVert^2.

    There the negative log-likelihood per element is :math:`\log(2 \pi e\, \sigma^2) / 2`. The scale is a buffer, not a
    parameter; ``fit`` sets it at every epoch through :meth:`calibrate`, and a loop of your own has to.
    Accepts any finite x; missing ones are left out of the mean. The network makes ``loc``, of the event's shape.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        min_scale: lower bound of the scale, in the units of x.

    References:
        Rybkin, Daniilidis, Levine, "Simple and Effective VAE Training with Calibrated Decoders", 2021,
        https://arxiv.org/abs/2006.13202

    Example:
        >>> from pyro_vae.nets import MLP
        >>> likelihood = SigmaNormal(MLP(2, [8]), 3)
        >>> likelihood.calibrate(torch.zeros(10, 3), torch.full((10, 3), 0.5))
        >>> likelihood.scale
        tensor(0.5000)
    """

    support = constraints.real
    accepts = "finite real values"
    remedy = _REAL_REMEDY
    calibrated = True
    scale: Tensor

    def __init__(self, body: Body, event_shape: Shape, *, min_scale: float = 1e-3) -> None:
        if not min_scale > 0:
            raise ValueError(
                f"SigmaNormal likelihood: expected min_scale above 0; got {min_scale}. Without a floor, data that are "
                "reconstructed exactly have infinite density."
            )
        super().__init__(body, event_shape)
        self.min_scale = min_scale
        self.register_buffer("scale", torch.ones(()))

    def parameter_shapes(self) -> dict[str, Size]:
        return {"loc": self.event_shape}

    def distribution(self, *, loc: Tensor) -> TorchDistribution:  # type: ignore[override]
        return dist.Normal(loc, self.scale).to_event(len(self.event_shape))

    @torch.no_grad()
    def calibrate(self, x: Tensor, mean: Tensor) -> None:
        # In place, so that a recorded or compiled step sees the new value.
        self.scale.copy_(((x - mean) ** 2).nanmean().sqrt().clamp_min(self.min_scale))


class Laplace(LocationScale):
    r"""Independent real elements, :math:`x_d \sim \mathrm{Laplace}(\mathrm{loc}_d(z), \mathrm{scale})`.

    :math:`\log p(x|z) = -\sum_d |x_d - \mathrm{loc}_d| / \mathrm{scale} - D \log(2\,\mathrm{scale})`. With a fixed
    scale of 1, ``-log_prob`` is the summed absolute error plus D log 2. Accepts any finite x.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        scale: a positive float (fixed), ``"learned"`` or ``"per_element"``, the mean absolute deviation in the units of
            x.
        min_scale: lower bound of a scale that is not fixed, in the units of x; see :class:`LocationScale`.

    Example:
        >>> from pyro_vae.nets import MLP
        >>> p = Laplace(MLP(2, [8]), 3, scale=1.0)(torch.zeros(2))
        >>> absolute_error = (p.mean - torch.ones(3)).abs().sum()
        >>> bool(torch.isclose(-p.log_prob(torch.ones(3)), absolute_error + 2.0794415))  # 3 log 2
        True
    """

    support = constraints.real
    accepts = "finite real values"
    remedy = _REAL_REMEDY

    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Laplace(loc, scale)


class Huber(LocationScale):
    r"""Independent real elements, a Normal near :math:`\mathrm{loc}_d(z)` with the tails of a Laplace.

    With a fixed scale of 1, ``-log_prob`` is Huber's loss (``torch.nn.functional.huber_loss``) summed over the event
    plus a constant, see :class:`pyro_vae.distributions.Huber`: an outlier pulls on the network with the force of an
    error of delta scales, and no more. Accepts any finite x.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        delta: distance from loc at which the tails begin, a float above 0, in scales.
        scale: a positive float (fixed), ``"learned"`` or ``"per_element"``, that of the Normal part, in the units of x.
        min_scale: lower bound of a scale that is not fixed, in the units of x; see :class:`LocationScale`.

    Raises:
        ValueError: ``delta`` is not above 0.

    References:
        Huber, "Robust Estimation of a Location Parameter", 1964, https://doi.org/10.1214/aoms/1177703732

    Example:
        >>> from pyro_vae.nets import MLP
        >>> p = Huber(MLP(2, [8]), 1, scale=1.0).distribution(loc=torch.zeros(1))
        >>> top = p.log_prob(torch.zeros(1))
        >>> [round((top - p.log_prob(torch.tensor([x]))).item(), 3) for x in (0.5, 1.0, 3.0)]  # x^2 / 2, then x - 1/2
        [0.125, 0.5, 2.5]
    """

    support = constraints.real
    accepts = "finite real values"
    remedy = _REAL_REMEDY

    def __init__(
        self,
        body: Body,
        event_shape: Shape,
        *,
        delta: float = 1.0,
        scale: Scale = "learned",
        min_scale: float = 1e-3,
    ) -> None:
        self.delta = checks.number("Huber likelihood", "delta", delta, above=0)
        super().__init__(body, event_shape, scale=scale, min_scale=min_scale)

    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return distributions.Huber(loc, scale, self.delta)


class StudentT(LocationScale):
    r"""Independent real elements with heavy tails, :math:`x_d \sim t_{\mathrm{df}}(\mathrm{loc}_d(z), \mathrm{scale})`.

    :math:`p(x_d|z) \propto (1 + t^2 / \mathrm{df})^{-(\mathrm{df} + 1) / 2}` with t the distance from loc in scales: an
    outlier pulls on the network with a force that falls off as 1 / distance. Accepts any finite x.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        df: degrees of freedom: a float above 1, for the mean to exist, or ``"learned"``, one parameter shared by all
            elements, df = 1 + softplus(raw_df) above 1.
        scale: a positive float (fixed), ``"learned"`` or ``"per_element"``, in the units of x.
        min_scale: lower bound of a scale that is not fixed, in the units of x; see :class:`LocationScale`.

    Raises:
        ValueError: ``df`` is neither.

    References:
        Takahashi et al., "Student-t Variational Autoencoder for Robust Density Estimation", 2018,
        https://doi.org/10.24963/ijcai.2018/374

    Example:
        >>> from pyro_vae.nets import MLP
        >>> p = StudentT(MLP(2, [8]), 1, df=2.0, scale=1.0).distribution(loc=torch.zeros(1))
        >>> top = p.log_prob(torch.zeros(1))
        >>> [round((p.log_prob(torch.tensor([x])) - top).exp().item(), 3) for x in (2.0, 4.0)]  # (1 + x^2 / 2)^(-3/2)
        [0.192, 0.037]
    """

    support = constraints.real
    accepts = "finite real values"
    remedy = _REAL_REMEDY

    def __init__(
        self,
        body: Body,
        event_shape: Shape,
        *,
        df: float | Literal["learned"] = "learned",
        scale: Scale = "learned",
        min_scale: float = 1e-3,
    ) -> None:
        if not (df == "learned" if isinstance(df, str) else df > 1):
            raise ValueError(
                f"StudentT likelihood: expected df a number above 1 or 'learned'; got {df!r}. Use df=5.0, for instance."
            )
        super().__init__(body, event_shape, scale=scale, min_scale=min_scale)
        self.df = df
        # softplus(4) is close to 4: five degrees of freedom to start with.
        self.raw_df = nn.Parameter(torch.tensor(4.0)) if df == "learned" else None

    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        df = loc.new_tensor(self.df) if self.raw_df is None else 1 + softplus(self.raw_df)
        return distributions.StudentT(df, loc, scale)
