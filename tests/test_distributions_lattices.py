import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_vae.distributions import Lattice, lattice
from pyro_vae.testing import check_density


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spacing", [1.0, 1 / 255, 1 / 16])
def test_Lattice_every_level_is_on_the_lattice_in_any_precision(dtype: torch.dtype, spacing: float) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    # Both ways of scaling that are in use: by a product and by a quotient.
    for x in (levels.to(dtype) * spacing, levels.to(dtype) / round(1 / spacing)):
        assert lattice(constraints.integer_interval(0, 255), spacing).check(x).all()
        log_prob = Lattice(dist.Categorical(logits=torch.arange(256.0).to(dtype)), spacing).log_prob(x)
        torch.testing.assert_close(log_prob, torch.arange(256.0).to(dtype).log_softmax(-1))


def test_Lattice_values_off_the_lattice_are_not_on_it() -> None:
    support = lattice(constraints.integer_interval(0, 255), 1 / 255)
    wrong = torch.tensor([-1 / 255, 256 / 255, 0.5, 1 / 256, torch.nan, torch.inf])
    assert not support.check(wrong).any()


def test_Lattice_of_a_categorical_has_the_moments_of_its_levels() -> None:
    probs = torch.tensor([0.2, 0.3, 0.5])
    d = Lattice(dist.Categorical(logits=probs.log()), 0.5)
    assert d.mean.item() == pytest.approx(0.65)
    assert d.variance.item() == pytest.approx(0.3 * 0.25 + 0.5 - 0.65**2)


def test_Lattice_of_a_binomial_has_its_scaled_moments() -> None:
    d = Lattice(dist.Binomial(255, logits=torch.tensor(0.0)), 1 / 255)
    assert d.mean.item() == pytest.approx(0.5)
    assert d.variance.item() == pytest.approx(255 * 0.25 / 255**2)


def test_Lattice_samples_have_the_precision_of_the_parameters() -> None:
    for dtype in (torch.float32, torch.float64):
        assert Lattice(dist.Categorical(logits=torch.zeros(3, dtype=dtype)), 1.0).sample().dtype == dtype
    check_density(Lattice(dist.Categorical(logits=torch.tensor([0.0, 1.0, -2.0]).double()), 0.25))
