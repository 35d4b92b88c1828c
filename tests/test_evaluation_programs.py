"""Evaluation serves every program, in evaluation mode, and leaves all as it was."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_vae import VAE, ConditionalVAE, HierarchicalVAE, SemiSupervisedVAE, conditionals, likelihoods, nets, priors
from pyro_vae.evaluation import (
    active_units,
    ais,
    amortization_gap,
    bdmc,
    calibration,
    elbo_surgery,
    elbo_terms,
    log_marginal_likelihood,
    posterior_samples,
    rate_distortion,
    rate_distortion_curve,
    reconstruction_error,
    simulate,
)


def with_noisy_nets() -> VAE:
    """In training mode, dropout makes its densities random, and batch normalization learns from every run."""
    encoder, decoder = nets.MLP(4, [8]), nets.MLP(2, [8])
    encoder.layers.append(nn.BatchNorm1d(8))
    decoder.layers.append(nn.Dropout(0.5))
    return VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(decoder, 4, scale=1.0),
        posterior=conditionals.DiagonalNormal(encoder, 2),
    )


FEW: dict[str, Any] = {"num_particles": 3, "progress": False}
FIGURES: dict[str, Callable[[Any, Tensor], Any]] = {
    "elbo_terms": lambda p, x: elbo_terms(p, x).elbo,
    "rate_distortion": lambda p, x: torch.tensor(rate_distortion(p, x).elbo.value),
    "rate_distortion_curve": lambda p, x: torch.tensor(rate_distortion_curve({1.0: p}, x).points[1.0].elbo.value),
    "reconstruction_error": lambda p, x: torch.tensor(reconstruction_error(p, x).value),
    "log_marginal_likelihood": lambda p, x: log_marginal_likelihood(p, x, **FEW).value,
    "posterior_samples": lambda p, x: posterior_samples(p, x, **FEW)["z"],
    "ais": lambda p, x: ais(p, x, num_temperatures=3, num_leapfrog_steps=1, **FEW).value,
    "simulate": lambda p, x: simulate(p, x).x,
    "bdmc": lambda p, x: bdmc(p, simulate(p, x), num_temperatures=3, num_leapfrog_steps=1, **FEW).upper,
    "elbo_surgery": lambda p, x: torch.tensor(elbo_surgery(p, x).mutual_information.value),
    "amortization_gap": lambda p, x: amortization_gap(p, x, num_steps=2, **FEW).optimized_elbo,
    "active_units": lambda p, x: active_units(p, x).variance["z"],
    "calibration": lambda p, x: calibration(p, simulate(p, x)).p_values["z"],
}


@pytest.mark.parametrize("name", FIGURES)
def test_in_evaluation_mode_sets_modules_and_leaves_them_as_they_were(name: str) -> None:
    vae, x = with_noisy_nets(), torch.randn(100, 4)
    before = copy.deepcopy(vae.state_dict())
    values = []
    for mode in (True, False):
        vae.train(mode)
        vae.likelihood.head.eval()
        modes = [module.training for module in vae.modules()]
        torch.manual_seed(1)
        values.append(FIGURES[name](vae, x))
        assert [module.training for module in vae.modules()] == modes
    assert torch.equal(*values)
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())


def test_in_evaluation_mode_leaves_modes_after_an_error_and_inside_of_handlers() -> None:
    vae, x = with_noisy_nets(), torch.randn(5, 4)
    with pytest.raises(ValueError, match="expected num_particles at least 1"):
        elbo_terms(vae, x, num_particles=0)
    assert all(module.training for module in vae.modules())
    cut = active_units(vae, x, threshold=1e30).cut(vae)
    first, second = (log_marginal_likelihood(cut, x, num_particles=2, progress=False).value for _ in range(2))
    torch.testing.assert_close(first, second)  # all units are cut, and dropout is off
    assert all(module.training for module in vae.modules())


def test_evaluation_labels_do_not_weigh_in_twice() -> None:
    """The weighted log q(label|x) of training is no part of log p(x, label)."""
    vae = SemiSupervisedVAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [8], context_shapes=[3]), 4),
        posterior=conditionals.DiagonalNormal(nets.MLP(4, [8], context_shapes=[3]), 2),
        classifier=conditionals.OneHotCategorical(nets.MLP(4, [8]), 3),
        classification_weight=100.0,
    )
    x, labels = torch.bernoulli(torch.full((4, 4), 0.5)), torch.tensor([0, 1, 2, 0])
    result = log_marginal_likelihood(vae, x, labels, num_particles=2000, progress=False)
    z = torch.randn(20_000, 1, 2)
    y = nn.functional.one_hot(labels, 3).float().expand(20_000, 4, 3)
    weights = vae.decode(z.expand(-1, 4, -1), y).log_prob(x).exp()
    error = (result.standard_error.square() + (weights.std(0) / weights.mean(0)).square() / 20_000).sqrt()
    assert ((result.value - (weights.mean(0).log() - math.log(3))).abs() < 5 * error).all()
    # And p(x) is the sum over labels.
    each = [log_marginal_likelihood(vae, x, torch.full((4,), k), num_particles=2000, progress=False) for k in range(3)]
    alone = log_marginal_likelihood(vae, x, num_particles=5000, progress=False)
    total = torch.stack([part.value for part in each]).logsumexp(0)
    error = (sum(part.standard_error.square() for part in each) + alone.standard_error.square()).sqrt()
    assert ((alone.value - total).abs() < 5 * error).all()


def test_evaluation_missing_values_are_summed_out() -> None:
    """A datum without any value has log p(x) = 0."""
    vae = VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.MissingAtRandom(likelihoods.Normal(nets.MLP(2, [8]), 4, scale=1.0)),
        posterior=conditionals.DiagonalNormal(nets.MLP(4, [8]), 2),
    )
    x = torch.randn(5, 4)
    x[4] = math.nan
    x[0, 1] = math.nan
    result = log_marginal_likelihood(vae, x, num_particles=4000, progress=False)
    assert (result.value[:4] < -1).all()
    assert abs(result.value[4]) < 5 * result.standard_error[4]


def hierarchical(inference: Any) -> HierarchicalVAE:
    above = 3 if inference == "bottom-up" else 8
    return HierarchicalVAE(
        prior=priors.StandardNormal(2),
        conditionals=[conditionals.DiagonalNormal(nets.MLP(2, [8]), 3)],
        likelihood=likelihoods.Normal(nets.MLP(3, [8]), 4, scale=3.0),
        posteriors=[
            conditionals.DiagonalNormal(nets.MLP(4, [8]), 3),
            conditionals.DiagonalNormal(nets.MLP(above, [8]), 2),
        ],
        inference=inference,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log_marginal_likelihood")
@pytest.mark.parametrize("inference", ["bottom-up", "top-down"])
def test_evaluation_hierarchies_are_served(inference: str) -> None:
    vae, x = hierarchical(inference), torch.randn(100, 4)
    value = log_marginal_likelihood(vae, x[:5], num_particles=4000, progress=False)
    annealed = ais(vae, x[:5], num_particles=200, num_temperatures=20, progress=False)
    error = (value.standard_error.square() + annealed.standard_error.square()).sqrt()
    assert ((value.value - annealed.value).abs() < 5 * error).all()
    samples = posterior_samples(vae, x[:5], num_samples=6, num_particles=50, progress=False)
    assert {name: sample.shape for name, sample in samples.items()} == {"z1": (6, 5, 3), "z2": (6, 5, 2)}
    surgery = elbo_surgery(vae, x, num_particles=2)
    assert surgery.mutual_information.value < math.log(100)
    assert set(active_units(vae, x, num_particles=2).variance) == set(vae.latents)
    assert set(calibration(vae, simulate(vae, x)).ranks) == {"z1", "z2"}
    with pytest.raises(ValueError, match="latents that do not depend on one another in the guide"):
        amortization_gap(vae, x, progress=False)


@pytest.mark.slow
def test_evaluation_contexts_are_passed_on() -> None:
    vae = ConditionalVAE(
        prior=conditionals.DiagonalNormal(nets.MLP(3, []), 2),
        likelihood=likelihoods.Normal(nets.MLP(2, [], context_shapes=[3]), 4, scale=1.0),
        posterior=conditionals.DiagonalNormal(nets.MLP(4, [8], context_shapes=[3]), 2),
    )
    x, context = torch.randn(100, 4), torch.randn(100, 3)
    value = log_marginal_likelihood(vae, x[:5], context[:5], num_particles=4000, progress=False)
    z = vae.prior(context[:5]).sample(torch.Size([20_000]))
    weights = vae.decode(z, context[:5].expand(20_000, 5, 3)).log_prob(x[:5]).exp()
    error = (value.standard_error.square() + (weights.std(0) / weights.mean(0)).square() / 20_000).sqrt()
    assert ((value.value - weights.mean(0).log()).abs() < 5 * error).all()
    simulation = simulate(vae, x, context)
    assert simulation.context == (context,)
    bounds = bdmc(vae, simulation, num_temperatures=20, progress=False)
    assert abs(bounds.gap.value) < 1
    assert calibration(vae, simulation).ranks["z"].shape == (100, 2)
    assert amortization_gap(vae, x, context, num_steps=100, progress=False).gap.value > 0
