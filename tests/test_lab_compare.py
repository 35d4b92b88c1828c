"""The lab's comparison: closed-form tables, bias found and not made up, and nothing left behind."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from bounds import exact_gradient, log_mean
from oracles import LinearVAE, NormalNormal, TwoStates
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae import elbo
from pyro_vae.elbo import ELBO, IWELBO, OVIS, VIMCO, Score
from pyro_vae.lab import Comparison, Row, compare
from pyro_vae.lab.moments import Moments
from pyro_vae.lab.references import named_estimators

ONE = torch.ones(1, dtype=torch.float64)

# A guide N(1, 2/3) of NormalNormal at x = 1: SNR of the gradient in the guide's mean, by quadrature.
SNR = {
    "pathwise": {1: 0.6124, 4: 0.26679, 16: 0.12788},
    "dreg": {1: 2.4495, 4: 2.86757, 16: 5.21102},
    "stl": {1: 2.4495, 4: 3.7372, 16: 7.27413},
}
MEAN = {"pathwise": {1: -1.0, 4: -0.230626, 16: -0.053686}, "stl": {1: -1.0, 4: -0.80766, 16: -0.76342}}
MEAN["dreg"] = MEAN["pathwise"]

# TwoStates at logit 0: the variance of a gradient, by enumeration.
VARIANCE: dict[str, tuple[elbo.Gradient, dict[int, float]]] = {
    "score": (Score(), {2: 1.102674, 3: 1.252305, 5: 1.598428}),
    "vimco": (VIMCO(), {2: 0.132213, 3: 0.083609, 5: 0.048337}),
    "vimco, arithmetic": (VIMCO("arithmetic"), {2: 0.132213, 3: 0.088091, 5: 0.052259}),
    "ovis": (OVIS(), {2: 0.025865, 3: 0.004331, 5: 0.000554}),
    "ovis, biased": (OVIS(1.0), {2: 0.026960, 3: 0.009492, 5: 0.002821}),
}


def normal_normal(n: int = 1) -> tuple[NormalNormal, Tensor]:
    x = ONE.expand(n)
    return NormalNormal(x, x * math.sqrt(2 / 3)), x


def run(program: Any, x: Any, estimators: Any, **options: Any) -> Comparison:
    return compare(program.model, program.guide, x, estimators, progress=False, **options)


def close(value: float, error: float, expected: float) -> None:
    """Within 5 standard errors, and 5%."""
    assert abs(value - expected) <= 5 * error
    assert value == pytest.approx(expected, rel=0.05)


def within(value: float, error: float, expected: float) -> None:
    assert error > 0
    assert abs(value - expected) <= 5 * error


# What is measured


@pytest.mark.slow
def test_compare_table_of_signal_to_noise_ratios() -> None:
    program, x = normal_normal()
    estimators = {f"{gradient}, {k}": IWELBO(k, gradient) for k in (1, 4, 16) for gradient in ("dreg", "stl")}
    estimators |= {f"pathwise, {k}": IWELBO(k) for k in (1, 4, 16)}
    exact = {"guide.loc": -ONE, "guide.log_scale": ONE}  # not looked at here
    # The error of an SNR is nearly that of the mean, 1 / sqrt(draws).
    found = run(program, x, estimators, draws=400_000, reference=exact, groups={"loc": ["guide.loc"]})
    for gradient, expected in SNR.items():
        for k, snr in expected.items():
            row = found.row(f"{gradient}, {k}", "loc")
            close(row.snr, row.snr_error, snr)
            within(row.mean, math.sqrt(row.variance / row.draws), abs(MEAN[gradient][k]))


@pytest.mark.slow
def test_compare_table_of_variances_of_a_discrete_latent() -> None:
    program = TwoStates(0 * ONE)
    for k in (2, 3, 5):
        exact = {"guide.logit": torch.tensor([exact_gradient(log_mean, k)], dtype=torch.float64)}
        estimators = {name: IWELBO(k, gradient) for name, (gradient, _) in VARIANCE.items()}
        found = run(program, ONE, estimators, draws=100_000, reference=exact)
        for name, (_, variances) in VARIANCE.items():
            row = found.row(name)
            if name == "ovis, biased" and k == 2:  # two values of equal probability: the estimate errs by 1 / draws
                assert row.variance == pytest.approx(variances[k], rel=1e-4)
            else:
                close(row.variance, row.variance_error, variances[k])
            assert row.biased == (name == "ovis, biased")


def test_compare_holds_its_errors_in_a_small_comparison() -> None:
    program, x = normal_normal()
    found = run(program, x, [IWELBO(4), IWELBO(4, "stl")], draws=1000, groups={"loc": ["guide.loc"]})
    for gradient in ("pathwise", "stl"):
        row = found.row(f"IWELBO {gradient}, K=4", "loc")
        within(row.snr, row.snr_error, SNR[gradient][4])
        assert row.biased == (gradient == "stl")
    stl = found.row("IWELBO stl, K=4", "loc")
    within(stl.bias, stl.bias_error, abs(MEAN["stl"][4] - MEAN["dreg"][4]))
    assert stl.cosine == pytest.approx(1, abs=0.01)  # of one parameter, whose gradient has the right sign
    assert (stl.num_parameters, stl.num_particles, found.row("IWELBO stl, K=4").num_parameters) == (1, 4, 2)


def test_compare_bound_and_gap() -> None:
    program, x = normal_normal(3)
    truth = NormalNormal.log_marginal_likelihood(x)
    expected = NormalNormal.elbo(x, x, x * math.sqrt(2 / 3))[0].item()
    known = run(program, x, [ELBO()], log_marginal_likelihood=truth)
    estimated = run(program, x, [ELBO()])
    for found in (known, estimated):
        (row,) = found.rows
        within(row.bound, row.bound_error, expected)
        within(row.gap, row.gap_error, truth[0].item() - expected)
    assert (known.exact, estimated.exact) == (True, False)
    assert known.rows[0].gap_error == known.rows[0].bound_error
    log_p = estimated.log_marginal_likelihood
    within(log_p.value, log_p.standard_error, truth[0].item())
    assert estimated.rows[0].gap_error > estimated.rows[0].bound_error


def test_compare_gradients_are_of_the_sum_over_the_data() -> None:
    rows = {}
    for n in (1, 5):
        program, x = normal_normal(n)
        rows[n] = run(program, x, [IWELBO(3)], draws=5000, log_marginal_likelihood=x).rows[0]
    error = math.hypot(rows[1].variance_error, rows[5].variance_error / 5)
    within(rows[5].variance / 5, error, rows[1].variance)


@pytest.mark.slow
def test_compare_at_the_exact_posterior_stl_and_dreg_have_no_variance_and_nothing_is_flagged() -> None:
    x = torch.tensor([1.3, -0.4], dtype=torch.float64)
    estimators: dict[str, elbo.Estimator] = {"path": ELBO(), "kl": ELBO(analytic_kl=True), "stl": ELBO(gradient="stl")}
    estimators |= {"IWAE": IWELBO(4), "IWAE, stl": IWELBO(4, "stl"), "IWAE, dreg": IWELBO(4, "dreg")}
    found = run(NormalNormal.exact(x), x, estimators, draws=5000)
    variances = {name: total.sum().item() for name, total in NormalNormal.gradient_variances(x).items()}
    for name, expected in (("path", variances["pathwise"]), ("kl", variances["analytic_kl"]), ("IWAE", 2.0)):
        within(found.row(name).variance, found.row(name).variance_error, expected)
    for name in ("stl", "IWAE, stl", "IWAE, dreg"):
        assert found.row(name).variance < 1e-25
    assert not any(row.biased for row in found.rows)
    assert all(row.bias_p_value > 0.001 for row in found.rows)


def test_compare_parameters_that_model_and_guide_share_are_in_both_groups() -> None:
    def model(x: Tensor) -> None:
        loc, scale = (
            pyro.param("shared", torch.zeros(2)),
            pyro.param("scale", torch.ones(()), dist.constraints.positive),
        )
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(loc.sum(), 1.0)), scale), obs=x)

    def guide(x: Tensor) -> None:
        loc, own = pyro.param("shared", torch.zeros(2)), pyro.param("own", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc.sum() + own.sum(), 1.0))

    groups = {"shared": ["*.shared"], "scale": ["model.scale"]}
    found = compare(model, guide, torch.ones(2), [ELBO()], draws=100, groups=groups, progress=False)
    assert {row.group: row.num_parameters for row in found.rows} == {"guide": 5, "model": 3, "shared": 2, "scale": 1}


class Programs:
    """z of a family that has a parameter, or several, x|z ~ Normal(sum of z, 1)."""

    def __init__(self, prior: Any, family: Callable[[Tensor], Any]) -> None:
        self.prior, self.family = prior, family

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(z.reshape(*z.shape[: z.dim() - self.prior.event_dim], -1)[..., 0], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        free = pyro.param("free", torch.tensor([0.3, -0.2, 0.4], dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.family(free))


class Scalar(Programs):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", self.prior), 1.0), obs=x)


HALF = torch.tensor(0.5, dtype=torch.float64)
FAMILIES: dict[str, Programs] = {
    "Normal": Scalar(dist.Normal(0 * HALF, 1.0), lambda free: dist.Normal(free[0], free[1].exp())),
    "Laplace": Scalar(dist.Laplace(0 * HALF, 1.0), lambda free: dist.Laplace(free[0], free[1].exp())),
    "Gamma": Scalar(dist.Gamma(HALF * 4, 1.0), lambda free: dist.Gamma(2 + free[0].exp(), free[1].exp())),
    "Beta": Scalar(dist.Beta(HALF * 4, 2.0), lambda free: dist.Beta(2 + free[0].exp(), 2 + free[1].exp())),
    "Dirichlet": Programs(dist.Dirichlet(2 + torch.zeros(3).double()), lambda free: dist.Dirichlet(2 + free.exp())),
    "MultivariateNormal": Programs(
        dist.Normal(torch.zeros(3).double(), 1.0).to_event(1),
        lambda free: dist.MultivariateNormal(free, torch.eye(3).double() * 0.7),
    ),
    "Bernoulli": Scalar(dist.Bernoulli(HALF), lambda free: dist.Bernoulli(logits=free[0])),
    "Categorical": Scalar(dist.Categorical(torch.ones(3).double()), lambda free: dist.Categorical(logits=free)),
    "Poisson": Scalar(dist.Poisson(HALF), lambda free: dist.Poisson(free[0].exp())),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_Sampler_draws_many_at_once_as_one_at_a_time(name: str) -> None:
    program, x = FAMILIES[name], torch.tensor([0.5, 1.5], dtype=torch.float64)
    estimator = ELBO(gradient="score" if name in ("Bernoulli", "Categorical", "Poisson") else "pathwise")
    found = run(program, x, {"many": estimator, "one": OneByOne(estimator)}, draws=10_000, reference=estimator)
    one, other = found.row("many"), found.row("one")
    assert (one.draws, other.draws) == (10_000, 2_000)
    within(one.variance, math.hypot(one.variance_error, other.variance_error), other.variance)
    within(one.bound, math.hypot(one.bound_error, other.bound_error), other.bound)
    assert not one.biased
    assert not other.biased


class OneByOne(pyro.infer.ELBO):
    """An estimator that cannot be recorded, as Pyro's cannot."""

    def __init__(self, estimator: ELBO) -> None:
        super().__init__()
        self.loss_and_grads = estimator.loss_and_grads

    def _get_trace(self, *args: Any) -> Any:
        raise NotImplementedError


