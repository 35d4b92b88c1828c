"""The contract's checks find what they are there to find."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.types import _size

from pyro_vae import conditionals, distributions, likelihoods, nets, priors
from pyro_vae.testing import check_conditional, check_density, check_distribution, check_likelihood, check_prior

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


class WrongShape(likelihoods.Normal):
    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Normal(loc.mean(0, keepdim=True), scale)


class NoGradient(likelihoods.Normal):
    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Normal(loc, scale.detach())


class InfiniteGradient(likelihoods.Normal):
    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Normal(loc + 0 * (scale - scale).sqrt(), scale)


class SinglePrecision(likelihoods.Normal):
    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Normal(loc.float(), scale.float())


class MixedUp(likelihoods.Normal):
    """Normalizes over the batch: fine for the whole batch, and another density for each particle."""

    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Normal(loc - (loc.mean() if loc.dim() > 1 else 0), scale)


class Forgetful(likelihoods.Normal):
    def __init__(self, body: nets.Body, event_shape: nets.Shape) -> None:
        super().__init__(body, event_shape)
        self.hidden = {"shift": torch.randn(())}

    def __deepcopy__(self, memo: object) -> "Forgetful":
        other = Forgetful(nets.MLP(2, [5]), self.event_shape)
        other.load_state_dict(self.state_dict())
        return other

    def density(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Normal(loc + self.hidden["shift"], scale)


class Choosy(likelihoods.Normal):
    support = torch.distributions.constraints.unit_interval  # type: ignore[assignment]
    accepts, remedy = "values in [0, 1]", "Scale them"


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (WrongShape, AssertionError, r"expected event_shape \(2,\); got \(1,\)"),
        (NoGradient, AssertionError, "expected a finite gradient of raw_scale; got None"),
        (InfiniteGradient, AssertionError, "expected a finite gradient of raw_scale; got nan"),
        (SinglePrecision, AssertionError, "expected a float64 sample of a module in float64; got torch.float32"),
        (MixedUp, AssertionError, "expected log_prob of K particles to be that of each"),
        (Forgetful, AssertionError, "expected the same density after a state_dict round trip"),
        (Choosy, ValueError, r"Choosy likelihood: expected values in \[0, 1\]"),
    ],
)
def test_check_likelihood_sees_broken_ones(
    kind: type[likelihoods.Normal], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_likelihood(kind(nets.MLP(2, [5]), 2))


def test_check_conditional_and_check_prior_see_broken_ones() -> None:
    class Shifted(conditionals.DiagonalNormal):
        def distribution(self, *, loc: Tensor, log_scale: Tensor) -> TorchDistribution:  # type: ignore[override]
            class Sampler(dist.Normal):
                def rsample(self, shape: _size = ()) -> Tensor:
                    return super().rsample(shape) + 0.5

                def sample(self, shape: _size = ()) -> Tensor:
                    return super().sample(shape) + 0.5

            return Sampler(loc, log_scale.exp()).to_event(1)

    class Unnormalized(priors.Prior):
        def __init__(self) -> None:
            super().__init__(1)
            self.loc = nn.Parameter(torch.zeros(1))

        def forward(self) -> TorchDistribution:
            class Density(dist.Normal):
                def log_prob(self, value: Tensor) -> Tensor:
                    return super().log_prob(value) + math.log(2)

            return Density(self.loc, torch.ones_like(self.loc)).to_event(1)

    with pytest.raises(AssertionError, match="expected samples from the density"):
        check_conditional(Shifted(nets.MLP(2, [5]), 2))
    with pytest.raises(AssertionError, match="integral 1"):
        check_prior(Unnormalized())


def test_check_distribution_sees_another_shape_or_support() -> None:
    class Outside(dist.Normal):
        support = torch.distributions.constraints.positive  # type: ignore[assignment]

    class Expands(dist.Normal):
        def expand(self, batch_shape: _size, _instance: object = None) -> TorchDistribution:
            return dist.Normal(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    with pytest.raises(AssertionError, match=r"expected event_shape \(2,\); got \(\)"):
        check_distribution(dist.Normal(torch.zeros(2), 1.0), SIZE([2]), SIZE([2]))
    with pytest.raises(AssertionError, match="expected samples in the support"):
        check_distribution(Outside(torch.full((2,), -9.0), 1.0, validate_args=False), SIZE([2]), SIZE())
    with pytest.raises(AssertionError, match="expected expand to keep the type Expands; got Normal"):
        check_distribution(Expands(torch.zeros(2), 1.0), SIZE([2]), SIZE())


def test_check_density_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    check_likelihood(likelihoods.Normal(nets.MLP(2, [5]), 2))
    drawn = torch.get_rng_state()
    torch.set_rng_state(before)
    likelihoods.Normal(nets.MLP(2, [5]), 2)
    assert torch.equal(torch.get_rng_state(), drawn)
