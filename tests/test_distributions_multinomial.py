import pyro.distributions as dist
import pytest
import torch

from pyro_vae.distributions import Multinomial
from pyro_vae.testing import check_density


def test_Multinomial_of_documents_of_one_length_is_torchs() -> None:
    logits = torch.randn(3, 5)
    theirs = dist.Multinomial(7, logits=logits)
    x = theirs.sample()
    ours = Multinomial(torch.tensor(7.0), logits)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)


@pytest.mark.parametrize("length", [0.0, 1.0, 4.0])
def test_Multinomial_probabilities_sum_to_one_over_documents_of_a_length(length: float) -> None:
    check_density(Multinomial(torch.tensor(length).double(), torch.tensor([0.0, 1.0, -1.0]).double()))


def test_Multinomial_every_datum_has_its_own_length() -> None:
    lengths = torch.tensor([0.0, 3.0, 50.0])
    d = Multinomial(lengths, torch.randn(4, 1, 6))
    x = d.sample(torch.Size([10]))
    assert x.shape == (10, 4, 3, 6)
    assert torch.equal(x.sum(-1), lengths.expand(10, 4, 3))
    assert bool(d.support.check(x).all())
    assert not bool(d.support.check(x + 1).any())
    with pytest.raises(ValueError, match="within the support"):
        Multinomial(lengths, torch.zeros(6), validate_args=True).log_prob(x[0, 0] + 1)


def test_Multinomial_samples_of_a_datum_do_not_depend_on_the_longest() -> None:
    probs = torch.tensor([0.1, 0.2, 0.7]).double()
    d = Multinomial(torch.tensor([2.0, 40.0]).double(), probs.log())
    short = d.sample(torch.Size([50_000]))[:, 0]
    standard_error = (2 * probs * (1 - probs) / 50_000).sqrt()
    assert bool(((short.mean(0) - 2 * probs).abs() <= 5 * standard_error).all())