# Bias


class Pooled(IWELBO):
    """One weight for the whole batch, where there should be one for each datum."""

    def bound(self, log_weights: Tensor) -> Tensor:
        n = log_weights.shape[1]
        return super().bound(log_weights.sum(1, keepdim=True)).expand(n) / n


@pytest.mark.slow
def test_compare_weights_pooled_over_the_batch_are_exposed() -> None:
    oracle = LinearVAE.random()
    vae, x = oracle.vae(diagonal=True), oracle.draw(6)
    estimators = {
        "ours": elbo.ReweightedWakeSleep(8),
        "Pyro's": pyro.infer.ReweightedWakeSleep(8, vectorize_particles=True, max_plate_nesting=1),
        "pooled": Pooled(8),
        "per datum": IWELBO(8),
    }
    log_p = oracle.log_marginal_likelihood(x)
    found = run(vae, x, estimators, draws=2000, reference={"pooled": IWELBO(8)}, log_marginal_likelihood=log_p)
    biased = {name: found.row(name, "model").biased for name in estimators}
    assert biased == {"ours": False, "Pyro's": True, "pooled": True, "per datum": False}
    assert ["*" in line for line in str(found).splitlines()[1:9]] == [row.biased for row in found.rows]


def test_compare_bound_of_ones_own_is_compared_with_itself_unless_told_otherwise() -> None:
    oracle = LinearVAE.random()
    vae, x = oracle.vae(diagonal=True), oracle.draw(6)
    found = run(vae, x, {"pooled": Pooled(8)}, draws=500, log_marginal_likelihood=oracle.log_marginal_likelihood(x))
    assert found.references == {"pooled": "Pooled pathwise, K=8"}
    assert not any(row.biased for row in found.rows)


