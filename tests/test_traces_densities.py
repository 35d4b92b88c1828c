"""Log-weights: exact where the evidence is known, whatever the plates, masks, scales and sums of a program."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from bounds import BOUNDS, Nested, TwoLayers, log_normal
from oracles import LinearVAE, NormalNormal
from pyro import poutine
from torch import Tensor

from pyro_vae import VAE, conditionals, likelihoods, nets, priors
from pyro_vae.elbo import CIWELBO, ELBO, IWELBO, VRMax, log_weights

pytestmark = pytest.mark.usefixtures("global_store")

X = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
ROWS = torch.tensor([[1.0, -0.5], [2.0, 0.3], [-1.0, 0.0], [0.2, 0.9]], dtype=torch.float64)


# At the exact posterior every weight is the evidence


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("num_particles", [1, 5])
def test_log_weights_weights_are_the_evidence(num_particles: int, vectorize: bool) -> None:
    oracle = LinearVAE.random()
    for program, x, truth in (
        (NormalNormal.exact(X, functions=True), X, NormalNormal.log_marginal_likelihood(X)),
        (TwoLayers(X), X, TwoLayers(X).log_marginal_likelihood()),
        (Nested(), ROWS, Nested.log_marginal_likelihood(ROWS)),
        (Nested(inner_dim=-2), ROWS, Nested.log_marginal_likelihood(ROWS)),
        (Nested(size=1000), ROWS, Nested.log_marginal_likelihood(ROWS)),  # not scaled
        (oracle.vae(), oracle.draw(4), oracle.log_marginal_likelihood(oracle.draw(4))),
    ):
        found = log_weights(program.model, program.guide, x, num_particles=num_particles, vectorize=vectorize)
        torch.testing.assert_close(found, truth.expand(num_particles, -1), rtol=1e-12, atol=1e-12)
        pyro.clear_param_store()


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_log_weights_chunks_are_the_same_draws(chunk_size: int) -> None:
    program = TwoLayers(X, off=0.3)
    torch.manual_seed(3)
    whole = log_weights(program.model, program.guide, X, num_particles=7)
    torch.manual_seed(3)
    chunked = log_weights(program.model, program.guide, X, num_particles=7, chunk_size=chunk_size)
    assert chunked.shape == whole.shape == (7, 3)
    assert len(chunked.unique()) == 21
    if chunk_size == 100:
        torch.testing.assert_close(chunked, whole, rtol=0, atol=0)


def test_log_weights_looped_and_chunked_draws_are_distributed_as_vectorized_ones() -> None:
    """By their means and spreads, within 5 standard errors."""
    program = Nested(off=0.4)
    ways: list[dict[str, Any]] = [{}, {"vectorize": False}, {"chunk_size": 60}]
    found = [log_weights(program.model, program.guide, ROWS, num_particles=300, **way) for way in ways]
    for other in found[1:]:
        for first, second in ((found[0], other), ((found[0] - found[0].mean(0)).abs(), (other - other.mean(0)).abs())):
            error = ((first.var(0) + second.var(0)) / 300).sqrt()
            assert ((first.mean(0) - second.mean(0)).abs() < 5 * error).all()


def test_log_weights_weights_of_given_draws() -> None:
    """Against plain torch, away from the posterior."""
    program = TwoLayers(X, torch.randn(2, 4, 3, dtype=torch.float64), off=0.3)
    draws = program.draws()
    expected = program.log_likelihood(*draws) + program.log_prior(*draws) - program.log_q(*draws)
    torch.testing.assert_close(log_weights(program.model, program.guide, X, num_particles=4), expected)


def test_log_weights_another_plate() -> None:
    def renamed(run: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def program(x: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                run(x)

        return program

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    found = log_weights(renamed(model), renamed(guide), X, num_particles=2, plate="rows")
    torch.testing.assert_close(found, NormalNormal.log_marginal_likelihood(X).expand(2, -1))
    assert IWELBO(2, plate="rows").loss(renamed(model), renamed(guide), X) > 0


# Masks


def masked(run: Callable[[Tensor], None], mask: Any) -> Callable[[Tensor], None]:
    def program(x: Tensor) -> None:
        with poutine.mask(mask=mask):
            run(x)

    return program


@pytest.mark.parametrize("name", BOUNDS)
def test_log_weights_masked_datum_counts_nothing(name: str) -> None:
    program, mask = NormalNormal(0.3 * X, 0.8 + 0 * X), torch.tensor([True, False, True])
    model, guide = masked(program.model, mask), masked(program.guide, mask)
    torch.manual_seed(3)
    plain = log_weights(program.model, program.guide, X, num_particles=4)
    torch.manual_seed(3)
    weights = log_weights(model, guide, X, num_particles=4)
    torch.testing.assert_close(weights, plain * mask)
    torch.manual_seed(3)
    loss = BOUNDS[name](4, "pathwise").differentiable_loss(model, guide, X)
    gradient = torch.autograd.grad(loss, program.guide.loc)[0]
    torch.manual_seed(3)
    full = BOUNDS[name](4, "pathwise").differentiable_loss(program.model, program.guide, X)
    torch.testing.assert_close(gradient, torch.autograd.grad(full, program.guide.loc)[0] * mask)
    if name != "ELBO, beta":
        assert loss.item() == pytest.approx(-(BOUNDS[name](4, "pathwise").bound(plain) * mask).sum().item())


def test_log_weights_missing_parts_of_data_are_masked() -> None:
    """Pixels that are missing leave the likelihood of the others, per datum."""
    present: Any = torch.tensor([[True, False], [True, True], [False, False], [False, True]])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            with pyro.plate("pixels", 2, dim=-1), poutine.mask(mask=present):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:  # the posterior given what is present
        precision = 1 + present.sum(-1, keepdim=True)
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal((x * present).sum(-1, keepdim=True) / precision, precision.double() ** -0.5))

    found = log_weights(model, guide, ROWS, num_particles=3)
    for n, row in enumerate(ROWS):
        values = row[present[n]]
        size = len(values)
        covariance = torch.ones(size, size).double() + torch.eye(size).double()
        truth = (
            torch.distributions.MultivariateNormal(torch.zeros(size).double(), covariance).log_prob(values)
            if size
            else 0
        )
        torch.testing.assert_close(found[:, n], torch.zeros(3).double() + truth)


# Subsampling


def test_log_weights_scale_of_the_data_plate_is_applied_outside_the_bound() -> None:
    program = Nested(size=1000, off=0.3)
    for estimator in (IWELBO(5), CIWELBO(5, beta=0.5), ELBO(5, gradient="score")):
        torch.manual_seed(3)
        weights = log_weights(program.model, program.guide, ROWS, num_particles=5)
        torch.manual_seed(3)
        loss = estimator.loss(program.model, program.guide, ROWS)
        assert loss == pytest.approx(-250 * estimator.bound(weights).sum().item())


class Full:
    """1,000 data, of which the plate draws 10 itself; the prior is the proposal."""

    def __init__(self) -> None:
        self.x = 1.3 * torch.randn(1000, dtype=torch.float64)

    def model(self) -> None:
        with pyro.plate("data", 1000, subsample_size=10) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=self.x[index])

    def guide(self) -> None:
        with pyro.plate("data", 1000, subsample_size=10):
            pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))

    def full_bound(self, num_particles: int) -> float:
        """The sum over all data of E[log mean_k w_k], by sampling 4,000 draws for each."""
        noise = torch.randn(num_particles, 4000, 1000, dtype=torch.float64) if num_particles <= 3 else None
        assert noise is not None
        values = log_normal(self.x, noise, torch.zeros(())).logsumexp(0) - math.log(num_particles)
        return values.mean(0).sum().item()


@pytest.mark.slow
@pytest.mark.parametrize("vectorize", [True, False])
def test_log_weights_subsample_estimates_the_bound_of_the_full_data(vectorize: bool) -> None:
    """Unbiased, below the evidence; a scale inside the logarithm, as in Pyro's class, lifts the bound above it."""
    program = Full()
    evidence = NormalNormal.log_marginal_likelihood(program.x).sum().item()
    estimator = IWELBO(3, vectorize=vectorize)
    found = torch.tensor([-estimator.loss(program.model, program.guide) for _ in range(1500)])
    expected, error = program.full_bound(3), (found.std() / 1500**0.5).item()
    assert abs(found.mean().item() - expected) < 5 * error
    assert found.mean().item() + 5 * error < evidence
    stock = pyro.infer.RenyiELBO(0.0, num_particles=3, max_plate_nesting=1, vectorize_particles=True)
    assert -sum(stock.loss(program.model, program.guide) for _ in range(300)) / 300 > evidence


