"""A gradient for each site: means and variances against quadrature, enumeration, brute force and Pyro's own."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from bounds import BOUNDS, GivenNormal, Noise, assert_mean, grid, log_normal
from torch import Tensor, nn

from pyro_vae.elbo import ELBO, IWELBO, MIWELBO, VIMCO, BySite, DReG, Estimator, Score
from pyro_vae.elbo.draws import Call
from pyro_vae.traces.tracing import inspect

pytestmark = pytest.mark.usefixtures("global_store")

STRUCTURES = ("k then z", "z then k", "apart")
START = (0.4, 0.3, 0.8, -0.3, 0.6)  # logit, loc, dependence, log scale; of the model: mean
X = 1.3
NAMES = itertools.count()


class GivenBernoulli(dist.Bernoulli):  # type: ignore[misc]
    """A Bernoulli whose draws are given."""

    def __init__(self, logits: Tensor, draws: Noise) -> None:
        super().__init__(logits=logits)
        self.draws = draws

    def expand(self, batch_shape: Any, _instance: None = None) -> GivenBernoulli:
        return GivenBernoulli(self.logits.expand(batch_shape), self.draws)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.draws.take(self.batch_shape)


class Mixed:
    """A Bernoulli k and a Normal z per datum, in the guide one after the other or apart; x ~ Normal(z + k, .7^2).

    Args:
        structure: one of ``STRUCTURES``.
        size: N; every datum has parameters of its own, (N, 5).
        k: given draws, (K, N); None for random ones.
        noise: given noise of z, likewise.
    """

    def __init__(self, structure: str, size: int, k: Tensor | None = None, noise: Tensor | None = None) -> None:
        self.structure = structure
        self.parameters = nn.Parameter(torch.tensor(START, dtype=torch.float64).repeat(size, 1))
        self.holder = nn.ParameterList([self.parameters])
        self.name = f"mixed{next(NAMES)}"
        self.k = None if k is None else Noise(k)
        self.noise = None if noise is None else Noise(noise)

    def guide_k(self, z: Tensor | float = 0.0) -> Tensor:
        """The logit of k."""
        logit, _, dependence, _, _ = self.parameters.unbind(-1)
        return logit + dependence * z if self.structure == "z then k" else logit

    def guide_z(self, k: Tensor | float = 0.0) -> Tensor:
        """The mean of z."""
        _, loc, dependence, _, _ = self.parameters.unbind(-1)
        return loc + dependence * k if self.structure == "k then z" else loc + (self.structure == "apart") * dependence

    def guide(self, x: Tensor) -> None:
        pyro.module(self.name, self.holder)  # stock Pyro takes gradients of what it knows
        scale = self.parameters[:, 3].exp()

        def sample_z(k: Tensor | float = 0.0) -> Tensor:
            loc = self.guide_z(k)
            fn = dist.Normal(loc, scale) if self.noise is None else GivenNormal(loc, scale, self.noise)
            return pyro.sample("z", fn)

        def sample_k(z: Tensor | float = 0.0) -> Tensor:
            logits = self.guide_k(z)
            fn = dist.Bernoulli(logits=logits) if self.k is None else GivenBernoulli(logits, self.k)
            return pyro.sample("k", fn)

        with pyro.plate("data", len(x)):
            if self.structure == "z then k":
                sample_k(sample_z())
            else:
                sample_z(sample_k())

    def model(self, x: Tensor) -> None:
        mean = self.parameters[:, 4]
        half = torch.zeros((), dtype=x.dtype)
        with pyro.plate("data", len(x)):
            if self.structure == "z then k":
                z = pyro.sample("z", dist.Normal(mean, 1.0))
                k = pyro.sample("k", dist.Bernoulli(logits=z))
            else:
                k = pyro.sample("k", dist.Bernoulli(logits=half - 0.4))
                z = pyro.sample("z", dist.Normal(mean * k if self.structure == "k then z" else mean, 1.0))
            pyro.sample("x", dist.Normal(z + k, 0.7), obs=x)

    def log_q(self, k: Tensor, z: Tensor) -> Tensor:
        logit = self.guide_k(z)
        scale = self.parameters[:, 3]
        return nn.functional.logsigmoid(torch.where(k > 0, logit, -logit)) + log_normal(z, self.guide_z(k), scale)

    def log_joint(self, k: Tensor, z: Tensor) -> Tensor:
        mean, zero = self.parameters[:, 4], torch.zeros(())
        logit = z if self.structure == "z then k" else torch.full_like(z, -0.4)
        prior = nn.functional.logsigmoid(torch.where(k > 0, logit, -logit))
        prior = prior + log_normal(z, mean * k if self.structure == "k then z" else mean, zero)
        x, log_scale = torch.tensor([X, math.log(0.7)], dtype=torch.float64)
        return prior + log_normal(x, z + k, log_scale)

    def gradients(self, loss: Any) -> Tensor:
        """Of the bound of each datum in its parameters, (N, 5)."""
        x = torch.full((len(self.parameters),), X, dtype=torch.float64)
        loss.loss_and_grads(self.model, self.guide, x)
        found, self.parameters.grad = self.parameters.grad, None
        assert found is not None
        return -found


def cases(structure: str, num_particles: int, step: float = 0.125) -> tuple[Mixed, Tensor]:
    """All draws of K particles, each a datum: k exactly and z on a grid; and their probabilities."""
    noise, weight = grid(num_particles, step)
    values = torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_particles)), dtype=torch.float64)
    k = values.repeat_interleave(noise.shape[1], 0).T
    program = Mixed(structure, k.shape[1], k, noise.repeat(1, len(values)))
    with torch.no_grad():
        scale, z = program.parameters[:, 3].exp(), program.noise.values if program.noise else noise
        z = program.guide_z(k) + scale * z
        logit = program.guide_k(z)
        log_k = nn.functional.logsigmoid(torch.where(k > 0, logit, -logit)).sum(0)
    return program, log_k.exp() * weight.repeat(len(values))


def exact_gradient(structure: str, num_particles: int, bound: Callable[[Tensor], Tensor], step: float) -> Tensor:
    """Of the expected bound: a sum over k and the trapezoidal rule over z, at points that do not move."""
    program, _ = cases(structure, num_particles, step)
    single = Mixed(structure, 1)
    assert program.k is not None
    assert program.noise is not None
    with torch.no_grad():
        k, z = program.k.values, 0.5 + 0.9 * program.noise.values
    log_q, log_joint = single.log_q(k, z), single.log_joint(k, z)
    expected = (log_q.sum(0).exp() * bound(log_joint - log_q)).sum() * (0.9 * step) ** num_particles
    return torch.autograd.grad(expected, single.parameters)[0][0]


MAPPINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "score and pathwise": lambda: {"k": "score", "z": "pathwise"},
    "score twice": lambda: {"k": "score", "z": Score()},
    "vimco and pathwise": lambda: {"k": "vimco", "z": "pathwise"},
    "leave one out and pathwise": lambda: {"k": Score(baseline="leave_one_out"), "z": "pathwise"},
    "vimco and score": lambda: {"k": VIMCO("arithmetic"), "z": "score"},
    "enumerate and pathwise": lambda: {"k": "enumerate", "z": "pathwise"},
    "enumerate and score": lambda: {"k": "enumerate", "z": "score"},
    "score and stl": lambda: {"k": "score", "z": "stl"},
    "enumerate and stl": lambda: {"k": "enumerate", "z": "stl"},
}
LINEAR = ("enumerate", "stl")


def log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.exp().mean(0).log()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("mapping", ["score and pathwise", "score twice", "score and stl"])
def test_BySite_one_draw_has_the_exact_mean(structure: str, mapping: str) -> None:
    program, probability = cases(structure, 1)
    found = program.gradients(ELBO(1, MAPPINGS[mapping]()))
    exact = exact_gradient(structure, 1, lambda log_weights: log_weights.mean(0), 0.125)
    torch.testing.assert_close(probability @ found, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("mapping", [name for name in MAPPINGS if not any(word in name for word in LINEAR)])
@pytest.mark.parametrize("bound", ["ELBO", "IWELBO"])
def test_BySite_two_draws_have_the_exact_mean(bound: str, mapping: str, structure: str) -> None:
    program, probability = cases(structure, 2, 0.25)
    found = program.gradients(BOUNDS[bound](2, MAPPINGS[mapping]()))
    exact = exact_gradient(structure, 2, {"ELBO": lambda w: w.mean(0), "IWELBO": log_mean}[bound], 0.25)
    torch.testing.assert_close(probability @ found, exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("mapping", [name for name in MAPPINGS if name.startswith("enumerate")])
def test_Enumerate_is_unbiased(mapping: str, num_particles: int, structure: str) -> None:
    """Within 5 standard errors of 20,000 data; that of k then z draws a z for each k."""
    exact = exact_gradient(structure, 1, lambda log_weights: log_weights.mean(0), 0.125)
    for vectorize in (True, False):
        torch.manual_seed(0)
        loss = ELBO(num_particles, MAPPINGS[mapping](), vectorize=vectorize)
        assert_mean(Mixed(structure, 20_000).gradients(loss), exact)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_Enumerate_is_exact_at_given_noise(structure: str) -> None:
    torch.manual_seed(0)
    noise = torch.randn(2 if structure == "k then z" else 1, 7, dtype=torch.float64)
    given = noise if structure == "k then z" else noise[0]
    found = Mixed(structure, 7, noise=given).gradients(ELBO(1, {"k": "enumerate", "z": "pathwise"}))
    program, total = Mixed(structure, 7), torch.zeros((), dtype=torch.float64)
    scale = program.parameters[:, 3].exp()
    for value in (0.0, 1.0):
        k = torch.full((7,), value, dtype=torch.float64)
        z = program.guide_z(k) + scale * noise[int(value) if structure == "k then z" else 0]
        logit = program.guide_k(z)
        probability = torch.where(k > 0, logit, -logit).sigmoid()
        total = total + (probability * (program.log_joint(k, z) - program.log_q(k, z))).sum()
    (exact,) = torch.autograd.grad(total, program.parameters)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_BySite_score_and_pathwise_are_what_stock_pyro_does(structure: str) -> None:
    """The same draws give the same gradients.

    ``Trace_ELBO`` credits k with what comes before it, too; ``TraceGraph_ELBO`` alone sees that z and k are apart.
    """
    stock = pyro.infer.Trace_ELBO() if structure == "apart" else pyro.infer.TraceGraph_ELBO()
    found = []
    for loss in (ELBO(1, {"k": "score", "z": "pathwise"}), stock):
        torch.manual_seed(0)
        found.append(Mixed(structure, 50).gradients(loss))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_BySite_variance_is_no_larger_than_pyros(structure: str) -> None:
    """Summed over the parameters: score alone and Pyro's own above score for k, that above enumeration of k."""
    losses: dict[str, Any] = {
        "score alone": ELBO(1, "score"),
        "Pyro, Trace": pyro.infer.Trace_ELBO(),
        "Pyro, TraceGraph": pyro.infer.TraceGraph_ELBO(),
        "score": ELBO(1, {"k": "score", "z": "pathwise"}),
        "enumerate": ELBO(1, {"k": "enumerate", "z": "pathwise"}),
    }
    variance = {}
    for name, loss in losses.items():
        torch.manual_seed(0)
        variance[name] = Mixed(structure, 40_000).gradients(loss).var(0).sum().item()
    print(structure, {name: round(value, 3) for name, value in variance.items()})
    assert variance["enumerate"] < 0.9 * variance["score"]
    assert variance["score"] < 0.8 * variance["score alone"]
    for name in ("Pyro, Trace", "Pyro, TraceGraph"):
        assert variance["score"] < 1.05 * variance[name]


