r"""Anomalies: data that the model holds to be improbable, by a threshold of a stated false-alarm rate.

The score of a datum is :math:`-\log p(x)` in nats. With z from the posterior,

.. math::
    -\log p(x) = \sum_d E_{p(z|x)}[-\log p(x_d|z)] + \mathrm{KL}(p(z|x) \| p(z)),

exactly, for a likelihood that is a product over elements. The terms of the sum are the shares of the elements: what is
improbable in each, given the best account that the latents can give of all of them. The KL is the share of the latents:
how far the datum had to go from the usual ones to be accounted for. Shares add up to the score, and cost one run.
Conditionals :math:`-\log p(x_d|x_{-d})` do not add up, and cost a run for each element;
:func:`~pyro_vae.evaluation.log_conditional_likelihood` has them.

Densities of reals depend on the units of a column, and some columns are harder to tell than others. So what speaks for
an anomaly is a share in excess of its average over normal data, from which units cancel: :meth:`Scores.excess`.

Threshold and alarms: of n held-out normal data with scores :math:`s_{(1)} \le \dots \le s_{(n)}`, the threshold is
:math:`s_{(r)}`, r = ceil((1 - alpha)(n + 1)). A further normal datum is above it with probability at most alpha, on
average over held-out sets, whatever the model is worth. The false-alarm rate of this one threshold is a draw from
Beta(n + 1 - r, r), where scores are continuous, and its quantiles are the interval of the threshold.

A density is no measure of being typical: a model of images can give other, simpler images a higher density than its own
training data (Nalisnick et al., 2019). The threshold's false-alarm rate holds all the same; what is detected does not
follow from it.

Shapes: N data, S samples.

References:
    Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005, https://doi.org/10.1007/b106715 (r)
    Nalisnick, Matsukawa, Teh, Gorur, Lakshminarayanan, "Do Deep Generative Models Know What They Don't Know?", 2019,
    https://arxiv.org/abs/1810.09136
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.distributions.elementwise import elementwise_log_prob
from pyro_vae.evaluation.importance import LogMarginalLikelihood, warn_unreliable, weighted_draws
from pyro_vae.evaluation.likelihood_of_draws import at_draws, check_likelihood
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.rates import Rate, area_under_curve, beta_quantile, binomial_rate, check_confidence
from pyro_vae.evaluation.results import Estimate, Result
from pyro_vae.models import Program


@dataclass(frozen=True)
class Scores(Result):
    """How improbable each datum is.

    Shapes: N data.

    Attributes:
        value: -log p(x), (N,), in nats; of the observed elements, where some are missing. Higher is more anomalous.
        log_marginal_likelihood: log p(x) with its standard error, effective sample size and k-hat.
        shares: of each element in ``value``, (N, ...), in nats, NaN for a missing one; None where none were asked for.
        shares_error: standard error of each share through the noise of the S draws, to which fewer effective draws
            than S add.
        unit: of all of them.
    """

    value: Tensor
    log_marginal_likelihood: LogMarginalLikelihood
    shares: Tensor | None
    shares_error: Tensor | None
    unit: str = field(default="nats", init=False)

    @property
    def latent_share(self) -> Tensor:
        """What the shares leave of ``value``, (N,): KL(p(z|x) || p(z)), and -log p of what else the model observes.

        Raises:
            ValueError: there are no shares.
        """
        return self.value - self._shares().flatten(1).nansum(1)

    def excess(self, normal: Scores) -> Tensor:
        """Shares less their averages over normal data, (N, ...), in nats whatever the units of the elements.

        With the excess of ``latent_share`` they add up to the score less the average score. A missing element has
        NaN, and the average is over the data that have it.

        Args:
            normal: scores of normal data, best of such as were not trained on, from the same program.

        Raises:
            ValueError: there are no shares, or they are of data of another shape.
        """
        checks.instance("Scores.excess", "normal", normal, Scores, "Score normal data.")
        own, other = self._shares(), normal._shares()
        if own.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"Scores.excess: expected normal data of shape (N, {', '.join(map(str, own.shape[1:]))}); got "
                f"{tuple(other.shape)}. Score data of one kind with one program."
            )
        return own - other.nanmean(0)

    def threshold(self, false_alarm_rate: float, *, confidence: float = 0.95) -> Threshold:
        """The threshold of a stated false-alarm rate, from these as scores of normal data that were held out.

        Args:
            false_alarm_rate: share of normal data that may be above it, above 0 and below 1.
            confidence: of the interval of its own false-alarm rate.

        Raises:
            ValueError: fewer than 1 / false_alarm_rate - 1 data, scores that are not finite, a number out of range.
        """
        who = "Scores.threshold"
        alpha = checks.number(who, "false_alarm_rate", false_alarm_rate, above=0, below=1)
        check_confidence(who, confidence)
        n = len(self.value)
        rank = math.ceil((1 - alpha) * (n + 1) - 1e-9)
        if rank > n:
            raise ValueError(
                f"{who}: expected at least {math.ceil(1 / alpha - 1e-9) - 1} held-out data for a false-alarm rate of "
                f"{alpha:g}; got {n}. Hold out more, or allow more false alarms."
            )
        if bool(self.value.isnan().any()):
            raise ValueError(f"{who}: expected scores that are numbers; got NaN. Look for NaN in the program.")
        value = self.value.sort().values[rank - 1].item()
        tail = (1 - confidence) / 2
        low, high = (beta_quantile(p, n + 1 - rank, rank) for p in (tail, 1 - tail))
        own = Rate((n + 1 - rank) / (n + 1), low, high, confidence, n, "order statistic")
        return Threshold(value, alpha, own, self.log_marginal_likelihood.num_particles)

    @property
    def unreliable(self) -> list[int]:
        """The data whose k-hat is above 0.7: their scores are likely too high."""
        return self.log_marginal_likelihood.unreliable

    def estimates(self) -> dict[str, Estimate]:
        k = self.log_marginal_likelihood.num_particles
        latent = {} if self.shares is None else {"latent_share": Estimate.of(self.latent_share, k)}
        figures = self.log_marginal_likelihood.estimates()
        return {"score": Estimate.of(self.value, k), **latent, "unreliable": figures["unreliable"]}

    def _shares(self) -> Tensor:
        if self.shares is None:
            raise ValueError("Scores: expected shares; got scores without. Score with num_samples=200, for example.")
        return self.shares


@dataclass(frozen=True)
class Threshold(Result):
    """A score above which a datum is an alarm.

    Attributes:
        value: the threshold, in nats.
        false_alarm_rate: that was asked for.
        own_rate: the false-alarm rate of this very threshold, by what is known of it from the held-out data alone: its
            mean, at most what was asked for, and the quantiles of its Beta distribution.
        num_particles: K of the scores that it was made from, and that it may be held against.
        unit: of ``value``.
    """

    value: float
    false_alarm_rate: float
    own_rate: Rate
    num_particles: int
    unit: str = field(default="nats", init=False)

    def alarms(self, scores: Scores) -> Tensor:
        """Which data are above the threshold, (N,).

        Args:
            scores: from the same program, with as many particles: fewer make scores higher.

        Raises:
            ValueError: another number of particles.
        """
        checks.instance("Threshold.alarms", "scores", scores, Scores, "Score the data.")
        num_particles = scores.log_marginal_likelihood.num_particles
        if num_particles != self.num_particles:
            raise ValueError(
                f"Threshold.alarms: expected scores of {self.num_particles} particles, like the threshold's; got "
                f"{num_particles}, whose bias is another. Score with num_particles={self.num_particles}."
            )
        return scores.value > self.value

    def rate(self, scores: Scores, *, confidence: float = 0.95) -> Rate:
        """The share of alarms: the false-alarm rate on normal data, the detection rate on anomalous ones.

        Args:
            scores: as for :meth:`alarms`, of data that the threshold was not made from.
            confidence: of the interval, which is Clopper and Pearson's.

        Raises:
            ValueError: as :meth:`alarms`, or a confidence out of range.
        """
        check_confidence("Threshold.rate", confidence)
        alarms = self.alarms(scores)
        return binomial_rate(int(alarms.sum()), len(alarms), confidence)

    def __str__(self) -> str:
        return f"{self.value:.6g} nats for a false-alarm rate of {self.false_alarm_rate:g}; its own is {self.own_rate}"


@in_evaluation_mode
def score(
    program: Program,
    x: Tensor,
    *context: Tensor,
    num_samples: int = 200,
    num_particles: int = 5000,
    memory: int | None = None,
    batch_size: int | None = None,
    plate: str = "data",
    progress: bool = True,
) -> Scores:
    """Scores every datum by -log p(x), in nats, with the share of each element.

    Shapes: N data, K particles, S samples.

    With a context c it is -log p(x|c). Where the guide proposes badly, as for data unlike those it was trained on, the
    score is too high on average, and k-hat says so. Scores of rows with different elements missing count different
    elements.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide.
        context: their further arguments.
        num_samples: S, posterior draws per datum over which the shares are averaged; 0 for scores without shares.
        num_particles: K, draws per datum; the same for data that are to be compared.
        memory: bytes that the draws in flight may take, whatever K; None for an amount that is fast.
        batch_size: data to run at once; None chooses it. Pass N where the guide's parameters belong to the data.
        plate: name of the plate over the data.
        progress: show a bar.

    Warns:
        UserWarning: k-hat is above 0.7, naming the data.

    Raises:
        TypeError: shares of a likelihood that is no product over elements.
        ValueError: x not observed as it is, for shares; see :func:`~pyro_vae.evaluation.log_marginal_likelihood`.

    References:
        See :mod:`pyro_vae.evaluation.anomalies`.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the posterior
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> program = SimpleNamespace(model=model, guide=guide)
        >>> how = {"num_samples": 0, "num_particles": 100, "progress": False}
        >>> held_out = score(program, torch.linspace(-2, 2, 39), **how)
        >>> threshold = held_out.threshold(0.05)
        >>> round(threshold.value, 4)  # -log Normal(2; 0, 2), the second largest of 39
        2.2655
        >>> print(threshold.own_rate)  # quantiles of Beta(2, 38)
        0.0500, 95% interval 0.0063 to 0.1348 (order statistic, N = 39)
        >>> threshold.alarms(score(program, torch.tensor([0.0, 4.0]), **how))
        tensor([False,  True])
    """
    args = (x, *context)
    num_samples = checks.whole("score", "num_samples", num_samples, 0)
    if num_samples:
        check_likelihood("score", program, args, batch_size)
    figures, latents = weighted_draws(
        "score",
        program,
        args,
        num_samples=num_samples,
        num_particles=num_particles,
        memory=memory,
        batch_size=batch_size,
        plate=plate,
        progress=progress,
    )
    shares = error = None
    if num_samples:
        drawn = at_draws("score", program, args, latents, _shares_of, memory=memory, batch_size=batch_size, plate=plate)
        shares = torch.cat([part.mean(0) for part in drawn]).masked_fill(x.isnan(), math.nan)
        error = torch.cat([part.std(0) for part in drawn]) / math.sqrt(num_samples)
    warn_unreliable("score", figures.unreliable, len(x), "high")
    return Scores(-figures.value, figures, shares, error)


@partial(checks.arguments, "auc")
def auc(normal: Scores, anomalous: Scores, *, confidence: float = 0.95) -> Rate:
    """The area under the receiver operating characteristic: how often an anomalous datum has the higher score.

    1/2 is chance, 1 no overlap at all. It holds for all thresholds together, and depends on none.

    Args:
        normal: scores of normal data that were not trained on.
        anomalous: scores of anomalous data, from the same program with as many particles.
        confidence: of the interval, which is DeLong's on the scale of log-odds.

    Raises:
        ValueError: different numbers of particles, NaN among the scores, a confidence out of range.

    Example:
        >>> import torch
        >>> from pyro_vae.evaluation.rates import area_under_curve
        >>> print(area_under_curve(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.5, 4.0, 5.0]), 0.95))
        0.8889, 95% interval 0.2614 to 0.9945 (DeLong, N = 6)
    """
    check_confidence("auc", confidence)
    one, other = (scores.log_marginal_likelihood.num_particles for scores in (normal, anomalous))
    if one != other:
        raise ValueError(
            f"auc: expected scores of one number of particles; got {one} and {other}, whose biases differ. Score both "
            "with the same."
        )
    if bool(torch.cat([normal.value, anomalous.value]).isnan().any()):
        raise ValueError("auc: expected scores that are numbers; got NaN. Look for NaN in the program.")
    return area_under_curve(normal.value, anomalous.value, confidence)


def _shares_of(distribution: Any, x: Tensor) -> Tensor:
    """-log p of each element of x, of the shape of a draw."""
    if not distribution.event_shape:
        return -distribution.log_prob(x)
    try:
        return -elementwise_log_prob(distribution, x)
    except TypeError as error:
        raise TypeError(
            f"score: expected a likelihood that is a product over elements, for their shares; got "
            f"{type(distribution).__name__}. Use num_samples=0, which leaves the shares out."
        ) from error
