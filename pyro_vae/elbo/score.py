"""Score-function gradients, which serve any guide: they differ in the baseline that is subtracted from the signal.

Shapes: N data, K particles.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.checks import choice, number
from pyro_vae.elbo.draws import Call
from pyro_vae.elbo.gradients import Bound, Gradient, gradient_only


class ScoreFunction(Gradient):
    """Credits log q of every draw with what the draw brought; draws are constants."""

    @abstractmethod
    def credit(
        self, estimator: Bound, log_weights: Tensor, call: Call, counted: Tensor | None
    ) -> tuple[Tensor, Tensor | float]:
        """What log q of each draw is multiplied by, and the objective by which a learned baseline is fitted.

        Args:
            estimator: the bound.
            log_weights: (K, N), constants.
            call: what was run.
            counted: which data are not masked out, (N,); None for all.

        Returns:
            The factor, (K, N), a constant, and a scalar.
        """

    def loss(self, estimator: Bound, call: Call) -> Tensor:
        draws = call.draw(detach=True)
        densities = draws.densities()
        log_weights = estimator.weigh(densities)
        credit, regression = self.credit(estimator, log_weights.detach(), call, draws.counted())
        surrogate = (credit * densities.score).sum() - regression
        return -densities.scale * (estimator.bound(log_weights).sum() + gradient_only(surrogate))


class Score(ScoreFunction):
    """The score-function gradient (REINFORCE), for any guide, discrete ones included.

    Args:
        baseline: subtracted from the bound to lower the variance, without bias: None; ``"running_mean"``, of the
            signal over past steps; ``"leave_one_out"``, the bound with a draw's log-weight replaced by the mean of the
            others', K >= 2; or a module from the program's arguments to (N,), fitted to the signal by least squares
            as its parameters are optimized with the rest (Mnih, Gregor, "Neural variational inference and learning in
            belief networks", 2014, https://arxiv.org/abs/1402.0030).

    Raises:
        ValueError: an unknown baseline.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae.elbo import ELBO
        >>> logit = torch.zeros(10_000, requires_grad=True)  # of a guide that is as yet the prior
        >>> def model():
        ...     with pyro.plate("data", 10_000):
        ...         bit = pyro.sample("bit", dist.Bernoulli(torch.full((10_000,), 0.5)))
        ...         pyro.sample("x", dist.Bernoulli(0.3 + 0.4 * bit), obs=torch.ones(10_000))
        >>> def guide():
        ...     with pyro.plate("data", 10_000):
        ...         pyro.sample("bit", dist.Bernoulli(logits=logit))
        >>> for baseline in (None, "leave_one_out"):  # of which the mean is log(0.7 / 0.3) / 4 = 0.21 in closed form
        ...     loss = ELBO(2, Score(baseline)).differentiable_loss(model, guide)
        ...     (grads,) = torch.autograd.grad(loss, logit)
        ...     print(f"{-grads.mean():.1f} ± {grads.std():.1f}")
        0.2 ± 0.6
        0.2 ± 0.4
    """

    def __init__(self, baseline: Literal["running_mean", "leave_one_out"] | nn.Module | None = None) -> None:
        words = baseline is None or (isinstance(baseline, str) and baseline in ("running_mean", "leave_one_out"))
        if not (words or isinstance(baseline, nn.Module)):
            raise ValueError(
                "Score: expected baseline None, 'running_mean', 'leave_one_out' or a module; got "
                f"{baseline!r}. Use one of these."
            )
        self.baseline = baseline
        self._running: Tensor | None = None  # the mean, the number of steps in it, and the signals of the last step
        self._name = f"baseline{next(_baselines)}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pyro's param store keys by name: a copy under the old one would silently stay untrained.
        self.__dict__.update(state, _name=f"baseline{next(_baselines)}")

    def buffers(self) -> list[Tensor]:
        return [] if self._running is None else [self._running]

    def pooled(self, before: Tensor, after: Sequence[Tensor]) -> Tensor:
        # The mean of a part is what was before and its own average, weighed by numbers that are the same for all.
        mean, steps, signals = torch.stack(list(after)).unbind(-1)
        total = signals.sum()
        pooled = torch.where(total > 0, (signals * mean).sum() / total.clamp(min=1), before[0])
        return torch.stack([pooled, steps.max(), total])

    def check(self, estimator: Bound) -> None:
        if self.baseline == "leave_one_out":
            _check_several(estimator, "a leave-one-out baseline")

    def modules(self) -> list[nn.Module]:
        return [self.baseline] if isinstance(self.baseline, nn.Module) else []

    def declare(self) -> None:
        if isinstance(self.baseline, nn.Module):
            pyro.module(self._name, self.baseline)

    def credit(
        self, estimator: Bound, log_weights: Tensor, call: Call, counted: Tensor | None
    ) -> tuple[Tensor, Tensor | float]:
        signal = estimator.signal(log_weights)
        if self.baseline == "leave_one_out":
            return _left_out(estimator, log_weights, "geometric"), 0.0
        if isinstance(self.baseline, nn.Module):
            self.declare()
            prediction = self.baseline(*call.args, **call.kwargs)
            if prediction.shape != signal.shape[-1:]:
                raise ValueError(
                    f"Score: expected a baseline of shape (N,) = {tuple(signal.shape[-1:])}; got "
                    f"{tuple(prediction.shape)}. Return one number for each datum."
                )
            errors = prediction - signal
            fitted = errors if counted is None else errors.where(counted, 0.0)
            return signal - prediction.detach(), 0.5 * fitted.square().sum()
        if self.baseline == "running_mean":
            return signal - self._running_mean(signal, counted), 0.0
        return signal, 0.0

    def _running_mean(self, signal: Tensor, counted: Tensor | None) -> Tensor:
        """The mean of past steps' signals, which this step's joins."""
        self._running = signal.new_zeros(3) if self._running is None else self._running.to(signal)
        mean, steps, _ = self._running.clone()
        if torch.is_grad_enabled():  # evaluation is no step
            rows = torch.ones_like(signal) if counted is None else counted.expand_as(signal).to(signal)
            number_ = rows.sum()
            average = (rows * signal).sum() / number_.clamp(min=1)
            average = torch.where(steps > 0, 0.9 * mean + 0.1 * average, average)
            self._running[0] = torch.where(number_ > 0, average, mean)
            self._running[1] += number_ > 0
            self._running[2] = number_
        return mean


class VIMCO(ScoreFunction):
    """The score gradient whose baseline is the bound with a draw's log-weight replaced by a mean of the others'.

    The derivative of the bound in a weight is credited too: without it the estimator is biased.

    Args:
        mean: ``"geometric"``, of the weights (the mean of their logarithms), or ``"arithmetic"``.

    Raises:
        ValueError: an unknown mean, or a single particle.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae.elbo import IWELBO
        >>> logit = torch.zeros(10_000, requires_grad=True)  # of a guide that is as yet the prior
        >>> def model():
        ...     with pyro.plate("data", 10_000):
        ...         bit = pyro.sample("bit", dist.Bernoulli(torch.full((10_000,), 0.5)))
        ...         pyro.sample("x", dist.Bernoulli(0.2 + 0.6 * bit), obs=torch.ones(10_000))
        >>> def guide():
        ...     with pyro.plate("data", 10_000):
        ...         pyro.sample("bit", dist.Bernoulli(logits=logit))
        >>> for gradient in ("score", "vimco"):  # of which the mean is 0.1966 in closed form
        ...     (grads,) = torch.autograd.grad(IWELBO(2, gradient).differentiable_loss(model, guide), logit)
        ...     print(f"{-grads.mean():.1f} ± {grads.std():.1f}")
        0.2 ± 1.1
        0.2 ± 0.4
    """

    def __init__(self, mean: Literal["geometric", "arithmetic"] = "geometric") -> None:
        self.mean = choice("VIMCO", "mean", mean, ["geometric", "arithmetic"])

    def check(self, estimator: Bound) -> None:
        _check_several(estimator, "vimco")

    def credit(
        self, estimator: Bound, log_weights: Tensor, call: Call, counted: Tensor | None
    ) -> tuple[Tensor, Tensor | float]:
        return _left_out(estimator, log_weights, self.mean), 0.0


class OVIS(ScoreFunction):
    r"""The score gradient of ``IWELBO`` with the baseline that minimizes its variance as K grows.

    .. math::  b_k = \log \tfrac{1}{K-1} \sum_{l \ne k} w_l - \gamma \tilde w_k + (1 - \gamma) \log(1 - 1/K)

    Args:
        gamma: 0 for few effective particles, 1 for many. At 0 it is unbiased. The reference implementation's gamma = 1
            is biased, because its baseline depends on the draw: its mean is the gradient of the bound plus that of
            wake-phi, which is what happens here too.

    Raises:
        ValueError: gamma outside [0, 1], a single particle, another bound than ``IWELBO``.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae.elbo import IWELBO
        >>> logit = torch.zeros(10_000, requires_grad=True)  # of a guide that is as yet the prior
        >>> def model():
        ...     with pyro.plate("data", 10_000):
        ...         bit = pyro.sample("bit", dist.Bernoulli(torch.full((10_000,), 0.5)))
        ...         pyro.sample("x", dist.Bernoulli(0.2 + 0.6 * bit), obs=torch.ones(10_000))
        >>> def guide():
        ...     with pyro.plate("data", 10_000):
        ...         pyro.sample("bit", dist.Bernoulli(logits=logit))
        >>> for gradient in ("vimco", "ovis"):  # of which the mean is 0.1276 in closed form
        ...     (grads,) = torch.autograd.grad(IWELBO(3, gradient).differentiable_loss(model, guide), logit)
        ...     print(f"{-grads.mean():.1f} ± {grads.std():.1f}")
        0.1 ± 0.3
        0.1 ± 0.1
    """

    def __init__(self, gamma: float = 0.0) -> None:
        self.gamma = number("OVIS", "gamma", gamma, at_least=0, at_most=1)

    def check(self, estimator: Bound) -> None:
        if not estimator.importance_weighted:
            raise ValueError(
                f"{type(estimator).__name__}: expected a gradient for this bound; got ovis, which is IWELBO's. "
                "Use gradient='score' or 'vimco'."
            )
        _check_several(estimator, "ovis")

    def credit(
        self, estimator: Bound, log_weights: Tensor, call: Call, counted: Tensor | None
    ) -> tuple[Tensor, Tensor | float]:
        k = len(log_weights)
        others = leave_one_out_logsumexp(log_weights) - math.log(k - 1)
        baseline = others - self.gamma * log_weights.softmax(0) + (1 - self.gamma) * math.log(1 - 1 / k)
        return estimator.bound(log_weights) - baseline, 0.0


def leave_one_out_logsumexp(x: Tensor) -> Tensor:
    """Log sum_{l != k} exp(x_l) along dim 0, without subtracting, which would cancel where one term dominates."""
    below = x.new_full((1, *x.shape[1:]), -math.inf)
    before = torch.cat([below, x.logcumsumexp(0)[:-1]])
    after = torch.cat([x.flip(0).logcumsumexp(0)[:-1].flip(0), below])
    return torch.logaddexp(before, after)


_baselines = itertools.count()


_NUMBERS = 2**24  # that are held at once, of K x K x N of them


def _left_out(estimator: Bound, log_weights: Tensor, mean: str) -> Tensor:
    """F minus F with log w_k replaced by a mean of the others, (K, N)."""
    k = len(log_weights)
    if mean == "geometric":
        others = (log_weights.sum(0) - log_weights) / (k - 1)
    else:
        others = leave_one_out_logsumexp(log_weights) - math.log(k - 1)
    rows = max(1, _NUMBERS // log_weights.numel())
    replaced = [_replaced(estimator, log_weights, others, range(i, min(i + rows, k))) for i in range(0, k, rows)]
    return estimator.bound(log_weights) - torch.cat(replaced)


def _replaced(estimator: Bound, log_weights: Tensor, others: Tensor, which: range) -> Tensor:
    """F with one log-weight replaced, for each of some, (len(which), N)."""
    index = torch.arange(len(which), device=log_weights.device)
    replaced = log_weights.unsqueeze(1).repeat(1, len(which), *[1] * (log_weights.dim() - 1))
    replaced[index + which.start, index] = others[which.start : which.stop]
    return estimator.bound(replaced.flatten(1)).reshape(len(which), *log_weights.shape[1:])


def _check_several(estimator: Bound, what: str) -> None:
    if estimator.num_particles < 2:
        raise ValueError(
            f"{type(estimator).__name__}: expected num_particles at least 2 for {what}; got "
            f"{estimator.num_particles}. Draw more particles, or use gradient='score'."
        )