# Nested plates


class Groups:
    """A class c per datum, and in an inner plate of 2 a bit k|c and x ~ Normal(k + c, 1); every site is a bit.

    Args:
        size: N; every datum has parameters of its own, (N, 4).
    """

    x = torch.tensor([0.2, 1.7], dtype=torch.float64)

    def __init__(self, size: int) -> None:
        self.parameters = nn.Parameter(torch.tensor([0.5, -0.3, 0.9, 0.2], dtype=torch.float64).repeat(size, 1))

    def guide(self, x: Tensor) -> None:
        of_c, of_k, dependence, _ = self.parameters.unsqueeze(1).unbind(-1)
        with pyro.plate("data", len(x), dim=-2):
            c = pyro.sample("c", dist.Bernoulli(logits=of_c))
            with pyro.plate("inner", 2, dim=-1):
                pyro.sample("k", dist.Bernoulli(logits=of_k + dependence * c))

    def model(self, x: Tensor) -> None:
        mean = self.parameters[:, 3:]
        with pyro.plate("data", len(x), dim=-2):
            c = pyro.sample("c", dist.Bernoulli(torch.full((len(x), 1), 0.3, dtype=x.dtype)))
            with pyro.plate("inner", 2, dim=-1):
                k = pyro.sample("k", dist.Bernoulli(logits=mean + c))
                pyro.sample("x", dist.Normal(k + c, 1.0), obs=x)

    def gradients(self, loss: Any) -> Tensor:
        loss.loss_and_grads(self.model, self.guide, self.x.repeat(len(self.parameters), 1))
        found, self.parameters.grad = self.parameters.grad, None
        assert found is not None
        return -found

    @classmethod
    def exact(cls) -> tuple[float, Tensor]:
        """The ELBO of a datum and its gradient, by a sum over all eight values."""
        single = cls(1)
        of_c, of_k, dependence, mean = single.parameters[0]
        total = torch.zeros((), dtype=torch.float64)

        def log_bernoulli(value: float, logit: Tensor) -> Tensor:
            return nn.functional.logsigmoid(logit if value else -logit)

        for c, *ks in itertools.product([0.0, 1.0], repeat=3):
            log_q = log_bernoulli(c, of_c)
            log_p = torch.tensor(0.3 if c else 0.7, dtype=torch.float64).log()
            for k, x in zip(ks, cls.x, strict=True):
                log_q = log_q + log_bernoulli(k, of_k + dependence * c)
                log_p = log_p + log_bernoulli(k, mean + c) + log_normal(x, torch.tensor(k + c), torch.zeros(()))
            total = total + log_q.exp() * (log_p - log_q)
        return total.item(), torch.autograd.grad(total, single.parameters)[0][0]


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("gradient", ["enumerate", {"c": "enumerate", "k": "enumerate"}])
def test_Enumerate_of_all_sites_is_exact(gradient: Any, num_particles: int) -> None:
    value, exact = Groups.exact()
    program = Groups(3)
    for loss in (ELBO(num_particles, gradient), ELBO(num_particles, gradient, vectorize=False)):
        assert loss.loss(program.model, program.guide, Groups.x.repeat(3, 1)) == pytest.approx(-3 * value, abs=1e-10)
        torch.testing.assert_close(program.gradients(loss), exact.expand(3, -1), rtol=0, atol=1e-10)


