"""Proposals of importance sampling, and annealing from the guide: unbiased estimates of p(x), against closed forms."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearVAE, NormalNormal, SimpleProgram
from torch import Tensor

from pyro_vae import VAE, conditionals, likelihoods, nets, priors
from pyro_vae.evaluation import ais, log_marginal_likelihood
from pyro_vae.evaluation.proposals import Defensive, Proposal, Refined
from pyro_vae.graphs.memory import peak_memory


def narrow(scale: float = 0.4) -> SimpleProgram:
    """z ~ Normal(0, 1), x|z ~ Normal(z, 1), with a guide that is narrower than the posterior and off its mean."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 0.2, scale))

    return SimpleProgram(NormalNormal(torch.zeros(1), torch.ones(1)).model, guide)


def two_layers(x: Tensor) -> None:
    """z2 ~ Normal(0, 1), z1|z2 ~ Normal(z2, 1), x|z1 ~ Normal(z1, 1): x ~ Normal(0, sqrt(3))."""
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
        z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
        pyro.sample("x", dist.Normal(z1, 1.0), obs=x)


def bottom_up(x: Tensor) -> None:
    """Draws in the other order than the model; the posterior is z1 ~ Normal(2x/3, 2/3), z2|z1 ~ Normal(z1/2, 1/2)."""
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(x / 2, 0.6))
        pyro.sample("z2", dist.Normal(z1 / 2 + 0.3, 0.5))


LINEAR = LinearVAE.random(6, 3)


def of_normals(value: Tensor, x: Tensor) -> Tensor:
    return value - NormalNormal.log_marginal_likelihood(x)


@pytest.mark.parametrize(
    "proposal", [Defensive(), Defensive(prior=0.5, widened=0.0), Defensive(prior=0.0), Refined(3, 5), Refined(60, 5)]
)
def test_proposals_average_weight_of_one_draw_each_is_the_marginal_likelihood(proposal: Proposal) -> None:
    """Were the draws that fit a proposal those that estimate p(x), the average would be too high."""
    x = torch.full((2000,), 1.5, dtype=torch.float64)
    result = log_marginal_likelihood(narrow(0.6), x, num_particles=1, proposal=proposal, progress=False)
    ratios = of_normals(result.value, x).exp()
    assert abs(ratios.mean().item() - 1) < 5 * ratios.std().item() / math.sqrt(len(x))
    assert ratios.std() > 1e-3 or isinstance(proposal, Refined)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log_marginal_likelihood")
def test_Refined_gives_correlations_and_covers_the_posterior() -> None:
    x = LINEAR.draw(30)
    vae, exact = LINEAR.vae(diagonal=True), LINEAR.log_marginal_likelihood(x)
    guide = log_marginal_likelihood(vae, x, num_particles=500, progress=False)
    refined = Refined(num_steps=300, num_particles=5)
    result = log_marginal_likelihood(vae, x, num_particles=500, proposal=refined, progress=False)
    assert result.unreliable == []
    assert ((result.value - exact).abs() < 5 * result.standard_error).all()
    # Weights of a Normal proposal c times as wide as the posterior: ESS / K = (sqrt(2 c^2 - 1) / c^2)^3 = .974.
    assert result.effective_sample_size.mean() / 500 == pytest.approx(0.974, abs=0.03)
    assert guide.effective_sample_size.mean() / 500 < 0.6
    diagonal = Refined(num_steps=100, num_particles=5, full_rank=False)
    result = log_marginal_likelihood(vae, x, num_particles=500, proposal=diagonal, progress=False)
    assert len(result.unreliable) < len(guide.unreliable)
    assert ((result.value - exact).abs() < 5 * result.standard_error + 0.05).all()


@pytest.mark.parametrize("proposal", [Defensive(), Refined(60, 5)])
def test_proposals_serve_hierarchies_whatever_the_order_of_their_latents(proposal: Proposal) -> None:
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    program = SimpleProgram(two_layers, bottom_up, ("z2", "z1"))
    result = log_marginal_likelihood(program, x, num_particles=3000, proposal=proposal, progress=False)
    exact = dist.Normal(0.0, math.sqrt(3)).log_prob(x)
    assert ((result.value - exact).abs() < 5 * result.standard_error).all()
    assert (result.standard_error < 0.1).all()


