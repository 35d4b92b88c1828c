"""Every gradient of every bound: its coefficients, its exact mean and variance, its vanishing at the posterior."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimators import (
    BOUNDS,
    DEFINITIONS,
    SMOOTH,
    GivenNormalNormal,
    TwoLayers,
    exact_gradient,
    moments,
    row_gradients,
    tuple_gradients,
)
from oracles import GivenBernoulli, NormalNormal, TwoStates
from torch import Tensor, nn

from pyro_vae.elbo import ELBO, IWELBO, OVIS, STL, VIMCO, DReG, Enumerate, Estimator, Pathwise, RenyiELBO, Score
from pyro_vae.elbo.draws import Call
from pyro_vae.elbo.gradients import Gradient, gradient_of, gradient_only, leave_one_out_logsumexp

pytestmark = pytest.mark.usefixtures("global_store")

X = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
PATHS = ("pathwise", "stl", "dreg")


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def derivatives(name: str, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """F'_k and F''_kk of a bound's definition, (K, N) each, by differentiating twice."""
    log_weights = log_weights.detach().requires_grad_()
    first = torch.autograd.grad(DEFINITIONS[name](log_weights).sum(), log_weights, create_graph=True)[0]
    if not first.requires_grad:  # linear
        return first, torch.zeros_like(first)
    rows = [torch.autograd.grad(row.sum(), log_weights, retain_graph=True)[0][k] for k, row in enumerate(first)]
    return first.detach(), torch.stack(rows)


# The coefficients


@pytest.mark.parametrize("num_particles", [2, 6])
@pytest.mark.parametrize("name", SMOOTH)
def test_path_scale_is_one_minus_the_ratio_of_derivatives(name: str, num_particles: int) -> None:
    log_weights = 3 * noise(num_particles, 4)
    first, second = derivatives(name, log_weights)
    scale = BOUNDS[name](num_particles, "dreg").path_scale(log_weights)
    torch.testing.assert_close(scale, 1 - second / first, rtol=1e-9, atol=1e-9)


def coefficients(name: str, gradient: str, log_weights: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of theta, path and score, (K, N) each: the table in the module's docstring, with beta log q for log q."""
    first, second = derivatives(name, log_weights)
    zero = torch.zeros_like(first)
    signal = DEFINITIONS[name](log_weights).detach()
    if name.startswith("ELBO"):  # a draw is credited with its own share
        signal = log_weights.detach() / len(log_weights)
    return {
        "pathwise": (first, first, -beta * first),
        "stl": (first, first, zero),
        "dreg": (first, first - second, zero),
        "score": (first, zero, signal - beta * first),
    }[gradient]


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("name", "gradient"),
    [(name, g) for name in BOUNDS for g in ("pathwise", "stl", "dreg", "score") if (name, g) != ("VRMax", "dreg")],
)
def test_gradients_are_those_of_the_surrogate(name: str, gradient: str, vectorize: bool) -> None:
    """Two layers, a learned prior, an encoder shared with it; value and gradients against plain torch."""
    program = TwoLayers(X, noise(2, 4, 3), off=0.3)
    beta = 0.7 if name == "ELBO, beta" else 1.0

    def joint(draws: tuple[Tensor, Tensor]) -> Tensor:
        return program.log_likelihood(*draws) + beta * program.log_prior(*draws)

    draws, constants = program.draws(), program.draws(detach=True)
    log_weights = joint(draws) - beta * program.log_q(*draws)
    constant_log_weights = joint(constants) - beta * program.log_q(*constants)
    theta, path, score = coefficients(name, gradient, log_weights, beta)
    surrogate = theta * joint(constants) + path * (log_weights - constant_log_weights)
    surrogate = surrogate + score * program.log_q(*constants)

    estimator = BOUNDS[name](4, gradient)
    estimator.vectorize_particles = vectorize
    estimator.loss(program.model, program.guide, X)  # which also looks at the program once, before it runs it
    for layer in program.noise or ():
        layer.used = 0
    loss = estimator.differentiable_loss(program.model, program.guide, X)
    assert loss.item() == pytest.approx(-DEFINITIONS[name](log_weights).sum().item(), rel=1e-13)
    expected, actual = program.gradients(surrogate.sum()), program.gradients(-loss)
    for parameter, value in expected.items():
        torch.testing.assert_close(actual[parameter], value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("num_particles", [1, 2, 5])
@pytest.mark.parametrize("name", BOUNDS)
def test_pathwise_is_autograd(name: str, num_particles: int) -> None:
    if num_particles == 1 and name in ("MIWELBO", "JackknifeELBO"):
        pytest.skip("needs two draws")
    num_particles += name == "MIWELBO" and num_particles % 2
    program = GivenNormalNormal(X, 0.3 * X, 0.8 + 0 * X, noise(num_particles, 3))
    value = DEFINITIONS[name](program.log_weights()).sum()
    if name == "ELBO, beta":
        value = value - 0.3 * (program.log_weights() - program.log_likelihood()).mean(0).sum()
    expected = torch.stack(torch.autograd.grad(value, [program.loc, program.log_scale]), -1)
    actual = row_gradients(BOUNDS[name](num_particles, "pathwise"), program, X)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-14)


