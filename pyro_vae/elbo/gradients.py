r"""Gradient estimators, for any bound F of log-weights.

Shapes: N data, K particles.

With :math:`F'_k = \partial F / \partial \log w_k` and :math:`F''_{kk}` at detached weights, the coefficients of the
surrogate in :mod:`pyro_vae.elbo.estimator` are

========  ==========  =====================  ================  ==================================================
gradient  theta       path                   score             holds for
========  ==========  =====================  ================  ==================================================
pathwise  F'          F'                     -F'               reparameterized guides
stl       F'          F'                     0                 likewise; biased for K > 1 but for ``ELBO``
dreg      F'          F' - F''               0                 likewise; smooth bounds
score     F'          0                      signal - b - F'   any guide; b is the baseline
========  ==========  =====================  ================  ==================================================

``vimco`` and ``ovis`` are ``score`` with their own baselines (:mod:`pyro_vae.elbo.score`); ``enumerate`` sums over
discrete draws in place of sampling them, and a mapping gives each site its own (:mod:`pyro_vae.elbo.by_site`).

References:
    STL: Roeder, Wu, Duvenaud, "Sticking the landing", 2017, https://arxiv.org/abs/1703.09194
    DReG: Tucker, Lawson, Gu, Maddison, "Doubly reparameterized gradient estimators for Monte Carlo objectives", 2019,
    https://arxiv.org/abs/1810.04152
    VIMCO: Mnih, Rezende, "Variational inference for Monte Carlo objectives", 2016, https://arxiv.org/abs/1602.06725
    OVIS: Liévin, Dittadi, Christensen, Winther, "Optimal variance control of the score function gradient estimator for
    importance weighted bounds", 2020, https://arxiv.org/abs/2008.01998
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from pyro_vae.elbo.draws import Call, Draws
from pyro_vae.traces.densities import LogDensities
from pyro_vae.traces.structure import describe

GradientName = Literal["pathwise", "stl", "dreg", "score", "vimco", "ovis", "enumerate", "covariance"]


class Bound(Protocol):
    """What a gradient asks of a bound; :class:`~pyro_vae.elbo.Estimator` documents each."""

    @property
    def num_particles(self) -> int: ...
    @property
    def plate(self) -> str: ...
    @property
    def linear(self) -> bool: ...
    @property
    def latent_weight(self) -> float: ...
    @property
    def importance_weighted(self) -> bool: ...
    @property
    def thermodynamic(self) -> bool: ...
    @property
    def has_path_scale(self) -> bool: ...
    def bound(self, log_weights: Tensor) -> Tensor: ...
    def path_scale(self, log_weights: Tensor) -> Tensor: ...
    def signal(self, log_weights: Tensor) -> Tensor: ...
    def path(self, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...
    def weigh(self, densities: LogDensities) -> Tensor: ...


class Gradient(ABC):
    """How the gradient of a bound is estimated."""

    linear = False
    """Whether the gradient of a sum of terms needs no weights per datum, so that ``ELBO`` needs no data plate."""

    def check(self, estimator: Bound) -> None:  # noqa: B027 - most gradients serve every bound
        """Raises for a bound this gradient is wrong for; called when the estimator is made.

        Raises:
            ValueError: with a combination that works.
        """

    def check_programs(self, call: Call) -> None:  # noqa: B027 - most take any programs
        """Raises for programs this gradient is wrong for; called when their structure is learned."""

    def parts(self) -> list[Gradient]:
        """The gradients that this one is made of."""
        return [self]

    def modules(self) -> list[nn.Module]:
        """Modules that a step calls, beside the programs."""
        return []

    def declare(self) -> None:  # noqa: B027 - most have no modules
        """Registers these modules with Pyro, as a step does."""

    def buffers(self) -> list[Tensor]:
        """Tensors that a step reads and writes, beside parameters."""
        return []

    def pooled(self, before: Tensor, after: Sequence[Tensor]) -> Tensor:
        """One of :meth:`buffers` after a step in parts, as it would be after the whole.

        Args:
            before: the step.
            after: each of the parts, which all began with ``before``.
        """
        raise NotImplementedError

    def in_chunks(self, estimator: Bound) -> bool:
        """Whether the loss is a function of log-densities (K, N), so that draws can be made again to differentiate."""
        return True

    @abstractmethod
    def loss(self, estimator: Bound, call: Call) -> Tensor:
        """The estimator's loss, -F summed over the data, a scalar whose gradient is this estimator's."""


class Pathwise(Gradient):
    """Differentiates the bound through reparameterized draws.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_vae.elbo import ELBO
        >>> loc = torch.tensor(0.5, requires_grad=True)
        >>> def model():
        ...     pyro.sample("x", dist.Laplace(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(100.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(loc, 1.0))
        >>> ELBO(analytic_kl=True, gradient="pathwise").differentiable_loss(model, guide).backward()
        >>> loc.grad  # d/dloc of loc^2 / 2 + |100 - z|, whatever the draw z = loc + eps
        tensor(-0.5000)
    """

    linear = True

    def loss(self, estimator: Bound, call: Call) -> Tensor:
        draws = call.draw()
        check_reparameterized(draws, estimator, self)
        densities = draws.densities()
        return -densities.scale * estimator.bound(estimator.weigh(densities)).sum()


class STL(Gradient):
    """Sticking the landing: pathwise, without the score term, which has mean 0 for the ELBO.

    At the exact posterior its variance is 0. For K > 1 and a bound other than ``ELBO`` it is biased.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_vae.elbo import ELBO
        >>> loc = torch.tensor(1.0, requires_grad=True)
        >>> def model():
        ...     pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(2.0))
        >>> def guide():  # at loc = 1 the posterior
        ...     pyro.sample("z", dist.Normal(loc, 0.5**0.5))
        >>> losses = [ELBO(1, gradient).differentiable_loss(model, guide) for gradient in ("pathwise", "stl")]
        >>> [bool(torch.autograd.grad(loss, loc)[0].abs() < 1e-5) for loss in losses]  # 2 z - 2, and 0
        [False, True]
    """

    linear = True

    def loss(self, estimator: Bound, call: Call) -> Tensor:
        draws = call.draw(constant="guide")
        check_reparameterized(draws, estimator, self)
        densities = draws.densities()
        return -densities.scale * estimator.bound(_without_score(estimator, draws, densities)).sum()


class DReG(Gradient):
    """Doubly reparameterized: pathwise, with the score term's mean turned into a second path derivative.

    Unbiased, with variance 0 at the exact posterior, and a signal-to-noise ratio that grows with K.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_vae.elbo import IWELBO
        >>> loc = torch.tensor([1.0], requires_grad=True)
        >>> def model():
        ...     with pyro.plate("data", 1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor([2.0]))
        >>> def guide():  # at loc = 1 the posterior
        ...     with pyro.plate("data", 1):
        ...         pyro.sample("z", dist.Normal(loc, 0.5**0.5))
        >>> losses = [IWELBO(8, gradient).differentiable_loss(model, guide) for gradient in ("pathwise", "dreg")]
        >>> [bool(torch.autograd.grad(loss, loc)[0].abs() < 1e-5) for loss in losses]
        [False, True]
    """

    linear = True

    def check(self, estimator: Bound) -> None:
        if not estimator.has_path_scale:
            raise ValueError(
                f"{type(estimator).__name__}: expected a bound that defines path_scale, its second derivative, for "
                "dreg; got none. Use gradient='pathwise'."
            )

    def loss(self, estimator: Bound, call: Call) -> Tensor:
        draws = call.draw(scale_paths=True, constant="guide")
        check_reparameterized(draws, estimator, self)
        densities = draws.densities()
        draws.scale_paths(estimator.path_scale(estimator.weigh(densities).detach()))
        return -densities.scale * estimator.bound(_without_score(estimator, draws, densities)).sum()


def gradient_only(x: Tensor) -> Tensor:
    """0, with the gradient of x."""
    return x - x.detach()


def _without_score(estimator: Bound, draws: Draws, densities: LogDensities) -> Tensor:
    """Log-weights with the guide's parameters held constant in log q: they act through the draws alone."""
    constant = draws.at_constants()
    _warn_of_slow_inverses(draws)
    return estimator.weigh(densities) + estimator.latent_weight * gradient_only(constant)


def check_reparameterized(draws: Draws, estimator: Bound, gradient: Gradient) -> None:
    """Raises for a latent without pathwise gradient.

    Raises:
        ValueError: naming the site and gradients that serve it.
    """
    sites = {name: site["fn"] for name, _, site in draws.runs[0].latents()}
    own = {name: "pathwise" if fn.has_rsample else "score" for name, fn in sites.items()}
    mapping = f"{own}, " if "pathwise" in own.values() else ""
    for name, fn in sites.items():
        if own[name] == "score":
            raise ValueError(
                f"{type(estimator).__name__}: expected a reparameterized guide at site {name!r} for "
                f"{type(gradient).__name__.lower()} gradients; got {describe(fn)}, whose gradient would silently be 0. "
                f"Use gradient={mapping}'score', 'vimco' (K >= 2) or, with ELBO, 'enumerate'; or a relaxed "
                "distribution."
            )


def _warn_of_slow_inverses(draws: Draws) -> None:
    for name, _, site in draws.runs[0].latents():
        dims = site["fn"].event_shape.numel()
        names = {type(part).__name__ for part in _parts(site["fn"]) if getattr(part, "passes", dims) > 2}
        # A coupling may be written as an autoregressive transform of two passes.
        if any("Autoregressive" in name or "Sylvester" in name for name in names):
            warnings.warn(
                f"Site {name!r}: stl and dreg evaluate log q at a value cut off from the flow's cache, so an "
                f"autoregressive or Sylvester flow is inverted one dimension after another, {dims} here; for 50 it "
                "took 65 times as long as a pathwise step. Use gradient='pathwise', or a coupling flow.",
                stacklevel=2,
            )


def _parts(flow: Any) -> Iterator[Any]:
    """A distribution or transform and the transforms it is made of; of an inverted one, that it is inverted."""
    yield flow
    inner = [getattr(flow, name) for name in ("base_dist", "transform") if hasattr(flow, name)]
    for part in (*inner, *getattr(flow, "transforms", ()), *getattr(flow, "parts", ())):
        yield from _parts(part)
