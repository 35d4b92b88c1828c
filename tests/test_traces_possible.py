import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import VAE, conditionals, evaluation, likelihoods, nets, priors
from pyro_vae.traces.possible import check_possible


class Clamped(conditionals.RelaxedBernoulli):
    """A relaxed Bernoulli as torch has it: draws on the unit interval, clamped, with densities of what is left."""

    support = constraints.unit_interval  # type: ignore[assignment]

    def distribution(self, *, logits: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
        return dist.RelaxedBernoulli(self.temperature, logits=20 * logits.sign()).to_event(1)


class ClampedPrior(priors.RelaxedBernoulli):
    support = constraints.unit_interval  # type: ignore[assignment]

    def forward(self) -> dist.TorchDistribution:
        return dist.RelaxedBernoulli(self.temperature, logits=self.logits).to_event(1)


def clamped_vae(likelihood: likelihoods.Likelihood) -> VAE:
    return VAE(ClampedPrior(40, 0.05), likelihood, Clamped(nets.MLP(3, [4]), 40, 0.05))


def test_check_possible_wrong_density_of_a_latent_is_named() -> None:
    vae = clamped_vae(likelihoods.Bernoulli(nets.MLP(40, []), 3))
    x = torch.ones(200, 3)
    message = r"expected a bound on log p\(x\) of at most 0.*Site 'z' has a KL of -"
    with pytest.raises(ValueError, match="elbo_terms: " + message):
        evaluation.elbo_terms(vae, x)
    with pytest.raises(ValueError, match="rate_distortion: " + message):
        evaluation.rate_distortion(vae, x)
    with pytest.raises(ValueError, match="log_marginal_likelihood: " + message):
        evaluation.log_marginal_likelihood(vae, x, num_particles=3, progress=False)


def test_check_possible_wrong_likelihood_is_named() -> None:
    class Doubled(likelihoods.Bernoulli):
        def distribution(self, *, logits: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
            class TwiceAsLikely(dist.Bernoulli):  # type: ignore[misc]
                def log_prob(self, value: Tensor) -> Tensor:
                    return super().log_prob(value) + 2.0

            return TwiceAsLikely(logits=logits).to_event(1)

    vae = VAE(priors.StandardNormal(2), Doubled(nets.MLP(2, []), 9), conditionals.DiagonalNormal(nets.MLP(9, []), 2))
    with pytest.raises(ValueError, match="Site 'x' has a mean log-likelihood of"):
        evaluation.elbo_terms(vae, torch.ones(100, 9))


def test_check_possible_densities_may_have_bounds_above_zero() -> None:
    vae = clamped_vae(likelihoods.Normal(nets.MLP(40, []), 3, scale=0.01))
    assert evaluation.elbo_terms(vae, vae.sample(100, mean=True)).elbo.mean().isfinite()


def test_check_possible_noise_is_no_error() -> None:
    # bounds whose mean is 0, up to 4 standard errors above
    noise = torch.randn(10_000)
    noise = (noise - noise.mean()) / noise.std()
    check_possible("test", noise + 0.04, lambda: pytest.fail("suspicious"), "data")
    check_possible("test", torch.full((5,), 10.0), lambda: pytest.fail("too few"), "data")
