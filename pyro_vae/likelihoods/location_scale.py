"""What likelihoods with a location and a scale share: where the scale comes from, and its floor."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.nets import Body, Shape

Scale = float | Literal["learned", "per_element"]


class LocationScale(Likelihood):
    """Independent elements whose density has a location, made by the network from z, and a scale.

    Subclasses implement :meth:`density`. The network makes ``loc``, and ``raw_scale`` where the scale is per element,
    both of the event's shape; scale = min_scale + softplus(raw_scale).

    Args:
        body: network from z to features.
        event_shape: shape of one datum.
        scale: a positive float (fixed), ``"learned"`` (one parameter shared by all elements) or ``"per_element"``
            (made by the network from z, like loc).
        min_scale: lower bound of a scale that is not fixed. A density has no upper bound: without a floor, data that
            can be reconstructed exactly drive the scale to 0 and the likelihood to infinity.

    Raises:
        ValueError: ``scale`` is none of the three, or ``min_scale`` is negative.
    """

    def __init__(self, body: Body, event_shape: Shape, *, scale: Scale = "learned", min_scale: float = 1e-3) -> None:
        name = f"{type(self).__name__} likelihood"
        if not (scale in ("learned", "per_element") if isinstance(scale, str) else 0 < scale < math.inf):
            raise ValueError(
                f"{name}: expected scale a positive number, 'learned' or 'per_element'; got {scale!r}. "
                "Use one of these."
            )
        if min_scale < 0:
            raise ValueError(f"{name}: expected min_scale at least 0; got {min_scale}. Use 0 for no floor.")
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
        return self.density(loc, scale).to_event(len(self.event_shape))

    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """The density of single elements, for loc of shape (\\*lead, \\*event_shape) and a scale that broadcasts."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale!r}"
