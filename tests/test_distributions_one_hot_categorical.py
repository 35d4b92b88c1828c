import pyro
import torch
from torch.distributions import constraints, kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.distributions import OneHotCategorical


def test_OneHotCategorical_draws_are_one_hot_with_the_probabilities_given() -> None:
    probs = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]], dtype=torch.float64)
    q = OneHotCategorical(probs=probs).expand([4, 2])
    assert type(q) is OneHotCategorical
    z = q.sample(torch.Size((5000,)))
    assert (z.shape, z.dtype) == ((5000, 4, 2, 3), torch.float64)
    assert constraints.one_hot.check(z).all()
    standard_error = (probs * (1 - probs) / 20000).sqrt()
    assert ((z.mean((0, 1)) - probs).abs() <= 5 * standard_error).all()


def test_OneHotCategorical_draws_can_be_recorded() -> None:
    def draw(logits: torch.Tensor) -> torch.Tensor:
        with pyro.validation_enabled(False):
            q = OneHotCategorical(logits=logits)
            return q.log_prob(q.sample())

    logits = torch.randn(4, 3)
    recorded = make_fx(draw)(logits)
    torch.manual_seed(1)
    first = recorded(logits)
    torch.manual_seed(1)
    torch.testing.assert_close(first, draw(logits))


def test_OneHotCategorical_divergence_is_registered() -> None:
    q, p = (OneHotCategorical(logits=torch.randn(3)) for _ in range(2))
    expected = (q.probs * (q.probs / p.probs).log()).sum()
    torch.testing.assert_close(kl_divergence(q, p), expected)
