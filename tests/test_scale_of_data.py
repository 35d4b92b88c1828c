"""Data of any scale and shape, with missing values and contexts of any precision: trained, or refused in one line."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyro_vae import SVI, VAE, ConditionalVAE, conditionals, data, elbo, evaluation, fit, likelihoods, nets, priors
from pyro_vae.family import positive

RELU = partial(nets.MLP, activation=nn.ReLU)


def vae_of(encoder: nets.Body, decoder_likelihood: Any, dims: int) -> VAE:
    return VAE(
        priors.StandardNormal(2), decoder_likelihood(RELU(2, [64, 64]), dims), conditionals.DiagonalNormal(encoder, 2)
    )


# Scales


def test_DiagonalNormal_scale_is_exact_where_it_is_ordinary_and_finite_everywhere() -> None:
    log_scale = torch.linspace(-16, 16, 101)
    assert torch.equal(positive(log_scale), log_scale.exp())
    extreme = torch.tensor([-1e30, -1e4, -17.0, 17.0, 1e4, 1e30], requires_grad=True)
    scale = positive(extreme)
    (gradient,) = torch.autograd.grad(scale.log().sum(), extreme)
    assert scale.isfinite().all()
    assert (scale > 0).all()
    assert (scale.diff() > 0).all()
    assert (gradient > 0).all()


@pytest.mark.parametrize("deviation", [100.0, 1000.0])
def test_Standardized_trains_on_reals_on_a_large_scale(deviation: float) -> None:
    # exp of what ReLU networks make of them was infinite, in torch's words of 1,841 characters
    torch.manual_seed(0)
    x = deviation * torch.randn(300, 20)
    vae = vae_of(RELU(20, [64, 64]), likelihoods.Normal, 20)
    history = fit(vae, x, epochs=3, seed=0, progress=False)
    assert all(math.isfinite(value) for value in history["loss"])
    standardized = vae_of(RELU(20, [64, 64], transform=nets.Standardize.of(x)), likelihoods.Normal, 20)
    assert fit(standardized, x, epochs=3, seed=0, progress=False)["train_kl"][-1] < 100


def test_MLP_with_log1p_trains_on_counts() -> None:
    torch.manual_seed(0)
    x = torch.poisson(torch.rand(300, 10) * 1e4)
    vae = vae_of(RELU(10, [128], transform="log1p"), likelihoods.NegativeBinomial, 10)
    history = fit(vae, x, epochs=3, seed=0, progress=False)
    assert all(math.isfinite(value) for value in history["loss"])


def test_Standardize_leaves_missing_values_out_and_constant_columns_alone() -> None:
    x = torch.tensor([[1.0, 5.0, math.nan], [3.0, 5.0, 2.0], [5.0, 5.0, 4.0]])
    standardize = nets.Standardize.of(x)
    torch.testing.assert_close(standardize.mean, torch.tensor([3.0, 5.0, 3.0]))
    torch.testing.assert_close(standardize.deviation, torch.tensor([math.sqrt(8 / 3), 1.0, 1.0]))
    assert sorted(nets.MLP(3, [2], transform=standardize).state_dict())[-2:] == [
        "transform.deviation",
        "transform.mean",
    ]


def test_Body_refuses_what_is_no_transform() -> None:
    with pytest.raises(TypeError, match="MLP: expected transform 'log1p', a module or a function; got 'log'"):
        nets.MLP(3, [2], transform="log")  # type: ignore[arg-type]


# Shapes


def gray_vae(shape: tuple[int, ...]) -> VAE:
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(nets.MLP(2, [4]), shape),
        conditionals.DiagonalNormal(nets.MLP(shape, [4]), 2),
    )


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("wrong", [(5, 1, 8, 8), (8, 8), (5, 64), (5, 8, 8, 1)])
def test_check_batch_refuses_data_of_one_dim_more_or_less_at_every_entrance(wrong: tuple[int, ...]) -> None:
    vae, x = gray_vae((8, 8)), torch.zeros(wrong)
    message = re.escape(f"expected data of shape (N, 8, 8); got {wrong}")
    simulation = evaluation.Simulation(x, (), {"z": torch.zeros(5, 2)})
    calls = [
        lambda: vae.model(x),
        lambda: vae.guide(x),
        lambda: evaluation.elbo_terms(vae, x),
        lambda: evaluation.rate_distortion(vae, x),
        lambda: evaluation.reconstruction_error(vae, x),
        lambda: evaluation.active_units(vae, x),
        lambda: evaluation.elbo_surgery(vae, x),
        lambda: evaluation.ais(vae, x, progress=False),
        lambda: evaluation.bdmc(vae, simulation, progress=False),
        lambda: evaluation.amortization_gap(vae, x, progress=False),
        lambda: evaluation.log_marginal_likelihood(vae, x, num_particles=3, progress=False),
        lambda: evaluation.posterior_samples(vae, x, num_particles=3, progress=False),
        lambda: elbo.log_weights(vae.model, vae.guide, x, num_particles=2),
        lambda: elbo.IWELBO(2).loss(vae.model, vae.guide, x),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_VAE_trains_on_series_in_their_shape() -> None:
    x = (torch.rand(30, 24, 6) < 0.5).float()
    vae = gray_vae((24, 6))
    fit(vae, x, epochs=1, progress=False)
    assert evaluation.elbo_terms(vae, x).elbo.shape == (30,)
    per_datum = evaluation.elbo_terms(vae, x, num_particles=200).elbo.mean()
    assert -1.2 * 144 * math.log(2) < per_datum < -0.8 * 144 * math.log(2)  # coins, under a decoder near its start


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("x", [np.zeros((5, 8, 8), np.float32), [0.0], "x", None, (torch.zeros(5, 8, 8),)])
def test_VAE_refuses_what_is_no_tensor_by_name(x: Any) -> None:
    vae = gray_vae((8, 8))
    for call in (vae.guide, partial(evaluation.elbo_terms, vae), partial(evaluation.ais, vae)):
        with pytest.raises((TypeError, ValueError), match=r"expected (x a tensor|x a tensor or a Dataset|data x); got"):
            call(x)


def test_VAE_names_another_precision() -> None:
    vae = gray_vae((8, 8))
    with pytest.raises(TypeError, match=r"MLP: expected inputs of torch.float32 .*; got torch.float64"):
        vae.encode(torch.zeros(5, 8, 8, dtype=torch.float64))
    conditional = ConditionalVAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(nets.MLP(2, [5], context_shapes=[3]), 4),
        conditionals.DiagonalNormal(nets.MLP(4, [5], context_shapes=[3]), 2),
    )
    with pytest.raises(TypeError, match=r"MLP: expected inputs of torch.float32 .*; got torch.float64"):
        conditional.encode(torch.zeros(5, 4), torch.zeros(5, 3, dtype=torch.float64))


# Missing values


def correlated(n: int) -> Tensor:
    z = torch.randn(n, 1)
    return z * torch.tensor([1.0, -1.0, 2.0]) + 0.3 * torch.randn(n, 3)


def missing_vae(masked: bool) -> VAE:
    return VAE(
        priors.StandardNormal(1),
        likelihoods.MissingAtRandom(likelihoods.Normal(nets.MLP(1, [16]), 3)),
        conditionals.DiagonalNormal(nets.MLP(3, [32], masked=masked), 1),
    )


def test_Body_masked_tells_missing_values_from_zeros() -> None:
    zeros, missing = torch.zeros(1, 3), torch.full((1, 3), torch.nan)
    for masked in (False, True):
        vae = missing_vae(masked)
        same = torch.equal(vae.encode(zeros).mean, vae.encode(missing).mean)
        assert same is not masked
    image = nets.ConvEncoder((1, 4, 4), [3], masked=True)
    assert image(torch.full((2, 1, 4, 4), torch.nan)).isfinite().all()
    assert not torch.equal(image(torch.full((2, 1, 4, 4), torch.nan)), image(torch.zeros(2, 1, 4, 4)))


@pytest.mark.slow
def test_MissingAtRandom_row_with_nothing_observed_has_the_moments_of_the_prior() -> None:
    torch.manual_seed(0)
    x = correlated(2000)
    x[torch.rand(2000, 3) < 0.3] = torch.nan
    x[torch.rand(2000) < 0.1] = torch.nan
    vae = missing_vae(masked=True)
    fit(vae, x, epochs=60, optimizer=partial(torch.optim.Adam, lr=5e-3), seed=0, progress=False)
    nothing = vae.encode(torch.full((1, 3), torch.nan)).base_dist
    # The optimum is the prior itself, reached to the noise of the last steps of Adam.
    assert nothing.loc.abs().item() < 0.1
    assert nothing.scale.item() == pytest.approx(1, abs=0.1)
    zeros = vae.encode(torch.zeros(1, 3)).base_dist
    assert zeros.scale.item() < 0.4  # three values that were seen tell where z is


CONTEXTS = {
    "one row for all": torch.zeros(1, 10),
    "one dim more": torch.zeros(10, 1, 10),
    "a square too many": torch.zeros(10, 10, 10),
    "classes as numbers": torch.arange(10.0),
    "classes": torch.arange(10),
}


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_check_contexts_asks_for_one_row_for_each_datum_at_every_entrance(context: torch.Tensor) -> None:
    shape = (1, 2, 2)
    vae = ConditionalVAE(
        prior=priors.StandardNormal(3),
        likelihood=likelihoods.Bernoulli(nets.MLP(3, [16], context_shapes=[10]), shape),
        posterior=conditionals.DiagonalNormal(nets.MLP(shape, [16], context_shapes=[10]), 3),
    )
    x = torch.ones(10, *shape)
    shapes = r"contexts of shapes \[\((10|'N'), 10\)\]"
    rows = r"data of shape \(N, \.\.\.\)(, N at least 1,)? and contexts"
    message = f"expected ({shapes}|x, context and size to agree|{rows}).*; got"
    for call in (
        vae.encode,
        vae.reconstruct,
        vae.model,
        vae.guide,
        SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=1e-3), elbo.ELBO()).step,
        partial(evaluation.elbo_terms, vae),
        partial(evaluation.active_units, vae),
        partial(evaluation.elbo_surgery, vae),
        partial(evaluation.log_marginal_likelihood, vae),
    ):
        with pytest.raises(ValueError, match=message):
            call(x, context)


@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 2), (1, 4)])
def test_Poisson_library_size_is_one_number_for_each_datum(shape: tuple[int, ...]) -> None:
    vae = vae_of(nets.MLP(3, [4]), partial(likelihoods.Poisson, library_size=True), 3)
    x = torch.ones(4, 3)
    for right in (torch.ones(4), torch.ones(4, 1)):
        evaluation.elbo_terms(vae, x, right)
    with pytest.raises(
        ValueError, match=r"expected (contexts of shapes \[\(4,\)\]|data of shape \(N, \.\.\.\)).*; got"
    ):
        evaluation.elbo_terms(vae, x, torch.ones(shape))


def test_Standardize_gives_a_constant_column_deviation_1_at_every_precision() -> None:
    x = torch.stack([torch.randn(1001).double(), torch.full((1001,), 0.1, dtype=torch.float64)], 1)
    assert nets.Standardize.of(x).deviation[1].item() == 1
    whole = nets.Standardize.of(torch.tensor([[1, 10], [2, 11], [2, 11]]))
    torch.testing.assert_close(whole.mean, torch.tensor([5 / 3, 32 / 3]))
    with pytest.raises(TypeError, match=r"Standardize.of: expected x to be a Tensor; got"):
        nets.Standardize.of([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Standardize.of: expected finite data.*got \(1, 1\) with infinite values"):
        nets.Standardize.of(torch.tensor([[math.inf]]))


def test_Standardize_of_a_table_in_double_precision_trains() -> None:
    table = torch.randn(200, 5).double() * torch.tensor([1e5, 1.0, 1e-6, 1.0, 10.0]).double() + 3
    table[::5, 1] = torch.nan
    standardize = nets.Standardize.of(table)
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.MissingAtRandom(likelihoods.Standardized(likelihoods.Normal(nets.MLP(2, [8]), 5), standardize)),
        conditionals.DiagonalNormal(nets.MLP(5, [8], transform=standardize, masked=True), 2),
    )
    history = fit(vae, table, epochs=2, progress=False)
    assert all(math.isfinite(value) for value in history["loss"])
    assert vae.sample(2).dtype == torch.float32


@pytest.mark.parametrize("masked", [False, True])
def test_Standardize_gives_a_network_the_mean_for_a_missing_value(masked: bool) -> None:
    standardize = nets.Standardize(torch.tensor([101_000.0, 5.0]), torch.tensor([1000.0, 2.0]))
    body = nets.MLP(2, [4], transform=standardize, masked=masked)
    likelihood = likelihoods.MissingAtRandom(likelihoods.Normal(nets.MLP(2, [4]), 2))
    vae = VAE(priors.StandardNormal(2), likelihood, conditionals.DiagonalNormal(body, 2))
    seen: list[Tensor] = []
    body.layers[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    vae.encode(torch.tensor([[math.nan, 7.0]]))
    assert seen[0].tolist() == [[0, 1, *([0, 1] if masked else [])]]


def test_Body_tells_what_a_transform_makes_nan_from_missing() -> None:
    body = nets.MLP(1, [4], transform="log1p", masked=True)
    assert bool(body(torch.tensor([[-5.0]])).isnan().all())
    assert bool(body(torch.tensor([[math.nan]])).isfinite().all())


def test_Standardize_of_other_columns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"MLP: expected a transform with a mean of shape \(5,\); got \(4,\)"):
        nets.MLP(5, [8], transform=nets.Standardize(torch.zeros(4), torch.ones(4)))


def test_ProgramModule_parts_are_not_replaced_in_silence() -> None:
    vae = vae_of(nets.MLP(3, [4]), likelihoods.Normal, 3)
    for name, part in (("likelihood", vae.likelihood), ("prior", priors.Normal(2)), ("posterior", vae.posterior)):
        with pytest.raises(AttributeError, match=rf"VAE: expected its {name} to stay; got another. Build a new one"):
            setattr(vae, name, part)
    assert [name for name, _ in vae.named_children()] == ["model", "guide"]


@pytest.mark.parametrize("binarize", ["dynamic", "static", "threshold"])
def test_fit_refuses_bits_under_a_density(binarize: Any) -> None:
    train = data.load("digits", binarize=binarize).train
    for likelihood in (likelihoods.ContinuousBernoulli, likelihoods.Normal):
        vae = VAE(
            priors.StandardNormal(2),
            likelihood(nets.MLP(2, [4]), (1, 8, 8)),
            conditionals.DiagonalNormal(nets.MLP((1, 8, 8), [4]), 2),
        )
        with pytest.raises(ValueError, match=r"fit: expected gray values for \w+, a density; got 'digits' made binary"):
            fit(vae, train, epochs=1, progress=False)


def test_as_dataset_refuses_splits_and_names() -> None:
    with pytest.raises(TypeError, match=r"expected one set; got the Splits of data.load. Pass its .train"):
        data.as_dataset(data.load("digits"))
    with pytest.raises(TypeError, match=r"expected data; got the word 'digits'. Load a set with data.load\('digits'\)"):
        data.as_dataset("digits")
