"""The base class of conditionals: densities over latents given something."""

from __future__ import annotations

from pyro_vae.family import Family
from pyro_vae.nets import Body


class Conditional(Family):
    """A density over a latent vector given y: a guide's q(z|x), or a hierarchy's p(z1|z2).

    Args:
        body: network from y to features.
        latent_dim: dimensions of z.
    """

    def __init__(self, body: Body, latent_dim: int) -> None:
        super().__init__(body, latent_dim)
