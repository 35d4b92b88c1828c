"""Verdicts between trained programs: what compares, what the intervals hold, and how often verdicts are wrong."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import members
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearVAE, SimpleProgram
from scipy import stats
from torch import Tensor

from pyro_vae import VAE, conditionals, likelihoods, nets, priors
from pyro_vae.data import as_dataset
from pyro_vae.elbo import ELBO
from pyro_vae.evaluation import log_marginal_likelihood
from pyro_vae.lab import Ranking, race, rank
from pyro_vae.lab.measures import observed
from pyro_vae.lab.student import t_quantile
from pyro_vae.lab.verdicts import ERROR_RATE, Scores, verdicts


def scores(value: Tensor, **parts: Tensor) -> Scores:
    return Scores(value, **{"missing": torch.zeros_like(value), "unreliable": torch.zeros_like(value)} | parts)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4.5, 10, 99, 1e4, 1e6])
def test_t_quantile_is_scipys(degrees: float) -> None:
    for tail in (0.4, 0.05, 0.005, 1e-4, 1e-9):
        assert t_quantile(tail, degrees) == pytest.approx(stats.t.isf(tail, degrees), rel=1e-8)


def test_Verdict_of_one_seed_is_the_paired_t_test() -> None:
    a, b = draws(1, 40), draws(1, 40, seed=1) - 0.7
    (verdict,) = verdicts({"a": scores(a), "b": scores(b)}, 0.05)
    test = stats.ttest_rel(a[0], b[0])
    low, high = test.confidence_interval(0.95)
    assert [verdict.first, verdict.second, verdict.better] == ["a", "b", bool(test.pvalue < 0.05)]
    assert verdict.difference == pytest.approx((low + high) / 2)
    assert verdict.margin == pytest.approx((high - low) / 2)
    assert verdict.standard_error == pytest.approx(stats.sem(a[0] - b[0]))


def test_Verdict_of_seeds_alone_is_the_paired_t_test_over_seeds() -> None:
    """Where all data have the same difference."""
    a, b = draws(5, 1).expand(5, 30), draws(5, 1, seed=1).expand(5, 30) - 1.0
    (verdict,) = verdicts({"b": scores(b), "a": scores(a)}, 0.05)
    low, high = stats.ttest_rel(a[:, 0], b[:, 0]).confidence_interval(0.95)
    assert verdict.difference == pytest.approx((low + high) / 2)
    assert verdict.margin == pytest.approx((high - low) / 2, rel=1e-6)


def test_verdicts_share_the_error_rate_out_among_all_pairs() -> None:
    values = {str(i): scores(draws(1, 50, seed=i)) for i in range(4)}
    together = {(v.first, v.second): v.margin for v in verdicts(values, 0.06)}
    assert len(together) == 6
    for (a, b), margin in together.items():
        (alone,) = verdicts({a: values[a], b: values[b]}, 0.01)
        assert margin == pytest.approx(alone.margin)


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("parts", [(0.1, 0.0, 0.0), (0.1, 1.0, 0.0), (0.1, 1.0, 1.0), (0.0, 1.0, 0.0), (0.3, 1.0, 1.0)])
def test_verdicts_are_wrong_no_more_often_than_their_error_rate(parts: tuple[float, ...], num_seeds: int) -> None:
    """Of equal entries, however their variance is split between seeds, data and both: 5% in 2,000, s.e. .5%."""
    of_seeds, of_data, of_both = parts
    if num_seeds == 1 and of_seeds:  # which one seed cannot see, and its verdict does not speak of
        of_seeds = 0.0
    wrong, n = 0, 100
    for trial in range(2000):
        entries = {}
        for i, name in enumerate("ab"):
            noise = draws(num_seeds, n + 1, seed=3 * (2 * trial + i))
            values = (
                of_both * noise[:, 1:] + of_seeds * noise[:, :1] + of_data * draws(1, n, seed=6 * trial + 3 * i + 1)
            )
            entries[name] = scores(values)
        wrong += verdicts(entries, 0.05)[0].better
    assert wrong / 2000 <= 0.05 + 5 * math.sqrt(0.05 * 0.95 / 2000)


def test_Verdict_asks_for_as_many_seeds_as_tell_a_difference_of_its_size() -> None:
    """With probability .8, in 500 trials, s.e. 1.8%; the plan takes the spread that it saw for the true one."""
    by_seed = draws(4, 1)
    by_seed = (by_seed - by_seed.mean()) / by_seed.std() + 0.5  # difference .5, deviation 1 of seeds
    (verdict,) = verdicts({"a": scores(by_seed.expand(4, 50)), "b": scores(torch.zeros(4, 50).double())}, 0.05)
    assert not verdict.better
    assert verdict.more_seeds is not None
    s = 4 + verdict.more_seeds
    told = 0
    for trial in range(500):
        values = draws(s, 1, seed=trial).expand(s, 50) + 0.5
        found = verdicts({"a": scores(values), "b": scores(torch.zeros(s, 50).double())}, 0.05)[0]
        told += found.better and found.first == "a"
    assert told / 500 == pytest.approx(0.8, abs=5 * 0.018)
    assert f"cannot tell, 0.5 ± {verdict.margin:.2g}; about {verdict.more_seeds} more seeds would" in str(verdict)


def test_Verdict_says_that_no_number_of_seeds_would() -> None:
    by_datum = draws(1, 50)
    by_datum = (by_datum - by_datum.mean()).expand(3, 50) + 0.01
    noise = 1e-3 * draws(3, 50, seed=1)
    (verdict,) = verdicts({"a": scores(by_datum + noise), "b": scores(torch.zeros(3, 50).double())}, 0.05)
    assert [verdict.better, verdict.more_seeds, verdict.more_data] == [False, None, None]
    assert str(verdict).endswith("1,000 seeds would not, on these test data")


def test_Verdict_of_one_seed_asks_for_data() -> None:
    d = draws(1, 100)
    d = (d - d.mean()) / d.std() + 0.1
    (verdict,) = verdicts({"a": scores(d), "b": scores(torch.zeros(1, 100).double())}, 0.05)
    # (1.960 + 0.842)^2 / 0.1^2 = 785 data
    assert verdict.more_data == 785 - 100
    assert str(verdict).endswith("about 685 more test data would")


def test_Verdict_is_not_told_by_what_importance_sampling_takes() -> None:
    zero, n = torch.zeros(1, 200).double(), 200
    lead = 0.5 + 0.1 * draws(1, n)
    biased = {"missing": torch.full((1, n), 0.6).double()}
    (plain,) = verdicts({"a": scores(lead), "b": scores(zero)}, 0.01)
    (loser,) = verdicts({"a": scores(lead), "b": scores(zero, **biased)}, 0.01)
    (winner,) = verdicts({"a": scores(lead, **biased), "b": scores(zero)}, 0.01)
    assert [plain.better, loser.better, winner.better] == [True, False, True]
    assert [plain.doubtful, loser.doubtful, winner.doubtful] == [False, True, False]
    assert "which b may owe to importance sampling; draw more particles, or rank of='iwelbo'" in str(loser)
    # A lead at data whose k-hat is unreliable counts for nothing; one elsewhere stays.
    few = (torch.arange(n) < 20).double()[None]
    there, elsewhere = 10 * few + 0.01 * draws(1, n), 0.5 * (1 - few) + 0.01 * draws(1, n)
    (doubtful,) = verdicts({"a": scores(there), "b": scores(zero, unreliable=few)}, 0.01)
    (sure,) = verdicts({"a": scores(elsewhere), "b": scores(zero, unreliable=few)}, 0.01)
    assert [doubtful.better, doubtful.doubtful, sure.better, sure.doubtful] == [False, True, True, False]
    many = (torch.arange(n) < 21).double()[None]  # over a tenth
    assert verdicts({"a": scores(elsewhere), "b": scores(zero, unreliable=many)}, 0.01)[0].doubtful


def test_verdicts_do_not_tell_rounding_apart() -> None:
    value = -80 + draws(1, 500).float()
    other = value.clone() - 1e-6 * 80
    assert not verdicts({"a": scores(value), "b": scores(other)}, 0.01)[0].better


TRUTH = LinearVAE.random()


def trained(seed: int, shift: float = 0.0) -> LinearVAE:
    """The maximum-likelihood linear VAE of 300 data of its own, moved so that log p(x) is lower by ``shift`` nats."""
    found = LinearVAE.maximum_likelihood(TRUTH.draw(300, seed=seed), 2)
    covariance = TRUTH.weight @ TRUTH.weight.T + TRUTH.scale**2 * torch.eye(5, dtype=torch.float64)
    direction = torch.ones(5, dtype=torch.float64)
    length = math.sqrt(2 * shift / (direction @ torch.linalg.solve(covariance, direction)).item())
    return LinearVAE(found.weight, found.bias + length * direction, found.scale)


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_verdicts_of_100_races_of_linear_vaes(num_seeds: int) -> None:
    """Entries of some seeds, each trained on 300 data of its own to the maximum likelihood, and 200 test data.

    Equal entries are told apart in 5 at most, s.e. 2.2 where the rate is 5%; one better by half a nat wins in 95.
    """
    wrong = won = 0
    for trial in range(100):
        x = TRUTH.draw(200, seed=10_000 + trial)
        seeds = range(1000 + 3 * num_seeds * trial, 1000 + 3 * num_seeds * (trial + 1))
        shifts = [0.0] * (2 * num_seeds) + [0.5] * num_seeds
        programs = [trained(seed, shift) for seed, shift in zip(seeds, shifts, strict=True)]
        values = torch.stack([p.log_marginal_likelihood(x) for p in programs]).reshape(3, num_seeds, 200)
        a, b, worse = map(scores, values)
        wrong += verdicts({"a": a, "b": b}, ERROR_RATE)[0].better
        verdict = verdicts({"a": a, "worse": worse}, ERROR_RATE)[0]
        won += verdict.better and verdict.first == "a"
    assert wrong <= 5
    assert won >= 95


@pytest.mark.slow
def test_rank_100_races_of_linear_vaes() -> None:
    """The same by ``rank``, of three entries through their programs, on 100 test data."""
    wrong = won = 0
    for trial in range(100):
        x = TRUTH.draw(100, seed=10_000 + trial).float()
        seeds = range(1000 + 15 * trial, 1015 + 15 * trial)
        programs = [trained(seed).vae(diagonal=True).float() for seed in seeds[:10]]
        worse = [trained(seed, 0.5).vae(diagonal=True).float() for seed in seeds[10:]]
        found = rank({"a": programs[:5], "b": programs[5:], "worse": worse}, x, num_particles=20, progress=False)
        wrong += found.verdict("a", "b").better
        verdict = found.verdict("a", "worse")
        won += verdict.better and verdict.first == "a"
    assert wrong <= 5
    assert won >= 95


def linear(data_dim: int = 5, latent_dim: int = 2) -> VAE:
    return VAE(
        prior=priors.StandardNormal(latent_dim),
        likelihood=likelihoods.Normal(nets.MLP(latent_dim, []), data_dim, scale="learned"),
        posterior=conditionals.DiagonalNormal(nets.MLP(data_dim, []), latent_dim),
    )


def half_a_nat() -> tuple[LinearVAE, float]:
    """A linear VAE of which the best with one latent less has a lower log p(x), and by how much."""
    weight = torch.linalg.qr(draws(5, 2)).Q * torch.tensor([2.0, 1.3], dtype=torch.float64)
    truth = LinearVAE(weight, torch.zeros(5, dtype=torch.float64), 0.7)
    covariance = weight @ weight.T + 0.49 * torch.eye(5, dtype=torch.float64)
    values = torch.linalg.eigvalsh(covariance)
    # At the maximum likelihood, the log-determinant of a covariance is all in which the two differ.
    lost = (values[:-1].mean().log() * 4 + values[-1].log() - values.log().sum()) / 2
    return truth, lost.item()


@pytest.mark.slow
def test_race_of_linear_vaes_is_won_by_half_a_nat() -> None:
    """By training, of three seeds; equal entries, which share seeds, end equal to the last digit."""
    truth, lost = half_a_nat()
    assert lost == pytest.approx(0.5, abs=0.01)
    entries: dict[str, Any] = {"two": linear, "also two": linear, "one": partial(linear, latent_dim=1)}
    lengths: dict[str, Any] = {"steps": 300, "num_points": 1, "batch_size": 200, "num_particles": 20, "num_seeds": 3}
    adam = partial(torch.optim.Adam, lr=0.03)
    for trial in range(2):
        train, validation = truth.draw(1000, seed=2 * trial).float(), truth.draw(300, seed=2 * trial + 1).float()
        found = race(entries, train, validation, ELBO(), optimizer=adam, seed=3 * trial, progress=False, **lengths)
        assert found.ranking.verdict("two", "also two").difference == 0
        verdict = found.ranking.verdict("two", "one")
        assert [verdict.first, verdict.better] == ["two", True]
        assert verdict.difference == pytest.approx(lost, abs=5 * verdict.standard_error)


def test_rank_figures_are_those_of_the_closed_form() -> None:
    oracles = {"a": trained(1), "b": trained(2, 0.5)}
    x = TRUTH.draw(50, seed=9).float()
    found = rank({name: o.vae().float() for name, o in oracles.items()}, x, num_particles=30, progress=False)
    truth = {name: o.log_marginal_likelihood(x.double()) for name, o in oracles.items()}
    for name, value in truth.items():
        assert found.figures[name].value == pytest.approx(value.mean().item(), abs=1e-4)
        assert found.figures[name].standard_error == pytest.approx(stats.sem(value), rel=1e-4)
    verdict = found.verdict("b", "a")
    assert verdict.difference == pytest.approx((truth["a"] - truth["b"]).mean().item(), abs=1e-4)
    assert verdict.standard_error == pytest.approx(stats.sem(truth["a"] - truth["b"]), rel=1e-3)


def test_rank_of_the_elbo_tells_guides_apart_that_log_p_does_not() -> None:
    oracle = LinearVAE.random()
    x = oracle.draw(200, seed=3).float()
    programs = {"exact": oracle.vae().float(), "diagonal": oracle.vae(diagonal=True).float()}
    bounds = rank(programs, x, of="elbo", num_particles=200, progress=False)
    verdict = bounds.verdict("exact", "diagonal")
    assert [verdict.first, verdict.better] == ["exact", True]
    assert verdict.difference == pytest.approx(oracle.diagonal_gap(), abs=5 * verdict.standard_error)
    likelihood = rank(programs, x, num_particles=2000, progress=False).verdicts[0]
    assert not likelihood.better


def test_rank_tells_of_a_guide_that_is_too_poor_for_importance_sampling() -> None:
    """The model is the same; a guide that is narrow and off makes its log p(x) look worse by nats."""
    oracle = LinearVAE.random()
    x = oracle.draw(100, seed=3).float()
    vae = oracle.vae(diagonal=True).float()
    narrow = oracle.vae(diagonal=True).float()
    *_, bias = narrow.posterior.head.parameters()
    with torch.no_grad():
        bias[-2:] -= 2.0  # logarithms of the scales
    found = rank({"wide": vae, "narrow": narrow}, x, num_particles=100, progress=False)
    assert found.unreliable["narrow"] > 0.5
    assert found.verdicts[0].difference > 1
    assert [found.verdicts[0].better, found.verdicts[0].doubtful] == [False, True]
    bound = rank({"wide": vae, "narrow": narrow}, x, of="iwelbo", num_particles=100, progress=False)
    assert bound.verdict("wide", "narrow").better
    assert bound.figures["narrow"] == found.figures["narrow"]


DENSITIES = {
    "ContinuousBernoulli", "Beta", "LogitNormal", "Normal, learned", "Normal, fixed", "Normal, per element",
    "Normal, convolutional", "SigmaNormal", "Laplace", "StudentT", "StudentT, fixed", "MissingAtRandom",
    "Standardized", "Standardized SigmaNormal", "LogNormal", "LogNormal, standardized", "Huber", "Huber, fixed",
}  # fmt: skip
COUNTS = {
    "Bernoulli", "Categorical", "OneHotCategorical", "Binomial, counts", "Poisson", "NegativeBinomial",
    "ZeroInflatedNegativeBinomial", "Multinomial", "Ordinal", "Ordinal, two levels", "ZeroInflatedPoisson",
}  # fmt: skip
LEVELS = {
    "Categorical, levels": "0.00392", "Binomial": "0.00392", "DiscretizedLogistic": "0.00392", "Dequantized": "0.00392",
    "DiscretizedLogistic, per element": "0.0625", "MixtureOfDiscretizedLogistics, gray": "0.0667",
    "MixtureOfDiscretizedLogistics, RGB": "0.25",
}  # fmt: skip
MIXED = {"Mixed", "MissingAtRandom, Mixed", "Tabular", "MissingAtRandom, Tabular"}


def around(likelihood: likelihoods.Likelihood) -> VAE:
    posterior = conditionals.DiagonalNormal(nets.MLP(likelihood.event_shape, [5]), 2)
    return VAE(priors.StandardNormal(2), likelihood, posterior)


@pytest.mark.parametrize("name", members.LIKELIHOODS)
def test_observed_knows_the_measure_of_every_likelihood(name: str) -> None:
    torch.manual_seed(0)
    likelihood = members.LIKELIHOODS[name]()
    if likelihood.contexts or len(likelihood.body.input_shapes) > 1:
        return  # its measure is that of the one without
    vae = around(likelihood)
    (site,) = observed(vae, vae.sample(9), plate="data", batch_size=4)
    expected = "densities and probabilities of whole numbers"
    if name in DENSITIES:
        expected = "densities"
    elif name in COUNTS:
        expected = "probabilities of whole numbers"
    elif name in LEVELS:
        expected = f"probabilities of multiples of {LEVELS[name]}"
    else:
        assert name in MIXED
    assert str(site) == expected
    assert site.values.shape == (9, *likelihood.event_shape)


def test_rank_refuses_other_measures() -> None:
    torch.manual_seed(0)
    bits = (torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    entries: dict[str, Any] = {
        "bits": around(likelihoods.Bernoulli(nets.MLP(2, [5]), 4)),
        "levels": around(likelihoods.DiscretizedLogistic(nets.MLP(2, [5]), 4)),
        "density": around(likelihoods.Normal(nets.MLP(2, [5]), 4)),
        "dequantized": around(likelihoods.Dequantized(likelihoods.Normal(nets.MLP(2, [5]), 4), levels=2)),
        "counts": around(likelihoods.Poisson(nets.MLP(2, [5]), 4)),
        "sphere": SimpleProgram(on_the_sphere, linear(4).guide),
    }
    alike = [{"bits", "dequantized"}, {"bits", "counts"}, {"counts", "dequantized"}]
    for first in entries:
        for second in entries:
            if first < second and {first, second} not in alike:
                pair = {name: entries[name] for name in (first, second)}
                with pytest.raises(ValueError, match=f"rank: expected figures of one measure; got .* of '{first}' and"):
                    rank(pair, bits if "sphere" not in pair else unit(), num_particles=2, progress=False)
    for names in alike:
        rank({name: entries[name] for name in names}, bits, num_particles=2, progress=False)


def unit() -> Tensor:
    return torch.eye(4)[torch.arange(9) % 4]


def on_the_sphere(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.ProjectedNormal(torch.ones(4)), obs=x)


def of_units(loc: Tensor, scale: Tensor, inside: bool) -> SimpleProgram:
    """A model of x / 1000, and of columns in other units, standardized by the caller or inside, without a Jacobian."""

    def inner(x: Tensor) -> Tensor:
        return (x - loc) / scale if inside else x

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=inner(x))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(inner(x) / 1.25, 0.2**0.5).to_event(1))  # the posterior

    return SimpleProgram(model, guide)


def test_rank_counts_the_jacobian_of_data_in_other_units() -> None:
    """Standardized by the caller, or inside the model: the figures are those of the raw data's density."""
    loc, scale = torch.tensor([5.0, -3e3, 0.0]), torch.tensor([0.1, 1e4, -1.0])
    x = loc + scale * draws(80, 3).float()
    inside, outside = of_units(loc, scale, inside=True), of_units(loc, scale, inside=False)
    raw = around(
        likelihoods.Standardized(likelihoods.Normal(nets.MLP(2, []), 3, scale=0.5), nets.Standardize(loc, scale.abs()))
    )
    options: Any = {"num_particles": 30, "progress": False}
    found = rank({"raw": raw, "inside": inside}, x, **options)
    truth = dist.Normal(loc, scale.abs() * math.sqrt(1.25)).log_prob(x).sum(-1)
    assert found.figures["inside"].value == pytest.approx(truth.mean().item(), abs=1e-3)
    both = rank({"raw": raw, "outside": outside}, {"raw": x, "outside": (x - loc) / scale}, **options)
    assert both.figures["outside"].value == pytest.approx(truth.mean().item(), abs=1e-3)
    # Figures are in the units of the first.
    turned = rank({"inside": inside, "raw": raw}, x, **options)
    shift = scale.abs().log().sum().item()
    assert turned.figures["inside"].value == pytest.approx(truth.mean().item() + shift, abs=1e-3)
    assert turned.verdict("raw", "inside").difference == pytest.approx(found.verdict("raw", "inside").difference, 1e-4)


