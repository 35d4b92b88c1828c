"""The ELBO agrees with closed forms and with stock Pyro, in value, gradient and gradient variance."""

import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from oracles import LinearVAE, NormalNormal, TwoStates
from pyro import poutine
from torch import Tensor

from pyro_vae import VAE, conditionals, likelihoods, nets, priors
from pyro_vae.elbo import ELBO

pytestmark = pytest.mark.usefixtures("global_store")

Programs = tuple[Any, Any, Tensor]
X = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


def function_programs() -> Programs:
    program = NormalNormal(torch.tensor([0.2, 0.1, -1.0]), torch.tensor([0.7, 1.0, 0.4]), functions=True)
    return program.model, program.guide, X


def module_programs() -> Programs:
    program = NormalNormal(torch.tensor([0.2, 0.1, -1.0]), torch.tensor([0.7, 1.0, 0.4]))
    return program.model, program.guide, X


def vae_programs() -> Programs:
    torch.manual_seed(0)
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4]), 5),
        conditionals.DiagonalNormal(nets.MLP(5, [4]), 2),
    )
    return vae.model, vae.guide, torch.randn(4, 5)


def hierarchy(order: str = "top down") -> Programs:
    """Two layers of latents, a mask, and a subsample of 3 of 10 data."""
    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    mask: Any = torch.tensor([True, False, True])

    def model(x: Tensor) -> None:
        with pyro.plate("data", 10, subsample_size=3), poutine.mask(mask=mask):
            top = pyro.sample("top", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            z = pyro.sample("z", dist.Normal(top, 0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.3, dtype=x.dtype))
        log_scale = pyro.param("log_scale", torch.tensor(-0.2, dtype=x.dtype))
        with pyro.plate("data", 10, subsample_size=3), poutine.mask(mask=mask):
            if order == "top down":
                top = pyro.sample("top", dist.Normal(slope * x, log_scale.exp()))
                pyro.sample("z", dist.Normal(top + slope * x, 0.5))
            else:
                z = pyro.sample("z", dist.Normal(slope * x, log_scale.exp()))
                pyro.sample("top", dist.Normal(slope * z, 0.5))

    return model, guide, x


PROGRAMS: dict[str, Callable[[], Programs]] = {
    "functions": function_programs,
    "modules": module_programs,
    "VAE": vae_programs,
    "hierarchy": hierarchy,
}


def gradients_of(loss: Any, programs: Callable[[], Programs], seed: int = 3) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by name, of a fresh program; root names of modules differ from one to the next."""
    pyro.clear_param_store()
    model, guide, x = programs()
    torch.manual_seed(seed)
    value = loss.loss_and_grads(model, guide, x)
    return value, {
        name.split(".", 1)[-1]: p.grad for name, p in pyro.get_param_store().named_parameters() if p.grad is not None
    }


def assert_same(ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    assert len(ours[1]) > 0
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name])


# Against stock Pyro


@pytest.mark.parametrize("programs", PROGRAMS.values(), ids=list(PROGRAMS))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: ELBO(), lambda: pyro.infer.Trace_ELBO()),
        (lambda: ELBO(analytic_kl=True), lambda: pyro.infer.TraceMeanField_ELBO()),
        (lambda: ELBO(3, vectorize=False), lambda: pyro.infer.Trace_ELBO(3)),
        (lambda: ELBO(3, analytic_kl=True, vectorize=False), lambda: pyro.infer.TraceMeanField_ELBO(3)),
    ],
    ids=["sampled KL", "analytic KL", "sampled KL, K=3", "analytic KL, K=3"],
)
def test_ELBO_loss_and_gradient_are_those_of_stock_pyro(
    programs: Callable[[], Programs], ours: Callable[[], ELBO], theirs: Callable[[], pyro.infer.ELBO]
) -> None:
    assert_same(gradients_of(ours(), programs), gradients_of(theirs(), programs))


@pytest.mark.parametrize("programs", PROGRAMS.values(), ids=list(PROGRAMS))
@pytest.mark.parametrize("analytic_kl", [False, True])
def test_ELBO_vectorized_particles_are_those_of_stock_pyro(programs: Callable[[], Programs], analytic_kl: bool) -> None:
    stock = pyro.infer.TraceMeanField_ELBO if analytic_kl else pyro.infer.Trace_ELBO
    theirs = stock(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    assert_same(gradients_of(ELBO(5, analytic_kl=analytic_kl), programs), gradients_of(theirs, programs))


@pytest.mark.parametrize("beta", [0.5, 4.0])
@pytest.mark.parametrize("analytic_kl", [False, True])
def test_ELBO_beta_scales_the_latents_in_model_and_guide(beta: float, analytic_kl: bool) -> None:
    def scaled(program: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            with _ScaleLatents(beta):
                program(x)

        return run

    def programs() -> Programs:
        model, guide, x = function_programs()
        return scaled(model), scaled(guide), x

    stock = pyro.infer.TraceMeanField_ELBO() if analytic_kl else pyro.infer.Trace_ELBO()
    ours = gradients_of(ELBO(beta=beta, analytic_kl=analytic_kl), function_programs)
    assert_same(ours, gradients_of(stock, programs))
    assert ours[0] != pytest.approx(gradients_of(ELBO(analytic_kl=analytic_kl), function_programs)[0])


class _ScaleLatents(poutine.messenger.Messenger):
    """Scales every latent site and no other."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.scale


# Against closed forms


@pytest.mark.parametrize("num_particles", [1, 7])
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("functions", [True, False])
def test_ELBO_at_the_exact_posterior_every_draw_is_log_p(num_particles: int, vectorize: bool, functions: bool) -> None:
    program = NormalNormal.exact(X, functions=functions)
    loss = ELBO(num_particles, vectorize=vectorize)
    exact = -NormalNormal.log_marginal_likelihood(X).sum().item()
    for _ in range(3):
        assert loss.loss(program.model, program.guide, X) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("num_particles", [1, 7])
def test_ELBO_on_a_linear_vae_every_draw_is_log_p(num_particles: int) -> None:
    oracle = LinearVAE.random(orthogonal=True)
    vae, x = oracle.vae(diagonal=True), oracle.draw(6)
    exact = -oracle.log_marginal_likelihood(x).sum().item()
    for _ in range(3):
        assert ELBO(num_particles).loss(vae.model, vae.guide, x) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("analytic_kl", [True, False])
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_ELBO_mean_is_the_closed_form(vectorize: bool, num_particles: int, analytic_kl: bool, beta: float) -> None:
    loc, scale, n = 0.4, 0.8, 4000
    x = torch.ones(n, dtype=torch.float64)
    program = NormalNormal(torch.full((n,), loc), torch.full((n,), scale))
    kl = (loc**2 + scale**2 - 1) / 2 - torch.tensor(scale).log().item()
    elbo_at_one = NormalNormal.elbo(x[:1], torch.tensor([loc]), torch.tensor([scale])).item()
    truth = -(elbo_at_one + kl - beta * kl)
    loss = (
        ELBO(num_particles, beta=beta, analytic_kl=analytic_kl, vectorize=vectorize).loss(
            program.model, program.guide, x
        )
        / n
    )
    # Variances of log p(x|z) + beta (log p - log q) at z = loc + scale e: e has coefficients a, e^2 has b.
    weight = 0.0 if analytic_kl else beta
    a = scale * ((1 - loc) - weight * loc)
    b = (-(scale**2) - weight * scale**2 + weight) / 2
    standard_error = ((a**2 + 2 * b**2) / (num_particles * n)) ** 0.5
    assert abs(loss - truth) < 5 * standard_error + 1e-12


def test_ELBO_mean_gradient_is_the_closed_form() -> None:
    n = 4000
    x = torch.ones(n, dtype=torch.float64)
    for options in ({}, {"analytic_kl": True}, {"num_particles": 3}, {"gradient": "stl"}, {"gradient": "score"}):
        program = NormalNormal(torch.full((n,), 0.4), torch.full((n,), 0.8))
        ELBO(**options).loss_and_grads(program.model, program.guide, x)
        for parameter, truth in ((program.guide.loc, 1 - 2 * 0.4), (program.guide.log_scale, 1 - 2 * 0.8**2)):
            ascent = -parameter.grad
            assert abs(ascent.mean() - truth) < 5 * ascent.std() / n**0.5


@pytest.mark.parametrize(
    ("options", "name"),
    [({}, "pathwise"), ({"analytic_kl": True}, "analytic_kl")],
)
def test_ELBO_gradient_variances_at_the_exact_posterior(options: dict[str, Any], name: str) -> None:
    n = 20_000
    x = torch.full((n,), 1.3, dtype=torch.float64)
    program = NormalNormal.exact(x)
    ELBO(**options).loss_and_grads(program.model, program.guide, x)
    draws = torch.stack([program.guide.loc.grad, program.guide.log_scale.grad], -1)
    # The variance of a sample variance is (fourth central moment - variance^2) / n.
    centered = draws - draws.mean(0)
    standard_error = ((centered**4).mean(0) - draws.var(0) ** 2).div(n).sqrt()
    assert (draws.mean(0).abs() < 5 * draws.std(0) / n**0.5).all()
    truth = NormalNormal.gradient_variances(x[:1])[name][0]
    assert ((draws.var(0) - truth).abs() < 5 * standard_error).all()


def test_ELBO_particles_divide_the_gradient_variance() -> None:
    n = 5000
    x = torch.full((n,), 1.3, dtype=torch.float64)
    program = NormalNormal.exact(x)
    ELBO(num_particles=4).loss_and_grads(program.model, program.guide, x)
    draws = program.guide.loc.grad
    centered = draws - draws.mean()
    standard_error = ((centered**4).mean() - draws.var() ** 2).div(n).sqrt()
    assert abs(draws.var() - 2 / 4) < 5 * standard_error


def test_STL_has_no_variance_at_the_exact_posterior() -> None:
    program = NormalNormal.exact(X)
    ELBO(num_particles=2, gradient="stl").loss_and_grads(program.model, program.guide, X)
    assert program.guide.loc.grad.abs().max() < 1e-12
    assert program.guide.log_scale.grad.abs().max() < 1e-12


def test_Enumerate_is_the_exact_expectation() -> None:
    program, x = TwoStates(torch.tensor([0.3, -1.0])), torch.ones(2, dtype=torch.float64)
    loss = ELBO(gradient="enumerate")
    value = loss.loss_and_grads(program.model, program.guide, x)
    logits = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    exact = -sum((TwoStates.bound(1, logit) for logit in logits), torch.zeros(()))
    assert value == pytest.approx(exact.item())
    torch.testing.assert_close(program.guide.logit.grad, torch.autograd.grad(exact, logits)[0])


def test_ELBO_free_bits_bound_each_kl_from_below() -> None:
    loc, scale = torch.tensor([0.1, 2.0], dtype=torch.float64), torch.tensor([0.9, 0.5], dtype=torch.float64)
    x, kl = torch.ones(2, dtype=torch.float64), (loc**2 + scale**2 - 1) / 2 - scale.log()
    program = NormalNormal(loc, scale)
    assert kl[0] < 0.5 < kl[1]
    torch.manual_seed(1)
    plain = ELBO(analytic_kl=True).loss(program.model, program.guide, x)
    torch.manual_seed(1)
    value = ELBO(analytic_kl=True, beta=2.0, free_bits=0.5).loss_and_grads(program.model, program.guide, x)
    assert value == pytest.approx(plain - kl.sum().item() + 2 * (0.5 + kl[1].item()))
    torch.manual_seed(1)
    gradient = program.guide.loc.grad.clone()
    program.guide.loc.grad = None
    ELBO(beta=0.0, analytic_kl=True).loss_and_grads(program.model, program.guide, x)
    # Where the bound holds, the KL has no gradient; elsewhere beta times d KL / d loc = loc.
    torch.testing.assert_close(gradient - program.guide.loc.grad, torch.tensor([0.0, 2 * 2.0]).double())


@pytest.mark.parametrize("num_particles", [1, 3])
def test_ELBO_free_bits_that_bind_nowhere_change_nothing(num_particles: int) -> None:
    for programs in (function_programs, hierarchy):
        plain = gradients_of(ELBO(num_particles, beta=2.0, analytic_kl=True), programs)
        assert_same(gradients_of(ELBO(num_particles, beta=2.0, analytic_kl=True, free_bits=1e-9), programs), plain)


def test_ELBO_free_bits_that_bind_everywhere_are_scaled_with_the_subsample() -> None:
    model, guide, x = hierarchy()
    torch.manual_seed(3)
    without = ELBO(beta=0.0, analytic_kl=True).loss(model, guide, x)
    torch.manual_seed(3)
    # Two sites, 3 of 10 data, of which one is masked out.
    assert ELBO(analytic_kl=True, free_bits=50.0).loss(model, guide, x) == pytest.approx(without + 10 / 3 * 2 * 2 * 50)


# Within Pyro


@pytest.mark.parametrize("programs", [function_programs, module_programs])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_ELBO_stock_svi_reaches_the_posterior(programs: Callable[[], Programs], num_particles: int) -> None:
    model, guide, x = programs()
    optim = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.99})
    # With stl gradients the noise fades on the way, so that what is reached is exact.
    svi = pyro.infer.SVI(model, guide, optim, ELBO(num_particles, gradient="stl"))
    for _ in range(300):
        svi.step(x)
    found = {name.split(".")[-1]: p for name, p in pyro.get_param_store().items()}
    loc, scale = NormalNormal.posterior(x)
    torch.testing.assert_close(found["loc"].detach(), loc, atol=1e-3, rtol=0)
    torch.testing.assert_close(found["log_scale"].detach(), scale.log(), atol=1e-3, rtol=0)


