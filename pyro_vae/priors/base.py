"""The base class of priors p(z)."""

from __future__ import annotations

from typing import Any, ClassVar

from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn

from pyro_vae import checks
from pyro_vae.family import Family
from pyro_vae.nets import Shape, as_size
from pyro_vae.recorded import Recorded


class Prior(Recorded, nn.Module):
    """A density p(z): ``forward() -> TorchDistribution`` of ``batch_shape`` () and fixed ``event_shape``.

    A new prior overrides :meth:`forward`, and :attr:`support` where z is not any real vector.

    Args:
        event_shape: shape of z; an int for a vector.
    """

    support: ClassVar[constraints.Constraint] = constraints.real
    """What z may be: a constraint on single elements, or on vectors along the last dim."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = checks.arguments(cls.__name__, cls.__init__)  # type: ignore[method-assign]

    def __init__(self, event_shape: Shape) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)

    def forward(self) -> TorchDistribution:
        """The distribution over z."""
        raise NotImplementedError

    def bind(self, posterior: Family, guide: nn.Module | None = None) -> Prior:
        """Called by ``VAE`` with its posterior and guide, for a prior that is made of these; returns itself."""
        return self