# Exact means and variances: two states, all 2^K tuples


SCORES: dict[str, Any] = {
    "score": lambda: Score(),
    "running mean": lambda: Score(baseline="running_mean"),
    "leave one out": lambda: Score(baseline="leave_one_out"),
    "learned": lambda: Score(baseline=Constant()),
    "VIMCO, geometric": lambda: VIMCO(),
    "VIMCO, arithmetic": lambda: VIMCO("arithmetic"),
}


class Constant(nn.Module):
    """The same baseline for every datum."""

    def __init__(self, value: float = -1.3) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(len(x))


@pytest.mark.parametrize("gradient", SCORES)
@pytest.mark.parametrize("name", [name for name in BOUNDS if name != "ELBO, beta"])
def test_score_gradients_are_unbiased(name: str, gradient: str) -> None:
    estimator = BOUNDS[name](4, SCORES[gradient]())
    tuple_gradients(estimator, 0.4)  # a step for the running mean to remember
    mean, variance = moments(*tuple_gradients(estimator, 0.4))
    assert mean == pytest.approx(exact_gradient(DEFINITIONS[name], 4, 0.4), abs=1e-10)
    assert variance > 1e-6


@pytest.mark.parametrize(
    ("num_particles", "bound", "gradient", "reinforce", "vimco", "ovis"),
    [
        (1, -0.944576, 0.164195, 0.945344, None, None),
        (2, -0.918087, 0.084927, 1.102674, (0.132213, 0.132213), 0.025865),
        (3, -0.909055, 0.056044, 1.252305, (0.083609, 0.088091), 0.004331),
        (5, -0.901928, 0.033027, 1.598428, (0.048337, 0.052259), 0.000554),
    ],
)
def test_means_and_variances_of_discrete_gradients(
    num_particles: int,
    bound: float,
    gradient: float,
    reinforce: float,
    vimco: tuple[float, float] | None,
    ovis: float | None,
) -> None:
    expected: list[tuple[Gradient, float]] = [(Score(), reinforce)]
    if vimco is not None and ovis is not None:
        expected += [(VIMCO("geometric"), vimco[0]), (VIMCO("arithmetic"), vimco[1]), (OVIS(0.0), ovis)]
    exact = exact_gradient(DEFINITIONS["IWELBO"], num_particles)
    assert exact == pytest.approx(gradient, abs=1e-6)
    for estimator, variance in expected:
        mean, spread = moments(*tuple_gradients(IWELBO(num_particles, estimator)))
        assert mean == pytest.approx(exact, abs=1e-10)
        assert spread == pytest.approx(variance, abs=1e-6)
        formula = FORMULAS[type(estimator).__name__ + getattr(estimator, "mean", "")]
        by_formula = TwoStates.moments(num_particles, torch.zeros((), dtype=torch.float64), formula)
        assert (mean, spread) == pytest.approx([value.item() for value in by_formula], abs=1e-10)
    draws = TwoStates.tuples(num_particles)
    values = torch.tensor([value_of(IWELBO(num_particles, "score"), draw) for draw in draws], dtype=torch.float64)
    assert values.mean().item() == pytest.approx(bound, abs=1e-6)  # at logit 0 all tuples are as likely


def value_of(estimator: Estimator, draw: Tensor) -> float:
    program = TwoStates(torch.zeros(1), draw.unsqueeze(-1))
    return -estimator.loss(program.model, program.guide, torch.ones(1, dtype=torch.float64))