def test_rank_counts_no_jacobian_of_probabilities_nor_of_missing_values() -> None:
    torch.manual_seed(0)
    counts = torch.randint(0, 4, (40, 3), generator=torch.Generator().manual_seed(1)).float()
    body = nets.MLP(2, [5])
    entries = {
        "counts": around(likelihoods.Categorical(4, body, 3)),
        "levels": around(likelihoods.Categorical(4, body, 3, spacing=1 / 3)),
    }
    for vae in entries.values():
        for parameter in vae.likelihood.head.parameters():
            torch.nn.init.zeros_(parameter)
    options: Any = {"num_particles": 300, "progress": False}
    found = rank(entries, {"counts": counts, "levels": counts / 3}, **options)
    assert [e.value for e in found.figures.values()] == pytest.approx([-3 * math.log(4)] * 2, abs=0.02)
    x = draws(40, 3).float()
    x[::2, 1] = math.nan
    torch.manual_seed(0)
    missing = around(likelihoods.MissingAtRandom(likelihoods.Normal(nets.MLP(2, [5]), 3)))
    both = rank({"a": missing, "b": missing}, {"a": x, "b": 10 * x}, **options, of="elbo")
    alone = {f: rank({"a": missing, "c": missing}, f * x, **options, of="elbo").figures["a"].value for f in (1, 10)}
    assert both.figures["b"].value - alone[10] == pytest.approx(2.5 * math.log(10), rel=1e-4)
    assert both.figures["a"].value == alone[1]


