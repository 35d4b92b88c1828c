"""The base class of likelihoods p(x|z): a family that knows which data it is a density of."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.family import Family


class Likelihood(Family):
    """A density p(x|z) of data x of shape ``event_shape`` given latents z.

    Besides what :class:`~pyro_vae.family.Family` asks, a likelihood states the data it accepts.
    """

    support: ClassVar[constraints.Constraint]
    """Where one element of x may lie."""
    accepts: ClassVar[str]
    """The same in words, for messages and tables."""
    remedy: ClassVar[str]
    """What to do with data outside the support."""

    def check_shape(self, x: Tensor) -> None:
        """Refuses data whose trailing dims are not ``event_shape``.

        Raises:
            ValueError: naming both shapes.
        """
        if x.shape[x.dim() - len(self.event_shape) :] != self.event_shape or x.dim() <= len(self.event_shape):
            raise ValueError(
                f"{type(self).__name__} likelihood: expected data of shape (N, "
                f"{', '.join(map(str, self.event_shape))}); got {tuple(x.shape)}. "
                "Reshape the data, or give the likelihood the event_shape of the data."
            )

    def check_data(self, x: Tensor) -> None:
        """Refuses data this density cannot have produced.

        Args:
            x: data of shape (N, \\*event_shape).

        Raises:
            TypeError: integer data, which networks cannot take.
            ValueError: a wrong shape, or values outside the support; the message holds the remedy.
        """
        name = f"{type(self).__name__} likelihood"
        if not x.is_floating_point():
            raise TypeError(f"{name}: expected floating point data; got {x.dtype}. Convert it with .float().")
        self.check_shape(x)
        if not bool(self.support.check(x).all()):
            finite = x[torch.isfinite(x)]
            span = f"[{finite.min():.4g}, {finite.max():.4g}]" if finite.numel() else "no finite value"
            lost = x.numel() - finite.numel()
            raise ValueError(
                f"{name}: expected {self.accepts}; got values in {span}"
                f"{f' and {lost} NaN or infinite' if lost else ''}. {self.remedy}."
            )