def test_Defensive_mends_a_guide_that_is_far_too_narrow() -> None:
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    program = narrow(0.25)
    with pytest.warns(UserWarning, match=r"data: 0, 1\. .* Give log_marginal_likelihood proposal=proposals\.Refined"):
        log_marginal_likelihood(program, x, num_particles=20_000, progress=False)
    result = log_marginal_likelihood(program, x, num_particles=2000, proposal=Defensive(0.5), progress=False)
    assert result.unreliable == []
    assert (of_normals(result.value, x).abs() < 5 * result.standard_error).all()


@pytest.mark.parametrize("num_particles", [1, 7])
def test_Defensive_weights_are_those_of_the_mixture(num_particles: int) -> None:
    """With a guide that is the prior, the mixture of both is the prior, and so are the weights."""
    model = NormalNormal(torch.zeros(1), torch.ones(1)).model

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    x = torch.zeros(2, dtype=torch.float64)
    seen: list[Tensor] = []

    class Kept(Defensive):
        def weigh(self, *args: Any) -> Any:
            run, log_weights = super().weigh(*args)
            z = next(run.latents())[2]["value"].reshape(log_weights.shape)
            seen.append(log_weights - dist.Normal(z, 1.0).log_prob(torch.zeros_like(z)))
            return run, log_weights

    proposal = Kept(prior=0.3, widened=0.0)
    log_marginal_likelihood(
        SimpleProgram(model, guide), x, num_particles=num_particles, proposal=proposal, progress=False
    )
    assert all(difference.abs().max() < 1e-12 for difference in seen)


def discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.3)))
        pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)


def of_states(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.01)))


def test_proposals_of_discrete_latents_are_refused_or_right() -> None:
    x, program = torch.tensor([0.0, 3.0], dtype=torch.float64), SimpleProgram(discrete, of_states)
    for proposal, message in (
        (Refined(), "log_marginal_likelihood: expected a reparameterized distribution with parameters at site 'z'"),
        (Defensive(), r"Defensive: expected real latents of a mean.*got Bernoulli at site 'z'\. Use widened=0"),
    ):
        with pytest.raises(ValueError, match=message):
            log_marginal_likelihood(program, x, proposal=proposal, progress=False)
    mixed = Defensive(prior=0.5, widened=0.0)
    result = log_marginal_likelihood(program, x, num_particles=3000, proposal=mixed, progress=False)
    parts = torch.stack([dist.Normal(mean, 1.0).log_prob(x) + math.log(p) for mean, p in ((0.0, 0.7), (3.0, 0.3))])
    assert ((result.value - parts.logsumexp(0)).abs() < 5 * result.standard_error).all()


def far_apart(x: Tensor) -> None:
    """z ~ Normal(0 or 3, 1), of which the model sums over the one or the other."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(torch.full_like(x, 0.3)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(3 * c, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_Defensive_draws_what_the_prior_is_summed_over_afresh_for_each_draw() -> None:
    """Were it the same for all draws of a datum, they would cover a part of the prior: 12 standard errors off."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 0.5, 1.2))

    x, proposal = torch.tensor([0.3, 1.2, -0.5], dtype=torch.float64), Defensive(prior=0.5, widened=0.0)
    exact = torch.stack([dist.Normal(m, math.sqrt(2)).log_prob(x) + math.log(p) for m, p in ((0, 0.7), (3, 0.3))])
    result = log_marginal_likelihood(
        SimpleProgram(far_apart, guide), x, num_particles=4000, proposal=proposal, progress=False
    )
    assert ((result.value - exact.logsumexp(0)).abs() < 5 * result.standard_error).all()
    assert (result.standard_error < 0.02).all()


def test_proposals_of_flows_are_refused() -> None:
    vae = VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [4]), 3),
        posterior=conditionals.RealNVP(nets.MLP(3, [4]), 2),
    )
    for proposal in (Refined(), Defensive()):
        with pytest.raises(ValueError, match="at site 'z'"):
            log_marginal_likelihood(vae, torch.ones(4, 3), num_particles=30, proposal=proposal, progress=False)


def test_Defensive_latents_that_the_model_has_not_are_refused() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros_like(x), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(a, 1.0))

    program = SimpleProgram(narrow().model, guide)
    with pytest.raises(ValueError, match="got 'a', which the model has not"):
        log_marginal_likelihood(program, torch.zeros(2).double(), proposal=Defensive(), progress=False)
    with pytest.raises(ValueError, match=r"got 'a', which the model has not\. Use start='prior'"):
        ais(program, torch.zeros(2).double(), start="guide", progress=False)