def log_mean_of(log_weights: Tensor) -> Tensor:
    return log_weights.exp().mean(-1, keepdim=True).log()


def vimco_formula(log_weights: Tensor, scores: Tensor, *, arithmetic: bool) -> Tensor:
    total = torch.zeros(len(log_weights), dtype=torch.float64)
    for k in range(log_weights.shape[-1]):
        others = torch.cat([log_weights[:, :k], log_weights[:, k + 1 :]], -1)
        mean = log_mean_of(others) if arithmetic else others.mean(-1, keepdim=True)
        credit = log_mean_of(log_weights) - log_mean_of(torch.cat([others, mean], -1))
        total = total + (credit.squeeze(-1) - log_weights.softmax(-1)[:, k]) * scores[:, k]
    return total


def ovis_formula(log_weights: Tensor, scores: Tensor, gamma: float = 0.0) -> Tensor:
    k = log_weights.shape[-1]
    weights = log_weights.softmax(-1)
    others = ((log_weights.exp().sum(-1, keepdim=True) - log_weights.exp()) / (k - 1)).log()
    constants = others - gamma * weights + (1 - gamma) * math.log(1 - 1 / k)
    return ((log_mean_of(log_weights) - weights - constants) * scores).sum(-1)


FORMULAS: dict[str, Any] = {
    "Score": lambda w, h: ((log_mean_of(w) - w.softmax(-1)) * h).sum(-1),
    "VIMCOgeometric": lambda w, h: vimco_formula(w, h, arithmetic=False),
    "VIMCOarithmetic": lambda w, h: vimco_formula(w, h, arithmetic=True),
    "OVIS": ovis_formula,
}


@pytest.mark.parametrize(
    ("num_particles", "mean", "variance"), [(2, 0.164195, 0.026960), (3, 0.162929, 0.009492), (5, 0.161431, 0.002821)]
)
def test_ovis_for_many_effective_particles_is_biased_by_wake_phi(
    num_particles: int, mean: float, variance: float
) -> None:
    actual = moments(*tuple_gradients(IWELBO(num_particles, OVIS(gamma=1.0))))
    assert actual == pytest.approx((mean, variance), abs=1e-6)
    zero = torch.zeros((), dtype=torch.float64)
    wake_phi = TwoStates.moments(num_particles, zero, lambda w, h: (w.softmax(-1) * h).sum(-1))[0].item()
    assert actual[0] == pytest.approx(exact_gradient(DEFINITIONS["IWELBO"], num_particles) + wake_phi, abs=1e-10)


class VIMCOWithoutWeights(VIMCO):
    """As it is sometimes written: no credit for what a draw changes through its own weight."""

    def loss(self, estimator: Estimator, call: Call) -> Tensor:
        densities = call.draw(detach=True).densities()
        weights = densities.log_weights.detach()
        k = len(weights)
        others = leave_one_out_logsumexp(weights) - math.log(k - 1)
        without = torch.stack([torch.cat([weights[:j], others[j : j + 1], weights[j + 1 :]]) for j in range(k)])
        credit = estimator.bound(weights) - torch.stack([estimator.bound(w) for w in without])
        return -gradient_only((credit * densities.guide).sum())


def test_vimco_needs_the_derivative_of_the_weight() -> None:
    mean, _ = moments(*tuple_gradients(IWELBO(2, VIMCOWithoutWeights())))
    assert mean == pytest.approx(0.164195, abs=1e-6)
    assert mean != pytest.approx(exact_gradient(DEFINITIONS["IWELBO"], 2), abs=0.05)


def test_a_learned_baseline_is_fitted_by_least_squares() -> None:
    baseline = Constant()
    program = TwoStates(torch.zeros(32), TwoStates.tuples(5).T.contiguous())
    loss = IWELBO(5, Score(baseline=baseline)).differentiable_loss(program.model, program.guide, torch.ones(32).double())
    (gradient,) = torch.autograd.grad(loss, baseline.value)
    signal = TwoStates.log_weights(TwoStates.tuples(5), torch.zeros(()).double()).T
    assert gradient.item() == pytest.approx((-1.3 - DEFINITIONS["IWELBO"](signal)).sum().item())
    # The value is the bound's, whatever the baseline is.
    assert loss.item() == pytest.approx(-DEFINITIONS["IWELBO"](signal).sum().item())