@pytest.mark.slow
def test_compare_unbiased_gradients_are_not_flagged() -> None:
    oracle = LinearVAE.random()
    vae, x = oracle.vae(diagonal=True), oracle.draw(4)
    ours: list[elbo.Estimator] = [ELBO(), ELBO(2, gradient="stl"), ELBO(analytic_kl=True), ELBO(gradient="score")]
    ours += [
        IWELBO(4),
        IWELBO(4, "dreg"),
        IWELBO(4, "vimco"),
        elbo.RenyiELBO(4, alpha=0.5),
        elbo.MIWELBO(3, num_bounds=2),
    ]
    ours += [elbo.ThermodynamicELBO(4, partitions=3), elbo.JackknifeELBO(4), elbo.VRMax(3)]
    stock = [pyro.infer.Trace_ELBO(), pyro.infer.TraceMeanField_ELBO(), pyro.infer.RenyiELBO(0.0, num_particles=3)]
    found = run(vae, x, [*ours, *stock], log_marginal_likelihood=oracle.log_marginal_likelihood(x))
    assert [row.estimator for row in found.rows if row.biased] == []
    assert all(row.draws == 1000 for row in found.rows)


@pytest.mark.slow
def test_compare_discrete_latents_take_every_gradient_there_is() -> None:
    program = TwoStates(torch.tensor([0.4, -0.3], dtype=torch.float64))
    estimators: list[pyro.infer.ELBO] = [
        IWELBO(3, "score"),
        IWELBO(3, "vimco"),
        IWELBO(3, "ovis"),
        ELBO(gradient="score"),
    ]
    estimators += [ELBO(gradient="enumerate"), pyro.infer.Trace_ELBO()]
    found = run(program, ONE.expand(2), estimators, draws=400)
    assert not any(row.biased for row in found.rows)
    assert found.references["IWELBO ovis, K=3"] == "IWELBO vimco, K=3"
    assert found.references["Pyro's Trace_ELBO, K=1"] == "ELBO score, K=1"
    # A sum over states has no noise, so that rounding alone tells it from the truth.
    gradients = [exact_gradient(log_mean, 1, at) for at in (0.4, -0.3)]
    exact = {"guide.logit": torch.tensor(gradients, dtype=torch.float64)}
    found = run(program, ONE.expand(2), {"sum": ELBO(gradient="enumerate")}, draws=100, reference=exact)
    assert found.row("sum").variance == 0
    assert found.row("sum").bias_p_value == 1
    assert found.row("sum").snr == math.inf
    off = {"guide.logit": exact["guide.logit"] + 1e-6}
    assert run(program, ONE.expand(2), [ELBO(gradient="enumerate")], draws=100, reference=off).rows[0].biased


