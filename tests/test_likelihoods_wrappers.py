import math
from collections.abc import Callable

import members
import pytest
import torch
from torch import Size, Tensor

from pyro_vae import VAE, conditionals, fit, likelihoods, nets, priors
from pyro_vae.distributions import elementwise_log_prob
from pyro_vae.evaluation import log_marginal_likelihood

LATENT = members.LATENT


def body(**options: object) -> nets.MLP:
    return nets.MLP(LATENT, [5], **options)  # type: ignore[arg-type]


def parents(likelihood: likelihoods.Likelihood, lead: Size) -> list[Tensor]:
    inputs = [torch.randn(lead + shape) for shape in likelihood.body.input_shapes]
    return inputs + [torch.randint(1, 6, lead).float() for _ in likelihood.contexts]


@pytest.mark.parametrize("name", [name for name in members.LIKELIHOODS if "MissingAtRandom" not in name])
def test_MissingAtRandom_leaves_missing_values_out_of_every_product_over_elements(name: str) -> None:
    likelihood = members.LIKELIHOODS[name]()
    if likelihood.support.event_dim > 0:
        with pytest.raises(ValueError, match="MissingAtRandom likelihood: expected a product over elements; got"):
            likelihoods.MissingAtRandom(likelihood)
        return
    wrapped = likelihoods.MissingAtRandom(likelihood)
    given = parents(likelihood, Size([6]))
    x = likelihood(*given).sample()
    missing = torch.rand_like(x) < 0.5
    missing[0], missing[1] = True, False
    holed = x.masked_fill(missing, torch.nan)
    wrapped.check_data(holed, *given[1:])
    log_prob = wrapped(*given).log_prob(holed)
    log_prob.sum().backward()
    for parameter in wrapped.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
    assert log_prob[0].item() == 0
    if name != "Dequantized":  # whose log_prob is random
        torch.testing.assert_close(log_prob[1], likelihood(*given).log_prob(x)[1])
        other = torch.where(missing, likelihood(*given).sample(), x).masked_fill(missing, torch.nan)
        torch.testing.assert_close(wrapped(*given).log_prob(other), log_prob)
    assert bool(wrapped(*given).sample().isfinite().all())


def test_MissingAtRandom_declares_missing_values_which_are_refused_otherwise() -> None:
    x = torch.tensor([[0.0, torch.nan]])
    likelihood = likelihoods.Normal(body(), 2)
    with pytest.raises(ValueError, match=r"Normal likelihood: expected finite real values; got.*1 NaN or infinite"):
        likelihood.check_data(x)
    likelihoods.MissingAtRandom(likelihood).check_data(x)
    with pytest.raises(ValueError, match=r"Normal likelihood: expected finite real values; got.*1 NaN or infinite"):
        likelihoods.MissingAtRandom(likelihood).check_data(torch.tensor([[torch.inf, torch.nan]]))
    with pytest.raises(TypeError, match=r"MissingAtRandom: expected likelihood to be a Likelihood; got type"):
        likelihoods.MissingAtRandom(likelihoods.Normal)  # type: ignore[arg-type]


def test_MissingAtRandom_has_one_network_and_one_state_with_what_it_wraps() -> None:
    inner = likelihoods.Normal(body(), 4)
    wrapped = likelihoods.MissingAtRandom(inner)
    assert wrapped.body is inner.body
    assert set(wrapped.state_dict()) == {f"likelihood.{name}" for name in inner.state_dict()}
    torch.testing.assert_close(wrapped(torch.zeros(LATENT)).mean, inner(torch.zeros(LATENT)).mean)


# Dequantization


def test_Dequantized_takes_only_continuous_likelihoods_of_complete_data() -> None:
    message = "Dequantized likelihood: expected a continuous likelihood of complete data; got "
    with pytest.raises(ValueError, match=f"{message}Poisson. Use the likelihood as it is"):
        likelihoods.Dequantized(likelihoods.Poisson(body(), 4))
    with pytest.raises(ValueError, match=f"{message}MissingAtRandom. Wrap them the other way round"):
        likelihoods.Dequantized(likelihoods.MissingAtRandom(likelihoods.Normal(body(), 4)))
    with pytest.raises(ValueError, match="Dequantized likelihood: expected levels at least 2; got 1"):
        likelihoods.Dequantized(likelihoods.Normal(body(), 4), levels=1)


