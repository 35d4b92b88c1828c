import torch
from torch.distributions import Normal

from pyro_vae.distributions import LogitNormal


def test_LogitNormal_density_is_that_of_the_transformed_normal() -> None:
    d = LogitNormal(torch.tensor(0.7), torch.tensor(1.3))
    x = torch.linspace(0.01, 0.99, 99)
    expected = Normal(0.7, 1.3).log_prob(torch.logit(x)) - x.log() - (1 - x).log()
    torch.testing.assert_close(d.log_prob(x), expected)


def test_LogitNormal_moments_agree_with_quadrature_on_a_fine_grid() -> None:
    loc = torch.tensor([-3.0, 0.0, 0.5, 8.0], dtype=torch.float64)[:, None]
    scale = torch.tensor([0.01, 1.0, 10.0], dtype=torch.float64)
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    weights = Normal(0.0, 1.0).log_prob(grid).exp() * (grid[1] - grid[0])
    values = torch.sigmoid(loc[..., None] + scale[:, None] * grid)
    mean = (weights * values).sum(-1)
    d = LogitNormal(loc, scale)
    torch.testing.assert_close(d.mean, mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(d.variance, (weights * values**2).sum(-1) - mean**2, atol=1e-6, rtol=0)
