"""A law: the loss and gradient of data under a mask are those of the data that it leaves, whatever the estimator."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from bounds import BOUNDS, GivenNormal, Noise
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import elbo
from pyro_vae.elbo import ELBO, IWELBO, OVIS, VIMCO, Estimator, Score, ThermodynamicELBO, log_weights

pytestmark = pytest.mark.usefixtures("global_store")

X = torch.tensor([1.0, -0.5, 2.0, 0.3, -1.7], dtype=torch.float64)
KEPT = torch.tensor([True, False, True, True, False])
K = 4


class GivenBernoulli(dist.Bernoulli):  # type: ignore[misc]
    """A Bernoulli whose draws are given by uniform numbers."""

    def __init__(self, logits: Tensor, uniform: Noise) -> None:
        super().__init__(logits=logits)
        self.uniform = uniform

    def expand(self, batch_shape: Any, _instance: None = None) -> GivenBernoulli:
        return GivenBernoulli(self.logits.expand(batch_shape), self.uniform)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return (self.uniform.take(self.batch_shape) < self.probs).to(self.probs)


class Program:
    """z ~ Normal and, where ``discrete``, a bit k beside it; x ~ Normal(z + k, 1), with given noise for every draw.

    Args:
        kept: which data the programs see, as a mask over all data or as the data themselves.
        masked: whether as a mask.
        discrete: whether there is a bit.
    """

    def __init__(self, kept: Tensor, masked: bool, discrete: bool) -> None:
        chosen = slice(None) if masked else kept
        self.x, self.discrete = X[chosen], discrete
        self.mask: Any = kept if masked else True
        generator = torch.Generator().manual_seed(0)
        draws = torch.randn(3, K, len(X), generator=generator, dtype=torch.float64)
        uniform = torch.rand(K, len(X), generator=generator, dtype=torch.float64)
        self.z, self.prior_z, self.noise_x = (Noise(part[:, chosen]) for part in draws)
        self.k = Noise(uniform[:, chosen])
        self.parameters = {
            name: nn.Parameter(torch.tensor(value, dtype=torch.float64))
            for name, value in (("slope", 0.6), ("log_scale", -0.3), ("logit", 0.4), ("mean", 0.2), ("noise", 0.1))
        }

    def masked(self) -> Any:
        return poutine.mask(mask=self.mask)

    def guide(self, x: Tensor) -> None:
        p = self.parameters
        with pyro.plate("data", len(x)), self.masked():
            k = pyro.sample("k", GivenBernoulli(p["logit"] * x, self.k)) if self.discrete else 0.0
            pyro.sample("z", GivenNormal(p["slope"] * x - k / 2, p["log_scale"].exp(), self.z))

    def model(self, x: Tensor) -> None:
        p = self.parameters
        with pyro.plate("data", len(x)), self.masked():
            k = pyro.sample("k", dist.Bernoulli(torch.full_like(x, 0.3))) if self.discrete else 0.0
            z = pyro.sample("z", GivenNormal(p["mean"] + torch.zeros_like(x), p["mean"].new_tensor(1.0), self.prior_z))
            pyro.sample("x", GivenNormal(z + k, p["noise"].exp(), self.noise_x), obs=x)

    def restart(self) -> None:
        for noise in (self.z, self.prior_z, self.noise_x, self.k):
            noise.used = 0

    def run(self, estimator: Estimator, steps: int = 3) -> list[Tensor]:
        """Losses and gradients of some steps, and what the estimator remembers of them."""
        estimator.loss(self.model, self.guide, self.x)  # looks at the program
        learned = [p for module in estimator.gradient.modules() for p in module.parameters()]
        found: list[Tensor] = []
        for _ in range(steps):
            self.restart()
            loss = estimator.differentiable_loss(self.model, self.guide, self.x)
            wanted = [*self.parameters.values(), *learned]
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            found += [loss.detach(), *(g for g in gradients if g is not None)]
            with torch.no_grad():
                for parameter, gradient in zip(wanted, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(0.01 * gradient)
        return [*found, *estimator.gradient.buffers()]


class Line(nn.Module):
    """A learned baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Parameter(torch.tensor([0.3, -2.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer[0] * x + self.layer[1]


CONTINUOUS: dict[str, Callable[[], Estimator]] = {
    f"{name}, {gradient}": partial(make, K, gradient)
    for (name, make), gradient in itertools.product(BOUNDS.items(), ("pathwise", "stl", "dreg", "score", "vimco"))
    if (name, gradient) != ("VRMax", "dreg")
}
CONTINUOUS |= {
    "ELBO, analytic KL": lambda: ELBO(K, analytic_kl=True),
    "ELBO, analytic KL, beta": lambda: ELBO(K, analytic_kl=True, beta=0.4),
    "ELBO, free bits": lambda: ELBO(K, analytic_kl=True, free_bits=0.5),
    "ELBO, free bits, looped": lambda: ELBO(K, analytic_kl=True, free_bits=0.5, beta=2.0, vectorize=False),
    "ELBO, free bits that bind": lambda: ELBO(K, analytic_kl=True, free_bits=50.0),
    "PIWELBO": lambda: elbo.PIWELBO(2, num_bounds=2),
    "looped": lambda: IWELBO(K, "dreg", vectorize=False),
}
DISCRETE: dict[str, Callable[[], Estimator]] = {
    f"{name}, {gradient}": partial(make, K, gradient)
    for (name, make), gradient in itertools.product(BOUNDS.items(), ("score", "vimco"))
}
BASELINES: dict[str, Callable[[], Score]] = {
    "running mean": lambda: Score("running_mean"),
    "left out": lambda: Score("leave_one_out"),
    "learned": lambda: Score(Line()),
}


def with_baseline(make: Callable[..., Estimator], baseline: str, by_site: bool) -> Estimator:
    gradient = BASELINES[baseline]()
    return make(K, {"k": gradient, "z": "pathwise"} if by_site else gradient)


DISCRETE |= {
    f"{make.__name__}, {name}{', by site' if by_site else ''}": partial(with_baseline, make, name, by_site)
    for make, name, by_site in itertools.product((ELBO, IWELBO, elbo.JackknifeELBO), BASELINES, (False, True))
}
DISCRETE |= {
    "ELBO, score and stl": lambda: ELBO(K, {"k": "score", "z": "stl"}),
    "ELBO, enumerate": lambda: ELBO(K, "enumerate"),
    "ELBO, beta, enumerate": lambda: ELBO(K, {"k": "enumerate", "z": "score"}, beta=0.6),
    "ELBO, enumerate and running mean": lambda: ELBO(K, {"k": "enumerate", "z": Score("running_mean")}),
    "IWELBO, VIMCO arithmetic": lambda: IWELBO(K, VIMCO("arithmetic")),
    "IWELBO, OVIS 0": lambda: IWELBO(K, OVIS(0.0)),
    "IWELBO, OVIS 1": lambda: IWELBO(K, OVIS(1.0)),
    "TVO, covariance": lambda: ThermodynamicELBO(K, "covariance", partitions=3),
    "wake": lambda: elbo.ReweightedWakeSleep(K),
}
CASES = [(name, make, False) for name, make in CONTINUOUS.items()]
CASES += [(name, make, True) for name, make in DISCRETE.items()]


@pytest.mark.parametrize(("make", "discrete"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_mask_leaves_the_subset(make: Callable[[], Estimator], discrete: bool) -> None:
    expected = Program(KEPT, False, discrete).run(make())
    found = Program(KEPT, True, discrete).run(make())
    assert len(found) == len(expected) > 6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("insomnia", [0.0, 0.5])
def test_mask_leaves_the_subset_of_dreams(insomnia: float) -> None:
    results = []
    for masked in (True, False):
        program = Program(KEPT, masked, False)
        results.append(program.run(elbo.ReweightedWakeSleep(K, insomnia=insomnia), steps=1))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("analytic_kl", [False, True])
def test_mask_makes_terms_and_weights_zero(analytic_kl: bool) -> None:
    whole, subset = Program(KEPT, True, False), Program(KEPT, False, False)
    loss = ELBO(K, analytic_kl=analytic_kl)
    terms, kept = (loss.terms(p.model, p.guide, p.x) for p in (whole, subset))
    torch.testing.assert_close(terms.elbo[KEPT], kept.elbo)
    assert not terms.elbo[~KEPT].any()
    weights = log_weights(whole.model, whole.guide, X, num_particles=K)
    torch.testing.assert_close(weights[:, KEPT], log_weights(subset.model, subset.guide, X[KEPT], num_particles=K))
    assert not weights[:, ~KEPT].any()


def test_mask_of_a_latents_distributions_leaves_no_closed_form_kl() -> None:
    """Pyro's KL of such a pair is a number and no tensor."""

    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0).mask(False))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 1.0).mask(False))

    assert ELBO(analytic_kl=True).loss(model, guide) == 0.0


def test_mask_leaves_the_free_bits_of_the_subset() -> None:
    """With a floor that binds, 3 data count it and 5 would count it before."""
    losses: list[float] = []
    for kept, masked in ((KEPT, True), (KEPT, False), (KEPT, True)):
        program = Program(kept, masked, False)
        floor = 20.0 if len(losses) < 2 else 21.0
        losses.append(ELBO(K, analytic_kl=True, free_bits=floor).loss(program.model, program.guide, program.x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[2] - losses[0] == pytest.approx(3.0, rel=1e-9)


def test_mask_of_everything_is_no_data() -> None:
    nothing = torch.zeros(5, dtype=torch.bool)
    for make in (
        lambda: ELBO(K, Score("running_mean")),
        lambda: ELBO(K, {"k": Score("running_mean"), "z": "pathwise"}),
    ):
        estimator = make()
        program = Program(nothing, True, True)
        found = program.run(estimator)
        assert all(not value.any() for value in found)
        expected = Program(KEPT, False, True).run(make(), steps=1)
        kept = Program(KEPT, False, True).run(estimator, steps=1)
        for one, other in zip(kept, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("make", [ELBO, IWELBO, partial(ELBO, gradient={"k": "score", "z": "pathwise"})])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_Estimator_refuses_no_data_at_all(make: Callable[[int], Estimator], num_particles: int) -> None:
    program = Program(torch.zeros(5, dtype=torch.bool), False, True)
    with pytest.raises(ValueError, match=r"^\w+: expected at least one datum; got a plate of size 0\. Leave out"):
        make(num_particles).loss(program.model, program.guide, program.x)
