import math

import pyro.distributions as dist
import pytest
import torch
from torch import Size

from pyro_vae.distributions import Dequantized, LogitNormal, dequantize


def test_Dequantized_value_stays_in_its_cell_and_off_the_ends() -> None:
    x = (torch.arange(256) / 255).expand(5_000, 256)
    y = dequantize(x)
    assert torch.equal((y * 256).floor().clamp(max=255), (x * 255).round())
    assert bool(((y > 0) & (y < 1)).all())
    assert bool(torch.logit(y).isfinite().all())
    u = y * 256 - torch.arange(256)
    assert (u.mean() - 0.5).abs().item() <= 5 / math.sqrt(12 * u.numel())  # five standard errors


def test_Dequantized_noise_is_fresh_unless_a_generator_says_otherwise() -> None:
    x = torch.zeros(4)
    assert not torch.equal(dequantize(x), dequantize(x))
    first, second = (dequantize(x, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


def test_Dequantized_probability_is_estimated_without_bias_and_its_logarithm_from_below() -> None:
    base = dist.Normal(torch.tensor([0.3, 0.7]).double(), torch.tensor([0.05, 0.3]).double())
    levels = 8
    x = torch.tensor([3.0, 2.0]).double() / (levels - 1)
    edges = torch.tensor([3.0, 2.0]).double() / levels
    exact = (base.cdf(edges + 1 / levels) - base.cdf(edges)).prod()
    log_prob = Dequantized(base.to_event(1), levels).expand(Size([100_000])).log_prob(x)
    probs = log_prob.exp()
    assert (probs.mean() - exact).abs() <= 5 * probs.std() / math.sqrt(len(probs))  # five standard errors
    gap = exact.log() - log_prob.mean()
    assert gap > 5 * log_prob.std() / math.sqrt(len(log_prob))


def test_Dequantized_particles_have_noise_of_their_own() -> None:
    d = Dequantized(dist.Normal(torch.zeros(4, 2, 3), 1.0).to_event(1), 16)
    assert d.log_prob(torch.zeros(2, 3)).unique().numel() == 8


def test_Dequantized_density_in_bits_is_eight_bits_worse_as_a_probability() -> None:
    x = torch.rand(10, 4).mul(255).round() / 255
    uniform = dist.Uniform(torch.zeros(10, 4), 1.0).to_event(1)
    bits = -Dequantized(uniform).log_prob(x) / (4 * math.log(2))
    torch.testing.assert_close(bits, torch.full((10,), 8.0))


def test_Dequantized_samples_and_mean_are_on_the_data_grid() -> None:
    d = Dequantized(LogitNormal(torch.tensor([-9.0, 0.3, 9.0]), torch.tensor(0.2)).to_event(1), levels=4)
    x = d.sample(Size([1000]))
    assert sorted(x.unique().tolist()) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert d.mean[[0, 2]].tolist() == [0, 1]
    assert 1 / 3 < d.mean[1].item() < 2 / 3
