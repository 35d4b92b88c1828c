"""Losses of public code, written as that code writes them, against the ELBOs that they are read as."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_vae import VAE, conditionals, elbo, explain, likelihoods, nets, priors
from pyro_vae.losses import Explanation

SHAPE, LATENT, N = (3, 2, 2), 4, 7
D = math.prod(SHAPE)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of what the decoder's last layer makes, x, mu, logvar


def kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL of each latent, as everybody writes it."""
    return -0.5 * (1 + logvar - mu**2 - logvar.exp())


def pytorch_examples(made: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    bce = functional.binary_cross_entropy(made.sigmoid().reshape(-1, D), x.reshape(-1, D), reduction="sum")
    return bce + -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def keras(made: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    # Keras' binary_crossentropy averages over the channels, its last axis
    per_pixel = functional.binary_cross_entropy_with_logits(made, x, reduction="none").mean(1)
    return per_pixel.sum((1, 2)).mean() + kl(mu, logvar).sum(1).mean()


def pytorch_vae(made: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, *, weight: float = 0.00025) -> Tensor:
    kld = torch.mean(-0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp(), dim=1), dim=0)
    return functional.mse_loss(made, x) + weight * kld


def latent_diffusion(made: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    nll = torch.abs(x - made) / math.exp(0.0) + 0.0  # its logvar starts at 0 and is in no optimizer
    return nll.sum() / len(x) + 1e-6 * kl(mu, logvar).sum() / len(x)


def of_all_means(made: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return functional.l1_loss(made, x) + 0.3 * kl(mu, logvar).mean()


def of_mixed_batches(made: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return functional.mse_loss(made, x) + kl(mu, logvar).sum()


def of_mixed_batches_the_other_way(made: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * functional.mse_loss(made, x, reduction="sum") + 2 * kl(mu, logvar).mean()


def huber(made: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return functional.huber_loss(made, x, reduction="sum", delta=0.3) + 0.2 * kl(mu, logvar).sum()


def smooth_l1(made: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return 3 * functional.smooth_l1_loss(made, x, beta=0.3) + 0.2 * kl(mu, logvar).sum(1).mean()


def cross_entropy(made: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    logits = made.unflatten(1, (4, SHAPE[0]))
    return functional.cross_entropy(logits, x.long()) + 0.1 * kl(mu, logvar).sum(1).mean()


def bits() -> Tensor:
    return torch.randint(2, (N, *SHAPE)).double()


def reals() -> Tensor:
    return torch.randn(N, *SHAPE).double()


def categories() -> Tensor:
    return torch.randint(4, (N, *SHAPE)).double()


def read(reconstruction: Any, reduction: Any, kl_reduction: Any, **options: Any) -> Explanation:
    return explain(reconstruction, reduction=reduction, kl_reduction=kl_reduction, **{"event_shape": SHAPE, **options})


MSE = partial(read, "mse", "mean", "batchmean")
LOSSES: dict[str, tuple[Loss, Callable[[], Tensor], Explanation]] = {
    "pytorch/examples": (pytorch_examples, bits, read("bce", "sum", "sum")),
    "Keras": (keras, bits, read("bce", "batchmean", "batchmean", reconstruction_weight=1 / SHAPE[0])),
    "PyTorch-VAE": (pytorch_vae, reals, MSE(kl_weight=0.00025)),
    "PyTorch-VAE, .1 KL": (partial(pytorch_vae, weight=0.1), reals, MSE(kl_weight=0.1)),
    "latent diffusion": (latent_diffusion, reals, read("l1", "batchmean", "batchmean", kl_weight=1e-6)),
    "of all means": (of_all_means, reals, read("l1", "mean", "mean", kl_weight=0.3, latent_dim=LATENT)),
    "of mixed batches": (of_mixed_batches, reals, read("mse", "mean", "sum", batch_size=N)),
    "of mixed batches, the other way": (
        of_mixed_batches_the_other_way,
        reals,
        read("mse", "sum", "mean", batch_size=N, latent_dim=LATENT, kl_weight=2, reconstruction_weight=0.5),
    ),
    "Huber": (huber, reals, read("huber", "sum", "sum", delta=0.3, kl_weight=0.2)),
    "smooth L1": (
        smooth_l1,
        reals,
        read("smooth_l1", "mean", "batchmean", delta=0.3, kl_weight=0.2, reconstruction_weight=3),
    ),
    "categories": (
        cross_entropy,
        categories,
        read("cross_entropy", "mean", "batchmean", num_categories=4, kl_weight=0.1),
    ),
}
# Each as it stands, and those with a scale as a true ELBO and at another beta.
READINGS = {
    f"{name}{suffix}": (loss, data, reading)
    for name, (loss, data, plain) in LOSSES.items()
    for suffix, reading in {
        "": plain,
        **({} if plain.scale is None else {", beta 1": plain.at(beta=1), ", beta 3": plain.at(beta=3)}),
    }.items()
}


def vae_of(explanation: Explanation, seed: int = 0) -> VAE:
    """With the likelihood that was explained; of the same weights whatever its scale is."""
    torch.manual_seed(seed)
    return VAE(
        priors.StandardNormal(LATENT),
        explanation.likelihood(nets.MLP(LATENT, [6])),
        conditionals.DiagonalNormal(nets.MLP(SHAPE, [6]), LATENT),
    ).double()


def hand_written(vae: VAE, x: Tensor, loss: Loss) -> Tensor:
    """A loss of the networks alone: what the decoder's last layer makes at a draw of z."""
    q = vae.encode(x).base_dist
    z = dist.Normal(q.loc, q.scale).to_event(1).rsample()
    (made,) = vae.likelihood.head(vae.likelihood.body(z)).values()
    return loss(made, x, q.loc, 2 * q.scale.log())


def our_loss(vae: VAE, x: Tensor, beta: float) -> Tensor:
    with pyro.get_param_store().scope():
        return elbo.ELBO(beta=beta, analytic_kl=True).differentiable_loss(vae.model, vae.guide, x)


def gradients(vae: VAE, loss: Tensor) -> dict[str, Tensor]:
    named = dict(vae.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize("name", READINGS)
def test_explain_reads_losses_of_public_code_as_ELBOs_of_equal_value_and_gradients(name: str) -> None:
    loss, data, explanation = READINGS[name]
    vae, x = vae_of(explanation), data()
    vae.check_data(x)
    torch.manual_seed(1)
    theirs = hand_written(vae, x, loss)
    torch.manual_seed(1)
    ours = our_loss(vae, x, explanation.beta)
    share = explanation.factor / N if explanation.averaged else explanation.factor
    expected = share * (ours - N * explanation.constant)
    assert theirs.item() == pytest.approx(expected.item(), rel=1e-9)
    left, right = gradients(vae, theirs), gradients(vae, share * ours)
    largest = max(float(gradient.abs().max()) for gradient in left.values())
    assert largest > 1e-4
    for parameter, gradient in left.items():  # so close that a KL of weight 1e-6 shows
        torch.testing.assert_close(gradient, right[parameter], rtol=1e-9, atol=1e-14 * largest)


def test_Explanation_at_several_betas_trains_alike() -> None:
    plain = MSE(kl_weight=0.1)
    x = reals()
    ends = []
    for reading in (plain, plain.at(beta=1), plain.at(beta=0.2)):
        vae = vae_of(reading)
        optimizer = torch.optim.SGD(vae.parameters(), lr=0.2 * reading.factor / N)
        torch.manual_seed(2)
        for _ in range(5):
            optimizer.zero_grad()
            our_loss(vae, x, reading.beta).backward()
            optimizer.step()
        ends.append(nn.utils.parameters_to_vector(vae.parameters()))
    assert not torch.allclose(ends[0], nn.utils.parameters_to_vector(vae_of(plain).parameters()), atol=1e-3)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-8, atol=1e-10)


class TanhNormal(likelihoods.Normal):
    """A Normal whose location is bounded, as TVAE's is."""

    def density(self, loc: Tensor, scale: Tensor) -> Any:
        return super().density(loc.tanh(), scale)


def test_explain_reads_TVAE_as_half_a_beta() -> None:
    """Two reals with a scale each that is learned, three one-hot categories, and a factor of 2 before both."""
    reconstruction = partial(explain, reduction="batchmean", kl_reduction="batchmean", reconstruction_weight=2.0)
    of_reals = reconstruction("gaussian_nll", event_shape=2)
    of_category = reconstruction("cross_entropy", event_shape=1, num_categories=3)
    assert of_reals.beta == of_category.beta == 0.5
    assert of_reals.factor == of_category.factor == 2
    torch.manual_seed(0)
    real = partial(TanhNormal, min_scale=0.01)
    vae = VAE(
        priors.StandardNormal(LATENT),
        likelihoods.Mixed(
            nets.MLP(LATENT, [6]), parts=[(0, real), (1, real), (slice(2, 5), likelihoods.OneHotCategorical)]
        ),
        conditionals.DiagonalNormal(nets.MLP(5, [6]), LATENT),
    ).double()
    x = torch.cat([torch.rand(N, 2) * 2 - 1, torch.eye(3)[torch.randint(3, (N,))]], 1).double()
    raw = [parameter for name, parameter in vae.named_parameters() if name.endswith("raw_scale")]
    sigmas = torch.stack([0.01 + functional.softplus(each) for each in raw])

    def tvae(recon_x: dict[str, Tensor], mu: Tensor, logvar: Tensor) -> Tensor:
        loss = []
        for column in range(2):
            std = sigmas[column]
            eq = x[:, column] - torch.tanh(recon_x[f"{column}.loc"][:, 0])
            loss.append((eq**2 / 2 / (std**2)).sum())
            loss.append(torch.log(std) * x.size(0))
        category = torch.argmax(x[:, 2:], dim=-1)
        loss.append(functional.cross_entropy(recon_x["2.logits"], category, reduction="sum"))
        kld = -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())
        total: Any = sum(loss)
        return total * 2 / x.size(0) + kld / x.size(0)

    torch.manual_seed(1)
    q = vae.encode(x).base_dist
    z = dist.Normal(q.loc, q.scale).to_event(1).rsample()
    theirs = tvae(vae.likelihood.head(vae.likelihood.body(z)), q.loc, 2 * q.scale.log())
    torch.manual_seed(1)
    ours = our_loss(vae, x, beta=0.5)
    constant = of_reals.constant + of_category.constant
    assert theirs.item() == pytest.approx(2 * (ours.item() / N - constant), rel=1e-9)
    left, right = gradients(vae, theirs), gradients(vae, 2 / N * ours)
    for name, gradient in left.items():
        torch.testing.assert_close(gradient, right[name], rtol=1e-9, atol=1e-12)


def test_explain_reads_gaussian_nll_with_its_learned_scale() -> None:
    explanation = read("gaussian_nll", "mean", "batchmean", kl_weight=0.5 / D)
    assert explanation.beta == pytest.approx(0.5)
    assert explanation.factor == pytest.approx(1 / D)
    vae, x = vae_of(explanation), reals()
    p = vae.decode(torch.randn(N, LATENT).double())
    loss = functional.gaussian_nll_loss(p.mean, x, p.base_dist.scale**2)
    expected = -p.log_prob(x).mean() - explanation.constant
    assert loss.item() == pytest.approx(explanation.factor * expected.item(), rel=1e-9)


def test_explain_figures_are_those_of_the_closed_forms() -> None:
    mnist = explain("mse", reduction="mean", kl_reduction="batchmean", event_shape=784, kl_weight=0.5)
    assert mnist.scale == pytest.approx(math.sqrt(784 / 2))
    assert (mnist.beta, mnist.factor) == (0.5, 1)
    assert mnist.constant == pytest.approx(784 * math.log(2 * math.pi * 392) / 2)
    at_one = mnist.at(beta=1)
    assert at_one.scale == pytest.approx(math.sqrt(784 * 0.5 / 2))
    assert [at_one.beta, at_one.factor] == pytest.approx([1, 0.5])
    absolute = read("l1", "batchmean", "batchmean", kl_weight=1e-6)
    assert (absolute.scale, absolute.beta) == (1, 1e-6)
    assert absolute.constant == pytest.approx(D * math.log(2))
    assert absolute.at(beta=1).scale == pytest.approx(1e-6)
    bits = read("bce", "mean", "mean", latent_dim=LATENT)
    assert (bits.scale, bits.constant) == (None, 0)
    assert bits.beta == pytest.approx(D / LATENT)
    no_kl = read("mse", "sum", "sum", kl_weight=0)
    assert [no_kl.beta, no_kl.scale] == pytest.approx([0, math.sqrt(0.5)])


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 20.0])
def test_explain_constant_of_Hubers_loss_is_the_integral(kind: Any, temperature: float) -> None:
    explanation = read(kind, "sum", "sum", delta=0.3, event_shape=1, reconstruction_weight=1 / temperature)
    x = torch.linspace(-2000, 2000, 4_000_001, dtype=torch.float64)
    error = {
        "huber": partial(functional.huber_loss, delta=0.3),
        "smooth_l1": partial(functional.smooth_l1_loss, beta=0.3),
    }
    height = torch.exp(-error[kind](x, torch.zeros_like(x), reduction="none") / temperature)
    assert explanation.constant == pytest.approx(torch.trapezoid(height, x).log().item(), abs=1e-5)


# Gray pixels


def test_explain_cross_entropy_on_gray_pixels_is_its_mean_over_bits() -> None:
    """What is printed of it, over all 16 patterns of 4 bits."""
    x, logits = torch.rand(4).double(), torch.randn(4).double()
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double()
    mean = 0.0
    for pattern in patterns:
        probability = torch.where(pattern == 1, x, 1 - x).prod().item()
        mean -= probability * dist.Bernoulli(logits=logits).to_event(1).log_prob(pattern).item()
    gray = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    assert mean == pytest.approx(gray.item(), rel=1e-12)
    assert "the mean of -log p(bits|z) over bits of probability x" in str(read("bce", "sum", "sum"))


def test_explain_missing_normalizer_is_the_difference_to_the_continuous_Bernoulli() -> None:
    x = torch.rand(2000, *SHAPE)
    explanation = read("bce", "sum", "sum", data=x)
    ratio = torch.distributions.ContinuousBernoulli(x.double()).log_prob(x.double())
    ratio += functional.binary_cross_entropy(x.double(), x.double(), reduction="none")
    # torch's own is a series within 1e-3 of p = 1/2, and good to 1e-6 elsewhere
    assert explanation.missing_normalizer == pytest.approx(ratio.flatten(1).sum(1).mean().item(), rel=1e-5)
    assert explanation.missing_normalizer is not None
    assert explanation.missing_normalizer > D * math.log(2)
    assert "The data are gray" in str(explanation)
    half = read("bce", "sum", "sum", data=torch.full((1, *SHAPE), 0.5))
    assert half.missing_normalizer == pytest.approx(D * math.log(2))
    black = read("bce", "sum", "sum", data=torch.full((1, *SHAPE), 1e-9))
    assert black.missing_normalizer == pytest.approx(D * math.log(10 / math.tanh(5)))
    of_bits = read("bce", "sum", "sum", data=bits().float())
    assert of_bits.missing_normalizer is None
    assert "The data are bits" in str(of_bits)


# What data say


def test_explain_largest_kl_bounds_that_of_the_best_linear_decoder() -> None:
    """Probabilistic PCA, at whose optimum the KL is sum log(lambda / variance) / 2 over the eigenvalues above."""
    torch.manual_seed(0)
    x = torch.randn(500, 12).double() @ torch.randn(12, 12).double() * torch.linspace(0.1, 3, 12).double()
    eigenvalues = torch.linalg.eigvalsh(x.T.cov(correction=0))
    kls = []
    for weight in (0.01, 1.0, 30.0, 300.0):
        found = explain("mse", reduction="mean", kl_reduction="batchmean", event_shape=12, kl_weight=weight, data=x)
        scale = found.at(beta=1).scale
        assert scale is not None
        kls.append((eigenvalues / scale**2).clamp(min=1).log().sum().item() / 2)
        assert found.largest_kl == pytest.approx((eigenvalues.sum() / (2 * scale**2)).item(), rel=1e-9)
        assert found.largest_kl is not None
        assert found.largest_kl >= kls[-1]
        assert ("collapsed posterior" in str(found)) == (found.largest_kl < 0.5)
        assert found.at(beta=1).largest_kl == found.largest_kl
    assert kls[0] > 5
    assert kls[-1] == 0


@pytest.mark.parametrize("reconstruction", ["mse", "l1", "huber", "smooth_l1", "bce", "cross_entropy", "gaussian_nll"])
def test_explain_largest_kl_is_what_the_mean_leaves_to_gain(reconstruction: Any) -> None:
    torch.manual_seed(0)
    options = {"num_categories": 4} if reconstruction == "cross_entropy" else {}
    x = categories() if options else torch.rand(N, *SHAPE).double()
    found = read(reconstruction, "batchmean", "batchmean", kl_weight=0.1, data=x, **options)
    if reconstruction == "gaussian_nll":
        assert found.largest_kl is None
        return
    likelihood = found.likelihood(nets.MLP(LATENT, [])).double()
    if reconstruction == "cross_entropy":
        frequencies = functional.one_hot(x.long(), 4).double().mean(0)  # by element, then category
        collapsed = likelihood.distribution(logits=frequencies.log().movedim(-1, 0).flatten(0, 1))
        least = 0.0
    elif reconstruction == "bce":
        collapsed = likelihood.distribution(logits=x.mean(0).logit())
        least = functional.binary_cross_entropy(x, x, reduction="sum").item() / N
    else:
        collapsed = likelihood.distribution(loc=x.mean(0))
        least = found.constant
    with pyro.validation_enabled(False):  # so that a Bernoulli has a log_prob of gray pixels, cross-entropy
        gain = -collapsed.log_prob(x).mean().item() - least
    assert found.largest_kl == pytest.approx(gain / 0.1, rel=1e-6)


def test_explain_speaks_of_gray_levels_in_the_units_of_the_data() -> None:
    unit = MSE(event_shape=2)
    assert unit.scale == 1
    assert "That scale is 255 gray levels, 1/255 of [0, 1] each." in " ".join(str(unit).split())
    data = torch.tensor([[-1.0, 1.0], [0.0, 0.5]])
    assert "That scale is 127.5 gray levels, 1/255 of the data's span of 2 each." in " ".join(
        str(MSE(event_shape=2, data=data)).split()
    )
    assert "gray levels" not in str(MSE(event_shape=2, data=torch.ones(3, 2)))


# Sentences

SAID = {
    "pytorch/examples": [
        "of a Bernoulli, for each of 12 elements",
        "no density",
        "summed over the batch, is -ELBO(beta=1)",
    ],
    "Keras": ["There is no other reading", "is 0.3333 * (-ELBO(beta=3)), in nats", "though a looser one"],
    "PyTorch-VAE": [
        "of a Normal of scale 2.449 (variance 6), for each of 12 elements",
        "averaged over the batch, is -ELBO(beta=0.00025) - 21.78, in nats",
        "it is a true ELBO, of scale 0.03873",
        "0.00025 * (-ELBO(beta=1) + 27.99), in nats",
        "That scale is 9.876 gray levels",
        "leaves open which is meant",
    ],
    "latent diffusion": ["of a Laplace of scale 1,", "beta=1e-06", "of scale 1e-06"],
    "of mixed batches": ["beta is that of batches of 7, and another size is another objective"],
    "Huber": ["Huber's loss is -log p(x|z) of a Huber of scale 1,"],
    "categories": ["Cross-entropy is -log p(x|z) of a Categorical", "is 0.08333 * (-ELBO(beta=1.2))"],
}


@pytest.mark.parametrize("name", SAID)
def test_explain_says_what_one_has_assumed(name: str) -> None:
    text = " ".join(str(LOSSES[name][2]).split())
    for sentence in SAID[name]:
        assert sentence in text


def test_explain_says_that_a_loss_without_KL_is_an_autoencoders() -> None:
    assert "It has no KL: an autoencoder" in str(read("mse", "sum", "sum", kl_weight=0))


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reconstruction": "ssim"}, "expected reconstruction one of 'mse', 'l1', .*; got 'ssim'"),
        ({"reduction": "none"}, "expected reduction one of 'sum', 'mean', 'batchmean'; got 'none'"),
        ({"kl_weight": -1.0}, "expected kl_weight at least 0; got -1"),
        ({"reconstruction_weight": 0.0}, "expected reconstruction_weight above 0; got 0"),
        ({"kl_reduction": "mean"}, "expected latent_dim with kl_reduction='mean'; got None"),
        ({"kl_reduction": "batchmean"}, "expected batch_size with one term summed .*; got None"),
        ({"reconstruction": "cross_entropy"}, "expected num_categories with reconstruction='cross_entropy'; got None"),
        ({"reconstruction": "cross_entropy", "num_categories": 1}, "expected num_categories at least 2; got 1"),
        ({"delta": 0.5}, "expected no delta with reconstruction='mse'; got 0.5. Leave it out, or use huber"),
        ({"num_categories": 3}, "expected no num_categories with reconstruction='mse'; got 3"),
        ({"reconstruction": "huber", "delta": 0.0}, "expected delta above 0; got 0"),
        ({"event_shape": 0}, "expected every size at least 1; got"),
        ({"data": torch.zeros(3, 5)}, r"expected data of shape \(N, 3, 2, 2\), N at least 1; got \(3, 5\)"),
        ({"data": torch.zeros(0, *SHAPE)}, r"expected data of shape .* got \(0, 3, 2, 2\)"),
        ({"data": torch.full((1, *SHAPE), math.nan)}, "expected finite data; got values in no finite value and 12 NaN"),
        ({"reconstruction": "bce", "data": torch.full((1, *SHAPE), -1.0)}, r"expected data in \[0, 1\], .*got .* \[-1"),
        (
            {"reconstruction": "cross_entropy", "num_categories": 3, "data": torch.full((1, *SHAPE), 3.0)},
            r"expected categories 0, \.\.\., 2; got values in \[3, 3\]",
        ),
    ],
)
def test_explain_refuses_what_it_cannot_read(options: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"reconstruction": "mse", "reduction": "sum", "kl_reduction": "sum", "event_shape": SHAPE}
    with pytest.raises(ValueError, match=message):
        explain(**(right | options))


def test_explain_refuses_whole_numbers_for_data() -> None:
    with pytest.raises(TypeError, match=r"explain: expected floating point data; got torch\.uint8"):
        read("mse", "sum", "sum", data=torch.zeros(1, *SHAPE, dtype=torch.uint8))


def test_Explanation_at_refuses_a_loss_whose_beta_is_fixed() -> None:
    for explanation, message in (
        (read("bce", "sum", "sum", kl_weight=2), r"got binary cross-entropy\. Its beta is 2 alone"),
        (read("gaussian_nll", "sum", "sum"), r"got a normal's negative log-density\. Its beta is 1 alone"),
        (read("mse", "sum", "sum", kl_weight=0), r"got no KL\. Its beta is 0 alone"),
    ):
        with pytest.raises(ValueError, match=message):
            explanation.at(beta=1)
    with pytest.raises(ValueError, match=r"Explanation\.at: expected beta above 0; got 0"):
        MSE().at(beta=0)