@pytest.mark.parametrize("way", [{"vectorize": False}, {"chunk_size": 2}])
def test_log_weights_all_draws_are_of_the_same_subsample(way: dict[str, Any]) -> None:
    """Looped and chunked draws too: at the exact posterior the weights of a datum are equal, and data differ."""
    data = torch.linspace(-3, 3, 1000, dtype=torch.float64)

    def model() -> None:
        with pyro.plate("data", 1000, subsample_size=5) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])

    def guide() -> None:
        with pyro.plate("data", 1000, subsample_size=5) as index:
            pyro.sample("z", dist.Normal(data[index] / 2, 0.5**0.5))

    found = log_weights(model, guide, num_particles=6, **way)
    torch.testing.assert_close(found, found[:1].expand(6, -1))
    assert len(found[0].unique()) == 5
    losses = []
    for estimator in (IWELBO(6, vectorize=False), VRMax(6, vectorize=False), IWELBO(6)):
        torch.manual_seed(3)
        losses.append(estimator.loss(model, guide))
    assert losses == pytest.approx([losses[0]] * 3)


# Scales that no weight can have


def scaled(program: NormalNormal, scale: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return poutine.scale(program.model, scale=scale), poutine.scale(program.guide, scale=scale)


@pytest.mark.parametrize("name", [name for name in BOUNDS if not name.startswith("ELBO")])
def test_log_weights_other_scales_are_refused(name: str) -> None:
    program = NormalNormal(0.3 * X, 0.8 + 0 * X)
    estimator = BOUNDS[name](4, "pathwise")
    remedy = (
        "Weights need one scale for all sites of a datum: remove poutine.scale or the subsampling of inner plates, or "
        "use ELBO with pathwise or stl gradients, which is linear in it."
    )
    for scale in (0.5, torch.tensor([1.0, 2.0, 1.0])):
        with pytest.raises(
            ValueError, match=r"Site 'x': expected the scale 1 of the plate 'data'; got .*" + re.escape(remedy)
        ):
            estimator.loss(*scaled(program, scale), X)
    one_site = poutine.scale(program.model, scale=0.5)
    with pytest.raises(ValueError, match=r"Site 'x': expected the scale 1 of the plate 'data'; got 0\.5"):
        estimator.loss(one_site, program.guide, X)
    with pytest.raises(ValueError, match=r"Site 'u': expected the scale 1 of the plate 'data'; got 2"):
        estimator.loss(inner_subsample, inner_subsample, ROWS)


def inner_subsample(x: Tensor) -> None:
    """One of the two values of every datum; a model, and a guide that is the prior."""
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        with pyro.plate("repeats", 2, subsample_size=1, dim=-1):
            pyro.sample("u", dist.Normal(z, 1.0))


def test_ELBO_takes_any_scale() -> None:
    program = NormalNormal(0.3 * X, 0.8 + 0 * X)
    torch.manual_seed(3)
    plain = ELBO(4).loss(program.model, program.guide, X)
    torch.manual_seed(3)
    assert ELBO(4).loss(*scaled(program, 0.5), X) == pytest.approx(plain / 2)


# Discrete latents of the model, summed out


def mixture(x: Tensor) -> None:
    """The component is in the prior: z ~ 0.3 Normal(-1, 1) + 0.7 Normal(2, 1)."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.7, dtype=torch.float64)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(3 * c - 1, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def tied(x: Tensor) -> None:
    """The component is in the prior and in the likelihood."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.7, dtype=torch.float64)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(3 * c - 1, 1.0))
        pyro.sample("x", dist.Normal(z + c, 1.0), obs=x)


def in_inner_plate(x: Tensor) -> None:
    """A component for each of two repeats of a datum, in the likelihood alone."""
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1).double(), 1.0))
        with pyro.plate("repeats", 2, dim=-1):
            c = pyro.sample(
                "c", dist.Bernoulli(torch.tensor(0.7, dtype=torch.float64)), infer={"enumerate": "parallel"}
            )
            pyro.sample("x", dist.Normal(z + c, 1.0), obs=torch.stack([x, -x], -1))


