r"""The thermodynamic variational objective: the evidence as an integral along a path from guide to posterior.

Shapes: N data, K particles, T partitions.

With :math:`\pi_\beta \propto q^{1-\beta} p^\beta`, :math:`\log p(x) = \int_0^1 E_{\pi_\beta}[\log w] d\beta`, and the
integrand rises. Left Riemann sums are lower bounds (one partition is the ELBO), right sums upper bounds. The
expectations are taken with self-normalized weights of K draws from q, so the sandwich holds as K grows, not at each K.

References:
    Masrani, Le, Wood, "The thermodynamic variational objective", 2019, https://arxiv.org/abs/1907.00031
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor

from pyro_vae.checks import choice, number, whole
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.names import GradientChoice


class ThermodynamicELBO(Estimator):
    r"""TVO: :math:`\sum_t (\beta_{t+1} - \beta_t) E_{\pi_{\beta}}[\log w]` over T partitions of [0, 1].

    Args:
        num_particles: K.
        gradient: as of any bound, or ``"covariance"``, the paper's own.
        partitions: T for partitions of equal width in log beta from ``first`` to 1, after one from 0; or the inner
            points :math:`0 < \beta_1 < \dots < \beta_{T-1} < 1` themselves.
        first: the first inner point when ``partitions`` is a number above 1.
        sum: ``"left"`` or ``"right"``.
        options: ``plate``, ``vectorize`` and ``chunk_size``; see :class:`~pyro_vae.elbo.estimator.Estimator`.

    Raises:
        TypeError: points, or a number of partitions, that are no numbers.
        ValueError: points out of order or outside (0, 1), no partition, another sum.

    Example:
        >>> import torch
        >>> log_weights = torch.tensor([[1.0], [3.0]]).log()  # log 2 = 0.693 is the logarithm of their mean
        >>> for points in ([], [0.5], [i / 100 for i in range(1, 100)]):
        ...     sums = [ThermodynamicELBO(2, partitions=points, sum=sum) for sum in ("left", "right")]
        ...     print(len(points) + 1, *(f"{each.bound(log_weights).item():.3f}" for each in sums))
        1 0.549 0.824
        2 0.623 0.760
        100 0.692 0.695
    """

    thermodynamic = True

    def __init__(
        self,
        num_particles: int = 1,
        gradient: GradientChoice = "pathwise",
        *,
        partitions: int | Iterable[float] = 2,
        first: float = 0.01,
        sum: Literal["left", "right"] = "left",
        **options: Any,
    ) -> None:
        name = type(self).__name__
        first = number(name, "first", first, above=0, below=1)
        if isinstance(partitions, Iterable) and not isinstance(partitions, str) and getattr(partitions, "ndim", 1) != 0:
            inner = [number(name, "each of partitions", point) for point in partitions]
        else:
            count = whole(name, "partitions", partitions)
            number(name, "partitions", count, at_most=100_000)
            inner = [first ** (1 - t / (count - 1)) for t in range(count - 1)] if count > 1 else []
        self.points = [0.0, *inner, 1.0]
        if any(not low < high for low, high in zip(self.points, self.points[1:], strict=False)):
            raise ValueError(
                f"{name}: expected points that rise within (0, 1); got {inner}. Sort them, without 0 and 1."
            )
        self.sum = choice(name, "sum", sum, ["left", "right"])
        super().__init__(num_particles, gradient, **options)

    def path(self, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Widths and betas of the partitions, (T, 1, 1), and self-normalized weights at each beta, (T, K, N)."""
        points = log_weights.new_tensor(self.points)[:, None, None]
        betas = points[:-1] if self.sum == "left" else points[1:]
        return points.diff(dim=0), betas, (betas * log_weights).softmax(1)

    def bound(self, log_weights: Tensor) -> Tensor:
        widths, _, weights = self.path(log_weights)
        return (widths * weights * log_weights).sum((0, 1))

    def path_scale(self, log_weights: Tensor) -> Tensor:
        widths, betas, weights = self.path(log_weights)
        excess = log_weights - (weights * log_weights).sum(1, keepdim=True)
        slopes = weights * (1 + betas * excess)
        # d/dlog w_k of each slope: the weight's own derivative, then that of the excess, 1 - slope.
        curvatures = betas * ((1 - weights) * slopes + weights * (1 - slopes))
        slope, curvature = (widths * slopes).sum(0), (widths * curvatures).sum(0)
        return (1 - curvature / slope).where(slope != 0, slope.new_zeros(()))