def test_compare_flows_without_an_inverse_are_compared_with_pathwise_gradients() -> None:
    flow = dist.transforms.Planar(2)

    def guide(x: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    x = torch.ones(1)
    found = compare(model, guide, x, [IWELBO(3)], draws=100, log_marginal_likelihood=x, progress=False)
    assert list(found.references.values()) == ["IWELBO pathwise, K=3"]


# Errors and p-values are what they say


def draws(count: int) -> Tensor:
    """Of mean (.3, 0, 0) and correlated noise, not all of it Normal."""
    noise = torch.randn(count, 3, dtype=torch.float64)
    return torch.stack([0.3 + noise[:, 0] + noise[:, 1], 2 * noise[:, 1], (noise[:, 2] ** 2 - 1) / 2], -1)


def test_Moments_has_standard_errors_that_are_the_spread_over_repetitions() -> None:
    """The spread over 400 repetitions is known within 3.5%, its standard error; so the ratio is within 18% of 1."""
    mean = torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64)
    found: dict[str, list[tuple[float, float]]] = {"variance": [], "snr": [], "cosine": []}
    for _ in range(400):
        moments = Moments(mean)
        for chunk in draws(300).split(100):
            moments.add(chunk)
        found["variance"].append((moments.variance, moments.variance_error))
        found["snr"].append(moments.snr())
        found["cosine"].append(moments.cosine())
    for name, pairs in found.items():
        value, error = torch.tensor(pairs).T
        assert (value.std() / error.square().mean().sqrt()).item() == pytest.approx(1, abs=0.18), name
    # Variance 2 + 4 + 1/2; tr S^2 of [[2, 2], [2, 4]] and 1/2.
    values = torch.tensor([value for value, _ in found["variance"]])
    within(values.mean().item(), values.std().item() / 20, 6.5)
    large = Moments()
    large.add(draws(40_000))
    assert large.square_trace == pytest.approx(28.25, rel=0.05)


