r"""Gradient estimators, for any bound F of log-weights.

With :math:`F'_k = \partial F / \partial \log w_k` and :math:`F''_{kk}` at detached weights, the coefficients of the
surrogate in :mod:`pyro_vae.elbo.estimator` are

========  ==========  =====================  ================  ==================================================
gradient  theta       path                   score             holds for
========  ==========  =====================  ================  ==================================================
pathwise  F'          F'                     -F'               reparameterised guides
stl       F'          F'                     0                 likewise; biased for K > 1 but for ``ELBO``
dreg      F'          F' - F''               0                 likewise; smooth bounds
score     F'          0                      signal - b - F'   any guide; b is the baseline
========  ==========  =====================  ================  ==================================================

``vimco`` and ``ovis`` are ``score`` with their own baselines; ``enumerate`` sums over discrete draws in place of
sampling them.

References:
    STL: Roeder, Wu, Duvenaud, "Sticking the landing", 2017, https://arxiv.org/abs/1703.09194
    DReG: Tucker, Lawson, Gu, Maddison, "Doubly reparameterized gradient estimators for Monte Carlo objectives", 2019,
    https://arxiv.org/abs/1810.04152
    VIMCO: Mnih, Rezende, "Variational inference for Monte Carlo objectives", 2016, https://arxiv.org/abs/1602.06725
    OVIS: Liévin, Dittadi, Christensen, Winther, "Optimal variance control of the score function gradient estimator for
    importance weighted bounds", 2020, https://arxiv.org/abs/2008.01998
"""

from __future__ import annotations

import itertools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pyro
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn

from pyro_vae.checks import choice, number
from pyro_vae.elbo.densities import LogDensities
from pyro_vae.elbo.draws import Call, Draws
from pyro_vae.elbo.terms import describe

if TYPE_CHECKING:
    from pyro_vae.elbo.estimator import Estimator

GradientName = Literal["pathwise", "stl", "dreg", "score", "vimco", "ovis", "enumerate", "covariance"]
GradientChoice: TypeAlias = "Gradient | GradientName"


class Gradient(ABC):
    """How the gradient of a bound is estimated."""

    linear = False
    """Whether the gradient of a sum of terms needs no weights per datum, so that ``ELBO`` needs no data plate."""

    def check(self, estimator: Estimator) -> None:  # noqa: B027 - most gradients serve every bound
        """Refuses a bound this gradient is wrong for; called when the estimator is made.

        Raises:
            ValueError: with a combination that works.
        """

    def buffers(self) -> list[Tensor]:
        """Tensors that a step reads and writes, beside parameters."""
        return []

    @abstractmethod
    def loss(self, estimator: Estimator, call: Call) -> Tensor:
        """The estimator's loss, -F summed over the data, a scalar whose gradient is this estimator's."""


class Pathwise(Gradient):
    """Differentiates the bound through reparameterised draws."""

    linear = True

    def loss(self, estimator: Estimator, call: Call) -> Tensor:
        draws = call.draw()
        check_reparameterised(draws, estimator, self)
        densities = draws.densities()
        return -densities.scale * estimator.bound(estimator.weigh(densities)).sum()


class STL(Gradient):
    """Sticking the landing: pathwise, without the score term, which has mean 0 for the ELBO.

    At the exact posterior its variance is 0. For K > 1 and a bound other than ``ELBO`` it is biased.
    """

    linear = True

    def loss(self, estimator: Estimator, call: Call) -> Tensor:
        draws = call.draw()
        check_reparameterised(draws, estimator, self)
        densities = draws.densities()
        return -densities.scale * estimator.bound(_without_score(estimator, draws, densities)).sum()


class DReG(Gradient):
    """Doubly reparameterised: pathwise, with the score term's mean turned into a second path derivative.

    Unbiased, with variance 0 at the exact posterior, and a signal-to-noise ratio that grows with K.
    """

    linear = True

    def check(self, estimator: Estimator) -> None:
        from pyro_vae.elbo.estimator import Estimator

        if type(estimator).path_scale is Estimator.path_scale:
            raise ValueError(
                f"{type(estimator).__name__}: expected a bound that defines path_scale, its second derivative, for "
                "dreg; got none. Use gradient='pathwise'."
            )

    def loss(self, estimator: Estimator, call: Call) -> Tensor:
        draws = call.draw(scale_paths=True)
        check_reparameterised(draws, estimator, self)
        densities = draws.densities()
        draws.scale_paths(estimator.path_scale(estimator.weigh(densities).detach()))
        return -densities.scale * estimator.bound(_without_score(estimator, draws, densities)).sum()


