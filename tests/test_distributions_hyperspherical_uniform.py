import math

import pytest
import torch

from pyro_vae.distributions import HypersphericalUniform


@pytest.mark.parametrize(("dim", "area"), [(2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)])
def test_HypersphericalUniform_density_is_one_over_the_area(dim: int, area: float) -> None:
    p = HypersphericalUniform(dim, like=torch.zeros((), dtype=torch.float64))
    assert p.log_prob(p.sample()).item() == pytest.approx(-math.log(area))
    assert p.entropy().item() == pytest.approx(math.log(area))


def test_HypersphericalUniform_samples_have_the_moments_of_the_sphere() -> None:
    z = HypersphericalUniform(4, like=torch.zeros((), dtype=torch.float64)).sample(torch.Size((20000,)))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(20000, dtype=torch.float64))
    # E[z] = 0 and E[zz'] = I / 4; every entry has a standard error below .5 / sqrt(n)
    assert z.mean(0).abs().max() < 2.5 / math.sqrt(20000)
    assert (z.mT @ z / 20000 - torch.eye(4, dtype=torch.float64) / 4).abs().max() < 2.5 / math.sqrt(20000)


def test_HypersphericalUniform_shapes() -> None:
    p = HypersphericalUniform(3).expand([5, 2])
    assert p.sample(torch.Size((4,))).shape == (4, 5, 2, 3)
    assert p.log_prob(HypersphericalUniform(3).sample()).shape == (5, 2)
    assert p.mean.shape == (5, 2, 3)


def test_HypersphericalUniform_errors() -> None:
    with pytest.raises(ValueError, match="expected dim at least 2; got 1"):
        HypersphericalUniform(1)
    with pytest.raises(ValueError, match="within the support"):
        HypersphericalUniform(2).log_prob(torch.ones(2))
