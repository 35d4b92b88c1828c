import pyro.distributions as dist
import torch
from torch.distributions import kl_divergence

from pyro_vae.distributions import LogDirichlet


def test_LogDirichlet_density_is_that_of_torch_where_both_are_exact() -> None:
    concentration = torch.rand(5, 3, dtype=torch.float64) + 0.5
    q = LogDirichlet(concentration)
    log_y = q.sample()
    # of log-ratios in place of y, whose Jacobian is the product of all y
    expected = dist.Dirichlet(concentration).log_prob(log_y.exp()) + log_y.sum(-1)
    torch.testing.assert_close(q.log_prob(log_y), expected)


def test_LogDirichlet_draws_have_the_moments_of_log_proportions_also_where_proportions_underflow() -> None:
    for a in (1e-3, 0.3, 20.0):
        q = LogDirichlet(torch.tensor([a, 2 * a, 1.0]))
        log_y = q.sample(torch.Size((50_000,))).double()
        standard_error = (log_y.var(0) / 50_000).sqrt()
        assert ((log_y.mean(0) - q.mean).abs() < 5 * standard_error).all()
        fourth = ((log_y - log_y.mean(0)) ** 4).mean(0)
        error_of_variance = ((fourth - log_y.var(0) ** 2) / 50_000).sqrt()
        assert ((log_y.var(0) - q.variance).abs() < 5 * error_of_variance).all()


def test_LogDirichlet_pathwise_gradient_is_that_of_the_mean() -> None:
    # d E[log y_i] / d a, of the closed form, within 5 standard errors over 40,000 draws
    for a in (0.02, 0.5, 30.0):
        concentration = torch.tensor([a, 1.0, 2.0], dtype=torch.float64).expand(40_000, 3).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(LogDirichlet(concentration).rsample()[:, 0].sum(), concentration)
        exact = torch.tensor([a, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(LogDirichlet(exact).mean[0], exact)
        assert ((gradient.mean(0) - expected).abs() < 5 * gradient.std(0) / 200).all()


def test_LogDirichlet_divergence_is_that_of_the_proportions() -> None:
    a, b = torch.tensor([2.0, 3.0, 4.0]), torch.ones(3)
    expected = kl_divergence(dist.Dirichlet(a), dist.Dirichlet(b))
    torch.testing.assert_close(kl_divergence(LogDirichlet(a), LogDirichlet(b)), expected)
