"""Every gradient of every bound: its coefficients, its exact mean and variance, its vanishing at the posterior."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from bounds import (
    BOUNDS,
    DEFINITIONS,
    SMOOTH,
    GivenNormalNormal,
    Nested,
    TwoLayers,
    assert_mean,
    exact_gradient,
    moments,
    row_gradients,
    tuple_gradients,
)
from oracles import GivenBernoulli, NormalNormal, TwoStates
from pyro.distributions import transforms
from torch import Tensor, nn

from pyro_vae import VAE, conditionals, likelihoods, nets, priors
from pyro_vae.elbo import ELBO, IWELBO, OVIS, STL, VIMCO, DReG, Pathwise, RenyiELBO, Score, VRMax
from pyro_vae.elbo.draws import Call
from pyro_vae.elbo.gradients import Bound, Gradient, gradient_only
from pyro_vae.elbo.names import gradient_of
from pyro_vae.elbo.score import leave_one_out_logsumexp

pytestmark = pytest.mark.usefixtures("global_store")

X = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
PAIRS = ("MIWELBO", "JackknifeELBO")  # which need two draws


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
def test_DReG_path_scale_is_one_minus_the_ratio_of_derivatives(name: str, num_particles: int) -> None:
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
def test_Gradient_is_that_of_the_surrogate(name: str, gradient: str, vectorize: bool) -> None:
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


@pytest.mark.parametrize(
    ("name", "num_particles"), [(n, k) for n in BOUNDS for k in (1, 2, 6) if k > 1 or n not in PAIRS]
)
def test_Pathwise_is_autograd(name: str, num_particles: int) -> None:
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
def test_Score_gradients_are_unbiased(name: str, gradient: str) -> None:
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
def test_Score_and_others_have_the_means_and_variances_of_discrete_gradients(
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
    program = TwoStates(torch.zeros(len(draws)), draws.T.contiguous())
    loss = IWELBO(num_particles, "score").loss(program.model, program.guide, torch.ones(len(draws)).double())
    assert -loss / len(draws) == pytest.approx(bound, abs=1e-6)  # at logit 0 all tuples are as likely


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
def test_OVIS_for_many_effective_particles_is_biased_by_wake_phi(
    num_particles: int, mean: float, variance: float
) -> None:
    actual = moments(*tuple_gradients(IWELBO(num_particles, OVIS(gamma=1.0))))
    assert actual == pytest.approx((mean, variance), abs=1e-6)
    zero = torch.zeros((), dtype=torch.float64)
    wake_phi = TwoStates.moments(num_particles, zero, lambda w, h: (w.softmax(-1) * h).sum(-1))[0].item()
    assert actual[0] == pytest.approx(exact_gradient(DEFINITIONS["IWELBO"], num_particles) + wake_phi, abs=1e-10)


class VIMCOWithoutWeights(VIMCO):
    """As it is sometimes written: no credit for what a draw changes through its own weight."""

    def loss(self, estimator: Bound, call: Call) -> Tensor:
        densities = call.draw(detach=True).densities()
        weights = densities.log_weights.detach()
        k = len(weights)
        others = leave_one_out_logsumexp(weights) - math.log(k - 1)
        without = torch.stack([torch.cat([weights[:j], others[j : j + 1], weights[j + 1 :]]) for j in range(k)])
        credit = estimator.bound(weights) - torch.stack([estimator.bound(w) for w in without])
        return -gradient_only((credit * densities.guide).sum())


def test_VIMCO_needs_the_derivative_of_the_weight() -> None:
    mean, _ = moments(*tuple_gradients(IWELBO(2, VIMCOWithoutWeights())))
    assert mean == pytest.approx(0.164195, abs=1e-6)
    assert mean != pytest.approx(exact_gradient(DEFINITIONS["IWELBO"], 2), abs=0.05)


def test_Score_fits_a_learned_baseline_by_least_squares() -> None:
    baseline = Constant()
    program = TwoStates(torch.zeros(32), TwoStates.tuples(5).T.contiguous())
    loss = IWELBO(5, Score(baseline=baseline)).differentiable_loss(
        program.model, program.guide, torch.ones(32).double()
    )
    (gradient,) = torch.autograd.grad(loss, baseline.value)
    signal = TwoStates.log_weights(TwoStates.tuples(5), torch.zeros(()).double()).T
    assert gradient.item() == pytest.approx((-1.3 - DEFINITIONS["IWELBO"](signal)).sum().item())
    # The value is the bound's, whatever the baseline is.
    assert loss.item() == pytest.approx(-DEFINITIONS["IWELBO"](signal).sum().item())


def test_Score_running_mean_is_of_past_steps_alone() -> None:
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


@pytest.mark.parametrize("gradient", ["score", "VIMCO, geometric"])
def test_Gradient_of_a_subsample_is_that_of_the_full_data(gradient: str) -> None:
    """Averaged over all pairs of four data and all draws of each."""
    logits = torch.tensor([0.0, 0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    estimator = IWELBO(2, SCORES[gradient]())
    total = torch.zeros(4, dtype=torch.float64)
    pairs = torch.combinations(torch.arange(4))
    for pair in pairs:
        for draw in TwoStates.tuples(2):
            draws = draw.unsqueeze(-1).expand(2, 2)  # the gradient of a datum does not depend on another's draws
            loss = estimator.differentiable_loss(*subsampled(pair, logits, draws), torch.ones(2).double())
            probability = TwoStates.log_q(draw.unsqueeze(-1), logits).sum(0).exp().detach()
            total -= probability * torch.autograd.grad(loss, logits)[0] / len(pairs)
    expected = [exact_gradient(DEFINITIONS["IWELBO"], 2, logit) for logit in logits.tolist()]
    assert total.tolist() == pytest.approx(expected, abs=1e-10)


# At the exact posterior


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
@pytest.mark.parametrize(
    ("name", "num_particles"),
    [(n, k) for n in SMOOTH for k in (1, 2, 6) if n != "ELBO, beta" and (k > 1 or n not in PAIRS)],
)
def test_STL_and_DReG_vanish_at_the_exact_posterior(name: str, gradient: str, num_particles: int) -> None:
    """One layer as modules and as functions, two layers with a learned prior and an encoder shared with it."""
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
def test_Pathwise_does_not_vanish_at_the_exact_posterior(name: str) -> None:
    program = NormalNormal.exact(X)
    assert row_gradients(BOUNDS[name](2, "pathwise"), program, X).abs().min() > 1e-3


# Plates within the data plate


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("inner_dim", [-1, -2])
@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_STL_and_DReG_of_nested_latents_vanish_at_the_exact_posterior(
    gradient: Any, inner_dim: int, vectorize: bool
) -> None:
    off = torch.zeros((), dtype=torch.float64, requires_grad=True)
    program, x = Nested(inner_dim, size=1000, off=off), torch.randn(4, 3, dtype=torch.float64)
    loss = IWELBO(3, gradient, vectorize=vectorize).differentiable_loss(program.model, program.guide, x)
    assert loss.item() == pytest.approx(-250 * Nested.log_marginal_likelihood(x).sum().item())
    assert torch.autograd.grad(loss, off)[0].abs() < 1e-10


@pytest.mark.parametrize("gradient", ["dreg", "score", "vimco"])
def test_Gradient_of_nested_latents_agrees_in_mean(gradient: Any) -> None:
    """Away from the posterior, with a mean for each of many equal data, which tells a coefficient on the wrong dim."""
    x = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64).expand(20_000, -1)
    off = torch.full((len(x), 1), 0.4, dtype=torch.float64, requires_grad=True)
    program, found = Nested(off=off), []
    for kind in ("pathwise", gradient):
        loss = IWELBO(3, kind).differentiable_loss(program.model, program.guide, x)
        found.append(torch.autograd.grad(-loss, off)[0].squeeze(-1))
    assert_mean(found[1] - found[0], 0.0)
    assert abs(found[0].mean()) > 0.3
    if gradient == "dreg":
        assert found[1].var() < found[0].var() / 2


# Combinations that are wrong


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "VRMax with dreg": (
        lambda: VRMax(5, "dreg"),
        "VRMax: expected a bound that defines path_scale, its second derivative, for dreg; got none. Use "
        "gradient='pathwise'.",
    ),
    "vimco with one particle": (
        lambda: IWELBO(1, "vimco"),
        "IWELBO: expected num_particles at least 2 for vimco; got 1. Draw more particles, or use gradient='score'.",
    ),
    "ovis with one particle": (lambda: IWELBO(1, "ovis"), "IWELBO: expected num_particles at least 2 for ovis; got 1."),
    "leave-one-out with one particle": (
        lambda: ELBO(1, gradient=Score(baseline="leave_one_out")),
        "ELBO: expected num_particles at least 2 for a leave-one-out baseline; got 1.",
    ),
    "ovis of another bound": (
        lambda: RenyiELBO(5, "ovis", alpha=0.5),
        "RenyiELBO: expected a gradient for this bound; got ovis, which is IWELBO's. Use gradient='score' or 'vimco'.",
    ),
    "enumerate of another bound": (
        lambda: IWELBO(5, "enumerate"),
        "IWELBO: expected a sampling gradient; got enumerate, which is for ELBO(analytic_kl=False). Use "
        "'vimco' (K >= 2) or 'score' in its place.",
    ),
    "covariance of another bound": (
        lambda: IWELBO(5, "covariance"),
        "IWELBO: expected a gradient for this bound; got covariance, which is ThermodynamicELBO's.",
    ),
    "an unknown gradient": (
        lambda: IWELBO(5, "reinforce"),  # type: ignore[arg-type]
        "gradient: expected one of pathwise, stl, dreg, score, vimco, ovis, enumerate, covariance, a Gradient, or a "
        "mapping from sites to these; got 'reinforce'. Use one of these.",
    ),
    "an unknown baseline": (
        lambda: Score(baseline="mean"),  # type: ignore[arg-type]
        "Score: expected baseline None, 'running_mean', 'leave_one_out' or a module; got 'mean'. Use one of these.",
    ),
    "an unknown mean": (
        lambda: VIMCO("harmonic"),  # type: ignore[arg-type]
        "VIMCO: expected mean one of 'geometric', 'arithmetic'; got 'harmonic'. Give one of these.",
    ),
    "gamma": (lambda: OVIS(2.0), "OVIS: expected gamma at least 0 and at most 1; got 2."),
    "no particle": (lambda: IWELBO(0), "IWELBO: expected num_particles at least 1; got 0. Give a larger number."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_Gradient_refuses_wrong_combinations_when_made(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg"])
@pytest.mark.parametrize("name", ["ELBO", "IWELBO"])
def test_Pathwise_refuses_draws_without_a_path(name: str, gradient: str) -> None:
    program = TwoStates(torch.zeros(1))
    message = (
        f"{name}: expected a reparameterized guide at site 'z' for {gradient} gradients; got Bernoulli, whose gradient "
        "would silently be 0. Use gradient='score', 'vimco' (K >= 2) or, with ELBO, 'enumerate'; or a relaxed "
        "distribution."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        BOUNDS[name](2, gradient).loss_and_grads(program.model, program.guide, torch.ones(1).double())


def test_Score_refuses_a_baseline_of_another_shape() -> None:
    program = TwoStates(torch.zeros(3))
    gradient = Score(baseline=nn.Linear(3, 2).double())
    with pytest.raises(ValueError, match=r"Score: expected a baseline of shape \(N,\) = \(3,\); got \(2,\)\."):
        IWELBO(2, gradient).loss_and_grads(program.model, program.guide, torch.ones(3).double())


def flow_programs(flow: Any) -> tuple[Any, Any]:
    """A latent vector whose guide is a standard Normal sent through a flow of Pyro."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            noise = dist.Normal(torch.zeros(len(x), 4), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(noise, [flow]))

    return model, guide