def test_Enumerate_of_a_chain_of_sums_is_exact() -> None:
    """Where a term depends on the last bit alone, it is weighed with the probabilities of all before it."""
    parameters = nn.Parameter(torch.tensor([0.5, -0.3, 0.9, 0.2, -1.1], dtype=torch.float64))
    x = torch.tensor([0.2, 1.7], dtype=torch.float64)

    def logits(a: Any, b: Any) -> tuple[Tensor, Tensor, Tensor]:
        p = parameters
        return p[0], p[1] + p[2] * a, p[3] + p[4] * b

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            a = pyro.sample("a", dist.Bernoulli(logits=logits(0.0, 0.0)[0]))
            b = pyro.sample("b", dist.Bernoulli(logits=logits(a, 0.0)[1]))
            pyro.sample("c", dist.Bernoulli(logits=logits(a, b)[2]))

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            c, *_ = (pyro.sample(name, dist.Bernoulli(x.new_tensor(0.3))) for name in "cab")
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    total = torch.zeros((), dtype=torch.float64)
    for bits in itertools.product([0.0, 1.0], repeat=3):
        terms = [nn.functional.logsigmoid(a if bit else -a) for bit, a in zip(bits, logits(*bits[:2]), strict=True)]
        log_q = torch.stack(terms).sum()
        log_p = sum(math.log(0.3 if bit else 0.7) for bit in bits)
        for datum in x:
            log_x = log_normal(datum, torch.tensor(bits[2]), torch.zeros(()))
            total = total + log_q.exp() * (log_p + log_x - log_q)
    (exact,) = torch.autograd.grad(total, parameters)
    for loss in (ELBO(1, "enumerate"), ELBO(3, "enumerate"), ELBO(2, dict.fromkeys("abc", "enumerate"))):
        value = loss.differentiable_loss(model, guide, x)
        assert value.item() == pytest.approx(-total.item(), abs=1e-10)
        torch.testing.assert_close(-torch.autograd.grad(value, parameters)[0], exact, rtol=0, atol=1e-10)