class Score(Gradient):
    """The score-function gradient (REINFORCE), for any guide, discrete ones included.

    Args:
        baseline: subtracted from the bound to lower the variance, without bias: None; ``"running_mean"``, of the
            signal over past steps; ``"leave_one_out"``, the bound with a draw's log-weight replaced by the mean of the
            others', K >= 2; or a module from the program's arguments to (N,), fitted to the signal by least squares
            as its parameters are optimised with the rest (Mnih, Gregor, "Neural variational inference and learning in
            belief networks", 2014, https://arxiv.org/abs/1402.0030).

    Raises:
        ValueError: an unknown baseline.
    """

    def __init__(self, baseline: Literal["running_mean", "leave_one_out"] | nn.Module | None = None) -> None:
        if not (baseline in (None, "running_mean", "leave_one_out") or isinstance(baseline, nn.Module)):
            raise ValueError(
                "Score: expected baseline None, 'running_mean', 'leave_one_out' or a module; got "
                f"{baseline!r}. Use one of these."
            )
        self.baseline = baseline
        self._running: Tensor | None = None  # the mean, and the number of steps in it
        self._name = f"baseline{next(_baselines)}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pyro's param store keys by name: a copy under the old one would silently stay untrained.
        self.__dict__.update(state, _name=f"baseline{next(_baselines)}")

    def buffers(self) -> list[Tensor]:
        return [] if self._running is None else [self._running]

    def check(self, estimator: Estimator) -> None:
        if self.baseline == "leave_one_out":
            _check_several(estimator, "a leave-one-out baseline")

    def loss(self, estimator: Estimator, call: Call) -> Tensor:
        densities = call.draw(detach=True).densities()
        log_weights = estimator.weigh(densities)
        signal = estimator.signal(log_weights.detach())
        baseline, regression = self._baseline(estimator, log_weights.detach(), signal, call)
        credit = ((signal - baseline) * densities.guide).sum()
        value = estimator.bound(log_weights).sum()
        return -densities.scale * (value + gradient_only(credit - regression))

    def _baseline(
        self, estimator: Estimator, log_weights: Tensor, signal: Tensor, call: Call
    ) -> tuple[Tensor, Tensor | float]:
        """The baseline, detached, and the objective by which a learned one is fitted."""
        if isinstance(self.baseline, nn.Module):
            pyro.module(self._name, self.baseline)
            prediction = self.baseline(*call.args, **call.kwargs)
            if prediction.shape != signal.shape[-1:]:
                raise ValueError(
                    f"Score: expected a baseline of shape (N,) = {tuple(signal.shape[-1:])}; got "
                    f"{tuple(prediction.shape)}. Return one number for each datum."
                )
            return prediction.detach(), 0.5 * (prediction - signal).square().sum()
        if self.baseline == "leave_one_out":
            return signal - _left_out(estimator, log_weights, "geometric"), 0.0
        if self.baseline == "running_mean":
            self._running = signal.new_zeros(2) if self._running is None else self._running.to(signal)
            mean, steps = self._running.clone()
            if torch.is_grad_enabled():  # evaluation is no step
                average = signal.mean()
                self._running[0] = torch.where(steps > 0, 0.9 * mean + 0.1 * average, average)
                self._running[1] += 1
            return mean, 0.0
        return torch.zeros_like(signal), 0.0


class VIMCO(Gradient):
    """The score gradient whose baseline is the bound with a draw's log-weight replaced by a mean of the others'.

    The derivative of the bound in a weight is credited too: without it the estimator is biased.

    Args:
        mean: ``"geometric"``, of the weights (the mean of their logarithms), or ``"arithmetic"``.

    Raises:
        ValueError: an unknown mean, or a single particle.
    """

    def __init__(self, mean: Literal["geometric", "arithmetic"] = "geometric") -> None:
        self.mean = choice("VIMCO", "mean", mean, ["geometric", "arithmetic"])

    def check(self, estimator: Estimator) -> None:
        _check_several(estimator, "vimco")

    def loss(self, estimator: Estimator, call: Call) -> Tensor:
        densities = call.draw(detach=True).densities()
        log_weights = estimator.weigh(densities)
        credit = (_left_out(estimator, log_weights.detach(), self.mean) * densities.guide).sum()
        return -densities.scale * (estimator.bound(log_weights).sum() + gradient_only(credit))


class OVIS(Gradient):
    r"""The score gradient of ``IWELBO`` with the baseline that minimises its variance as K grows.

    .. math::  b_k = \log \tfrac{1}{K-1} \sum_{l \ne k} w_l - \gamma \tilde w_k + (1 - \gamma) \log(1 - 1/K)

    Args:
        gamma: 0 for few effective particles, 1 for many. At 0 it is unbiased. The reference implementation's gamma = 1
            is biased, because its baseline depends on the draw: its mean is the gradient of the bound plus that of
            wake-phi, which is what happens here too.

    Raises:
        ValueError: gamma outside [0, 1], a single particle, another bound than ``IWELBO``.
    """

    def __init__(self, gamma: float = 0.0) -> None:
        self.gamma = number("OVIS", "gamma", gamma, at_least=0, at_most=1)

    def check(self, estimator: Estimator) -> None:
        if not estimator.importance_weighted:
            raise ValueError(
                f"{type(estimator).__name__}: expected a gradient for this bound; got ovis, which is IWELBO's. "
                "Use gradient='score' or 'vimco'."
            )
        _check_several(estimator, "ovis")

    def loss(self, estimator: Estimator, call: Call) -> Tensor:
        densities = call.draw(detach=True).densities()
        log_weights = estimator.weigh(densities)
        weights = log_weights.detach()
        k = len(weights)
        others = leave_one_out_logsumexp(weights) - math.log(k - 1)
        baseline = others - self.gamma * weights.softmax(0) + (1 - self.gamma) * math.log(1 - 1 / k)
        credit = ((estimator.bound(weights) - baseline) * densities.guide).sum()
        return -densities.scale * (estimator.bound(log_weights).sum() + gradient_only(credit))


