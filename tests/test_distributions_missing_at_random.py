import pyro.distributions as dist
import pytest
import torch

from pyro_vae.distributions import LogitNormal, MissingAtRandom


def test_MissingAtRandom_missing_elements_add_nothing_and_have_no_gradient() -> None:
    x = torch.tensor([[0.2, torch.nan, 0.9], [torch.nan, torch.nan, torch.nan]])
    loc, scale = torch.zeros(3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    d = MissingAtRandom(LogitNormal(loc, scale).to_event(1), torch.tensor(0.5))
    log_prob = d.log_prob(x)
    torch.testing.assert_close(
        log_prob[0],
        LogitNormal(loc, scale).log_prob(torch.tensor(0.2))[0, [0]].sum()
        + LogitNormal(loc, scale).log_prob(torch.tensor(0.9))[0, 2],
    )
    assert log_prob[1].item() == 0
    log_prob.sum().backward()
    assert loc.grad is not None
    assert scale.grad is not None
    assert loc.grad[1].item() == 0
    assert (scale.grad != 0).tolist() == [[True, False, True], [False, False, False]]
    assert bool(scale.grad.isfinite().all())


def test_MissingAtRandom_is_the_marginal_density_of_what_is_observed() -> None:
    d = MissingAtRandom(dist.Normal(torch.zeros(2, 3), torch.tensor([1.0, 2.0, 3.0])).to_event(2), torch.tensor(0.0))
    x = torch.randn(2, 3)
    torch.testing.assert_close(d.log_prob(x), d.base_dist.log_prob(x))
    x[:, 1] = torch.nan
    kept = dist.Normal(torch.zeros(2, 2), torch.tensor([1.0, 3.0])).to_event(2)
    torch.testing.assert_close(d.log_prob(x), kept.log_prob(x[:, [0, 2]]))


def test_MissingAtRandom_particles_share_the_mask_of_the_data() -> None:
    x = torch.tensor([[1.0, torch.nan], [torch.nan, 2.0]])
    loc = torch.randn(5, 2, 2)
    log_prob = MissingAtRandom(dist.Normal(loc, 1.0).to_event(1), torch.tensor(0.0)).log_prob(x)
    expected = dist.Normal(loc, 1.0).log_prob(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(log_prob, expected.diagonal(dim1=1, dim2=2))


def test_MissingAtRandom_support_has_nan_in_it_and_nothing_else_that_is_new() -> None:
    d = MissingAtRandom(dist.Poisson(torch.ones(2)).to_event(1), torch.tensor(0.0), validate_args=True)
    assert d.support.check(torch.tensor([[1.0, torch.nan], [1.0, -1.0]])).tolist() == [True, False]
    with pytest.raises(ValueError, match="within the support"):
        d.log_prob(torch.tensor([torch.nan, -1.0]))
    assert bool(d.sample(torch.Size([9])).isfinite().all())
