"""The log marginal likelihood by importance sampling, against closed forms; how its trouble is told."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearVAE, NormalNormal, SimpleProgram, TwoStates
from torch import Tensor

from pyro_vae import VAE, conditionals, likelihoods, nets, priors
from pyro_vae.evaluation import log_marginal_likelihood, posterior_samples
from pyro_vae.evaluation.pareto import pareto_k, tail_size
from pyro_vae.graphs.memory import peak_memory
from pyro_vae.graphs.recording import recorded


def scaled(oracle: LinearVAE, factor: float) -> VAE:
    """The oracle's VAE with a guide of its posterior's mean and so many times its scales."""
    vae = oracle.vae()
    vae.get_buffer("guide.posterior.scale_tril").mul_(factor)
    return vae


def random_oracle(seed: int, data_dim: int = 20, latent_dim: int = 5) -> LinearVAE:
    return replace(LinearVAE.random(data_dim, latent_dim, seed=seed), scale=0.3 + 0.1 * seed)


def test_log_marginal_likelihood_equal_weights_pass() -> None:
    oracle = random_oracle(0)
    x = oracle.draw(30)
    result = log_marginal_likelihood(oracle.vae(), x, num_particles=300, progress=False)
    assert (result.value - oracle.log_marginal_likelihood(x)).abs().max() < 1e-10
    assert result.standard_error.max() < 1e-6
    assert torch.allclose(result.effective_sample_size, torch.tensor(300.0, dtype=torch.float64))
    assert (result.pareto_k == -math.inf).all()
    assert result.unreliable == []


def test_log_marginal_likelihood_no_more_draws_are_made_than_asked_for_and_the_value_is_no_loss() -> None:
    x = torch.tensor([0.3, -2.0], dtype=torch.float64)
    program = NormalNormal(torch.zeros(2), torch.ones(2))  # the prior as the guide
    torch.manual_seed(1)
    result = log_marginal_likelihood(program, x, num_particles=3, batch_size=2, progress=False)
    torch.manual_seed(1)
    draws = torch.randn(3, 2, dtype=torch.float64)
    expected = dist.Normal(draws, 1.0).log_prob(x).logsumexp(0) - math.log(3)
    assert torch.allclose(result.value, expected)
    assert (result.value < 0).all()


@pytest.mark.parametrize("memory", [2**15, 2**17, 2**20])
def test_log_marginal_likelihood_value_does_not_depend_on_how_the_work_is_cut_up(memory: int) -> None:
    oracle = random_oracle(1)
    x = oracle.draw(7)
    exact = oracle.log_marginal_likelihood(x)
    result = log_marginal_likelihood(scaled(oracle, 1.25), x, num_particles=1000, memory=memory, progress=False)
    assert ((result.value - exact).abs() < 5 * result.standard_error).all()
    assert torch.allclose(result.standard_error, torch.tensor(math.sqrt(0.415 / 1000), dtype=torch.float64), rtol=0.5)


@pytest.mark.parametrize("num_particles", [300, 3000])
@pytest.mark.parametrize("memory", [2**16, 2**18])
def test_log_marginal_likelihood_memory_stays_within_the_budget_whatever_the_number_of_particles(
    memory: int, num_particles: int
) -> None:
    oracle = random_oracle(2)
    x, vae = oracle.draw(10), scaled(oracle, 1.25)

    def run() -> None:
        log_marginal_likelihood(vae, x, num_particles=num_particles, memory=memory, progress=False)

    assert memory / 2 < peak_memory(run) <= memory


def test_log_marginal_likelihood_budget_for_less_than_one_draw_is_refused() -> None:
    oracle = random_oracle(0)
    with pytest.raises(ValueError, match=r"expected memory for one draw at a time, [\d,]+ bytes; got 100\. Allow more"):
        log_marginal_likelihood(oracle.vae(), oracle.draw(2), memory=100, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "expected num_particles at least 1; got 0"),
        ({"batch_size": 0}, "expected batch_size at least 1; got 0"),
        ({"memory": 0}, "expected memory at least 1; got 0"),
    ],
)
def test_log_marginal_likelihood_numbers_below_one_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_marginal_likelihood(random_oracle(0).vae(), torch.zeros(2, 20, dtype=torch.float64), **options)


def test_log_marginal_likelihood_no_data_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected data of shape \(N, \.\.\.\), N at least 1, and contexts of as many rows; got \[\(0"
    ):
        log_marginal_likelihood(random_oracle(0).vae(), torch.zeros(0, 20, dtype=torch.float64))


def test_log_marginal_likelihood_guide_whose_parameters_belong_to_the_data_takes_all_of_them_at_once() -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    program = NormalNormal.exact(x)
    with pytest.raises(ValueError, match=r"Pass batch_size=5 where its parameters belong to the data"):
        log_marginal_likelihood(program, x, num_particles=10, progress=False)
    result = log_marginal_likelihood(program, x, num_particles=10, batch_size=5, progress=False)
    assert torch.allclose(result.value, NormalNormal.log_marginal_likelihood(x))


def test_log_marginal_likelihood_functions_with_parameters_in_the_store_are_served(global_store: None) -> None:
    x = torch.linspace(-1, 1, 3, dtype=torch.float64)
    program = NormalNormal.exact(x, functions=True)
    program.guide(x)
    result = log_marginal_likelihood(program, x, num_particles=10, batch_size=3, progress=False)
    assert torch.allclose(result.value, NormalNormal.log_marginal_likelihood(x))
    assert sorted(pyro.get_param_store()) == ["loc", "log_scale"]


def test_log_marginal_likelihood_anything_with_a_model_and_a_guide_is_a_program() -> None:
    x = torch.ones(4, dtype=torch.float64)
    oracle = TwoStates(torch.zeros(4))
    result = log_marginal_likelihood(
        SimpleNamespace(model=oracle.model, guide=oracle.guide), x, num_particles=4000, batch_size=4, progress=False
    )
    assert ((result.value - TwoStates.log_marginal_likelihood).abs() < 5 * result.standard_error).all()


@pytest.mark.parametrize("batch_size", [None, 1])
def test_log_marginal_likelihood_latents_that_the_model_sums_over_are_summed_out(batch_size: int | None) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Bernoulli(x.new_tensor(0.3)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z + 3 * kind, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.5))

    x = torch.tensor([-1.0, 1.0, 4.0], dtype=torch.float64)
    result = log_marginal_likelihood(
        SimpleProgram(model, guide), x, num_particles=4000, batch_size=batch_size, progress=False
    )
    parts = torch.stack([dist.Normal(mean, math.sqrt(2)).log_prob(x) + math.log(p) for mean, p in ((0, 0.7), (3, 0.3))])
    assert ((result.value - parts.logsumexp(0)).abs() < 5 * result.standard_error).all()


def test_log_marginal_likelihood_subsampling_scale_is_no_part_of_the_value() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(*NormalNormal.posterior(x)))

    x = torch.linspace(-1, 1, 3, dtype=torch.float64)
    result = log_marginal_likelihood(SimpleProgram(model, guide), x, num_particles=10, progress=False)
    assert torch.allclose(result.value, NormalNormal.log_marginal_likelihood(x))


def test_log_marginal_likelihood_warning_names_the_data() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    program = NormalNormal(torch.tensor([0.0, 5.0, 0.0]), torch.tensor([0.5**0.5, 0.3, 0.5**0.5]))
    with pytest.warns(UserWarning, match=r"got more for 1 of 3 data: 1\. Their values"):
        result = log_marginal_likelihood(program, x, num_particles=2000, batch_size=3, progress=False)
    assert result.unreliable == [1]
    twelve = NormalNormal(torch.full((12,), 5.0), torch.full((12,), 0.3))
    with pytest.warns(UserWarning, match=r"for 12 of 12 data: 0, [\d, ]* 9 and 2 more\. Their values"):
        log_marginal_likelihood(twelve, torch.zeros(12).double(), num_particles=2000, batch_size=12, progress=False)


@pytest.mark.parametrize("num_particles", [21, 30, 100, 1000])
@pytest.mark.parametrize("scale", [0.3, 0.5, 0.8, 1.5])
def test_pareto_k_is_that_of_arviz(num_particles: int, scale: float) -> None:
    arviz = pytest.importorskip("arviz")
    z = torch.randn(num_particles, dtype=torch.float64) * scale
    log_weights = (z / scale) ** 2 / 2 - z**2 / 2
    _, expected = arviz.psislw(log_weights.numpy())
    assert pareto_k(log_weights.topk(tail_size(num_particles) + 1).values) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(
    ("log_weights", "expected"),
    [
        (torch.full((50,), -3.0) + 1e-5 * torch.randn(50), -math.inf),
        (torch.linspace(-40_000, 0, 50), math.inf),
        (torch.linspace(-1, 0, tail_size(20) + 1), math.nan),  # what is documented: fewer than 21 draws
    ],
)
def test_pareto_k_of_degenerate_weights(log_weights: Tensor, expected: float) -> None:
    assert pareto_k(log_weights) == pytest.approx(expected, nan_ok=True)


def test_LogMarginalLikelihood_mean_and_its_table() -> None:
    oracle = random_oracle(0)
    x = oracle.draw(20)
    result = log_marginal_likelihood(oracle.vae(), x, num_particles=100, progress=False)
    assert result.mean.value == pytest.approx(oracle.log_marginal_likelihood(x).mean().item())
    bits = result.bits_per_dim(20, spacing=0.5)
    assert bits.value == pytest.approx(-result.mean.value / 20 / math.log(2) + 1)
    assert bits.standard_error == pytest.approx(result.mean.standard_error / 20 / math.log(2))
    assert bits.unit == "bits/dim"
    assert str(result).splitlines()[1].split()[:3] == ["log", "marginal", "likelihood"]
    assert '"unit": "nats"' in result.to_json()


@pytest.mark.slow
@pytest.mark.parametrize("memory", [None, 2**18])
def test_posterior_samples_are_the_posteriors(memory: int | None) -> None:
    oracle = random_oracle(0)
    x = oracle.draw(10)
    z = posterior_samples(
        scaled(oracle, 1.25), x, num_samples=2000, num_particles=20_000, memory=memory, progress=False
    )["z"]
    assert z.shape == (2000, 10, 5)
    loc, covariance = oracle.posterior(x)
    scale = covariance.diagonal().sqrt()
    # Resampled draws share the noise of 20,000 weighted ones: the variance of a mean is 1/2000 + 1.4/20,000.
    assert ((z.mean(0) - loc).abs() < 5 * scale * math.sqrt(1 / 2000 + 1.4 / 20_000)).all()
    assert torch.allclose(z.std(0), scale.expand(10, 5), rtol=5 * math.sqrt(1 / 4000 + 1.4 / 40_000))


def test_posterior_samples_of_every_latent_keep_their_shape() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("part", x.shape[1], dim=-1):
                u = pyro.sample("u", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(u.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("part", x.shape[1], dim=-1):
                pyro.sample("u", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 1.0).to_event(1))

    samples = posterior_samples(
        SimpleProgram(model, guide), torch.zeros(4, 3), num_samples=6, num_particles=50, progress=False
    )
    assert {name: value.shape for name, value in samples.items()} == {"z": (6, 4), "u": (6, 4, 3, 2)}


def with_zero_weights() -> SimpleProgram:
    """z ~ Normal(0, 1) as prior and guide, and p(x|z) = 1 where z > x, else 0: p(x) is the probability that z > x."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.factor("x", torch.where(z > x, 0.0, -math.inf))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    return SimpleProgram(model, guide)


