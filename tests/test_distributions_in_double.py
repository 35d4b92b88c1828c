import pytest
import torch
from torch.distributions import Binomial, NegativeBinomial, Poisson

from pyro_vae import distributions, likelihoods, nets


@pytest.mark.parametrize("theta", [1e-4, 6.0, 400.0, 1e4])
@pytest.mark.parametrize("size", [300.0, 1e6])
def test_Poisson_and_others_are_within_a_thousandth_of_a_nat_for_counts_of_two_thousand_genes(
    theta: float, size: float
) -> None:
    likelihood = likelihoods.NegativeBinomial(nets.MLP(2, []), 2000, library_size=True)
    with torch.no_grad():
        likelihood.log_dispersion.fill_(theta).log_()
        d = likelihood.distribution(logits=torch.randn(5, 2000), library_size=torch.full((5,), size)).base_dist
        x = d.sample()
    exact = NegativeBinomial(d.total_count.double(), logits=d.logits.double()).log_prob(x.double()).sum(-1)
    log_prob = d.log_prob(x)
    assert (log_prob.double().sum(-1) - exact).abs().max() < 1e-4
    rounding = 1e-7 * exact.abs().max()  # of a sum in single precision: .001 at 12,000 nats
    assert (log_prob.sum(-1) - exact).abs().max() < 1e-3 + rounding


def test_NegativeBinomial_and_others_have_the_gradients_of_double_precision() -> None:
    for logits in (torch.tensor([-9.0, 0.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])):
        single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
        x = torch.tensor([1.0, 1e4, 1e6])
        ours = distributions.NegativeBinomial(torch.tensor(1e4), logits=single).log_prob(x)
        exact = NegativeBinomial(torch.tensor(1e4).double(), logits=double).log_prob(x.double())
        (gradient,), (expected,) = torch.autograd.grad(ours.sum(), single), torch.autograd.grad(exact.sum(), double)
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=0.0)


def test_Poisson_and_others_at_large_counts() -> None:
    x = torch.tensor([999_000.0, 1e6, 1_003_000.0])
    exact = Poisson(torch.tensor(1e6).double()).log_prob(x.double())
    torch.testing.assert_close(
        distributions.Poisson(torch.tensor(1e6)).log_prob(x).double(), exact, rtol=0.0, atol=1e-5
    )
    n, heads = torch.tensor(2e6), torch.tensor([1e6, 998_000.0])
    exact = Binomial(n.double(), logits=torch.tensor(0.0).double()).log_prob(heads.double())
    ours = distributions.Binomial(n, logits=torch.tensor(0.0)).log_prob(heads)
    torch.testing.assert_close(ours.double(), exact, rtol=0.0, atol=1e-5)


def test_Poisson_and_others_keep_types_and_expand() -> None:
    d = distributions.NegativeBinomial(torch.ones(3), logits=torch.zeros(3)).expand([2, 3])
    assert type(d) is distributions.NegativeBinomial
    assert d.log_prob(torch.ones(2, 3)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (3, 1), (5,), (3, 5)])
def test_NegativeBinomial_of_a_shared_dispersion_is_that_of_a_repeated_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theta, logits = torch.rand(shape).add(0.1).requires_grad_(), torch.randn(2, 3, 5, requires_grad=True)
    repeated = theta.detach().expand(2, 3, 5).clone().requires_grad_()
    x = torch.poisson(torch.full((2, 3, 5), 4.0))
    one, other = (
        distributions.NegativeBinomial(theta, logits=logits),
        NegativeBinomial(repeated.double(), logits=logits),
    )
    torch.testing.assert_close(one.log_prob(x), other.log_prob(x).float())
    torch.testing.assert_close(one.expand([4, 2, 3, 5]).log_prob(x[0]).sum(), 4 * other.log_prob(x[0]).sum().float())
    gradients = torch.autograd.grad(one.log_prob(x).sum(), (theta, logits))
    expected = torch.autograd.grad(other.log_prob(x).sum(), (repeated, logits))
    torch.testing.assert_close(gradients[0], expected[0].sum_to_size(shape))
    torch.testing.assert_close(gradients[1], expected[1])


def test_NegativeBinomial_without_trials_or_data_has_the_density_of_torch() -> None:
    x = torch.tensor([0.0, 2.0])
    zero = torch.zeros(())
    ours = distributions.NegativeBinomial(zero, logits=zero, validate_args=False).log_prob(x)
    assert torch.equal(ours, NegativeBinomial(zero, logits=zero, validate_args=False).log_prob(x))
    assert distributions.NegativeBinomial(torch.ones(()), logits=torch.zeros(0, 2)).log_prob(x).shape == (0, 2)