def test_ELBO_module_trains_with_torch_alone() -> None:
    model, guide, x = module_programs()
    module = ELBO(num_particles=2)(model, guide)
    assert isinstance(module, torch.nn.Module)
    assert {id(p) for p in module.parameters()} == {id(p) for p in guide.parameters()}
    torch.manual_seed(3)
    loss = module(x)
    torch.manual_seed(3)
    assert loss.item() == pytest.approx(ELBO(num_particles=2).loss(model, guide, x))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = guide.loc.detach().clone()
    loss.backward()
    optimizer.step()
    assert (guide.loc != before).all()


def test_ELBO_evaluation_leaves_no_gradient() -> None:
    model, guide, x = module_programs()
    ELBO(num_particles=2).loss(model, guide, x)
    assert all(p.grad is None for p in guide.parameters())
    loss = ELBO().differentiable_loss(model, guide, x)
    assert loss.shape == ()
    assert loss.requires_grad


def test_ELBO_one_object_serves_programs_of_different_plates() -> None:
    loss = ELBO(num_particles=3)
    for programs in (function_programs, nested, hierarchy, function_programs):
        pyro.clear_param_store()
        model, guide, x = programs()
        torch.manual_seed(3)
        value = loss.loss(model, guide, x)
        torch.manual_seed(3)
        assert value == pytest.approx(ELBO(num_particles=3).loss(model, guide, x))


