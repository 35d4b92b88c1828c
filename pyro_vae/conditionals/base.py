"""The base class of conditionals: densities over latents given something."""

from __future__ import annotations

from typing import ClassVar

from pyro.distributions import constraints
from torch import Size

from pyro_vae.family import Family
from pyro_vae.nets import Body, Shape


class Conditional(Family):
    """A density over a latent z given y: a guide's q(z|x), or a hierarchy's p(z1|z2).

    A new conditional overrides :meth:`parameter_shapes` and :meth:`distribution`, and :attr:`support` where z is not
    any real vector.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z; a tuple for latents that are not vectors, a grid for example.
    """

    support: ClassVar[constraints.Constraint] = constraints.real
    """What z may be: a constraint on single elements, or on vectors along the last dim."""

    def __init__(self, body: Body, latent_dim: Shape) -> None:
        super().__init__(body, latent_dim)

    def _check_vector(self, least: int) -> None:
        """Raises for a latent that is no vector of at least so many dimensions."""
        if len(self.event_shape) != 1 or self.event_shape[0] < least:
            raise ValueError(
                f"{type(self).__name__}: expected latent_dim an int of at least {least}; got "
                f"{tuple(self.event_shape)}. Its draws are single vectors."
            )

    @property
    def vector_shape(self) -> Size:
        """The shape of z as a vector, for families of vectors; ``distributions.shaped`` shapes their draws."""
        return Size((self.event_shape.numel(),))
