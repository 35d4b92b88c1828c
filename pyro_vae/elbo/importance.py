r"""Importance-weighted bounds: logarithms of averages of weights.

.. math::  L_K = E\Big[\log \frac1K \sum_k w_k\Big], \quad L_1 \le L_2 \le \dots \le \log p(x),

since the average of the weights is an unbiased estimate of p(x). The signal-to-noise ratio of the
encoder's gradient, though, vanishes as K grows (Rainforth et al., 2018), which the other bounds here and the dreg
gradient remedy.

References:
    IWELBO: Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", 2016, https://arxiv.org/abs/1509.00519
    MIWELBO, CIWELBO, PIWELBO: Rainforth et al., "Tighter variational bounds are not necessarily better", 2018,
    https://arxiv.org/abs/1802.04537
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from pyro_vae.checks import number, whole
from pyro_vae.elbo.draws import Call
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.gradients import Pathwise, check_reparameterized, gradient_only
from pyro_vae.elbo.names import GradientChoice


class IWELBO(Estimator):
    r"""The importance-weighted bound, :math:`\log \frac1K \sum_k w_k`.

    Args:
        num_particles: K.
        gradient: see :class:`~pyro_vae.elbo.estimator.Estimator`, as are ``plate``, ``vectorize`` and ``chunk_size``:
            with ``chunk_size=50``, K = 5,000 draws take the memory of fifty.
        plate: name of the plate over the data.
        vectorize: make the draws of a pass at once.
        chunk_size: draws of a pass at most.

    Example:
        >>> import torch
        >>> IWELBO(2).bound(torch.tensor([[0.25], [0.75]]).log()).exp()  # the average weight
        tensor([0.5000])
    """

    importance_weighted = True

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.logsumexp(0) - math.log(len(log_weights))

    def path_scale(self, log_weights: Tensor) -> Tensor:
        return log_weights.softmax(0)


class MIWELBO(Estimator):
    """The average of M importance-weighted bounds of K draws each (not the bound for missing data of the same name).

    Args:
        num_particles: K, draws per bound; the attribute of this name counts all draws, M K.
        gradient: see :class:`~pyro_vae.elbo.estimator.Estimator`, as are ``options``.
        num_bounds: M.
        options: ``plate``, ``vectorize`` and ``chunk_size``.

    Raises:
        TypeError: M or K is no whole number.
        ValueError: M or K is below 1.

    Example:
        >>> import torch
        >>> log_weights = torch.tensor([[1.0], [3.0], [2.0], [6.0]]).log()
        >>> MIWELBO(2, num_bounds=2).bound(log_weights).exp()  # the geometric mean of (1 + 3) / 2 and (2 + 6) / 2
        tensor([2.8284])
    """

    def __init__(
        self,
        num_particles: int = 1,
        gradient: GradientChoice = "pathwise",
        *,
        num_bounds: int,
        **options: Any,
    ) -> None:
        self.num_bounds = num_bounds
        num_particles = whole(type(self).__name__, "num_particles", num_particles)
        super().__init__(self.num_bounds * num_particles, gradient, **options)

    def checked(self, name: str, value: Any) -> Any:
        if name == "num_bounds":
            value = whole(type(self).__name__, name, value)
            draws = vars(self).get("_num_particles", 0)
            if draws % value:
                raise ValueError(
                    f"{type(self).__name__}: expected num_bounds a divisor of the {draws} draws; got {value}. Set "
                    "num_particles, the draws of all bounds, in another object."
                )
        return super().checked(name, value)

    def check_particles(self, num_particles: int) -> None:
        if num_particles % self.num_bounds:
            raise ValueError(
                f"{type(self).__name__}: expected num_particles a multiple of num_bounds={self.num_bounds}; got "
                f"{num_particles}. It counts the draws of all bounds together."
            )

    def bound(self, log_weights: Tensor) -> Tensor:
        groups = log_weights.unflatten(0, (self.num_bounds, -1))
        return groups.logsumexp(1).mean(0) - math.log(groups.shape[1])

    def path_scale(self, log_weights: Tensor) -> Tensor:
        return log_weights.unflatten(0, (self.num_bounds, -1)).softmax(1).flatten(0, 1)


class CIWELBO(Estimator):
    """beta ELBO + (1 - beta) IWELBO, of the same draws.

    Args:
        num_particles: K.
        gradient: see :class:`~pyro_vae.elbo.estimator.Estimator`, as are ``options``.
        beta: in [0, 1]: 1 is the ELBO, 0 is IWELBO.
        options: ``plate``, ``vectorize`` and ``chunk_size``.

    Raises:
        TypeError: a ``beta`` that is no number.
        ValueError: a ``beta`` outside [0, 1].

    Example:
        >>> import torch
        >>> log_weights = torch.tensor([[1.0], [4.0]]).log()  # of geometric mean 2 and mean 2.5
        >>> [round(CIWELBO(2, beta=beta).bound(log_weights).exp().item(), 4) for beta in (1.0, 0.5, 0.0)]
        [2.0, 2.2361, 2.5]
    """

    def __init__(
        self,
        num_particles: int = 1,
        gradient: GradientChoice = "pathwise",
        *,
        beta: float,
        **options: Any,
    ) -> None:
        self.beta = beta
        super().__init__(num_particles, gradient, **options)

    def checked(self, name: str, value: Any) -> Any:
        if name == "beta":
            value = number(type(self).__name__, name, value, at_least=0, at_most=1)
        return super().checked(name, value)

    def bound(self, log_weights: Tensor) -> Tensor:
        tight = log_weights.logsumexp(0) - math.log(len(log_weights))
        return self.beta * log_weights.mean(0) + (1 - self.beta) * tight

    def path_scale(self, log_weights: Tensor) -> Tensor:
        loose, tight = self.beta / len(log_weights), (1 - self.beta) * log_weights.softmax(0)
        scale = (loose + tight * log_weights.softmax(0)) / (loose + tight)
        # In place of a branch on beta, which is a tensor in a compiled step.
        return scale.where(loose + tight != 0, scale.new_zeros(()))


class PIWELBO(MIWELBO):
    """Trains the model on IWELBO of all M K draws, and the guide on MIWELBO(M, K); its value is IWELBO's.

    Args:
        num_particles: K, draws per bound of the guide.
        gradient: ``"pathwise"``, the only one that keeps the two apart.
        num_bounds: M.
        options: ``plate``, ``vectorize`` and ``chunk_size``.

    Raises:
        TypeError: M or K is no whole number.
        ValueError: M or K is below 1; another gradient.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> theta, phi = torch.tensor([1.0], requires_grad=True), torch.tensor([0.5], requires_grad=True)
        >>> def model():
        ...     with pyro.plate("data", 1):
        ...         pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(theta, 1.0)), 1.0), obs=torch.ones(1))
        >>> def guide():
        ...     with pyro.plate("data", 1):
        ...         pyro.sample("z", dist.Normal(phi, 1.0))
        >>> def grads(loss):  # with the same draws
        ...     with torch.random.fork_rng():
        ...         return torch.cat(torch.autograd.grad(loss.differentiable_loss(model, guide), (theta, phi)))
        >>> both = grads(PIWELBO(2, num_bounds=2))
        >>> torch.isclose(both, grads(IWELBO(4))), torch.isclose(both, grads(MIWELBO(2, num_bounds=2)))
        (tensor([ True, False]), tensor([False,  True]))
    """

    def __init__(
        self, num_particles: int = 1, gradient: GradientChoice = "pathwise", *, num_bounds: int, **options: Any
    ) -> None:
        super().__init__(num_particles, gradient, num_bounds=num_bounds, **options)

    def checked(self, name: str, value: Any) -> Any:
        value = super().checked(name, value)
        if name == "gradient" and not isinstance(value, Pathwise):
            raise ValueError(
                f"{type(self).__name__}: expected gradient 'pathwise'; got {type(value).__name__}. Leave it out."
            )
        return value

    def loss_of(self, call: Call) -> Tensor:
        draws = call.draw(constant="model")
        check_reparameterized(draws, self, self.gradient)
        densities = draws.densities()
        constant = draws.at_constants()  # log p(x, sg z): the model's parameters, and nothing of the guide's
        all_draws = constant - densities.guide.detach()
        for_model = all_draws.logsumexp(0) - math.log(len(all_draws))
        # The model's parameters cancel, and the guide's act through the draws and log q.
        for_guide = self.bound(densities.log_weights - gradient_only(constant))
        return -densities.scale * (for_model + gradient_only(for_guide)).sum()