def test_Refined_data_that_the_program_cannot_have_made_are_told_before_any_step() -> None:
    vae = VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [4]), 3),
        posterior=conditionals.DiagonalNormal(nets.MLP(3, [4]), 2),
    )
    with pytest.raises(ValueError, match=r"got values in \[0\.5, 0\.5\]"):
        log_marginal_likelihood(vae, torch.full((4, 3), 0.5), proposal=Refined(), progress=False)
    before = [p.clone() for p in vae.parameters()]
    log_marginal_likelihood(vae, torch.ones(4, 3), num_particles=30, proposal=Refined(2), progress=False)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(vae.parameters(), before, strict=True))


@pytest.mark.parametrize("full_rank", [False, True])
def test_Refined_steps_that_diverge_are_told(full_rank: bool) -> None:
    proposal = Refined(30, 5, learning_rate=1e4, full_rank=full_rank)
    with pytest.raises(ValueError, match=r"^Refined: expected parameters that stay finite; got NaN or infinite ones"):
        log_marginal_likelihood(
            LINEAR.vae(diagonal=True), LINEAR.draw(3), num_particles=30, proposal=proposal, progress=False
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Refined(num_steps=0), "Refined: expected num_steps at least 1; got 0"),
        (lambda: Refined(learning_rate=0.0), "Refined: expected learning_rate above 0; got 0"),
        (lambda: Defensive(prior=1.0), "Defensive: expected prior at least 0 and below 1; got 1"),
        (lambda: Defensive(0.5, 0.5), "Defensive: expected widened at least 0 and below 0.5; got 0.5"),
        (lambda: Defensive(factor=1.0), "Defensive: expected factor above 1; got 1"),
    ],
)
def test_proposals_numbers_out_of_range_are_refused(make: Callable[[], Proposal], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_log_marginal_likelihood_proposal_of_another_kind_is_refused() -> None:
    call: Any = log_marginal_likelihood
    with pytest.raises(TypeError, match=r"expected proposal to be a Proposal; got 'refined'\. Give proposals\.Refined"):
        call(narrow(), torch.zeros(2).double(), proposal="refined")


@pytest.mark.filterwarnings("ignore:log_marginal_likelihood")
def test_Refined_memory_stays_within_the_budget() -> None:
    memory = 2**17
    x, vae = LINEAR.draw(60), LINEAR.vae(diagonal=True)
    seen: list[int] = []

    class Counted(Refined):
        def fit(self, *args: Any, **options: Any) -> Any:
            fitted: list[Any] = []
            seen.append(peak_memory(lambda: fitted.append(super(Counted, self).fit(*args, **options))))
            return fitted[0]

    proposal = Counted(num_steps=2, num_particles=10)
    result = log_marginal_likelihood(vae, x, num_particles=200, proposal=proposal, memory=memory, progress=False)
    offsets = 60 * 9 * 8  # what is kept of each datum, and once more when parts are joined
    assert memory / 2 < seen[0] <= memory + 2 * offsets
    assert result.value.shape == (60,)


def test_ais_from_the_guide_average_weight_is_the_marginal_likelihood() -> None:
    x = torch.full((1500,), 1.5, dtype=torch.float64)
    result = ais(narrow(0.5), x, start="guide", num_particles=2, num_temperatures=4, progress=False)
    ratios = of_normals(result.value, x).exp()
    assert abs(ratios.mean().item() - 1) < 5 * ratios.std().item() / math.sqrt(len(x))
    assert 1e-3 < ratios.std() < 0.5


@pytest.mark.parametrize("program", [SimpleProgram(two_layers, bottom_up), SimpleProgram(two_layers, two_layers)])
def test_ais_from_the_guide_of_a_hierarchy(program: SimpleProgram) -> None:
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    if program.guide is two_layers:  # as a guide, without its data, it is the prior

        def prior(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
                pyro.sample("z1", dist.Normal(z2, 1.0))

        program = SimpleProgram(two_layers, prior)
    result = ais(program, x, start="guide", num_particles=200, num_temperatures=8, progress=False)
    exact = dist.Normal(0.0, math.sqrt(3)).log_prob(x)
    assert ((result.value - exact).abs() < 5 * result.standard_error).all()
    assert (result.standard_error < 0.1).all()


def test_ais_from_an_exact_guide_is_exact() -> None:
    x = LINEAR.draw(3)
    result = ais(LINEAR.vae(), x, start="guide", num_particles=4, num_temperatures=3, progress=False)
    assert torch.allclose(result.value, LINEAR.log_marginal_likelihood(x))
    assert result.standard_error.max() < 1e-6