@pytest.mark.parametrize("memory", [None, 2**15])
def test_log_marginal_likelihood_weights_of_zero_count(memory: int | None) -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 100.0], dtype=torch.float64)
    with pytest.warns(UserWarning, match="got more for 1 of 4 data: 3"):
        result = log_marginal_likelihood(with_zero_weights(), x, num_particles=2000, memory=memory, progress=False)
    truth = dist.Normal(0.0, 1.0).cdf(-x[:3]).log()
    assert ((result.value[:3] - truth).abs() < 5 * result.standard_error[:3]).all()
    assert torch.allclose(result.effective_sample_size[:3], 2000 * result.value[:3].exp())
    assert [result.value[3], result.standard_error[3], result.effective_sample_size[3]] == [-math.inf, math.inf, 0]
    z = posterior_samples(with_zero_weights(), x, num_samples=50, num_particles=500, memory=memory, progress=False)["z"]
    assert (z[:, :3] > x[:3]).all()
    assert z[:, 3].isfinite().all()


def test_log_marginal_likelihood_single_draw_has_a_value_and_no_error() -> None:
    x = torch.tensor([0.3, -2.0], dtype=torch.float64)
    torch.manual_seed(1)
    result = log_marginal_likelihood(
        NormalNormal(torch.zeros(2), torch.ones(2)), x, num_particles=1, batch_size=2, progress=False
    )
    torch.manual_seed(1)
    draws = torch.randn(2, dtype=torch.float64)
    assert torch.allclose(result.value, dist.Normal(draws, 1.0).log_prob(x))
    assert result.standard_error.isnan().all()
    assert result.pareto_k.isnan().all()
    assert math.isnan(result.estimates()["unreliable"].value)  # one draw shows no tail


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_log_marginal_likelihood_data_stay_in_order_whatever_the_batches(batch_size: int) -> None:
    oracle = random_oracle(1)
    x = oracle.draw(7)
    result = log_marginal_likelihood(oracle.vae(), x, num_particles=200, batch_size=batch_size, progress=False)
    assert torch.allclose(result.value, oracle.log_marginal_likelihood(x))
    z = posterior_samples(oracle.vae(), x, num_particles=200, batch_size=batch_size, progress=False)["z"]
    loc, covariance = oracle.posterior(x)
    assert ((z[0] - loc).abs() < 6 * covariance.diagonal().sqrt()).all()