def conditional(x: Tensor, *context: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def masked(x: Tensor, *context: Tensor) -> None:
    with pyro.poutine.mask(mask=torch.arange(len(x)) % 2 == 0):  # type: ignore[call-overload]
        conditional(x, *context)


def two_sites(x: Tensor, *context: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[:, 0])


def their_guide(x: Tensor, *context: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))


def impossible(x: Tensor, *context: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Uniform(z * 0, 1.0, validate_args=False).to_event(1), obs=x)


GUIDED = partial(SimpleProgram, guide=their_guide)
X = draws(20, 3).float()


def ranked(**options: Any) -> Ranking:
    entries = {"a": GUIDED(conditional), "b": GUIDED(conditional)}
    settings: dict[str, Any] = {"programs": entries, "data": X, "num_particles": 5, "progress": False}
    return rank(**settings | options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"programs": [GUIDED(conditional)]}, TypeError, "rank: expected programs by name; got list"),
        ({"programs": {"a": 3, "b": 4}}, TypeError, "expected trained programs with model and guide; got int as 'a'"),
        ({"programs": {"a": GUIDED(conditional)}}, ValueError, r"expected two entries or more, .*; got {'a': 1}"),
        ({"programs": {"a": [GUIDED(conditional)] * 2, "b": GUIDED(conditional)}}, ValueError, "got {'a': 2, 'b': 1}"),
        (
            {"programs": {name: [GUIDED(conditional)] * 2 for name in "ab"}},
            ValueError,
            "expected programs of different seeds; got two that are equal on every datum as 'a'",
        ),
        ({"programs": {"a": GUIDED(conditional), "b": GUIDED(masked)}}, ValueError, "or other values missing"),
        ({"programs": {"a": GUIDED(conditional), "b": GUIDED(two_sites)}}, ValueError, "got 1 sites of 'a' and 2"),
        ({"programs": {"a": GUIDED(conditional), "b": GUIDED(impossible)}}, ValueError, "expected finite figures; got"),
        ({"data": {"a": X}}, ValueError, r"expected data of \['a', 'b'\]; got \['a'\]"),
        ({"data": X[:1]}, ValueError, "expected the same test data of all, two at least; got {'a': 1, 'b': 1}"),
        ({"data": {"a": X, "b": X[:9]}}, ValueError, "got {'a': 20, 'b': 9}"),
        ({"data": {"a": X, "b": X.flip(0)}}, ValueError, "the same data of all, but for the unit of each element"),
        ({"data": {"a": X, "b": X.exp()}}, ValueError, "likelihoods.Standardized is a density of raw data"),
        ({"data": {"a": X, "b": 0 * X}}, ValueError, "the same data of all, but for the unit of each element"),
        (
            {"data": {"a": X, "b": as_dataset(X).conditioned_on(X[:, :1])}},
            ValueError,
            "expected one context for all, .*; got others of 'a' and 'b'",
        ),
        ({"of": "nll"}, ValueError, "rank: expected of one of 'log_marginal_likelihood', 'iwelbo', 'elbo'; got 'nll'"),
        ({"error_rate": 0.0}, ValueError, "rank: expected error_rate above 0 and below 1; got 0"),
        ({"num_particles": 0}, ValueError, "rank: expected num_particles at least 1; got 0"),
    ],
)
def test_rank_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ranked(**options)


