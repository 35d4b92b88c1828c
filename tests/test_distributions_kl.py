import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_vae.distributions import HypersphericalUniform, LogLogisticNormal, VonMisesFisher


@pytest.mark.parametrize(("dim", "expected"), [(3, 1.99573232), (4, 2.2610872)])
def test_VonMisesFisher_divergence_from_the_uniform(dim: int, expected: float) -> None:
    q = VonMisesFisher(torch.eye(dim, dtype=torch.float64)[0], torch.tensor(10.0, dtype=torch.float64))
    assert kl_divergence(q, HypersphericalUniform(dim)).item() == pytest.approx(expected, abs=5e-8)


def test_LogLogisticNormal_divergence_agrees_with_monte_carlo() -> None:
    q = LogLogisticNormal(torch.tensor([0.3, -1.0]).double(), torch.tensor([0.5, 2.0]).double())
    p = LogLogisticNormal(torch.zeros(2).double(), torch.ones(2).double())
    y = q.sample(torch.Size((20000,)))
    log_ratio = q.log_prob(y) - p.log_prob(y)
    error = abs(log_ratio.mean().item() - kl_divergence(q, p).item())
    assert error < 5 * log_ratio.std().item() / 20000**0.5  # 5 standard errors


@pytest.mark.parametrize("low_rank", [False, True])
def test_kl_of_a_correlated_normal_from_a_diagonal_one(low_rank: bool) -> None:
    factor = torch.randn(4, 3, 2, dtype=torch.float64)
    loc, diagonal = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64) + 0.1
    covariance = factor @ factor.mT + torch.diag_embed(diagonal)
    full = dist.MultivariateNormal(loc, covariance)
    q = dist.LowRankMultivariateNormal(loc, factor, diagonal) if low_rank else full
    scale = torch.rand(3, dtype=torch.float64) + 0.5
    p = dist.Normal(torch.ones(3, dtype=torch.float64), scale).to_event(1)
    expected = kl_divergence(full, dist.MultivariateNormal(p.mean, torch.diag(scale**2)))
    torch.testing.assert_close(kl_divergence(q, p), expected)


def test_kl_claims_no_closed_form_against_other_vectors() -> None:
    q = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, dist.Laplace(torch.zeros(2), 1.0).to_event(1))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