def bernoulli_vae() -> VAE:
    return VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), 4),
        posterior=conditionals.DiagonalNormal(nets.MLP(4, [8]), 2),
    )


@pytest.mark.parametrize(("value", "message"), [(0.5, r"got values in \[0, 1\]"), (math.nan, "1 NaN or infinite")])
def test_log_marginal_likelihood_every_datum_is_checked(value: float, message: str) -> None:
    x = torch.ones(9, 4)
    x[:4] = 0
    x[7, 2] = value
    with pytest.raises(ValueError, match=message):
        log_marginal_likelihood(bernoulli_vae(), x, num_particles=10, progress=False)


def test_log_marginal_likelihood_densities_that_are_no_numbers_are_refused_by_name() -> None:
    x = torch.ones(9, 4)
    x[torch.tensor([3, 7])] = math.nan
    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=r"densities that are numbers; got NaN for 2 of 9 data: 3, 7\. Look for NaN"),
    ):
        log_marginal_likelihood(bernoulli_vae(), x, num_particles=10, progress=False)


def test_log_marginal_likelihood_context_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"contexts of as many rows; got \[\(3,\), \(4,\)\]"):
        log_marginal_likelihood(with_zero_weights(), torch.zeros(3), torch.zeros(4), progress=False)


@pytest.mark.filterwarnings("ignore:log_marginal_likelihood")
def test_log_marginal_likelihood_generator_moves_by_the_draws_alone_also_where_runs_are_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vae, x = bernoulli_vae(), torch.bernoulli(torch.full((6, 4), 0.5))
    seen = []
    for least in (1, 10**9):
        monkeypatch.setattr("pyro_vae.evaluation.runs._WORTH_RECORDING", least)
        torch.manual_seed(1)
        result = log_marginal_likelihood(vae, x, num_particles=50, batch_size=2, progress=False)
        seen.append((result.value, torch.get_rng_state()))
    torch.testing.assert_close(*(value for value, _ in seen))
    assert torch.equal(*(state for _, state in seen))


