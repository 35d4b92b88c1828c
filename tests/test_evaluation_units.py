"""Active units against a closed form, and what cutting the others costs."""

import json
import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearVAE, SimpleProgram
from torch import Tensor

from pyro_vae.evaluation import active_units, log_marginal_likelihood

ORACLE = LinearVAE.random(6, 3, orthogonal=True)


def padded(oracle: LinearVAE, unused: int) -> LinearVAE:
    """The same model of x, with latents that the decoder does not see."""
    zeros = torch.zeros(len(oracle.bias), unused, dtype=torch.float64)
    return LinearVAE(torch.cat([oracle.weight, zeros], 1), oracle.bias, oracle.scale)


def test_active_units_variances_of_posterior_means_are_those_of_the_closed_form() -> None:
    units = active_units(ORACLE.vae(diagonal=True), ORACLE.draw(4000))
    eigenvalues = ORACLE.weight.square().sum(0) + ORACLE.scale**2
    error = units.variance["z"] - (1 - ORACLE.scale**2 / eigenvalues)
    assert (error.abs() < 5 * units.standard_error["z"]).all()
    # A variance's standard error is sqrt(2 / N) of it.
    assert torch.allclose(units.standard_error["z"], units.variance["z"] * math.sqrt(2 / 4000), rtol=0.2)


@pytest.mark.parametrize(("ratio", "count"), [(1.3, 1), (0.7, 0)])
def test_active_units_unit_is_active_where_its_eigenvalue_says_so(ratio: float, count: int) -> None:
    """Unit i is active iff lambda_i > s^2 / (1 - threshold)."""
    excess = math.sqrt(ratio * (1 / 0.99 - 1))  # of lambda / s^2 over 1
    weight = torch.zeros(3, 1, dtype=torch.float64)
    weight[0] = excess
    oracle = LinearVAE(weight, torch.zeros(3, dtype=torch.float64), 1.0)
    assert active_units(oracle.vae(diagonal=True), oracle.draw(20_000)).count == count


def test_active_units_units_that_the_decoder_does_not_see_are_inactive_and_cutting_them_costs_nothing() -> None:
    oracle = padded(ORACLE, 2)
    vae, x = oracle.vae(diagonal=True), oracle.draw(200)
    units = active_units(vae, x)
    assert units.active["z"].tolist() == [True, True, True, False, False]
    assert units.count == 3
    cut = log_marginal_likelihood(units.cut(vae), x, num_particles=10, progress=False)
    assert (cut.value - oracle.log_marginal_likelihood(x)).abs().max() < 1e-10


def test_active_units_cutting_a_unit_that_matters_gives_the_likelihood_of_the_model_without_it() -> None:
    vae, x = ORACLE.vae(diagonal=True), ORACLE.draw(500)
    units = active_units(vae, x, threshold=0.75)  # makes inactive the first, of variance .67
    assert units.active["z"].tolist() == [False, True, True]
    cut = log_marginal_likelihood(units.cut(vae), x[:20], num_particles=100, progress=False)
    bias = ORACLE.bias + ORACLE.weight[:, 0] * units.mean["z"][0]
    without = LinearVAE(ORACLE.weight[:, 1:], bias, ORACLE.scale)
    assert (cut.value - without.log_marginal_likelihood(x[:20])).abs().max() < 1e-9


def test_active_units_units_of_one_distribution_cannot_be_cut_apart() -> None:
    oracle = padded(LinearVAE.random(6, 2), 1)
    vae, x = oracle.vae(), oracle.draw(50)
    cut = active_units(vae, x).cut(vae)
    with pytest.raises(ValueError, match=r"ActiveUnits\.cut: expected independent units at site 'z'; got Multivariate"):
        log_marginal_likelihood(cut, x, num_particles=10, progress=False)


def two_layers(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(x, 0.5).to_event(1))
        pyro.sample("z2", dist.Normal(2 * z1, 1.0).to_event(1))


def test_active_units_noise_of_other_latents_is_not_counted_as_activity() -> None:
    """Given x, z2 has mean 2x; at one draw of z1 its conditional mean varies by 4 * .25 more."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))

    x = torch.randn(4000, 2, dtype=torch.float64)
    program = SimpleProgram(model, two_layers, ("z1", "z2"))
    units = active_units(program, x, num_particles=5)
    for name, truth in (("z1", 1.0), ("z2", 4.0)):
        assert ((units.variance[name] - truth).abs() < 5 * units.standard_error[name]).all()
    single = active_units(program, x)
    assert ((single.variance["z2"] - 5.0).abs() < 5 * single.standard_error["z2"]).all()


def test_active_units_distribution_without_a_mean_is_averaged_over_draws() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            shift = dist.transforms.AffineTransform(x, 0.5, event_dim=1)
            base = dist.Normal(torch.zeros_like(x), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [shift]))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))

    x = torch.randn(4000, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"no mean in closed form; got 1\. Use num_particles=100"):
        active_units(SimpleProgram(model, guide), x)
    units = active_units(SimpleProgram(model, guide), x, num_particles=4)
    assert ((units.variance["z"] - 1).abs() < 5 * units.standard_error["z"]).all()
    assert units.estimator == {"z": "means of draws"}


def test_active_units_figure_says_how_it_was_made() -> None:
    oracle = padded(ORACLE, 2)
    units = active_units(oracle.vae(diagonal=True), oracle.draw(200))
    assert str(units).splitlines() == [
        "site  active  threshold  data  particles    Var_x(E_q[z|x]) by",
        "z     3 of 5       0.01   200          1  means in closed form",
    ]
    told = json.loads(units.to_json())
    assert (told["threshold"], told["num_data"], told["num_particles"]) == (0.01, 200, 1)
    assert len(told["variance"]["z"]) == 5


def test_active_units_too_few_data_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 2 data and 1 particle; got 1 and 1"):
        active_units(SimpleNamespace(model=two_layers, guide=two_layers), torch.zeros(1, 2))


def test_active_units_another_plate_is_refused() -> None:
    vae, x = ORACLE.vae(), ORACLE.draw(3)
    with pytest.raises(ValueError, match="Site 'z': expected to be inside the plate 'rows'"):
        active_units(vae, x, plate="rows")
