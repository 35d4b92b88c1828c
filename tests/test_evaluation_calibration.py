"""Simulation-based calibration tells exact, narrow and wide guides apart."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearVAE, SimpleProgram
from torch import Tensor

from pyro_vae.evaluation import Calibration, calibration, simulate

ORACLE = LinearVAE.random(6, 3)


def calibrate(factor: float) -> Calibration:
    vae = ORACLE.vae()
    vae.get_buffer("guide.posterior.scale_tril").mul_(factor)
    return calibration(vae, simulate(vae, torch.zeros(1000, 6, dtype=torch.float64)))


def normal(x: float) -> float:
    return math.erf(x / math.sqrt(2))


@pytest.mark.parametrize(("factor", "calibrated"), [(0.5, False), (1.0, True), (2.0, False)])
def test_calibration_guides_narrower_and_wider_than_the_posterior_are_seen(factor: float, calibrated: bool) -> None:
    result = calibrate(factor)
    assert (result.p_value > 0.001) == calibrated
    for estimate, quantile in ((result.coverage_50, 0.6745), (result.coverage_90, 1.6449)):
        # 99 draws put the interval's ends a little within the guide's own quantiles: by less than a hundredth.
        assert abs(estimate.value - normal(factor * quantile)) < 5 * estimate.standard_error + 0.01
    assert (result.coverage_90.unit, result.coverage_90.num_data, result.num_particles) == ("of latents", 1000, 99)


def test_calibration_ranks_are_uniform_for_the_exact_posterior() -> None:
    result = calibrate(1.0)
    ranks = result.ranks["z"].double()
    assert ranks.shape == (1000, 3)
    assert ranks.min() >= 0
    assert ranks.max() <= 99
    assert ((ranks.mean(0) - 49.5).abs() < 5 * math.sqrt((100**2 - 1) / 12 / 1000)).all()
    assert result.p_values["z"].shape == (3,)
    assert "p-value of uniform ranks" in str(result)


def test_calibration_ranks_of_discrete_latents_break_ties_by_lot() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.3)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def exact(x: Tensor) -> None:
        odds = 0.3 / 0.7 * (x - 0.5).exp()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(odds / (1 + odds)))

    def wrong(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.6)))

    template = torch.zeros(2000)
    right, off = (
        calibration(program, simulate(program, template))
        for program in (SimpleProgram(model, exact), SimpleProgram(model, wrong))
    )
    assert right.p_value > 0.001
    assert off.p_value < 1e-6


def test_calibration_too_few_data_are_refused() -> None:
    vae = ORACLE.vae()
    with pytest.raises(ValueError, match="expected at least 100 data, five for each bin; got 99"):
        calibration(vae, simulate(vae, torch.zeros(99, 6, dtype=torch.float64)))
