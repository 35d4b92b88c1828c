"""The von Mises-Fisher conditional on the sphere."""

from __future__ import annotations

from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.nn.functional import normalize, softplus

from pyro_vae.conditionals.base import Conditional
from pyro_vae.distributions import VonMisesFisher as VonMisesFisherDistribution
from pyro_vae.nets import Body, Shape


class VonMisesFisher(Conditional):
    r"""z|y on the unit sphere with density :math:`\propto e^{\kappa\, \mathrm{loc}^T z}`, in 2 or more dimensions.

    loc is the network's output normalized, kappa is 1 + softplus of it, as in the authors' code. Reparameterized, with
    exact gradients in both; see :class:`~pyro_vae.distributions.VonMisesFisher`.

    Args:
        body: network from y to features.
        latent_dim: dimensions of the vectors, one more than the sphere's own.

    References:
        Davidson, Falorsi, De Cao, Kipf, Tomczak, "Hyperspherical Variational Auto-Encoders", 2018,
        https://arxiv.org/abs/1804.00891

    Example:
        >>> import torch
        >>> from pyro_vae.nets import MLP
        >>> posterior = VonMisesFisher(MLP(4, [8]), 3)
        >>> loc, concentration = torch.tensor([0.0, 0.0, 5.0]), torch.tensor(0.5413)  # of which softplus is 1, kappa 2
        >>> q = posterior.distribution(loc=loc, concentration=concentration)
        >>> q.mean, q.rsample().norm().round()  # coth(2) - 1 / 2 in the third coordinate
        (tensor([0.0000, 0.0000, 0.5373]), tensor(1.))
    """

    support = constraints.sphere

    def __init__(self, body: Body, latent_dim: Shape) -> None:
        super().__init__(body, latent_dim)
        self._check_vector(2)

    def parameter_shapes(self) -> dict[str, Size]:
        return {"loc": self.event_shape, "concentration": Size(())}

    def distribution(self, *, loc: Tensor, concentration: Tensor) -> TorchDistribution:  # type: ignore[override]
        return VonMisesFisherDistribution(normalize(loc, dim=-1), 1 + softplus(concentration))