def test_rank_leaves_the_generators_and_modes_as_they_were() -> None:
    vae = linear()
    state = torch.get_rng_state()
    found = rank({"a": vae, "b": linear()}, TRUTH.draw(30).float(), num_particles=30, seed=3, progress=False)
    torch.set_rng_state(state)
    again = rank({"a": vae, "b": linear()}, TRUTH.draw(30).float(), num_particles=30, seed=3, progress=False)
    assert found.to_json() == again.to_json()
    assert vae.training
    assert len(pyro.get_param_store()) == 0


def test_Ranking_table_figure_and_file() -> None:
    x = TRUTH.draw(300, seed=4).float()
    seeds = {"good": range(5), "same": range(5, 10), "bad": range(10, 15)}
    programs = {name: [trained(s, 3.0 * (name == "bad")).vae().float() for s in each] for name, each in seeds.items()}
    found = rank(programs, x, num_particles=30, progress=False)
    assert [found.places(name) for name in programs] == [(1, 2), (1, 2), (3, 3)]
    lines = str(found).splitlines()
    assert repr(found) == str(found)
    assert lines[0].split() == ["place", "log", "p(x)", "±", "s.e.", "k-hat", ">", "0.7"]
    assert lines[3].split()[:4] == ["bad", "3", *lines[3].split()[2:4]]
    assert "cannot tell" in lines[4]
    assert " is better than bad by 3" in lines[5]
    assert "for all 3 pairs at once (Bonferroni)" in str(found)
    assert "about training anew and about new data: 5 seeds" in str(found)
    decoded = json.loads(found.to_json())
    verdict = found.verdict("bad", "good")
    assert [v["difference"] for v in decoded["verdicts"] if {v["first"], v["second"]} == {"good", "bad"}] == [
        verdict.difference
    ]
    assert (
        decoded["figures, bad"]["value"] == found.figures["bad"].value == pytest.approx(sum(found.by_seed["bad"]) / 5)
    )
    entries, pairs = found.figure().axes
    assert [label.get_text() for label in entries.get_yticklabels()] == list(found.figures)
    assert [label.get_text() for label in pairs.get_yticklabels()] == [
        f"{v.first} - {v.second}" for v in found.verdicts
    ]
    assert [container[0].get_xdata()[0] for container in pairs.containers] == [v.difference for v in found.verdicts]


@pytest.mark.filterwarnings("ignore:log_marginal_likelihood. expected Pareto k-hat")
@pytest.mark.parametrize("name", members.PROGRAMS)
def test_rank_takes_every_program(name: str) -> None:
    """Two of other weights, and their contexts."""
    torch.manual_seed(0)
    one, (x, *context) = members.PROGRAMS[name]()
    other, _ = members.PROGRAMS[name]()
    data = as_dataset(x).conditioned_on(*context) if context else x
    found = rank({"one": one, "other": other}, data, num_particles=30, progress=False)
    expected = log_marginal_likelihood(one, x, *context, num_particles=4000, progress=False).value.mean().item()
    assert found.figures["one"].value == pytest.approx(expected, abs=0.5)