@pytest.mark.parametrize("reference_draws", [0, 1500])
def test_Moments_has_p_values_that_are_uniform_without_bias_and_small_with_it(reference_draws: int) -> None:
    """400 p-values: their mean has a standard error of .0144, and the share below .05 one of .0109."""
    exact = torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64)
    p_values: list[float] = []
    biased: list[float] = []
    distances: list[tuple[float, float]] = []
    for _ in range(400):
        long_run = None
        if reference_draws:
            long_run = Moments()
            long_run.add(draws(reference_draws))
        target = exact if long_run is None else long_run.mean
        for shift, found in ((0.0, p_values), (1.0, biased)):
            moments = Moments(target)
            moments.add(draws(150) + shift)
            found_distance, found_error, p_value = moments.bias(long_run, 1.0)
            found.append(p_value)
        distances.append((found_distance, found_error))
    p = torch.tensor(p_values)
    assert abs(p.mean().item() - 0.5) <= 5 * 0.0144
    assert abs((p < 0.05).double().mean().item() - 0.05) <= 5 * 0.0109
    assert max(biased) < 0.001
    distance, error = torch.tensor(distances, dtype=torch.float64).T
    within(distance.mean().item(), distance.std().item() / 20, math.sqrt(3))
    assert 0.5 < (distance.std() / error.mean()).item() < 1.18  # the error is a bound; 3.5% is a standard error here


