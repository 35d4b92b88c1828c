"""Normal conditionals: q(z|x) with a covariance that the network makes, and a mixture."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor

from pyro_vae.conditionals.base import Conditional
from pyro_vae.distributions import MixtureOfDiagonalNormals, shaped
from pyro_vae.family import positive
from pyro_vae.nets import Body, Shape


class DiagonalNormal(Conditional):
    r"""z|y ~ Normal(loc(y), diag(scale(y)^2)), scale = exp(log_scale): the mean-field guide of most papers.

    Reparameterized, z = loc + scale * eps.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2014, https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> from pyro_vae.nets import MLP
        >>> DiagonalNormal(MLP((1, 4, 4), [8]), 2)(torch.zeros(3, 1, 4, 4)).rsample().shape
        torch.Size([3, 2])
    """

    def parameter_shapes(self) -> dict[str, Size]:
        return {"loc": self.event_shape, "log_scale": self.event_shape}

    def distribution(self, *, loc: Tensor, log_scale: Tensor) -> TorchDistribution:  # type: ignore[override]
        return dist.Normal(loc, positive(log_scale)).to_event(len(self.event_shape))


class LowRankNormal(Conditional):
    r"""z|y ~ Normal(loc, diag(scale^2) + F F') with a factor F of shape (latent_dim, rank).

    Reparameterized, z = loc + scale * eps + F eta. Densities cost a factorization of a (rank, rank) matrix.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.
        rank: columns of F, at least 1.

    References:
        Ong, Nott, Smith, "Gaussian variational approximation with a factor covariance structure", 2018,
        https://arxiv.org/abs/1701.03208

    Example:
        >>> from pyro_vae.nets import MLP
        >>> posterior = LowRankNormal(MLP(4, [8]), 2, rank=1)
        >>> zero, factor = torch.zeros(2), torch.tensor([[1.0], [2.0]])
        >>> posterior.distribution(loc=zero, log_scale=zero, factor=factor).covariance_matrix  # 1 + F F'
        tensor([[2., 2.],
                [2., 5.]])
    """

    def __init__(self, body: Body, latent_dim: Shape, rank: int) -> None:
        self.rank = rank  # read by parameter_shapes
        if rank < 1:
            raise ValueError(f"LowRankNormal: expected rank at least 1; got {rank}. Use DiagonalNormal for rank 0.")
        super().__init__(body, latent_dim)

    def parameter_shapes(self) -> dict[str, Size]:
        shape = self.vector_shape
        return {"loc": shape, "log_scale": shape, "factor": Size((*shape, self.rank))}

    def distribution(self, *, loc: Tensor, log_scale: Tensor, factor: Tensor) -> TorchDistribution:  # type: ignore[override]
        return shaped(dist.LowRankMultivariateNormal(loc, factor, positive(log_scale) ** 2), self.event_shape)


class FullRankNormal(Conditional):
    r"""z|y ~ Normal(loc, L L') with a lower triangular L of diagonal exp(log_scale).

    Reparameterized, z = loc + L eps. The network makes latent_dim (latent_dim + 3) / 2 numbers per datum.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.

    References:
        Kingma, Welling, "An Introduction to Variational Autoencoders", 2019, section 2.5.1,
        https://arxiv.org/abs/1906.02691

    Example:
        >>> from pyro_vae.nets import MLP
        >>> posterior = FullRankNormal(MLP(4, [8]), 2)
        >>> zero = torch.zeros(2)
        >>> posterior.distribution(loc=zero, log_scale=zero, below_diagonal=torch.tensor([3.0])).covariance_matrix
        tensor([[ 1.,  3.],
                [ 3., 10.]])
    """

    def parameter_shapes(self) -> dict[str, Size]:
        (dim,) = self.vector_shape
        return {"loc": Size((dim,)), "log_scale": Size((dim,)), "below_diagonal": Size((dim * (dim - 1) // 2,))}

    def distribution(  # type: ignore[override]
        self, *, loc: Tensor, log_scale: Tensor, below_diagonal: Tensor
    ) -> TorchDistribution:
        (dim,) = self.vector_shape
        row, column = torch.tril_indices(dim, dim, -1, device=loc.device)
        scale_tril = torch.diag_embed(positive(log_scale))
        scale_tril[..., row, column] = below_diagonal
        return shaped(dist.MultivariateNormal(loc, scale_tril=scale_tril), self.event_shape)


class MixtureOfNormals(Conditional):
    r"""z|y ~ a mixture of diagonal Normals whose weights, locations and scales the network makes.

    Reparameterized through its distribution functions, see
    :class:`~pyro_vae.distributions.MixtureOfDiagonalNormals`; the weights have pathwise gradients too.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.
        num_components: at least 1.

    References:
        Nalisnick, Hertel, Smyth, "Approximate Inference for Deep Latent Gaussian Mixtures", 2016,
        http://bayesiandeeplearning.org/2016/papers/BDL_20.pdf

    Example:
        >>> from pyro_vae.nets import MLP
        >>> posterior = MixtureOfNormals(MLP(4, [8]), 1, num_components=2)
        >>> loc, log_scale = torch.tensor([[-1.0], [3.0]]), torch.zeros(2, 1)
        >>> q = posterior.distribution(logits=torch.tensor([0.25, 0.75]).log(), loc=loc, log_scale=log_scale)
        >>> round(q.mean.item(), 4), round(q.variance.item(), 4)  # 3 * 3 / 4 - 1 / 4, and 1 + 4^2 * (1 / 4) * (3 / 4)
        (2.0, 4.0)
    """

    def __init__(self, body: Body, latent_dim: Shape, num_components: int) -> None:
        self.num_components = num_components  # read by parameter_shapes
        if num_components < 1:
            raise ValueError(
                f"MixtureOfNormals: expected num_components at least 1; got {num_components}. Give a positive number."
            )
        super().__init__(body, latent_dim)

    def parameter_shapes(self) -> dict[str, Size]:
        each = Size((self.num_components, *self.vector_shape))
        return {"logits": each[:1], "loc": each, "log_scale": each}

    def distribution(self, *, logits: Tensor, loc: Tensor, log_scale: Tensor) -> TorchDistribution:  # type: ignore[override]
        return shaped(MixtureOfDiagonalNormals(loc, positive(log_scale), logits), self.event_shape)
