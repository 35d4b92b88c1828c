import math
from collections.abc import Callable

import members
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae import likelihoods, nets

LATENT = members.LATENT


def body(**options: object) -> nets.MLP:
    return nets.MLP(LATENT, [5], **options)  # type: ignore[arg-type]


def scvi_log_negative_binomial(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """scVI's formula, without its epsilon."""
    log_theta_mu = (theta + mu).log()
    return (
        theta * (theta.log() - log_theta_mu)
        + x * (mu.log() - log_theta_mu)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )


def test_NegativeBinomial_is_scvis_and_torchs() -> None:
    likelihood = likelihoods.NegativeBinomial(body(), 6, library_size=True).double()
    with torch.no_grad():
        likelihood.log_dispersion.copy_(torch.linspace(-2, 3, 6))
    library_size, logits = torch.tensor([50.0, 2000.0]).double(), torch.randn(2, 6).double()
    p = likelihood.distribution(logits=logits, library_size=library_size)
    mu, theta = library_size[:, None] * logits.softmax(-1), likelihood.log_dispersion.exp()
    x = p.sample()
    torch.testing.assert_close(p.log_prob(x), scvi_log_negative_binomial(x, mu, theta).sum(-1))
    torchs = torch.distributions.NegativeBinomial(theta, logits=mu.log() - theta.log())
    torch.testing.assert_close(p.log_prob(x), torchs.log_prob(x).sum(-1))
    torch.testing.assert_close(p.mean, mu)
    torch.testing.assert_close(p.variance, mu + mu**2 / theta)


def test_ZeroInflatedNegativeBinomial_is_scvis() -> None:
    likelihood = likelihoods.ZeroInflatedNegativeBinomial(body(), 6, library_size=True).double()
    library_size = torch.tensor([20.0, 200.0]).double()
    logits, pi = torch.randn(2, 6).double(), torch.randn(2, 6).double()
    mu, theta = library_size[:, None] * logits.softmax(-1), likelihood.log_dispersion.exp()
    p = likelihood.distribution(logits=logits, gate_logits=pi, library_size=library_size)
    for x in (torch.zeros(2, 6).double(), torch.arange(12).reshape(2, 6).double()):
        at_zero = theta * (theta.log() - (theta + mu).log())
        zero = softplus(at_zero - pi) - softplus(-pi)
        other = scvi_log_negative_binomial(x, mu, theta) - pi - softplus(-pi)
        torch.testing.assert_close(p.log_prob(x), torch.where(x == 0, zero, other).sum(-1))


@pytest.mark.parametrize(
    "kind", [likelihoods.Poisson, likelihoods.NegativeBinomial, likelihoods.ZeroInflatedNegativeBinomial]
)
def test_Poisson_library_size_scales_the_mean_and_enters_no_network(
    kind: Callable[..., likelihoods.Likelihood],
) -> None:
    likelihood = kind(body(), (2, 3), library_size=True)
    z, library_size = torch.randn(4, LATENT), torch.tensor([10.0, 20.0, 30.0, 40.0])
    p = likelihood(z, library_size)
    torch.testing.assert_close(likelihood(z, library_size[:, None]).mean, p.mean)
    torch.testing.assert_close(likelihood(z, 2 * library_size).mean, 2 * p.mean)
    particles = likelihood(z.expand(5, 4, LATENT), library_size)
    assert particles.batch_shape == (5, 4)
    torch.testing.assert_close(particles.mean[2], p.mean)
    if not isinstance(likelihood, likelihoods.ZeroInflatedNegativeBinomial):
        torch.testing.assert_close(p.mean.sum((1, 2)), library_size)
    likelihood.check_data(torch.ones(4, 2, 3), library_size)
    with pytest.raises(ValueError, match=r"likelihood: expected a library_size above 0; got 0\. Give the size itself"):
        likelihood.check_data(torch.ones(4, 2, 3), 0 * library_size)


def test_Poisson_without_a_library_size_has_the_exponential_for_its_mean() -> None:
    likelihood = likelihoods.Poisson(body(), 2)
    assert likelihood.distribution(logits=torch.tensor([0.0, math.log(7)])).mean.tolist() == pytest.approx([1, 7])


def test_Poisson_body_may_take_a_context_beside_the_library_size() -> None:
    likelihood = likelihoods.Poisson(body(context_shapes=[2]), 5, library_size=True)
    z, label, library_size = torch.zeros(3, LATENT), torch.eye(3, 2), torch.full((3,), 9.0)
    p = likelihood(z, label, library_size)
    torch.testing.assert_close(p.mean.sum(-1), library_size)
    assert not torch.allclose(p.mean[0], p.mean[1])
    likelihood.check_data(torch.ones(3, 5), label, library_size)


def test_Multinomial_documents_have_the_length_they_are_given() -> None:
    likelihood = likelihoods.Multinomial(body(), 5)
    x = torch.tensor([[1.0, 0.0, 2.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0, 1.0]])
    likelihood.check_data(x, x.sum(-1))
    likelihood.check_data(x, x.sum(-1, keepdim=True))
    p = likelihood(torch.zeros(7, 2, LATENT), x.sum(-1))
    assert p.log_prob(x).shape == (7, 2)
    assert torch.equal(p.sample().sum(-1), x.sum(-1).expand(7, 2))
    with pytest.raises(
        ValueError, match=r"expected a document_length that is the sum.*got 4 and 5 for datum 1\. Give x.sum"
    ):
        likelihood.check_data(x, torch.tensor([3.0, 4.0]))
    with pytest.raises(ValueError, match=r"Multinomial likelihood: expected an event_shape \(D,\); got \(2, 3\)"):
        likelihoods.Multinomial(body(), (2, 3))


def test_Binomial_of_255_trials_is_torchs_on_the_levels() -> None:
    likelihood = likelihoods.Binomial(body(), (1, 2, 2))
    logits, k = torch.randn(1, 2, 2), torch.randint(0, 256, (9, 1, 2, 2)).float()
    expected = torch.distributions.Binomial(255, logits=logits).log_prob(k).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.distribution(logits=logits).log_prob(k / 255), expected)
    with pytest.raises(ValueError, match="Binomial likelihood: expected total_count at least 1; got 0"):
        likelihoods.Binomial(body(), 4, total_count=0)
    with pytest.raises(ValueError, match="Binomial likelihood: expected spacing above 0; got -1"):
        likelihoods.Binomial(body(), 4, spacing=-1.0)


