import pyro.distributions as dist
import torch
from torch import Size

from pyro_vae.distributions import ZeroInflated
from pyro_vae.testing import check_density


def test_ZeroInflated_is_pyros_zero_inflated_negative_binomial() -> None:
    total_count, logits, gate_logits = torch.rand(6) * 5, torch.randn(6), torch.randn(6)
    ours = ZeroInflated(dist.NegativeBinomial(total_count, logits=logits), gate_logits)
    theirs = dist.ZeroInflatedNegativeBinomial(total_count, logits=logits, gate_logits=gate_logits)
    x = theirs.sample(Size([50]))
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)


def test_ZeroInflated_expands_after_it_was_sampled() -> None:
    d = ZeroInflated(dist.Poisson(torch.tensor(3.0).double()), torch.tensor(-1.0).double())
    x = d.sample()
    torch.testing.assert_close(d.expand(Size([2])).log_prob(x), d.log_prob(x).expand(2))
    check_density(d)


def test_ZeroInflated_extreme_gates_keep_a_gradient() -> None:
    gate_logits = torch.tensor([-60.0, 60.0], requires_grad=True)
    for x in (0.0, 2.0):
        log_prob = ZeroInflated(dist.Poisson(torch.tensor(3.0)), gate_logits).log_prob(torch.tensor(x))
        (gradient,) = torch.autograd.grad(log_prob.sum(), gate_logits)
        assert bool(gradient.isfinite().all())
        assert bool(log_prob.isfinite().all())
    assert gradient[1].item() == -1  # a count that no gate explains pulls its logit down
