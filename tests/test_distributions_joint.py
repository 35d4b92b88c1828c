import pyro.distributions as dist
import pytest
import torch
from torch import Size

from pyro_vae.distributions import Joint, elementwise_log_prob


def joint() -> Joint:
    return Joint(
        [
            (slice(1, 4, 2), dist.Normal(torch.tensor([10.0, 30.0]), 0.1).to_event(1)),
            (slice(0, 1), dist.Poisson(torch.tensor([2.0])).to_event(1)),
            (slice(2, 3), dist.Exponential(torch.tensor([4.0])).to_event(1)),
        ]
    )


def test_Joint_columns_stand_where_their_part_says() -> None:
    assert joint().mean.tolist() == pytest.approx([2, 10, 0.25, 30])
    assert joint().variance.tolist() == pytest.approx([2, 0.01, 0.0625, 0.01])
    x = joint().expand(Size([2])).sample(Size([3]))
    assert x.shape == (3, 2, 4)
    assert bool((x[..., 0] % 1 == 0).all())
    assert bool((x[..., [1, 3]] - torch.tensor([10.0, 30.0])).abs().max() < 1)
    assert bool((x[..., 2] > 0).all())


def test_Joint_log_prob_is_the_sum_of_the_parts() -> None:
    x = joint().sample(Size([5]))
    expected = (
        dist.Normal(torch.tensor([10.0, 30.0]), 0.1).log_prob(x[:, [1, 3]]).sum(-1)
        + dist.Poisson(torch.tensor(2.0)).log_prob(x[:, 0])
        + dist.Exponential(torch.tensor(4.0)).log_prob(x[:, 2])
    )
    torch.testing.assert_close(joint().log_prob(x), expected)
    torch.testing.assert_close(elementwise_log_prob(joint(), x).sum(-1), expected)


def test_Joint_support_is_that_of_every_part() -> None:
    good = torch.tensor([2.0, 10.0, 0.25, 30.0])
    wrong = good.repeat(3, 1)
    wrong[0, 0], wrong[1, 2], wrong[2, 3] = 0.5, -1.0, torch.nan
    assert joint().support.check(torch.stack([good, *wrong])).tolist() == [True, False, False, False]


def test_Joint_is_reparameterized_where_all_parts_are() -> None:
    loc = torch.zeros(2, requires_grad=True)
    d = Joint([(slice(2, 4), dist.Normal(loc, 1.0).to_event(1)), (slice(0, 2), dist.Normal(loc, 1.0).to_event(1))])
    assert d.has_rsample
    d.rsample().sum().backward()
    assert loc.grad is not None
    assert loc.grad.tolist() == [2, 2]
    assert not joint().has_rsample


def test_Joint_has_no_density_of_single_elements() -> None:
    message = "elementwise_log_prob: expected a density that is a product over elements; got MultivariateNormal"
    with pytest.raises(TypeError, match=message):
        elementwise_log_prob(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), torch.zeros(2))