@pytest.mark.slow
def test_compare_p_values_of_repeated_comparisons_are_uniform() -> None:
    """200 p-values: their mean has a standard error of .0204, the spread of the bounds one of 5%."""
    x = torch.tensor([1.0, -0.5], dtype=torch.float64)
    program = NormalNormal(0 * x, 1 + 0 * x)
    rows = [run(program, x, [ELBO()], draws=100, seed=seed, log_marginal_likelihood=x).rows[0] for seed in range(200)]
    p = torch.tensor([row.bias_p_value for row in rows]).sort().values
    assert abs(p.mean().item() - 0.5) <= 5 * 0.0204
    # Kolmogorov and Smirnov's distance from uniformity, which exceeds .138 once in 1,000.
    assert (p - (torch.arange(200) + 0.5) / 200).abs().max().item() <= 0.138
    bounds = torch.tensor([[row.bound, row.bound_error] for row in rows])
    assert (bounds[:, 0].std() / bounds[:, 1].mean()).item() == pytest.approx(1, abs=5 * 0.05)


# What is left behind


class Normalized(PyroModule):
    """A guide with BatchNorm, which keeps averages of what it sees."""

    def __init__(self) -> None:
        super().__init__("normalized")
        self.net = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x[:, None])[:, 0], 1.0))


def test_compare_nothing_is_left_behind() -> None:
    x = torch.tensor([1.0, -0.5, 2.0])
    guide, baseline = Normalized(), nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 1), nn.Flatten(0))
    program = NormalNormal(x, x)
    for parameter in guide.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    running, learned = Score("running_mean"), Score(baseline)
    generator = torch.get_rng_state()
    compare(
        program.model,
        guide,
        x,
        [ELBO(), ELBO(gradient=running), ELBO(gradient=learned), pyro.infer.Trace_ELBO()],
        draws=100,
        progress=False,
    )
    assert torch.equal(torch.get_rng_state(), generator)
    assert len(pyro.get_param_store()) == 0
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in guide.parameters())  # type: ignore[arg-type]
    assert running._running is None
    assert all(parameter.grad is None for parameter in baseline.parameters())


def test_compare_parameters_of_the_global_store_are_used_and_left(global_store: None) -> None:
    program = NormalNormal(0 * ONE, ONE, functions=True)
    pyro.param("loc", 0.75 * ONE)
    found = run(program, ONE, [ELBO()], groups={"loc": ["guide.loc"]})
    row = found.row("ELBO pathwise, K=1", "loc")
    within(row.mean, math.sqrt(row.variance / row.draws), abs(1 - 2 * 0.75))
    assert list(pyro.get_param_store()) == ["loc"]
    assert pyro.param("loc").item() == 0.75
    assert pyro.param("loc").grad is None


def test_compare_seed_gives_the_same_figures_again() -> None:
    program, x = normal_normal()

    def measured(seed: int) -> list[tuple[float, float]]:
        found = run(program, x, [IWELBO(3)], draws=100, reference_draws=100, seed=seed, log_marginal_likelihood=x)
        return [(row.bound, row.variance) for row in found.rows]

    first = measured(1)
    torch.rand(3)
    assert measured(1) == first
    assert measured(2) != first


@pytest.mark.cuda
def test_compare_on_a_gpu() -> None:
    oracle = LinearVAE.random()
    vae, x = oracle.vae(diagonal=True).cuda(), oracle.draw(4).cuda()
    log_p = oracle.log_marginal_likelihood(x.cpu())
    estimators = [IWELBO(4), IWELBO(4, "dreg"), pyro.infer.Trace_ELBO()]
    found = run(vae, x, estimators, draws=200, log_marginal_likelihood=log_p.cuda())
    assert not any(row.biased for row in found.rows)
    assert all(row.milliseconds > 0 for row in found.rows)
    assert found.log_marginal_likelihood.value == pytest.approx(
        oracle.log_marginal_likelihood(x.cpu()).mean().item(), 0.1
    )


# Tables, files and figures