def test_a_running_mean_is_of_past_steps_alone() -> None:
    gradient = Score(baseline="running_mean")
    estimator = IWELBO(2, gradient)
    signal = DEFINITIONS["IWELBO"](TwoStates.log_weights(TwoStates.tuples(2), torch.zeros(()).double()).T)
    scores = TwoStates.tuples(2).sum(-1) - 1
    plain, _ = tuple_gradients(IWELBO(2, "score"))
    first, _ = tuple_gradients(estimator)
    torch.testing.assert_close(first, plain)  # no past, no baseline
    second, _ = tuple_gradients(estimator)
    torch.testing.assert_close(second, plain - signal.mean() * scores)
    program = TwoStates(torch.zeros(1))
    estimator.loss(program.model, program.guide, torch.ones(1).double())  # evaluation is no step
    third, _ = tuple_gradients(estimator)
    torch.testing.assert_close(third, second)


def subsampled(pair: Tensor, logits: Tensor, draws: Tensor) -> tuple[Any, Any]:
    """Two of four data of :class:`TwoStates`, each with a logit of its own."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 4, subsample=pair):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
            pyro.sample("x", dist.Bernoulli(torch.where(z > 0, x.new_tensor(0.9), x.new_tensor(0.2))), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4, subsample=pair):
            pyro.sample("z", GivenBernoulli(*torch.broadcast_tensors(logits[pair], draws)))

    return model, guide


@pytest.mark.parametrize("gradient", ["score", "leave one out", "VIMCO, geometric"])
def test_a_subsample_gives_the_gradient_of_the_full_data(gradient: str) -> None:
    """Averaged over all pairs of four data and all draws of each."""
    logits = torch.tensor([0.0, 0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    estimator = IWELBO(2, SCORES[gradient]())
    total = torch.zeros(4, dtype=torch.float64)
    pairs = torch.combinations(torch.arange(4))
    for pair in pairs:
        for first in TwoStates.tuples(2):
            for second in TwoStates.tuples(2):
                draws = torch.stack([first, second], -1)
                loss = estimator.differentiable_loss(*subsampled(pair, logits, draws), torch.ones(2).double())
                probability = TwoStates.log_q(draws, logits[pair]).sum().exp().detach()
                total -= probability * torch.autograd.grad(loss, logits)[0] / len(pairs)
    expected = [exact_gradient(DEFINITIONS["IWELBO"], 2, logit) for logit in logits.tolist()]
    assert total.tolist() == pytest.approx(expected, abs=1e-10)


# At the exact posterior


@pytest.mark.parametrize("num_particles", [1, 2, 6])
@pytest.mark.parametrize("gradient", ["stl", "dreg"])
@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "ELBO, beta"])
def test_gradients_vanish_at_the_exact_posterior(name: str, gradient: str, num_particles: int) -> None:
    """One layer as modules and as functions, two layers with a learned prior and an encoder shared with it."""
    if num_particles == 1 and name in ("MIWELBO", "JackknifeELBO"):
        pytest.skip("needs two draws")
    estimator = BOUNDS[name](num_particles, gradient)
    modules = NormalNormal.exact(X)
    assert row_gradients(estimator, modules, X).abs().max() < 1e-12

    functions = NormalNormal.exact(X, functions=True)
    estimator.loss_and_grads(functions.model, functions.guide, X)
    for _, parameter in pyro.get_param_store().named_parameters():
        assert parameter.grad is None or parameter.grad.abs().max() < 1e-12

    layers = TwoLayers(X)
    loss = estimator.differentiable_loss(layers.model, layers.guide, X)
    assert loss.item() == pytest.approx(-layers.log_marginal_likelihood().sum().item(), rel=1e-12)
    found = layers.gradients(-loss)
    assert max(found[name].abs().item() for name in layers.guide_parameters) < 1e-12
    assert found["prior"].abs() > 1e-3  # of the model, whose gradient does not vanish
    torch.testing.assert_close(found["shared"], found["prior"])  # as a parameter of the prior alone


@pytest.mark.parametrize("name", ["ELBO", "IWELBO", "RenyiELBO"])
def test_pathwise_gradients_do_not_vanish_at_the_exact_posterior(name: str) -> None:
    program = NormalNormal.exact(X)
    assert row_gradients(BOUNDS[name](2, "pathwise"), program, X).abs().min() > 1e-3