class PerDatum(nn.Module):
    """A learned baseline: a number for each datum."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(len(x))


NESTED: dict[str, Callable[[], Any]] = {
    "score twice": lambda: {"c": "score", "k": "score"},
    "sum over c": lambda: {"c": "enumerate", "k": "score"},
    "sum over k": lambda: {"c": "score", "k": "enumerate"},
    "left out": lambda: {"c": "vimco", "k": Score("leave_one_out")},
    "sum over c, left out": lambda: {"c": "enumerate", "k": Score("leave_one_out")},
    "running means": lambda: {"c": Score("running_mean"), "k": Score("running_mean")},
    "learned": lambda: {"c": Score(PerDatum()), "k": Score(PerDatum())},
    "sum over c, learned": lambda: {"c": "enumerate", "k": Score(PerDatum())},
}


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", NESTED)
def test_BySite_nested_sites_are_unbiased(name: str, vectorize: bool) -> None:
    """Within 5 standard errors of 20,000 data, of 2 draws each; a running mean after a step that sets it."""
    _, exact = Groups.exact()
    torch.manual_seed(0)
    loss = ELBO(2, NESTED[name](), vectorize=vectorize)
    Groups(100).gradients(loss)
    assert_mean(Groups(20_000).gradients(loss), exact)


def test_BySite_bit_of_an_inner_plate_is_credited_with_its_own_element() -> None:
    """And not with the other element's terms, so that its variance is lower than that of the whole datum's signal."""
    variances = []
    gradients: list[Any] = [{"c": "score", "k": "score"}, "score"]
    for gradient in gradients:
        torch.manual_seed(0)
        variances.append(Groups(20_000).gradients(ELBO(1, gradient)).var(0))
    assert variances[0][1] < 0.75 * variances[1][1]


# Latents outside the data plate


class Shared:
    """A bit g for all data, a bit k|g for each, 5 of 10 data that are all alike."""

    def __init__(self) -> None:
        self.parameters = nn.Parameter(torch.tensor([0.5, -0.3, 0.9], dtype=torch.float64))

    def guide(self, x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=self.parameters[0]))
        with pyro.plate("data", 10, subsample_size=5):
            pyro.sample("k", dist.Bernoulli(logits=self.parameters[1] + self.parameters[2] * g))

    def model(self, x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(x.new_tensor(0.3)))
        with pyro.plate("data", 10, subsample_size=5):
            k = pyro.sample("k", dist.Bernoulli(torch.where(g > 0, x.new_tensor(0.6), x.new_tensor(0.2))))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    @staticmethod
    def exact() -> Tensor:
        """The gradient of the ELBO of ten data."""
        p = Shared().parameters
        total = torch.zeros((), dtype=torch.float64)
        for g, k in itertools.product([0.0, 1.0], repeat=2):
            q_g = p[0].sigmoid() if g else 1 - p[0].sigmoid()
            q_k = (p[1] + p[2] * g).sigmoid() if k else 1 - (p[1] + p[2] * g).sigmoid()
            p_k = (0.6 if g else 0.2) if k else (0.4 if g else 0.8)
            log_x = log_normal(torch.tensor(1.0, dtype=torch.float64), torch.tensor(k), torch.zeros(()))
            term = torch.tensor(p_k, dtype=torch.float64).log() + log_x - q_k.log()
            total = total + q_g * q_k * (10 * term + torch.tensor(0.3 if g else 0.7).double().log() - q_g.log())
        return torch.autograd.grad(total, p)[0]


@pytest.mark.parametrize(
    "gradient",
    ["score", "vimco", {"g": "score", "k": "score"}, {"g": "vimco", "k": "score"}, {"g": "enumerate", "k": "score"}],
    ids=str,
)
def test_BySite_subsampled_plate_and_a_latent_outside_it_are_unbiased(gradient: Any) -> None:
    """The subsample's scale multiplies a density, and no derivative of a probability; by 50 estimates."""
    torch.manual_seed(0)
    program, loss = Shared(), ELBO(2000, gradient)
    x = torch.ones(5, dtype=torch.float64)
    found = []
    for _ in range(50):
        (gradients,) = torch.autograd.grad(
            -loss.differentiable_loss(program.model, program.guide, x), program.parameters
        )
        found.append(gradients)
    assert_mean(torch.stack(found), Shared.exact())