def row(name: str, k: int, snr: float = 1.0, variance: float = 2.0, group: str = "guide") -> Row:
    values: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__, 0.5)
    values |= {"estimator": f"{name}, K={k}", "family": name, "group": group, "num_particles": k}
    return Row(**values | {"snr": snr, "variance": variance})


def test_Comparison_table_and_files() -> None:
    program, x = normal_normal()
    found = run(program, x, [IWELBO(2), IWELBO(2, "stl"), IWELBO(2, VIMCO("arithmetic")), IWELBO(2)], draws=500)
    names = ["IWELBO pathwise, K=2", "IWELBO stl, K=2", "IWELBO vimco(mean=arithmetic), K=2", "IWELBO pathwise, K=2 #2"]
    assert [row.estimator for row in found.rows] == names
    lines = str(found).splitlines()
    assert " ".join(lines[0].split()) == "estimator group bound gap bias p variance SNR cosine ms MB draws"
    assert ["*" in line for line in lines[1:5]] == [False, True, False, False]
    assert lines[-1] == f"  IWELBO dreg, K=2, for {', '.join(names)}"
    read = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [float(line["variance"]) for line in read] == [row.variance for row in found.rows]
    decoded = json.loads(found.to_json())
    assert [line["snr"] for line in decoded["rows"]] == [row.snr for row in found.rows]
    assert decoded["references"] == found.references
    assert decoded["num_data"] == 1


def test_family_tells_mappings_from_sites_apart() -> None:
    mappings: list[dict[str, Any]] = [
        {"k": "enumerate", "z": "pathwise"},
        {"k": "score", "z": "pathwise"},
        {"k": Score("running_mean"), "z": "pathwise"},
        {"k": "score", "z": "score"},
    ]
    named = named_estimators("compare", [ELBO(gradient=mapping) for mapping in mappings])
    assert list(named) == [
        "ELBO k:enumerate z:pathwise, K=1",
        "ELBO k:score z:pathwise, K=1",
        "ELBO k:score(baseline=running_mean) z:pathwise, K=1",
        "ELBO k,z:score, K=1",
    ]