@pytest.mark.parametrize("gradient", ["stl", "dreg", "score"])
def test_STL_refuses_a_flow_without_an_inverse(gradient: str) -> None:
    model, guide = flow_programs(transforms.Planar(4))
    x = torch.zeros(3, 4)
    IWELBO(2).loss_and_grads(model, guide, x)
    with pytest.raises(
        ValueError,
        match=r"Site 'z': expected a density at any value; got a flow without an inverse \(.*\). In the guide, use "
        r"gradient='pathwise'; in the model, a flow with an inverse\.",
    ):
        BOUNDS["IWELBO"](2, gradient).loss_and_grads(model, guide, x)


def conditional(posterior: conditionals.Conditional) -> tuple[Any, Any]:
    vae = VAE(priors.StandardNormal(4), likelihoods.Normal(nets.MLP(4, []), 4), posterior)
    return vae.model, vae.guide


SLOW: dict[str, Callable[[], tuple[Any, Any]]] = {
    "Pyro's": lambda: flow_programs(transforms.affine_autoregressive(4, [4])),
    "composed": lambda: flow_programs(
        transforms.ComposeTransformModule([transforms.affine_autoregressive(4, [4]), transforms.permute(4)])
    ),
    "zuko's": lambda: conditional(conditionals.InverseAutoregressiveFlow(nets.MLP(4, []), 4, hidden=[4])),
    "Sylvester": lambda: conditional(conditionals.Sylvester(nets.MLP(4, []), 4)),
}


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
@pytest.mark.parametrize("name", SLOW)
def test_STL_warns_of_slow_inverses(name: str, gradient: str) -> None:
    model, guide = SLOW[name]()
    with pytest.warns(
        UserWarning, match=r"Site 'z': stl and dreg evaluate log q .* one dimension after another, 4 here;"
    ):
        BOUNDS["IWELBO"](2, gradient).loss_and_grads(model, guide, torch.zeros(3, 4))