class Parts:
    """Three bits s in a plate of their own, and three data that depend on all of them, in a plate of the same dim."""

    logits = (0.5, -0.3, 0.2)
    x = torch.tensor([0.2, 1.7, 2.5], dtype=torch.float64)

    def __init__(self) -> None:
        self.parameters = nn.Parameter(torch.tensor(self.logits, dtype=torch.float64))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("parts", 3):
            pyro.sample("s", dist.Bernoulli(logits=self.parameters))

    def model(self, x: Tensor) -> None:
        with pyro.plate("parts", 3):
            s = pyro.sample("s", dist.Bernoulli(torch.full((3,), 0.4, dtype=x.dtype)))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(s.sum(-1, keepdim=True), 1.0), obs=x)

    @classmethod
    def exact(cls) -> Tensor:
        """The gradient of the ELBO."""
        parameters = torch.tensor(cls.logits, dtype=torch.float64, requires_grad=True)
        total = torch.zeros((), dtype=torch.float64)
        for values in itertools.product([0.0, 1.0], repeat=3):
            s = torch.tensor(values, dtype=torch.float64)
            log_q = nn.functional.logsigmoid(torch.where(s > 0, parameters, -parameters)).sum()
            log_p = torch.where(s > 0, 0.4, 0.6).log().sum() + log_normal(cls.x, s.sum(), torch.zeros(())).sum()
            total = total + log_q.exp() * (log_p - log_q)
        return torch.autograd.grad(total, parameters)[0]


