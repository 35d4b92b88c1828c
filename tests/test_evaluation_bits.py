import pytest
import torch

from pyro_vae import likelihoods, nets
from pyro_vae.evaluation import bits_per_dim


def test_bits_per_dim_have_the_published_values() -> None:
    assert bits_per_dim(80.0, (1, 28, 28)) == pytest.approx(0.147214, abs=1e-6)
    assert bits_per_dim(6388.0444, (3, 32, 32)) == pytest.approx(3.0, abs=1e-7)
    on_256 = bits_per_dim(torch.tensor([0.0, 80.0]), 784, spacing=1 / 256)
    torch.testing.assert_close(on_256, torch.tensor([8.0, 8.147214]))
    assert bits_per_dim(0.0, 784, spacing=1 / 255) == pytest.approx(7.9944, abs=1e-4)
    with pytest.raises(ValueError, match="bits_per_dim: expected spacing above 0; got 0"):
        bits_per_dim(80.0, 784, spacing=0)


def test_bits_per_dim_density_with_its_correction_agrees_with_the_dequantized_probability() -> None:
    inner = likelihoods.Normal(nets.MLP(3, [5]), 4000, scale=1.0).double()
    z, x = torch.randn(3).double(), torch.randint(0, 256, (4000,)).double() / 255
    density = bits_per_dim(-inner(z).log_prob((x * 255 + 0.5) / 256), 4000, spacing=1 / 256)
    probability = bits_per_dim(-likelihoods.Dequantized(inner)(z).log_prob(x), 4000)
    torch.testing.assert_close(density, probability, atol=1e-3, rtol=0)