FAST: dict[str, Callable[[], tuple[Any, Any]]] = {
    "coupling": lambda: flow_programs(transforms.affine_coupling(4, [4])),
    "coupling by zuko": lambda: conditional(conditionals.RealNVP(nets.MLP(4, []), 4, hidden=[4])),
    "Householder": lambda: flow_programs(transforms.Householder(4)),
}


@pytest.mark.parametrize("name", FAST)
def test_STL_does_not_warn_of_fast_inverses(name: str) -> None:
    model, guide = FAST[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        IWELBO(2, "dreg").loss_and_grads(model, guide, torch.zeros(3, 4))


def test_gradient_of_takes_names_and_objects() -> None:
    assert {type(gradient_of(name)).__name__ for name in ("pathwise", "stl", "dreg", "score", "vimco", "ovis")} == {
        "Pathwise", "STL", "DReG", "Score", "VIMCO", "OVIS",
    }  # fmt: skip
    own = DReG()
    assert IWELBO(2, own).gradient is own
    for name, gradient in (("stl", STL()), ("pathwise", Pathwise())):
        program = GivenNormalNormal(X, 0.3 * X, 0.8 + 0 * X, noise(4, 3))
        by_name, by_object = (row_gradients(RenyiELBO(4, g, alpha=0.5), program, X) for g in (name, gradient))  # type: ignore[arg-type]
        torch.testing.assert_close(by_name, by_object, rtol=0, atol=0)