@pytest.mark.parametrize(
    "gradient", [{"s": "score"}, {"s": Score("leave_one_out")}, "score"], ids=["mapping", "object", "name"]
)
def test_BySite_plates_of_one_dim_are_two_plates(gradient: Any) -> None:
    """Every bit is credited with all data, and with its own prior; within 5 standard errors of 50 estimates."""
    torch.manual_seed(0)
    program, loss = Parts(), ELBO(2000, gradient, plate="data")
    found = []
    for _ in range(50):
        value = loss.differentiable_loss(program.model, program.guide, Parts.x)
        found.append(-torch.autograd.grad(value, program.parameters)[0])
    assert_mean(torch.stack(found), Parts.exact())


def test_BySite_plate_of_two_dims_is_refused() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", 3, dim=-1):
            pyro.sample("k", dist.Bernoulli(torch.full((3,), 0.4)))

    def model(x: Tensor) -> None:
        with pyro.plate("data", 3, dim=-2):
            k = pyro.sample("k", dist.Bernoulli(torch.full((3, 1), 0.4)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=r"^Site 'k': expected the plate 'data' at dim"),
    ):
        ELBO(1, {"k": "score"}).loss(model, guide, torch.ones(3, 1))


def test_BySite_looks_again_at_a_guide_that_changes() -> None:
    """A site that was reparameterized and is no longer has no pathwise gradient."""
    discrete = [False]

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 3):
            fn = dist.Bernoulli(torch.full((3,), 0.4)) if discrete[0] else dist.Normal(torch.zeros(3), 1.0)
            pyro.sample("z", fn)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 3):
            fn = dist.Bernoulli(torch.full((3,), 0.4)) if discrete[0] else dist.Normal(torch.zeros(3), 1.0)
            pyro.sample("z", fn)

    loss = ELBO(1, {"z": "pathwise"})
    loss.loss(model, guide, torch.ones(3))
    discrete[0] = True
    with pytest.raises(
        ValueError, match=r"^ELBO: expected a reparameterized distribution at site 'z' for pathwise; got"
    ):
        loss.loss(model, guide, torch.ones(3))


