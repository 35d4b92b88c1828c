"""The Sylvester transform with parameters of its own for every row of a batch."""

from __future__ import annotations

import torch
from pyro.distributions.transforms.householder import ConditionedHouseholder
from torch import Tensor
from torch.distributions import Transform, constraints


class SylvesterTransform(Transform):
    r"""z + Q R tanh(S Q' z + b), Q orthogonal, R and S upper triangular with diagonals in (-1, 1).

    The log-determinant is :math:`\sum_i \log(1 + R_{ii} S_{ii} (1 - \tanh^2 a_i))` at :math:`a = S Q' z + b`. Q is a
    product of Householder reflections. Pyro's ``Sylvester`` has one set of parameters for all data; here they may be
    made by a network. The inverse has no closed form.

    Args:
        r: R, (\*batch_shape, dim, dim); what lies below the diagonal is ignored.
        s: S, likewise.
        bias: b, (\*batch_shape, dim).
        reflections: normals of the reflections, of any length but 0, (\*batch_shape, num_reflections, dim).

    References:
        van den Berg, Hasenclever, Tomczak, Welling, "Sylvester Normalizing Flows for Variational Inference", 2018,
        https://arxiv.org/abs/1803.05649

    Example:
        >>> zero = torch.zeros(2, 2)
        >>> SylvesterTransform(zero, zero, torch.zeros(2), torch.ones(1, 2))(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, r: Tensor, s: Tensor, bias: Tensor, reflections: Tensor) -> None:
        super().__init__(cache_size=1)
        self.r = r.triu()
        self.s = s.triu()
        self.bias = bias
        self.rotation = ConditionedHouseholder(reflections)

    def _activation(self, x: Tensor) -> Tensor:
        rotated = self.rotation.inv(x)
        return torch.tanh((self.s @ rotated.unsqueeze(-1)).squeeze(-1) + self.bias)

    def _call(self, x: Tensor) -> Tensor:
        return x + self.rotation((self.r @ self._activation(x).unsqueeze(-1)).squeeze(-1))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        product = self.r.diagonal(dim1=-2, dim2=-1) * self.s.diagonal(dim1=-2, dim2=-1)
        return torch.log1p(product * (1 - self._activation(x) ** 2)).sum(-1)