# Categories and levels


def test_Categorical_is_a_softmax_of_the_logits_of_each_element() -> None:
    likelihood = likelihoods.Categorical(4, body(), (3, 2, 2))
    assert likelihood.parameter_shapes() == {"logits": (12, 2, 2)}
    logits = torch.randn(5, 12, 2, 2)
    x = torch.randint(0, 4, (5, 3, 2, 2))
    log_prob = likelihood.distribution(logits=logits).log_prob(x.float())
    by_category = logits.reshape(5, 4, 3, 2, 2).log_softmax(1)
    expected = by_category.gather(1, x[:, None]).sum((1, 2, 3, 4))
    torch.testing.assert_close(log_prob, expected)
    with pytest.raises(ValueError, match="Categorical likelihood: expected num_categories at least 2; got 1"):
        likelihoods.Categorical(1, body(), 4)
    with pytest.raises(ValueError, match="Categorical likelihood: expected spacing above 0; got 0"):
        likelihoods.Categorical(3, body(), 4, spacing=0)


def test_DiscretizedLogistic_levels_cost_a_convolution_and_no_large_layer() -> None:
    convolutional = nets.ConvDecoder(LATENT, (3, 32, 32), [64])
    mixture = likelihoods.MixtureOfDiscretizedLogistics(convolutional, (3, 32, 32))
    assert mixture.head.layer.weight.numel() == 6400
    assert sum(shape[0] for shape in mixture.parameter_shapes().values()) == 100
    assert likelihoods.Categorical(256, convolutional, (3, 32, 32)).head.layer.weight.numel() == 64 * 768


def test_MixtureOfDiscretizedLogistics_counts_in_pixels_from_minus_one_to_one() -> None:
    likelihood = likelihoods.MixtureOfDiscretizedLogistics(
        nets.ConvDecoder(LATENT, (3, 1, 1), [2]), (3, 1, 1), num_components=1
    ).double()
    raw = {name: torch.zeros(shape).double() for name, shape in likelihood.parameter_shapes().items()}
    raw["loc"] += torch.tensor([-1.0, 0.0, 1.0])[:, None, None]
    raw["log_scale"] += torch.tensor([0.0, -9.0, 9.0])[:, None, None]
    raw["coefficients"] += 100
    p = likelihood.distribution(**raw)
    assert p.loc.flatten().tolist() == [0, 0.5, 1]
    assert p.scale.flatten().tolist() == pytest.approx([0.5, math.exp(-7) / 2, math.exp(7) / 2])
    assert p.coefficients.flatten().tolist() == [1, 1, 1]
    with pytest.raises(
        ValueError, match=r"expected an event_shape \(channels, height, width\); got 784\. Give data without"
    ):
        likelihoods.MixtureOfDiscretizedLogistics(body(), 784)
    with pytest.raises(ValueError, match="expected num_components at least 1; got 0"):
        likelihoods.MixtureOfDiscretizedLogistics(body(), (1, 2, 2), num_components=0)


@pytest.mark.parametrize("kind", [likelihoods.DiscretizedLogistic, likelihoods.MixtureOfDiscretizedLogistics])
def test_DiscretizedLogistic_refuses_one_level(kind: Callable[..., likelihoods.Likelihood]) -> None:
    with pytest.raises(ValueError, match=r"likelihood: expected levels at least 2; got 1\. Use 256 for 8 bits"):
        kind(body(), (1, 2, 2), levels=1)