@pytest.mark.parametrize("random", [False, True])  # what is random beside its sites is not run by single values
def test_Enumerate_refuses_a_bit_of_a_plate_outside_of_which_it_counts(random: bool) -> None:
    """Summed over in parallel, all elements of the plate would have the same value."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 3):
            pyro.sample("k", dist.Bernoulli(torch.full((3,), 0.4)))

    def model(x: Tensor) -> None:
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(torch.full((3,), 0.4)))
        noise = torch.randn(()) if random else 0.0
        pyro.sample("x", dist.Normal(k.sum(-1, keepdim=True) + noise, 1.0), obs=x)

    message = "Site 'x': expected programs that keep the values of ['k'] apart, in dims left of all plates; got a log-"
    if random:
        message = (
            "Site 'x': expected to be inside the plate 'data', as the enumerated site 'k' is on which it depends; got "
            "it outside, where it depends on all elements of the plate together. Use 'score' at site 'k'."
        )
    with pytest.raises(ValueError, match=re.escape(message)):
        ELBO(1, "enumerate").loss(model, guide, torch.ones(1))
    assert ELBO(1, {"k": "score"}).loss(model, guide, torch.ones(1)) > 0


# Programs that mix the values of a latent that is summed over


def _one_hot_program(reduce: Callable[[Tensor], Tensor]) -> tuple[Callable[..., None], Callable[..., None]]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(reduce(k * torch.tensor([-1.0, 0.5, 2.0])), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.OneHotCategorical(torch.tensor([0.6, 0.3, 0.1])))

    return model, guide


@pytest.mark.parametrize("reduce", [torch.sum, torch.mean, torch.max, torch.min, lambda k: k[0].sum(-1)])
@pytest.mark.parametrize("gradient", ["enumerate", {"k": "enumerate"}])
def test_enumerate_of_programs_that_mix_values_is_refused(reduce: Callable[[Tensor], Tensor], gradient: Any) -> None:
    loss = ELBO(1, gradient)
    for _ in range(2):  # not the first time alone
        with pytest.raises(ValueError, match=r"^Site 'x': expected programs that keep the values of \['k'\] apart"):
            loss.loss(*_one_hot_program(reduce), torch.full((1,), 0.4))


def test_enumerate_of_programs_that_reduce_by_number_is_exact() -> None:
    p, q, loc = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.3, 0.1]), torch.tensor([-1.0, 0.5, 2.0])
    x = torch.tensor([0.3, -2.0])
    log_likelihood = dist.Normal(loc, 1.0).log_prob(x[:, None])
    expected = float((q * (log_likelihood + p.log() - q.log())).sum())
    found = ELBO(1, "enumerate").loss(*_one_hot_program(lambda k: k.sum(-1)), x)
    assert found == pytest.approx(-expected, rel=1e-6)


def test_enumerate_looks_at_programs_with_dropout_and_batch_norm_and_leaves_them() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model, guide = _one_hot_program(lambda k: network(k.reshape(-1, 3)).reshape(k.shape[:-1]))
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    loss = ELBO(1, "enumerate")
    loss.gradient.check_programs(
        Call(model, guide, (torch.ones(5),), {}, 1, inspect(model, guide, (torch.ones(5),), {}), None, True)
    )
    assert all(module.training for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_enumerate_of_programs_that_are_random_beside_their_sites_is_passed() -> None:
    model, guide = _one_hot_program(lambda k: k.sum(-1) + torch.randn(()))
    assert math.isfinite(ELBO(1, "enumerate").loss(model, guide, torch.ones(2)))


# What is refused


def given(gradient: Any, make: Callable[..., Estimator] = ELBO) -> Callable[[], object]:
    def run() -> object:
        program = Mixed("k then z", 2)
        return make(2, gradient).loss(program.model, program.guide, torch.ones(2, dtype=torch.float64))

    return run


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a site that the guide has not": (
        given({"k": "score", "z": "pathwise", "w": "score"}),
        "ELBO: expected a gradient for each of the guide's sites ['k', 'z']; got ['w'] in the mapping that the guide "
        "does not draw. Give each site one of pathwise,",
    ),
    "a site that is left out": (
        given({"k": "score"}),
        "ELBO: expected a gradient for each of the guide's sites ['k', 'z']; got ['z'] in the guide that the mapping "
        "leaves out. Give each site one of pathwise,",
    ),
    "pathwise of a bit": (
        given({"k": "pathwise", "z": "pathwise"}),
        "ELBO: expected a reparameterized distribution at site 'k' for pathwise; got Bernoulli. Use 'score' or, with "
        "ELBO, 'enumerate' there.",
    ),
    "a sum over a Normal": (
        given({"k": "score", "z": "enumerate"}),
        "ELBO: expected a finite support at site 'z' for enumerate; got Normal. Use 'pathwise' there.",
    ),
    "a gradient of all sites": (
        given({"k": "score", "z": DReG()}),
        "gradient: expected pathwise, stl, score, vimco, ovis, enumerate or such a Gradient at site 'z'; got DReG.",
    ),
    "an unknown gradient": (
        given({"k": "sum", "z": "pathwise"}),
        "gradient: expected pathwise, stl, score, vimco, ovis, enumerate or such a Gradient at site 'k'; got 'sum'.",
    ),
    "no site": (given({}), "ELBO: expected a gradient for each of the guide's sites ['k', 'z']; got ['k', 'z'] in"),
    "a sum within another bound": (
        given({"k": "enumerate", "z": "pathwise"}, IWELBO),
        "IWELBO: expected a sampling gradient; got enumerate, which is for ELBO(analytic_kl=False).",
    ),
    "stl within another bound": (
        given({"k": "score", "z": "stl"}, IWELBO),
        "IWELBO: expected a gradient that mixes, for this bound, at site 'z'; got stl,",
    ),
    "ovis of another bound": (
        given({"k": "ovis", "z": "pathwise"}),
        "ELBO: expected a gradient for this bound; got ovis, which is IWELBO's.",
    ),
    "vimco with one particle": (
        lambda: ELBO(1, {"k": "vimco", "z": "pathwise"}),
        "ELBO: expected num_particles at least 2 for vimco; got 1.",
    ),
    "analytic KL": (
        lambda: ELBO(1, {"k": "score", "z": "pathwise"}, analytic_kl=True),
        "ELBO: expected gradient='pathwise' with analytic_kl=True; got BySite.",
    ),
    "pathwise of all": (
        given("pathwise"),
        "ELBO: expected a reparameterized guide at site 'k' for pathwise gradients; got Bernoulli, whose gradient "
        "would silently be 0. Use gradient={'k': 'score', 'z': 'pathwise'}, 'score', 'vimco' (K >= 2) or, with ELBO, "
        "'enumerate'; or a relaxed distribution.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_BySite_what_would_be_wrong_is_refused(name: str) -> None:
    run, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        run()


def test_BySite_baseline_serves_one_site_and_a_site_has_a_name() -> None:
    shared = Score("running_mean")
    with pytest.raises(ValueError, match=r"^gradient: expected a baseline of its own at site 'k'; got one that serves"):
        BySite({"c": shared, "k": shared})
    with pytest.raises(
        TypeError, match=r"^gradient: expected every site to be a str; got 1\. Give a mapping from names"
    ):
        BySite({1: "score"})  # type: ignore[dict-item]


def test_BySite_bounds_of_several_draws_mix_score_and_pathwise() -> None:
    for make in BOUNDS.values():
        program = Mixed("z then k", 3)
        found = program.gradients(make(4, {"k": "score", "z": "pathwise"}))
        assert bool(found.isfinite().all())
    with pytest.raises(ValueError, match=r"^MIWELBO: expected a sampling gradient; got enumerate"):
        MIWELBO(2, {"k": "enumerate", "z": "pathwise"}, num_bounds=2)


def test_BySite_sums_out_a_latent_of_the_model_beside_score_and_pathwise() -> None:
    """As IWELBO does, whose loss of one draw is the ELBO's."""
    program = Mixed("k then z", 4)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Bernoulli(x.new_tensor(0.3)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.4)))
            pyro.sample("x", dist.Normal(z + k + kind, 1.0), obs=x)

    x = torch.ones(4, dtype=torch.float64)
    losses = []
    for make in (ELBO, IWELBO):
        torch.manual_seed(0)
        losses.append(make(1, {"k": "score", "z": "pathwise"}).loss(model, program.guide, x))
    assert losses[0] == pytest.approx(losses[1])
    with pytest.raises(ValueError, match=r"^ELBO: expected a model without latents of its own, for enumerate and stl"):
        ELBO(1, "enumerate").loss(model, program.guide, x)