def test_posterior_samples_refuses_less_than_one_sample() -> None:
    with pytest.raises(ValueError, match="expected num_samples at least 1; got 0"):
        posterior_samples(random_oracle(0).vae(), torch.zeros(2, 20, dtype=torch.float64), num_samples=0)


def test_log_marginal_likelihood_program_that_cannot_be_recorded_is_run_as_it_is() -> None:
    """Its guide branches on the data, so that one run does not tell the operations of another."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, scale = NormalNormal.posterior(x)
            pyro.sample("z", dist.Normal(loc, scale if x.sum() > 0 else 1.5 * scale))

    x = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    program = SimpleProgram(NormalNormal(x, x.exp()).model, guide)
    result = log_marginal_likelihood(program, x, num_particles=2000, batch_size=1, memory=2**14, progress=False)
    assert torch.allclose(result.value, NormalNormal.log_marginal_likelihood(x), atol=0.1)
    assert result.effective_sample_size[[0, 2]].min() == pytest.approx(2000)
    assert result.effective_sample_size[1] < 1900


@pytest.mark.parametrize(
    ("function", "args", "works"),
    [
        (lambda x: [x.exp() + torch.randn(3)], (torch.ones(3),), True),
        (lambda x: [torch.empty(3).normal_() * x], (torch.ones(3),), True),
        (lambda x: [x + 1 if x.sum() > 0 else x], (torch.ones(3),), False),
        (lambda x: [x.add_(1)], (torch.ones(3),), False),
    ],
)
def test_record_repeats_what_its_function_does(
    function: Callable[..., list[Tensor]], args: tuple[Tensor, ...], works: bool
) -> None:
    run = recorded(function, [args])
    assert (run is not None) == works
    if run is not None:
        draw = run.start(*args)
        torch.manual_seed(3)
        first, second = draw(), draw()
        torch.manual_seed(3)
        assert torch.equal(first[0], function(*args)[0])
        assert torch.equal(second[0], function(*args)[0])


def test_log_marginal_likelihood_convolutional_network_in_single_precision() -> None:
    vae = VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(nets.ConvDecoder(2, (1, 8, 8), [4]), (1, 8, 8)),
        posterior=conditionals.DiagonalNormal(nets.MLP((1, 8, 8), [8]), 2),
    )
    x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    result = log_marginal_likelihood(vae, x, num_particles=500, progress=False)
    again = log_marginal_likelihood(vae, x, num_particles=500, memory=2**18, progress=False)
    difference = (result.value - again.value).abs()
    assert (difference < 5 * (result.standard_error.square() + again.standard_error.square()).sqrt()).all()