def test_Comparison_figures() -> None:
    found = run(*normal_normal(), [ELBO()], draws=100)
    rows = (row("A", 4, 2.0), row("A", 1, 1.0), row("B", 1, 3.0, variance=1e-30), row("B", 1, group="model"))
    found = Comparison(rows, found.log_marginal_likelihood, True, {}, 1)
    (axes,) = found.snr_figure().axes
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["B, K=1: no noise", "A"]  # whose ratio is none: it has no point
    assert list(handles[0].get_xdata()) == []  # type: ignore[attr-defined]
    line: Any = handles[1][0]  # type: ignore[index]
    assert [list(line.get_xdata()), list(line.get_ydata())] == [[1, 4], [1.0, 2.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4"]  # the values of K
    (axes,) = found.cost_figure().axes
    assert axes.get_legend_handles_labels()[1] == ["B, K=1: no noise", "A"]
    assert [text.get_text() for text in axes.texts] == ["K=4", "K=1"]
    # Along a gray line, variance times time is the same.
    lines = [line for line in axes.lines if line.get_color() == "0.85"]
    products = [torch.as_tensor(line.get_xdata()) * torch.as_tensor(line.get_ydata()) for line in lines]
    assert len(lines) == 5
    assert all(product[0].item() == pytest.approx(product[1].item()) for product in products)


def test_Comparison_names_of_points_do_not_lie_on_each_other() -> None:
    found = run(*normal_normal(), [ELBO()], draws=100)
    rows = tuple(row(family, 4, 1.0, variance=1 + 0.01 * i) for i, family in enumerate("ABCDE"))
    figure = Comparison(rows, found.log_marginal_likelihood, True, {}, 1).cost_figure()
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 5
    assert not any(first.overlaps(second) for i, first in enumerate(boxes) for second in boxes[:i])


def test_Comparison_figures_of_no_noise_are_refused() -> None:
    found = run(*normal_normal(), [ELBO()], draws=100)
    found = Comparison((), found.log_marginal_likelihood, True, {}, 1)
    with pytest.raises(
        ValueError, match=r"snr_figure: expected estimators whose gradients vary .* got 0 of which none"
    ):
        found.snr_figure()


def test_Comparison_row_that_is_not_there() -> None:
    found = run(*normal_normal(), [ELBO()], draws=100)
    with pytest.raises(KeyError, match="ELBO stl"):
        found.row("ELBO stl, K=1")


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimators": []}, ValueError, "compare: expected at least one estimator; got none"),
        ({"estimators": [ELBO]}, TypeError, "compare: expected estimators of class pyro.infer.ELBO; got <class"),
        ({"estimators": [ELBO(gradient="stl"), "dreg"]}, TypeError, "of class pyro.infer.ELBO; got 'dreg'"),
        ({"draws": 99}, ValueError, "compare: expected draws at least 100, .*; got 99"),
        ({"reference_draws": 5}, ValueError, "compare: expected reference_draws at least 100, .*; got 5"),
        ({"x": torch.tensor(1.0)}, TypeError, r"compare: expected x a tensor \(N, ...\) or a tuple"),
        ({"x": [1.0]}, TypeError, r"compare: expected x a tensor \(N, ...\) or a tuple of them; got \(\[1.0\],\)|got"),
        (
            {"groups": {"head": ["guide.head.*"]}},
            ValueError,
            r"fit \['guide.head.\*'\] for group 'head'; got guide.loc",
        ),
        (
            {"reference": {"guide.loc": ONE}},
            ValueError,
            r"exact gradients guide.loc \(1,\), guide.log_scale \(1,\); got",
        ),
        (
            {"reference": {"guide.loc": ONE, "guide.log_scale": torch.ones(2)}},
            ValueError,
            r"got guide.loc \(1,\), guide.log_scale \(2,\)",
        ),
        ({"reference": {"IWAE": ELBO()}}, ValueError, r"references for ELBO pathwise, K=1; got \['IWAE'\]"),
        ({"log_marginal_likelihood": torch.tensor(-1.0)}, ValueError, r"of shape \(1,\); got \(\)"),
        ({"plate": "rows"}, ValueError, "plate"),
    ],
)
def test_compare_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    program, x = normal_normal()
    arguments: dict[str, Any] = {"x": x, "estimators": [ELBO()], "draws": 100, "progress": False} | options
    with pytest.raises(error, match=message):
        compare(program.model, program.guide, **arguments)


def test_compare_estimators_whose_bound_is_not_known_take_a_reference() -> None:
    program, x = normal_normal()
    with pytest.raises(ValueError, match="expected a reference for OneByOne, whose bound is not known here"):
        run(program, x, [OneByOne(ELBO())], draws=100)
    found = run(program, x, {"own": OneByOne(ELBO())}, draws=100, reference=ELBO(gradient="stl"))
    assert found.references == {"own": "ELBO stl, K=1"}
    assert not found.rows[0].biased


def test_compare_program_without_parameters_is_refused() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="compare: expected parameters to differentiate by; got none"):
        compare(NormalNormal(ONE, ONE).model, guide, ONE, [ELBO()], progress=False)


def test_telling_says_in_words_what_is_biased_and_what_dies() -> None:
    program, x = normal_normal()
    several = [IWELBO(k, gradient) for gradient in ("pathwise", "stl") for k in (1, 16)]
    lines = run(program, x, several, draws=2000).telling()
    assert lines[0] == "Biased, which more steps do not cure: IWELBO stl, K=16."
    assert lines[1].startswith("IWELBO pathwise, from K = 1 to 16: the signal-to-noise ratio is 0.")
    assert lines[1].endswith("It dies: the bound tightens, and the encoder learns less.")
    assert lines[2].endswith("times as large. It grows.")