def test_BySite_of_a_program_without_sites_has_a_loss_of_zero() -> None:
    assert ELBO(gradient="enumerate").loss_and_grads(lambda: None, lambda: None) == 0.0


PARTS_OF_A_SUM: Any = {"enumerate": "parallel", "num_samples": 3}


@pytest.mark.parametrize("gradient", ["enumerate", {"k": "enumerate"}, {"k": "score"}])
@pytest.mark.parametrize("family", [dist.Bernoulli, lambda loc: dist.Normal(loc, 1.0)], ids=["bits", "reals"])
def test_draws_in_place_of_a_support_are_refused(gradient: Any, family: Any) -> None:
    """Weighed with their probabilities, three draws of a bit gave 2.27 in place of the sum's 1.21."""

    def model() -> None:
        k = pyro.sample("k", family(torch.tensor(0.6)))
        pyro.sample("x", dist.Normal(k, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("k", family(torch.tensor(0.3)), infer=PARTS_OF_A_SUM)

    with pytest.raises(ValueError, match=r"Site 'k': expected a sum over the support, or one draw; got infer num_samp"):
        ELBO(gradient=gradient).loss(model, guide)


def test_draws_in_place_of_a_support_are_refused_in_the_model() -> None:
    """Summed without weights, three draws of a bit gave a loss of .64 where -log p is 1.08."""

    def model() -> None:
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.6)), infer=PARTS_OF_A_SUM)
        pyro.sample("x", dist.Normal(k, 1.0), obs=torch.tensor(0.3))

    with pytest.raises(ValueError, match=r"Site 'k': expected a sum over the support, or one draw; got infer num_samp"):
        ELBO().loss(model, lambda: None)
