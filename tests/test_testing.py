"""The contract's checks find what they are there to find."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.types import _size

from pyro_vae import conditionals, likelihoods, nets, priors
from pyro_vae.testing import check_conditional, check_distribution, check_likelihood, check_prior

SIZE = torch.Size


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


def test_check_likelihood_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    check_likelihood(likelihoods.Normal(nets.MLP(2, [5]), 2))
    drawn = torch.get_rng_state()
    torch.set_rng_state(before)
    likelihoods.Normal(nets.MLP(2, [5]), 2)
    assert torch.equal(torch.get_rng_state(), drawn)