class Recorded:
    """A guide that keeps its draws."""

    def __init__(self, inner: bool = False) -> None:
        self.inner = inner
        self.draws: list[Tensor] = []
        self.loc = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def __call__(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2 if self.inner else -1):
            loc = self.loc * (x.unsqueeze(-1) if self.inner else x)
            self.draws.append(pyro.sample("z", dist.Normal(loc, 1.2)).detach())

    def log_q(self, x: Tensor) -> Tensor:
        return log_normal(self.draws[-1].reshape(-1, len(x)), 0.3 * x, torch.tensor(1.2, dtype=torch.float64).log())


def expected_weights(model: Callable[[Tensor], None], guide: Recorded, x: Tensor) -> Tensor:
    z, zero = guide.draws[-1].reshape(-1, len(x)), torch.zeros(())
    off, on = math.log(1 - 0.7), math.log(0.7)
    if model is mixture:
        prior = torch.logaddexp(off + log_normal(z, zero - 1, zero), on + log_normal(z, zero + 2, zero))
        return prior + log_normal(x, z, zero) - guide.log_q(x)
    if model is tied:
        parts = (
            off + log_normal(z, zero - 1, zero) + log_normal(x, z, zero),
            on + log_normal(z, zero + 2, zero) + log_normal(x, z + 1, zero),
        )
        return torch.logaddexp(*parts) - guide.log_q(x)
    repeats = [torch.logaddexp(off + log_normal(y, z, zero), on + log_normal(y, z + 1, zero)) for y in (x, -x)]
    return log_normal(z, zero, zero) + repeats[0] + repeats[1] - guide.log_q(x)


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("model", [mixture, tied, in_inner_plate])
def test_log_weights_discrete_latents_of_the_model_are_summed_out(
    model: Callable[[Tensor], None], num_particles: int
) -> None:
    guide = Recorded(inner=model is in_inner_plate)
    found = log_weights(model, guide, X, num_particles=num_particles)
    torch.testing.assert_close(found, expected_weights(model, guide, X))
    loss = IWELBO(num_particles, "score").loss(model, guide, X)
    expected = IWELBO(num_particles).bound(expected_weights(model, guide, X)).sum().item()
    assert loss == pytest.approx(-expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("model", [mixture, tied, in_inner_plate])
def test_log_weights_summed_out_latents_are_as_in_stock_pyro(
    model: Callable[[Tensor], None], num_particles: int
) -> None:
    guide = Recorded(inner=model is in_inner_plate)
    stock = pyro.infer.TraceEnum_ELBO(
        num_particles=num_particles,
        vectorize_particles=num_particles > 1,
        max_plate_nesting=2 if guide.inner else 1,
        strict_enumeration_warning=False,
    )
    results = []
    for loss in (ELBO(num_particles), stock):
        torch.manual_seed(3)  # the first time a program is run, it is run again once its structure is known
        value = loss.differentiable_loss(model, guide, X)
        results.append((value.detach(), torch.autograd.grad(value, guide.loc)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_log_weights_what_an_enumerated_latent_ties_together_has_no_terms() -> None:
    guide = Recorded()
    loss = ELBO(2, beta=0.5).loss(mixture, guide, X)  # the prior is a mixture
    weights, likelihood = expected_weights(mixture, guide, X), log_normal(X, guide.draws[-1], torch.zeros(()))
    assert loss == pytest.approx(-(likelihood + 0.5 * (weights - likelihood)).mean(0).sum().item())
    terms = ELBO(2).terms(mixture, guide, X)
    weights, likelihood = expected_weights(mixture, guide, X), log_normal(X, guide.draws[-1], torch.zeros(()))
    torch.testing.assert_close(terms.kl_by_site["z"], (likelihood - weights).mean(0))
    torch.testing.assert_close(terms.elbo, weights.mean(0))

    message = (
        "Latents ['z']: expected priors that stand apart; got ones tied to other sites by an enumerated latent of the "
        "model. Use beta=1, and no terms by site."
    )
    for refused in (lambda: ELBO(beta=0.5).loss(tied, guide, X), lambda: ELBO().terms(tied, guide, X)):
        with pytest.raises(ValueError, match=re.escape(message)):
            refused()
    for model in (mixture, tied):
        with pytest.raises(
            ValueError, match=r"Analytic KL: .* got Normal against a sum of Normal over an enumerated latent"
        ):
            ELBO(analytic_kl=True).loss(model, guide, X)


# Errors


def outside(x: Tensor) -> None:
    pyro.sample("slope", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def no_plate(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))


@pytest.mark.parametrize("name", [name for name in BOUNDS if not name.startswith("ELBO")])
def test_log_weights_data_plate_is_needed(name: str) -> None:
    estimator = BOUNDS[name](4, "pathwise")
    message = (
        "Site 'slope': expected to be inside the plate 'data', so that its density belongs to a datum; got it outside. "
        "Move it into the plate, or name the plate that runs over the data with plate=..."
    )
    for call in (estimator.loss, estimator.terms):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(outside, outside, X)
        with pytest.raises(ValueError, match="expected a plate 'data' over the data; got plates"):
            call(no_plate, no_plate, X)
    with pytest.raises(ValueError, match=re.escape(message)):
        log_weights(outside, outside, X, num_particles=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "log_weights: expected num_particles at least 1; got 0. Give a larger number."),
        (
            {"num_particles": 5, "chunk_size": 0},
            "log_weights: expected chunk_size at least 1; got 0. Give a larger number.",
        ),
    ],
)
def test_log_weights_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    program = NormalNormal.exact(X)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        log_weights(program.model, program.guide, X, **options)


# Cost


class Counting(nets.MLP):
    """Counts the rows it is given."""

    rows = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.rows += inputs[0].reshape(-1, 5).shape[0]
        return super().forward(*inputs)


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg", "score", "vimco", "ovis"])
def test_Estimator_runs_the_encoder_once_per_datum(gradient: Any) -> None:
    body = Counting(5, [4])
    vae = VAE(priors.StandardNormal(2), likelihoods.Normal(nets.MLP(2, [4]), 5), conditionals.DiagonalNormal(body, 2))
    estimator, x = IWELBO(7, gradient), torch.randn(3, 5)
    estimator.loss_and_grads(vae.model, vae.guide, x)
    body.rows = 0
    estimator.loss_and_grads(vae.model, vae.guide, x)
    assert body.rows == 3
    body.rows = 0
    log_weights(vae.model, vae.guide, x, num_particles=7)
    assert body.rows == 6  # also once to look at the program


MEMORY = """
import torch
from pyro_vae import VAE, conditionals, likelihoods, nets, priors
from pyro_vae.elbo import log_weights

torch.manual_seed(0)
vae = VAE(
    priors.StandardNormal(50),
    likelihoods.Bernoulli(nets.MLP(50, [200, 200]), (784,)),
    conditionals.DiagonalNormal(nets.MLP((784,), [200, 200]), 50),
)
x = torch.rand(100, 784).round()
# In KiB; not ru_maxrss, which begins with what the parent has.
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
with torch.no_grad():
    log_weights(vae.model, vae.guide, x, num_particles=2)
    before = peak()
    weights = log_weights(vae.model, vae.guide, x, num_particles=5000, chunk_size=100)
assert weights.shape == (5000, 100) and bool(weights.isfinite().all())
print((peak() - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_log_weights_memory_is_bounded_by_the_chunk() -> None:
    """5,000 particles of a batch of 100 images within 1 GiB on top of the model."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1.0
