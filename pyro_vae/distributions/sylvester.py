"""Householder, planar and Sylvester transforms, whose parameters may differ from row to row.

They keep nothing between calls, unlike Pyro's: a draw made without gradients would leave its own preimage behind, and
the density at that draw would have a wrong gradient. Planar and Sylvester layers are inverted by root-finding.
"""

from __future__ import annotations

import torch
from pyro.distributions.transforms.householder import ConditionedHouseholder
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_vae import internals


class HouseholderTransform(ConditionedHouseholder):
    r"""Reflections :math:`z - 2 n n^T z / n^T n`, one after the other.

    Args:
        reflections: their normals n, of any length but 0, (\*batch_shape, num_reflections, dim).

    References:
        Tomczak, Welling, "Improving Variational Auto-Encoders using Householder Flow", 2016,
        https://arxiv.org/abs/1611.09630

    Example:
        >>> HouseholderTransform(torch.tensor([[1.0, -1.0]]))(torch.tensor([1.0, 2.0]))  # at the diagonal
        tensor([2., 1.])
    """

    def __init__(self, reflections: Tensor) -> None:
        super().__init__(reflections)
        self._cache_size = 0


class PlanarTransform(ConditionedPlanar):
    r"""z + u tanh(w'z + b) with w'u > -1, Pyro's transform with an inverse.

    :math:`t = w^T z` solves one scalar equation, :math:`t + w^T u \tanh(t + b) = w^T y`.

    Args:
        params: b (\*batch_shape, 1), the unconstrained u and w, (\*batch_shape, dim) each.

    References:
        Rezende, Mohamed, "Variational Inference with Normalizing Flows", 2015, https://arxiv.org/abs/1505.05770

    Example:
        >>> layer = PlanarTransform((torch.zeros(1), torch.tensor([2.0, 3.0]), torch.tensor([0.5, -0.5])))
        >>> z = torch.tensor([1.0, 2.0])
        >>> bool(torch.allclose(layer.inv(layer(z)), z, atol=1e-5))
        True
    """

    def __init__(self, params: tuple[Tensor, Tensor, Tensor]) -> None:
        super().__init__(params)
        self._cache_size = 0

    def _inverse(self, y: Tensor) -> Tensor:
        bias, u, w = internals.planar_parameters(self)
        u = self.u_hat(u, w)
        projection = solve_residual_tanh((w * u).sum(-1, True), torch.ones_like(bias), bias, (w * y).sum(-1, True))
        return y - u * torch.tanh(projection + bias)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        self._call(x)
        log_det = internals.planar_log_det(self)
        assert log_det is not None
        return log_det


class SylvesterTransform(Transform):
    r"""z + Q R tanh(S Q' z + b), Q orthogonal, R and S upper triangular with diagonals in (-1, 1).

    The log-determinant is :math:`\sum_i \log(1 + R_{ii} S_{ii} (1 - \tanh^2 a_i))` at :math:`a = S Q' z + b`. Q is a
    product of Householder reflections. Pyro's ``Sylvester`` has one set of parameters for all data; here they may be
    made by a network. The inverse solves one scalar equation for each dimension after the other.

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
        super().__init__()
        self.r = r.triu()
        self.s = s.triu()
        self.bias = bias
        self.rotation = HouseholderTransform(reflections)

    def _call(self, x: Tensor) -> Tensor:
        return x + self.rotation((self.r @ self._activation(x).unsqueeze(-1)).squeeze(-1))

    def _inverse(self, y: Tensor) -> Tensor:
        # Row i of v + R tanh(S v + b) = Q'y holds v_i, v_{i+1}, ... only: from the last to the first.
        rotated = self.rotation.inv(y)
        solved: list[Tensor] = []
        activations: list[Tensor] = []
        for i in reversed(range(y.shape[-1])):
            offset, target = self.bias[..., i], rotated[..., i]
            for j, (value, activation) in enumerate(zip(solved, activations, strict=True), i + 1):
                offset = offset + self.s[..., i, j] * value
                target = target - self.r[..., i, j] * activation
            scale = self.s[..., i, i]
            value = solve_residual_tanh(self.r[..., i, i], scale, offset, target)
            solved.insert(0, value)
            activations.insert(0, torch.tanh(scale * value + offset))
        return self.rotation(torch.stack(solved, -1))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        product = self.r.diagonal(dim1=-2, dim2=-1) * self.s.diagonal(dim1=-2, dim2=-1)
        return torch.log1p(product * (1 - self._activation(x) ** 2)).sum(-1)

    def _activation(self, x: Tensor) -> Tensor:
        rotated = self.rotation.inv(x)
        return torch.tanh((self.s @ rotated.unsqueeze(-1)).squeeze(-1) + self.bias)


def solve_residual_tanh(factor: Tensor, scale: Tensor, offset: Tensor, target: Tensor) -> Tensor:
    """The v with ``v + factor * tanh(scale * v + offset) == target``, for ``factor * scale > -1``; differentiable.

    Bisection between ``target - |factor|`` and ``target + |factor|``, then one Newton step, which also carries the
    gradients.
    """
    with torch.no_grad():
        low, high = target - factor.abs(), target + factor.abs()
        for _ in range(40):
            middle = (low + high) / 2
            below = middle + factor * torch.tanh(scale * middle + offset) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        root = (low + high) / 2
        slope = 1 + factor * scale * (1 - torch.tanh(scale * root + offset) ** 2)
    return root - (root + factor * torch.tanh(scale * root + offset) - target) / slope