def nested() -> Programs:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            with pyro.plate("repeats", 2, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, None].expand(-1, 2))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x[:, None] * 2 / 3, 3**-0.5))

    return model, guide, X


@pytest.mark.parametrize("num_particles", [1, 4])
def test_ELBO_plates_within_the_data_plate(num_particles: int) -> None:
    model, guide, x = nested()
    # x is seen twice: the posterior is Normal(2 x / 3, 1 / 3) and the two have covariance 1 and variance 2.
    pair = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.tensor([[2.0, 1], [1, 2]]).double())
    exact = -pair.log_prob(x[:, None].expand(-1, 2)).sum().item()
    assert ELBO(num_particles).loss(model, guide, x) == pytest.approx(exact)


# Refused


def discrete() -> Programs:
    program = TwoStates(torch.zeros(2))
    return program.model, program.guide, torch.ones(2, dtype=torch.float64)


def mixture() -> Programs:
    torch.manual_seed(0)
    vae = VAE(
        priors.MixtureOfNormals(2, num_components=3),
        likelihoods.Normal(nets.MLP(2, []), 5),
        conditionals.DiagonalNormal(nets.MLP(5, []), 2),
    )
    return vae.model, vae.guide, torch.randn(4, 5)


def auxiliary() -> Programs:
    model, _, x = function_programs()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            aux = pyro.sample("aux", dist.Normal(torch.zeros_like(x), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros_like(x)) + aux, 1.0))

    return model, guide, x


