import math

import torch

from pyro_vae.distributions import LogLogisticNormal


def test_LogLogisticNormal_density_is_that_of_the_log_ratios() -> None:
    q = LogLogisticNormal(torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5)
    x = torch.randn(4, dtype=torch.float64)
    log_normal = torch.distributions.Normal(q.loc, q.scale).log_prob(x).sum()
    torch.testing.assert_close(q.log_prob(torch.nn.functional.pad(x, (0, 1)).log_softmax(-1)), log_normal)


def test_LogLogisticNormal_log_ratios_of_samples_are_normal() -> None:
    # Kolmogorov-Smirnov at 2.3 / sqrt(n): a right sampler fails with probability 5e-5.
    loc, scale = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)
    y = LogLogisticNormal(loc, scale).sample(torch.Size((5000,)))
    standard = ((y[:, :-1] - y[:, -1:] - loc) / scale).sort(0).values
    empirical = ((torch.arange(5000, dtype=torch.float64) + 0.5) / 5000).unsqueeze(-1)
    assert (torch.special.ndtr(standard) - empirical).abs().max() < 2.3 / math.sqrt(5000)


def test_LogLogisticNormal_single_precision_holds_at_wide_scales() -> None:
    q = LogLogisticNormal(torch.zeros(9), torch.full((9,), 6.0))
    y = q.sample(torch.Size((5000,)))
    assert q.support.check(y).all()
    double = LogLogisticNormal(q.loc.double(), q.scale.double()).log_prob(y.double())
    torch.testing.assert_close(q.log_prob(y).double(), double, rtol=1e-5, atol=1e-3)


def test_LogLogisticNormal_particles_and_batches_broadcast() -> None:
    q = LogLogisticNormal(torch.zeros(4, 2), torch.ones(4, 2))
    expanded = q.expand([6, 4])
    assert (expanded.batch_shape, expanded.event_shape, expanded.rsample().shape) == ((6, 4), (3,), (6, 4, 3))
    y = expanded.sample()
    torch.testing.assert_close(q.log_prob(y), expanded.log_prob(y))
