"""Densities of real-valued data: ContinuousBernoulli on [0, 1], Normal on the line."""

from __future__ import annotations

import math
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.nets import Body, Shape


class ContinuousBernoulli(Likelihood):
    r"""Elements in [0, 1] with density :math:`C(p) p^x (1 - p)^{1 - x}`, p = sigmoid(logits).

    What "cross-entropy on grey pixels" leaves out is the normaliser C(p): without it the loss is no density's.
    ``mean`` is not p.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.

    References:
        Loaiza-Ganem, Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders",
        2019, https://arxiv.org/abs/1907.06845
    """

    support = constraints.unit_interval
    accepts = "values in [0, 1]"
    remedy = "Scale the data to [0, 1], or use Normal for unbounded values"

    def parameter_shapes(self) -> dict[str, Size]:
        return {"logits": self.event_shape}

    def distribution(self, *, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        return dist.ContinuousBernoulli(logits=logits).to_event(len(self.event_shape))


class Normal(Likelihood):
    r"""Independent real elements, :math:`x_d \sim \mathrm{Normal}(\mathrm{loc}_d(z), \mathrm{scale}_d^2)`.

    With a fixed scale of 1, ``-log_prob`` is half the summed squared error plus D log(2 pi) / 2. Accepts any finite x.

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        scale: a positive float (fixed), ``"learned"`` (one parameter shared by all elements) or ``"per_element"``
            (made by the network from z, like loc).
        min_scale: lower bound of a scale that is not fixed, in the units of x. A density has no upper bound: without
            a floor, data that can be reconstructed exactly drive the scale to 0 and the likelihood to infinity.

    Raises:
        ValueError: ``scale`` is none of the three, or ``min_scale`` is negative.
    """

    support = constraints.real
    accepts = "finite real values"
    remedy = "Remove NaN and infinite values"

    def __init__(
        self,
        body: Body,
        event_shape: Shape,
        *,
        scale: float | Literal["learned", "per_element"] = "learned",
        min_scale: float = 1e-3,
    ) -> None:
        if not (scale in ("learned", "per_element") if isinstance(scale, str) else 0 < scale < math.inf):
            raise ValueError(
                f"Normal likelihood: expected scale a positive number, 'learned' or 'per_element'; got {scale!r}. "
                "Use one of these."
            )
        if min_scale < 0:
            raise ValueError(f"Normal likelihood: expected min_scale at least 0; got {min_scale}. Use 0 for no floor.")
        self.scale = scale
        self.min_scale = min_scale
        super().__init__(body, event_shape)
        self.raw_scale = nn.Parameter(torch.zeros(())) if scale == "learned" else None

    def parameter_shapes(self) -> dict[str, Size]:
        shapes = {"loc": self.event_shape}
        return shapes | {"raw_scale": self.event_shape} if self.scale == "per_element" else shapes

    def distribution(self, *, loc: Tensor, raw_scale: Tensor | None = None) -> TorchDistribution:  # type: ignore[override]
        raw = self.raw_scale if raw_scale is None else raw_scale
        scale = loc.new_tensor(self.scale) if raw is None else self.min_scale + softplus(raw)
        return dist.Normal(loc, scale).to_event(len(self.event_shape))
