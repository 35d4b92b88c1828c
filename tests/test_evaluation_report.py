"""The report names what was planted in programs whose truth is known, and its figures agree with closed forms."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import legible
import members
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearVAE, SimpleProgram
from torch import Tensor

from pyro_vae import VAE, conditionals, likelihoods, nets, plots, priors
from pyro_vae.evaluation import Estimate, Report, importance_bounds, predictive_checks, report, simulate
from pyro_vae.evaluation.findings import CHECKS, Check, Finding, Rates

ORACLE = LinearVAE.random(8, 3)
X = ORACLE.draw(400)


def names(verdicts: Report, severity: str = "fault") -> list[str]:
    return [finding.name for finding in verdicts.found if finding.check.severity == severity]


def figure(verdicts: Report, name: str) -> Estimate:
    return next(finding.estimate for finding in verdicts.findings if finding.name == name)


def scaled(factor: float) -> Any:
    vae = ORACLE.vae()
    vae.get_buffer("guide.posterior.scale_tril").mul_(factor)
    return vae


@pytest.mark.slow
def test_report_of_a_healthy_program_finds_nothing_and_has_the_truth() -> None:
    train = ORACLE.draw(400, seed=1)
    labels = (X[:, 0] > 0).long()
    verdicts = report(ORACLE.vae(), X, train=train, labels=labels)
    assert verdicts.found == ()
    assert verdicts.not_measured == {}
    assert {finding.name for finding in verdicts.findings} == CHECKS.keys() - {"context without information"}
    truth = ORACLE.log_marginal_likelihood(X)
    assert verdicts.figures["nll"].value == pytest.approx(-truth.mean().item(), abs=1e-9)
    gap = (ORACLE.log_marginal_likelihood(train).mean() - truth.mean()).item()
    assert figure(verdicts, "overfitting").value == pytest.approx(gap, abs=1e-9)
    rate = verdicts.figures["rate"]
    assert abs(rate.value - ORACLE.posterior_kl(X).mean().item()) < 5 * rate.standard_error
    for label in (0, 1):
        mean = -truth[labels == label].mean().item()
        assert verdicts.by_label[str(label)].value == pytest.approx(mean, abs=1e-9)
    assert "0 faults and 0 notes in 12 checks of 400 data" in str(verdicts)
    assert verdicts.telling(2)[0] == "no fault or note in 12 checks"
    assert len(verdicts.telling(2)) == 2


@pytest.mark.slow
def test_report_is_the_same_for_a_seed_and_leaves_the_generator_alone() -> None:
    vae = ORACLE.vae()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = report(vae, X, max_data=100, num_particles=50)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert report(vae, X, max_data=100, num_particles=50).to_json() == first.to_json()
    assert first.num_data == 100
    assert report(vae, X, max_data=100, num_particles=50, seed=1).to_json() != first.to_json()


@pytest.mark.slow
def test_report_names_guides_that_are_too_narrow_and_too_wide() -> None:
    narrow, wide = (report(scaled(factor), X) for factor in (0.5, 2.0))
    assert names(narrow) == ["narrow guide", "amortization gap"]
    assert names(wide) == ["wide guide", "amortization gap"]
    for verdicts, factor in ((narrow, 0.5), (wide, 2.0)):
        gap = figure(verdicts, "amortization gap")
        truth = (factor**2 - 1) / 2 - math.log(factor)  # KL of Normal(m, (f s)^2) from Normal(m, s^2)
        assert abs(gap.value - truth) < 5 * gap.standard_error + 0.002  # of an optimization of 200 steps
    assert narrow.telling()[0].startswith(
        "FAULT narrow guide: latents of simulated data within the guide's central 90%"
    )
    found = {entry["name"]: entry for entry in json.loads(narrow.to_json())["findings"]}
    assert found["narrow guide"]["found"]
    assert found["narrow guide"]["cutoff"] == 0.8
    assert not found["wide guide"]["found"]


@pytest.mark.slow
def test_report_names_overfitting_and_counts_rows_with_their_standard_errors() -> None:
    truth = LinearVAE.random(20, 6)
    train, x = truth.draw(40), truth.draw(400, seed=1)
    fitted = LinearVAE.maximum_likelihood(train, 6)
    verdicts = report(fitted.vae(), x, train=train)
    assert "overfitting" in names(verdicts)
    there, here = fitted.log_marginal_likelihood(train), fitted.log_marginal_likelihood(x)
    gap = figure(verdicts, "overfitting")
    assert gap.value == pytest.approx((there.mean() - here.mean()).item(), abs=1e-9)
    assert gap.standard_error == pytest.approx(math.hypot(there.std() / math.sqrt(40), here.std() / 20), rel=1e-6)


@pytest.mark.slow
def test_report_says_of_a_spare_unit_that_it_is_a_note_and_of_all_that_it_is_a_fault() -> None:
    weight = ORACLE.weight.clone()
    weight[:, 1] = 0
    spare = LinearVAE(weight, ORACLE.bias, ORACLE.scale)
    verdicts = report(spare.vae(), spare.draw(400))
    assert names(verdicts) == []
    assert names(verdicts, "note") == ["unused units"]
    assert "z[1]; of 3" in str(verdicts)
    collapsed = LinearVAE(0 * weight, ORACLE.bias, ORACLE.scale)
    assert names(report(collapsed.vae(), collapsed.draw(400))) == ["collapsed posterior"]


@pytest.mark.slow
def test_report_says_what_a_program_does_not_allow() -> None:
    program, args = members.PROGRAMS["ConditionalVAE"]()
    verdicts = report(program, *(a.repeat(10, *[1] * (a.dim() - 1)) for a in args), num_particles=25)
    assert "depends on the context" in verdicts.not_measured["aggregate posterior"]
    assert "tails of the likelihood" in verdicts.not_measured
    assert "context without information" in {finding.name for finding in verdicts.findings}
    semi, args = members.PROGRAMS["SemiSupervisedVAE"]()
    assert report(semi, *(a.repeat(10, *[1] * (a.dim() - 1)) for a in args), num_particles=25).findings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[:29]}, "report: expected at least 30 data, for standard errors; got 29"),
        ({"train": X[:29]}, r"report: expected train of at least 30 data, of the shapes of x and context; got \[\(29"),
        ({"train": (X, X)}, "report: expected train of at least 30 data, of the shapes of x and context"),
        ({"train": X[:, :3]}, "report: expected train of at least 30 data, of the shapes of x and context"),
        ({"labels": torch.zeros(3)}, r"report: expected labels of shape \(400,\), one for each datum; got \(3,\)"),
        ({"num_particles": 24}, "report: expected num_particles at least 25; got 24"),
    ],
)
def test_report_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report(**{"program": ORACLE.vae(), "x": X, **arguments})


def test_Check_finds_what_is_beyond_by_more_than_three_standard_errors() -> None:
    def finds(side: Any, value: float, error: float) -> bool:
        check = Check("", side, 1.0, "fault", "", "", Rates(0, 0, 0, 0))
        return check.finds(Estimate(value, error, "nats", 10, 1))

    assert [finds("above", value, 0.1) for value in (0.9, 1.25, 1.35)] == [False, False, True]
    assert [finds("below", value, 0.1) for value in (1.1, 0.75, 0.65)] == [False, False, True]
    assert [finds("not above", value, 0.1) for value in (0.9, 1.25, 1.35)] == [True, True, False]
    assert [finds("not above", value, math.nan) for value in (0.9, math.inf)] == [True, False]


def test_Finding_tells_the_figure_the_cut_off_the_rates_and_the_remedy() -> None:
    text = str(Finding.of("overfitting", Estimate(2.0, 0.1, "nats", 100, 5)))
    rates = CHECKS["overfitting"].rates
    assert "FAULT  overfitting: log p(x) of training data less that of held-out data 2.00 ± 0.10 nats" in text
    assert "expected at most 0.5" in text
    assert f"missed {rates.missed} of {rates.planted} planted, {rates.false_alarms} false alarms" in text
    assert rates.planted > 0
    assert "Stop early" in text


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_importance_bounds_enclose_the_truth(scale: float) -> None:
    torch.manual_seed(0)
    vae = scaled(scale)
    simulation = simulate(vae, torch.zeros(2000, 8, dtype=torch.float64))
    truth = ORACLE.log_marginal_likelihood(simulation.x)
    last = math.inf
    for k in (1, 5):
        bounds = importance_bounds(vae, simulation, num_particles=k)
        below, above = Estimate.of(truth - bounds.lower, k), Estimate.of(bounds.upper - truth, k)
        assert above.value > 5 * above.standard_error
        assert below.value > 5 * below.standard_error
        assert bounds.gap.value == pytest.approx(below.value + above.value)
        assert bounds.gap.value < last
        last = bounds.gap.value
        if k == 1:  # KL(q || p) of three units
            assert abs(below.value - 3 * ((scale**2 - 1) / 2 - math.log(scale))) < 5 * below.standard_error


def test_importance_bounds_are_one_for_the_exact_posterior() -> None:
    vae = ORACLE.vae()
    simulation = simulate(vae, X[:50])
    bounds = importance_bounds(vae, simulation, num_particles=7)
    truth = ORACLE.log_marginal_likelihood(simulation.x)
    assert torch.allclose(bounds.lower, truth)
    assert torch.allclose(bounds.upper, truth)


@pytest.mark.slow
def test_predictive_checks_of_the_right_likelihood_have_uniform_ranks() -> None:
    torch.manual_seed(0)
    result = predictive_checks(ORACLE.vae(), ORACLE.draw(2000), num_particles=5)
    for estimate, truth in ((result.inside_50, 0.5), (result.inside_90, 0.9), (result.improbable, 0.05)):
        assert abs(estimate.value - truth) < 5 * estimate.standard_error
    assert result.tails is not None
    assert abs(result.tails.value) < 3 * result.tails.standard_error
    # Ranks of elements of one datum depend on one another: at most as much as all being equal.
    assert ((result.histogram - 0.05).abs() < 5 * math.sqrt(0.05 * 0.95 / 2000)).all()
    assert result.histogram.sum().item() == pytest.approx(1.0)


@pytest.mark.slow
def test_predictive_checks_see_scales_and_tails() -> None:
    def program(scale: float) -> SimpleProgram:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1e-6))
                pyro.sample("x", dist.Normal(torch.zeros_like(x), scale).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1e-6))

        return SimpleProgram(model, guide)

    torch.manual_seed(0)
    x = torch.randn(2000, 3, dtype=torch.float64)
    for scale in (0.5, 1.0, 2.0):
        result = predictive_checks(program(scale), x, num_particles=2)
        for inside, quantile in ((result.inside_50, 0.6745), (result.inside_90, 1.6449)):
            truth = math.erf(scale * quantile / math.sqrt(2))
            # The ends of intervals are order statistics of 99 replicates.
            assert abs(inside.value - truth) < 5 * inside.standard_error + 0.01
    heavy = torch.distributions.StudentT(torch.tensor(5.0, dtype=torch.float64)).sample((4000, 3)) / math.sqrt(5 / 3)
    result = predictive_checks(program(1.0), heavy, num_particles=2)
    assert result.tails is not None
    centered = heavy - heavy.mean()
    kurtosis = (centered**4).mean() / (centered**2).mean() ** 2
    assert result.tails.value == pytest.approx(math.log(kurtosis / 3), abs=0.02)
    assert result.statistics["kurtosis"].data == pytest.approx(kurtosis.item())
    assert result.statistics["kurtosis"].p_value == pytest.approx(0.02)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "Categorical, levels" else ()) for n in members.LIKELIHOODS],
)
def test_predictive_checks_of_every_likelihood_at_its_own_draws(name: str) -> None:
    likelihood = members.LIKELIHOODS[name]()
    contexts = [
        torch.full((300, *shape), 20.0)
        for shape in (*likelihood.body.input_shapes[1:], *[()] * len(likelihood.contexts))
    ]

    def model(x: Tensor, *context: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1e-3).to_event(1))
            pyro.sample("x", likelihood(z, *context), obs=x)

    def guide(x: Tensor, *context: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1e-3).to_event(1))

    torch.manual_seed(0)
    program = SimpleProgram(model, guide)
    with torch.no_grad():
        x = likelihood(1e-3 * torch.randn(300, 2), *contexts).sample()
    result = predictive_checks(program, x, *contexts, num_particles=2)
    for estimate, truth in ((result.inside_50, 0.5), (result.inside_90, 0.9), (result.improbable, 0.05)):
        assert abs(estimate.value - truth) < 5 * math.sqrt(truth * (1 - truth) / 300)
    if result.tails is not None:
        assert abs(result.tails.value) < 4 * result.tails.standard_error


def test_predictive_checks_leave_out_missing_values() -> None:
    torch.manual_seed(0)
    likelihood = likelihoods.MissingAtRandom(likelihoods.Normal(nets.MLP(2, []), 4, scale=1.0))
    vae = VAE(priors.StandardNormal(2), likelihood, conditionals.DiagonalNormal(nets.MLP(4, [5]), 2))
    x = vae.sample(500)
    x[torch.rand_like(x) < 0.3] = torch.nan
    result = predictive_checks(vae, x)
    assert abs(result.inside_50.value - 0.5) < 0.05  # of a guide that is far from the posterior
    assert result.inside_50.num_data == int((~x.isnan()).any(1).sum())
    assert result.statistics["mean"].data == pytest.approx(x.nanmean().item(), rel=1e-5)


@pytest.mark.slow
def test_verdicts_are_drawn() -> None:
    verdicts = report(scaled(0.5), X, num_particles=50)
    drawn: Any = plots.verdicts(verdicts)
    assert [axes.get_title() for axes in drawn.axes] == [
        "guide:\nnarrow guide",
        "likelihood: no fault",
        "latent units: no fault",
        "importance weights:\nunreliable importance weights",
    ]
    assert [axes.title.get_color() for axes in drawn.axes] == ["#D55E00", "black", "black", "#D55E00"]
    assert legible.faults(drawn) == []
    assert sum(bar.get_height() for bar in drawn.axes[0].patches) == pytest.approx(1.0)
    assert sum(bar.get_height() for bar in drawn.axes[1].patches) == pytest.approx(1.0)


@pytest.mark.slow
def test_report_rates_plant_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    rates = importlib.import_module("report_rates")
    monkeypatch.setattr(rates, "NUM_DATA", 400)
    for make, expected in rates.PLANTED.values():
        torch.manual_seed(0)
        assert set(expected) & {finding.name for finding in make().report().found}
    torch.manual_seed(0)
    assert rates.healthy().report().found == ()
