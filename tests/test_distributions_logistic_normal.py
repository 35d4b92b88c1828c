import math

import pytest
import torch

from pyro_vae.distributions import LogisticNormal


def test_density_integrates_to_one_on_the_simplex() -> None:
    loc, scale = torch.tensor([0.3, -0.5], dtype=torch.float64), torch.tensor([0.8, 1.2], dtype=torch.float64)
    cells = 600
    side = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    first, share = torch.meshgrid(side, side, indexing="ij")
    second = share * (1 - first)
    y = torch.stack([first, second, 1 - first - second], -1)
    mass = LogisticNormal(loc, scale).log_prob(y).exp() * (1 - first) / cells**2
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)


def test_log_density_is_the_change_of_variables() -> None:
    q = LogisticNormal(torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5)
    x = torch.randn(4, dtype=torch.float64)

    def first_of_softmax(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, 1)).softmax(-1)[:4]

    jacobian = torch.autograd.functional.jacobian(first_of_softmax, x)
    log_normal = torch.distributions.Normal(q.loc, q.scale).log_prob(x).sum()
    log_prob = q.log_prob(torch.nn.functional.pad(x, (0, 1)).softmax(-1))
    torch.testing.assert_close(log_prob, log_normal - torch.linalg.slogdet(jacobian).logabsdet)


def test_log_ratios_of_samples_are_normal() -> None:
    # Kolmogorov-Smirnov at 2.3 / sqrt(n): a right sampler fails with probability 5e-5.
    loc, scale = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)
    y = LogisticNormal(loc, scale).sample(torch.Size((5000,)))
    standard = (((y[:, :-1] / y[:, -1:]).log() - loc) / scale).sort(0).values
    empirical = ((torch.arange(5000, dtype=torch.float64) + 0.5) / 5000).unsqueeze(-1)
    assert (torch.special.ndtr(standard) - empirical).abs().max() < 2.3 / math.sqrt(5000)


def test_single_precision_holds_at_wide_scales() -> None:
    q = LogisticNormal(torch.zeros(9), torch.full((9,), 6.0))
    y = q.sample(torch.Size((5000,)))
    assert q.support.check(y).all()
    double = LogisticNormal(q.loc.double(), q.scale.double()).log_prob(y.double())
    torch.testing.assert_close(q.log_prob(y).double(), double, rtol=1e-5, atol=1e-3)


def test_particles_and_batches_broadcast() -> None:
    q = LogisticNormal(torch.zeros(4, 2), torch.ones(4, 2))
    expanded = q.expand([6, 4])
    assert (expanded.batch_shape, expanded.event_shape, expanded.rsample().shape) == ((6, 4), (3,), (6, 4, 3))
    y = expanded.sample()
    torch.testing.assert_close(q.log_prob(y), expanded.log_prob(y))