class Enumerate(Gradient):
    """Sums over the guide's discrete latents in place of drawing them: exact, for ``ELBO``.

    It is ``pyro.infer.TraceEnum_ELBO`` with every discrete site of the guide enumerated in parallel. As Pyro has it, it
    looks at a tensor's values on the way, so that its steps cannot be recorded and compiled.
    """

    def check(self, estimator: Estimator) -> None:
        if not estimator.enumerable:
            raise ValueError(
                f"{type(estimator).__name__}: expected a sampling gradient; got enumerate, which is for "
                "ELBO(beta=1, analytic_kl=False). Use gradient='score' or 'vimco'."
            )

    def loss(self, estimator: Estimator, call: Call) -> Tensor:
        assert call.structure is not None
        several = call.num_particles > 1
        enumeration = TraceEnum_ELBO(
            num_particles=call.num_particles,
            max_plate_nesting=call.structure.nesting,
            vectorize_particles=several and call.vectorize,
        )
        guide = config_enumerate(call.guide, "parallel")
        if not torch.is_grad_enabled():  # Pyro's differentiable loss insists on a gradient
            value = enumeration.loss(call.model, guide, *call.args, **call.kwargs)
            return torch.tensor(value, dtype=torch.float64)
        return enumeration.differentiable_loss(call.model, guide, *call.args, **call.kwargs)


def gradient_of(gradient: Gradient | GradientName) -> Gradient:
    """The gradient estimator of a name, or the object itself.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(gradient, Gradient):
        return gradient
    from pyro_vae.elbo.thermodynamic import Covariance  # it is that bound's own

    named: dict[str, type[Gradient]] = {
        "pathwise": Pathwise,
        "stl": STL,
        "dreg": DReG,
        "score": Score,
        "vimco": VIMCO,
        "ovis": OVIS,
        "enumerate": Enumerate,
        "covariance": Covariance,
    }
    if not isinstance(gradient, str) or gradient not in named:
        raise ValueError(
            f"gradient: expected one of {', '.join(named)}, or a Gradient; got {gradient!r}. Use one of these."
        )
    return named[gradient]()


def leave_one_out_logsumexp(x: Tensor) -> Tensor:
    """Log sum_{l != k} exp(x_l) along dim 0, without subtracting, which would cancel where one term dominates."""
    below = x.new_full((1, *x.shape[1:]), -math.inf)
    before = torch.cat([below, x.logcumsumexp(0)[:-1]])
    after = torch.cat([x.flip(0).logcumsumexp(0)[:-1].flip(0), below])
    return torch.logaddexp(before, after)


_baselines = itertools.count()


def gradient_only(x: Tensor) -> Tensor:
    """0, with the gradient of x."""
    return x - x.detach()


def _without_score(estimator: Estimator, draws: Draws, densities: LogDensities) -> Tensor:
    """Log-weights with the guide's parameters held constant in log q: they act through the draws alone."""
    constant = draws.guide_at_constants()
    _warn_of_slow_inverses(draws)
    return estimator.weigh(densities) + estimator.latent_weight * gradient_only(constant)


def _left_out(estimator: Estimator, log_weights: Tensor, mean: str) -> Tensor:
    """F minus F with log w_k replaced by a mean of the others, (K, N)."""
    k = len(log_weights)
    if mean == "geometric":
        others = (log_weights.sum(0) - log_weights) / (k - 1)
    else:
        others = leave_one_out_logsumexp(log_weights) - math.log(k - 1)
    index = torch.arange(k, device=log_weights.device)
    replaced = log_weights.unsqueeze(1).repeat(1, k, *[1] * (log_weights.dim() - 1))
    replaced[index, index] = others
    return estimator.bound(log_weights) - estimator.bound(replaced.flatten(1)).reshape(log_weights.shape)


def _check_several(estimator: Estimator, what: str) -> None:
    if estimator.num_particles < 2:
        raise ValueError(
            f"{type(estimator).__name__}: expected num_particles at least 2 for {what}; got "
            f"{estimator.num_particles}. Draw more particles, or use gradient='score'."
        )


def check_reparameterised(draws: Draws, estimator: Estimator, gradient: Gradient) -> None:
    """Refuses a latent without pathwise gradient.

    Raises:
        ValueError: naming the site and gradients that serve it.
    """
    for name, _, site in draws.runs[0].latents():
        if not site["fn"].has_rsample:
            raise ValueError(
                f"{type(estimator).__name__}: expected a reparameterised guide at site {name!r} for "
                f"{type(gradient).__name__.lower()} gradients; got {describe(site['fn'])}, whose gradient would "
                "silently be 0. Use gradient='score', 'vimco' (K >= 2) or, with ELBO, 'enumerate'; or a relaxed "
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