def incomplete() -> Programs:
    model, _, x = function_programs()
    return model, lambda x: None, x


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize(
    ("programs", "options", "message"),
    [
        (
            discrete,
            {},
            r"ELBO: expected a reparameterized guide at site 'z' for pathwise gradients; got Bernoulli, whose gradient "
            r"would silently be 0\. Use gradient='score'",
        ),
        (discrete, {"analytic_kl": True}, "ELBO: expected a reparameterized guide at site 'z'"),
        (
            mixture,
            {"analytic_kl": True},
            r"Analytic KL: expected a closed form at site 'z'; got Normal against Mixture\w+\. Use",
        ),
        (
            auxiliary,
            {"analytic_kl": True},
            "Analytic KL: expected a closed form at site 'aux'; got Normal against no distribution",
        ),
        (
            lambda: hierarchy("bottom up"),
            {"analytic_kl": True},
            r"Analytic KL: expected the guide to draw its latents in the model's order, \['top', 'z'\]; got "
            r"\['z', 'top'\]\. Use analytic_kl=False",
        ),
        (
            incomplete,
            {},
            r"Guide: expected a site for every latent of the model; got none for \['z'\]\. Sample them in the guide",
        ),
    ],
    ids=["discrete", "discrete, analytic KL", "mixture", "auxiliary", "bottom up", "incomplete"],
)
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_ELBO_programs_that_would_give_a_wrong_answer_are_refused(
    num_particles: int, programs: Callable[[], Programs], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ELBO(num_particles, **options).loss(*programs())


def test_ELBO_mixtures_auxiliaries_and_bottom_up_guides_are_fine_without_analytic_kl() -> None:
    for programs in (mixture, auxiliary, lambda: hierarchy("bottom up")):
        assert_same(gradients_of(ELBO(), programs), gradients_of(pyro.infer.Trace_ELBO(), programs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "ELBO: expected num_particles at least 1; got 0."),
        ({"beta": -0.1}, "ELBO: expected beta at least 0; got -0.1. Give such a number."),
        ({"beta": float("nan")}, "ELBO: expected beta at least 0; got nan."),
        ({"free_bits": -1.0}, "ELBO: expected free_bits at least 0; got -1."),
        ({"free_bits": 1.0}, "ELBO: expected analytic_kl=True with free_bits; got False."),
        (
            {"analytic_kl": True, "gradient": "stl"},
            "ELBO: expected gradient='pathwise' with analytic_kl=True; got STL.",
        ),
        ({"gradient": "reinforce"}, "gradient: expected one of pathwise, stl, dreg, score,"),
    ],
)
def test_ELBO_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ELBO(**options)