@pytest.mark.parametrize("kind", [likelihoods.Beta, likelihoods.LogitNormal, likelihoods.ContinuousBernoulli])
def test_Dequantized_keeps_levels_at_the_ends_in_the_open_interval(kind: Callable[..., likelihoods.Likelihood]) -> None:
    likelihood = likelihoods.Dequantized(kind(body(), 1000))
    x = torch.cat([torch.zeros(50, 1000), torch.ones(50, 1000)])
    likelihood.check_data(x)
    assert bool(likelihood(torch.zeros(100, LATENT)).log_prob(x).isfinite().all())


# Standardized


def test_Standardized_is_a_density_of_the_data_in_their_own_units() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 3).double() * torch.tensor([1e-4, 1.0, 1e5]) + torch.tensor([1.0, -5.0, 3e6])
    likelihood = likelihoods.Standardized(likelihoods.Normal(body(), 3, scale="per_element"), nets.Standardize.of(x))
    likelihood.double()
    p = likelihood(torch.randn(50, LATENT).double())
    expected = torch.distributions.Normal(p.mean, p.stddev).log_prob(x)
    torch.testing.assert_close(p.log_prob(x), expected.sum(-1))
    torch.testing.assert_close(elementwise_log_prob(p, x), expected)


def test_Standardized_of_millimeters_for_meters_trains_the_same_network_and_costs_the_jacobian() -> None:
    def trained(factor: float) -> float:
        torch.manual_seed(0)
        x = torch.randn(200, 3) @ torch.randn(3, 3) + 2
        x[:, 0] *= factor
        standardize = nets.Standardize.of(x)
        vae = VAE(
            prior=priors.StandardNormal(LATENT),
            likelihood=likelihoods.Standardized(likelihoods.Normal(body(), 3), standardize),
            posterior=conditionals.DiagonalNormal(nets.MLP(3, [5], transform=standardize), LATENT),
        )
        fit(vae, x, epochs=3, batch_size=50, seed=0, progress=False)
        torch.manual_seed(1)
        return log_marginal_likelihood(vae, x, num_particles=50, progress=False).mean.value

    meters, millimeters, micrometers = trained(1.0), trained(1e3), trained(1e6)
    # 1e-5 relative: rounding of float32 inputs, amplified by 12 steps of Adam
    assert millimeters + math.log(1e3) == pytest.approx(meters, abs=1e-4)
    assert micrometers + math.log(1e6) == pytest.approx(meters, abs=1e-4)


def test_Standardized_is_calibrated_in_standardized_units() -> None:
    standardize = nets.Standardize(torch.tensor([2.0, 5.0]), torch.tensor([10.0, 0.1]))
    likelihood = likelihoods.Standardized(likelihoods.SigmaNormal(body(), 2), standardize)
    likelihood.calibrate(torch.tensor([[12.0, 5.1]]), torch.tensor([[7.0, 5.05]]))
    torch.testing.assert_close(likelihood(torch.zeros(LATENT)).stddev, torch.tensor([5.0, 0.05]))


def test_Standardized_leaves_missing_values_out() -> None:
    standardize = nets.Standardize(torch.tensor([2.0, 5.0]), torch.tensor([10.0, 0.1]))
    inner = likelihoods.Standardized(likelihoods.Normal(body(), 2), standardize)
    p = likelihoods.MissingAtRandom(inner)(torch.zeros(1, LATENT))
    whole = elementwise_log_prob(inner(torch.zeros(1, LATENT)), torch.tensor([[1.0, 5.0]]))
    torch.testing.assert_close(p.log_prob(torch.tensor([[torch.nan, 5.0]])), whole[:, 1])


def test_Standardized_takes_only_reals_of_complete_data() -> None:
    standardize = nets.Standardize(torch.zeros(4), torch.ones(4))
    with pytest.raises(ValueError, match="Standardized likelihood: expected a likelihood of reals; got Poisson"):
        likelihoods.Standardized(likelihoods.Poisson(body(), 4), standardize)
    with pytest.raises(ValueError, match="expected a likelihood of complete data; got MissingAtRandom"):
        likelihoods.Standardized(likelihoods.MissingAtRandom(likelihoods.Normal(body(), 4)), standardize)
    with pytest.raises(ValueError, match=r"expected a mean of shape \(3,\); got \(4,\)"):
        likelihoods.Standardized(likelihoods.Normal(body(), 3), standardize)
