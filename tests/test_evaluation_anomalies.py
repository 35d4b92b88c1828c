"""Scores against the closed form of factor analysis; rates and areas against what intervals promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from oracles import FactorAnalysis
from scipy import stats
from torch import Tensor

from pyro_vae import VAE, conditionals, evaluation, likelihoods, nets
from pyro_vae.evaluation.rates import area_under_curve, beta_quantile, binomial_rate
from pyro_vae.priors import StandardNormal

ORACLE = FactorAnalysis.random()
quiet: dict[str, Any] = {"progress": False}


def scores_of(values: Tensor, num_particles: int = 100) -> evaluation.Scores:
    """Scores without a program."""
    none = torch.full_like(values, math.nan)
    return evaluation.Scores(
        values, evaluation.LogMarginalLikelihood(-values, none, none, none, num_particles), None, None
    )


def exact_shares(x: Tensor) -> Tensor:
    """E[-log p(x_d|z)] under the posterior, (N, D), NaN where x is missing."""
    loc, covariance = ORACLE.posterior(x)
    mean = loc @ ORACLE.weight.T + ORACLE.bias
    variance = torch.einsum("di,nij,dj->nd", ORACLE.weight, covariance, ORACLE.weight)
    return 0.5 * math.log(2 * math.pi) + ORACLE.scale.log() + ((x - mean) ** 2 + variance) / (2 * ORACLE.scale.square())


def exact_kl(x: Tensor) -> Tensor:
    loc, covariance = ORACLE.posterior(x)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    return (loc.square().sum(1) + trace - loc.shape[1] - covariance.logdet()) / 2


def test_score_and_its_shares_are_those_of_factor_analysis() -> None:
    x = ORACLE.draw(60, seed=4)
    x[1, 2] = x[2, :3] = math.nan
    torch.testing.assert_close(
        exact_shares(x).nansum(1) + exact_kl(x), -ORACLE.log_marginal_likelihood(x), rtol=1e-9, atol=1e-9
    )  # the decomposition itself
    torch.manual_seed(0)
    scores = evaluation.score(ORACLE.vae(widen=1.3, shift=0.2), x, num_samples=400, num_particles=4000, **quiet)
    assert scores.unreliable == []
    z = (scores.value + ORACLE.log_marginal_likelihood(x)) / scores.log_marginal_likelihood.standard_error
    assert z.square().mean() == pytest.approx(1, abs=5 * math.sqrt(2 / 60))
    assert scores.shares is not None
    assert scores.shares_error is not None
    assert torch.equal(scores.shares.isnan(), x.isnan())
    present = ~x.isnan()
    z = ((scores.shares - exact_shares(x)) / scores.shares_error)[present]
    assert z.square().mean() == pytest.approx(1.2, abs=0.4)  # draws with replacement of 4,000 add a tenth or two
    assert z.abs().max() < 5
    torch.testing.assert_close(scores.latent_share + scores.shares.nansum(1), scores.value)
    error = scores.shares_error.square().sum(1).sqrt() * 2  # elements go up and down together
    assert ((scores.latent_share - exact_kl(x)).abs() < 5 * error).all()


def test_Scores_excess_points_at_the_element_that_was_spoiled_whatever_its_units() -> None:
    x = ORACLE.draw(200, seed=6)
    spoiled = ORACLE.draw(50, seed=7)
    element = torch.arange(50) % 5
    spoiled[torch.arange(50), element] += 12 * ORACLE.scale[element]
    torch.manual_seed(0)
    vae = ORACLE.vae()
    how: dict[str, Any] = {"num_samples": 100, "num_particles": 500}
    normal, anomalous = (evaluation.score(vae, data, **how, **quiet) for data in (x, spoiled))
    excess = anomalous.excess(normal)
    assert (excess.argmax(1) == element).double().mean() > 0.7
    rest = anomalous.latent_share - normal.latent_share.mean()
    torch.testing.assert_close(excess.sum(1) + rest, anomalous.value - normal.value.mean())
    # A column in other units moves its share by a constant, and the excess not at all.
    factor = torch.tensor([1e3, 1.0, 1.0, 1e-3, 1.0], dtype=torch.float64)
    other = FactorAnalysis(factor[:, None] * ORACLE.weight, factor * ORACLE.bias, factor * ORACLE.scale).vae()
    scaled = [evaluation.score(other, factor * data, **how, **quiet) for data in (x, spoiled)]
    assert (scaled[1].value - anomalous.value).abs().max() < 1e-6
    assert ((scaled[1].excess(scaled[0]) - excess).abs().mean()) < 0.5


def test_Scores_excess_leaves_missing_elements_out() -> None:
    x = ORACLE.draw(30, seed=6)
    x[:10, 0] = math.nan
    vae = ORACLE.vae()
    how: dict[str, Any] = {"num_samples": 50, "num_particles": 200}
    scores = evaluation.score(vae, x, **how, **quiet)
    excess = scores.excess(scores)
    assert torch.equal(excess.isnan(), x.isnan())
    torch.testing.assert_close(excess.nanmean(0), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_score_takes_likelihoods_that_couple_elements_without_shares() -> None:
    vae = VAE(
        StandardNormal(1),
        likelihoods.OneHotCategorical(nets.MLP(1, []), 3),
        conditionals.DiagonalNormal(nets.MLP(3, []), 1),
    )
    x = torch.eye(3)
    for parameter in vae.posterior.parameters():
        torch.nn.init.zeros_(parameter)
    scores = evaluation.score(vae, x, num_samples=0, num_particles=200, **quiet)
    assert scores.value.sum() > 0
    with pytest.raises(
        TypeError, match=r"score: expected a likelihood that is a product over elements, .* num_samples=0"
    ):
        evaluation.score(vae, x, num_particles=200, **quiet)
    with pytest.raises(ValueError, match=r"Scores: expected shares; got scores without\. Score with num_samples=200"):
        _ = scores.latent_share
    assert list(scores.estimates()) == ["score", "unreliable"]


def test_score_warns_where_the_guide_does_not_reach() -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"score: expected Pareto k-hat at most 0\.7; got more for"):
        evaluation.score(ORACLE.vae(widen=0.1, shift=2.0), ORACLE.draw(10), num_particles=500, **quiet)


@pytest.mark.parametrize(("count", "num_data"), [(0, 7), (3, 50), (50, 50), (400, 10_000), (9_999, 10_000)])
def test_binomial_rate_is_that_of_scipy(count: int, num_data: int) -> None:
    for confidence in (0.5, 0.95, 0.999):
        rate = binomial_rate(count, num_data, confidence)
        exact = stats.binomtest(count, num_data).proportion_ci(confidence, method="exact")
        assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high), rel=1e-9, abs=1e-15)
        assert rate.low <= rate.value <= rate.high


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 38), (500, 9_501), (10_000, 1), (1, 100_000)])
def test_beta_quantile_is_that_of_scipy(a: int, b: int) -> None:
    for probability in (1e-6, 0.025, 0.5, 0.975):
        assert beta_quantile(probability, a, b) == pytest.approx(stats.beta.ppf(probability, a, b), rel=1e-8)


@pytest.mark.slow
def test_Scores_threshold_keeps_the_false_alarm_rate_and_its_interval() -> None:
    """Scores are uniform, so that the rate of a threshold t is 1 - t exactly."""
    generator = torch.Generator().manual_seed(0)
    repeats, n, alpha = 1000, 99, 0.05
    rates, held = [], 0
    for _ in range(repeats):
        threshold = scores_of(torch.rand(n, generator=generator, dtype=torch.float64)).threshold(alpha, confidence=0.9)
        rates.append(1 - threshold.value)
        held += threshold.own_rate.low <= 1 - threshold.value <= threshold.own_rate.high
    own = threshold.own_rate
    assert own.value == pytest.approx(alpha)
    error = math.sqrt(alpha * (1 - alpha) / (n + 1) / repeats)
    assert sum(rates) / repeats == pytest.approx(alpha, abs=3 * error)
    assert held / repeats == pytest.approx(0.9, abs=3 * math.sqrt(0.09 / repeats))


def test_Scores_threshold_with_ties_gives_fewer_alarms() -> None:
    scores = scores_of(torch.tensor([1.0] * 90 + [2.0] * 9))
    threshold = scores.threshold(0.05)
    assert threshold.value == 2
    assert not threshold.alarms(scores).any()


def test_Scores_threshold_refuses_too_few_data() -> None:
    with pytest.raises(ValueError, match=r"expected at least 99 held-out data for a false-alarm rate of 0\.01; got 98"):
        scores_of(torch.arange(98.0)).threshold(0.01)
    assert scores_of(torch.arange(99.0)).threshold(0.01).value == 98
    with pytest.raises(ValueError, match=r"Scores.threshold: expected false_alarm_rate above 0 and below 1; got 1\."):
        scores_of(torch.arange(98.0)).threshold(1.0)
    with pytest.raises(ValueError, match="expected confidence above 0 and below 1; got 95"):
        scores_of(torch.arange(98.0)).threshold(0.1, confidence=95)
    with pytest.raises(ValueError, match="expected scores that are numbers; got NaN"):
        scores_of(torch.full((98,), math.nan)).threshold(0.1)


def test_Threshold_refuses_scores_of_another_bias() -> None:
    threshold = scores_of(torch.arange(99.0), 100).threshold(0.1)
    with pytest.raises(ValueError, match="expected scores of 100 particles, like the threshold's; got 50"):
        threshold.alarms(scores_of(torch.arange(9.0), 50))
    with pytest.raises(ValueError, match="auc: expected scores of one number of particles; got 100 and 50"):
        evaluation.auc(scores_of(torch.arange(9.0), 100), scores_of(torch.arange(9.0), 50))


def test_auc_is_the_share_of_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    normal, anomalous = (torch.randint(0, 9, (n,), generator=generator).double() for n in (40, 30))
    anomalous += 2
    pairs = anomalous[:, None] - normal
    rate = evaluation.auc(scores_of(normal), scores_of(anomalous))
    assert rate.value == pytest.approx(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean().item())
    swapped = evaluation.auc(scores_of(anomalous), scores_of(normal))
    assert swapped.value == pytest.approx(1 - rate.value)
    assert (swapped.low, swapped.high) == pytest.approx((1 - rate.high, 1 - rate.low))


def test_auc_without_overlap_is_not_certain() -> None:
    rate = area_under_curve(torch.arange(20.0), torch.arange(100.0, 110.0), 0.95)
    assert (rate.value, rate.high) == (1, 1)
    assert rate.low == pytest.approx(0.025**0.1)  # Clopper and Pearson's for 10 of 10
    assert rate.method == "Clopper-Pearson of pairs"


@pytest.mark.slow
@pytest.mark.parametrize("separation", [0.5, 1.5])
def test_auc_interval_holds_the_area_as_often_as_it_says(separation: float) -> None:
    """Normal scores of unit variance, whose area is Phi(separation / sqrt 2)."""
    truth = stats.norm.cdf(separation / math.sqrt(2))
    generator = torch.Generator().manual_seed(1)
    repeats, held = 2000, 0
    for _ in range(repeats):
        normal, anomalous = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (60, 40))
        rate = area_under_curve(normal, anomalous + separation, 0.95)
        held += rate.low <= truth <= rate.high
    assert held / repeats == pytest.approx(0.95, abs=3 * math.sqrt(0.05 * 0.95 / repeats) + 0.005)


@pytest.mark.slow
def test_Threshold_rates_and_area_on_further_data_lie_within_their_intervals() -> None:
    """Factor analysis, and the same with its latents three times as wide: rates of either against many more data."""
    vae = ORACLE.vae(widen=1.2)
    how: dict[str, Any] = {"num_samples": 0, "num_particles": 200}
    wide = FactorAnalysis(3 * ORACLE.weight, ORACLE.bias, ORACLE.scale)
    torch.manual_seed(0)
    held_out, normal, anomalous = (
        evaluation.score(vae, data, **how, **quiet)
        for data in (ORACLE.draw(400, 1), ORACLE.draw(500, 2), wide.draw(500, 3))
    )
    threshold = held_out.threshold(0.1)
    false_alarms, detected = threshold.rate(normal), threshold.rate(anomalous)
    many_normal, many_anomalous = (-ORACLE.log_marginal_likelihood(d.draw(20_000, 9)) for d in (ORACLE, wide))
    true_rate = (many_normal > threshold.value).double().mean().item()
    assert threshold.own_rate.low < true_rate < threshold.own_rate.high
    assert false_alarms.low < true_rate < false_alarms.high
    assert detected.low < (many_anomalous > threshold.value).double().mean() < detected.high
    area = evaluation.auc(normal, anomalous)
    assert 0.7 < area.low < area_under_curve(many_normal, many_anomalous, 0.95).value < area.high < 0.99
    assert area.high - area.low < 0.06
