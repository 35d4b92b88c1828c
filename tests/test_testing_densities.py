"""Checks of a density find a wrong normalizer, and samples of another density."""

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.types import _size

from pyro_vae import distributions
from pyro_vae.testing import check_density

SIZE = torch.Size


def normal(**changes: object) -> TorchDistribution:
    """Two independent Normals, of which ``changes`` replaces methods of the single one."""
    kind = type("Changed", (dist.Normal,), changes)
    return kind(torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)).to_event(1)


def test_check_density_passes_a_right_density() -> None:
    check_density(normal())


def test_check_density_sees_a_wrong_normalizer() -> None:
    def log_prob(self: dist.Normal, value: Tensor) -> Tensor:
        return dist.Normal.log_prob(self, value) + 0.002

    with pytest.raises(AssertionError, match=r"expected a density of integral 1 within 0\.001; got an error of 0\.002"):
        check_density(normal(log_prob=log_prob))


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_check_density_sees_samples_of_another_scale(factor: float) -> None:
    def sample(self: dist.Normal, shape: _size = ()) -> Tensor:
        return dist.Normal.sample(self, shape) * factor

    with pytest.raises(AssertionError, match="expected samples from the density; got a mean off by"):
        check_density(normal(sample=sample))


def test_check_density_sees_elements_that_share_their_noise() -> None:
    def sample(self: dist.Normal, shape: _size = ()) -> Tensor:
        return torch.randn(*shape, 1, dtype=torch.float64) * self.scale

    with pytest.raises(AssertionError, match="expected samples from the density"):
        check_density(normal(sample=sample))


def test_check_density_sees_wrong_joint_densities() -> None:
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)

    class Independently(dist.MultivariateNormal):
        def rsample(self, shape: _size = ()) -> Tensor:
            return torch.randn(*shape, 2, dtype=torch.float64)

    check_density(dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance))
    with pytest.raises(AssertionError, match="expected samples from the density"):
        check_density(Independently(torch.zeros(2, dtype=torch.float64), covariance))


def test_check_density_sees_wrong_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)

    class Reversed(dist.OneHotCategorical):
        def sample(self, shape: _size = ()) -> Tensor:
            return super().sample(shape).flip(-1)

    class Unfolded(distributions.DiscretizedLogistic):
        def log_prob(self, value: Tensor) -> Tensor:  # as if the tails belonged to no bin
            x, h = (value - self.loc) / self.scale, 0.5 / (self.levels - 1) / self.scale
            return ((x + h).sigmoid() - (x - h).sigmoid()).log()

    check_density(dist.OneHotCategorical(logits=logits))
    with pytest.raises(AssertionError, match="expected samples from the density"):
        check_density(Reversed(logits=logits))
    with pytest.raises(AssertionError, match="integral 1"):
        check_density(Unfolded(torch.tensor(0.02).double(), torch.tensor(0.1).double()))


@pytest.mark.parametrize(
    "d",
    [
        dist.Gamma(torch.tensor([0.5, 3.0]).double(), 1.0).to_event(1),
        dist.Cauchy(torch.tensor([0.5, 3.0]).double(), 1.0).to_event(1),
        dist.Dirichlet(torch.tensor([0.8, 3.0, 2.0]).double()),
        dist.ProjectedNormal(torch.tensor([0.5, 1.0]).double()),
        dist.ProjectedNormal(torch.tensor([0.5, 1.0, -1.0]).double()),
        dist.Geometric(torch.tensor(0.1).double()),
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2).double()), dist.Normal(torch.tensor([-3.0, 3.0]).double(), 0.5)
        ),
    ],
    ids=lambda d: type(getattr(d, "base_dist", d)).__name__,
)
def test_check_density_has_a_rule_for_many_supports(d: TorchDistribution) -> None:
    check_density(d)


def test_check_density_refuses_densities_that_are_too_large() -> None:
    with pytest.raises(ValueError, match="expected at most 3 dims that depend on each other; got"):
        check_density(dist.MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double()))
    with pytest.raises(ValueError, match=r"expected at most 200000 outcomes; got 2\^20"):
        check_density(dist.OneHotCategorical(torch.ones(20).double()))
    with pytest.raises(ValueError, match="expected a sphere in 2 or 3 dims; got 4"):
        check_density(dist.ProjectedNormal(torch.ones(4).double()))
