"""Every likelihood trains on real data of its kind, by one changed line."""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from torch import Tensor

from pyro_vae import VAE, conditionals, data, fit, likelihoods, nets, priors
from pyro_vae.data import Dataset

MakeLikelihood = Callable[[nets.Body], likelihoods.Likelihood]
IMAGE = (1, 8, 8)


def losses(likelihood: MakeLikelihood, train: Dataset, body: nets.Body | None = None, epochs: int = 4) -> list[float]:
    """The loss of each epoch, per datum."""
    torch.manual_seed(0)
    vae = VAE(
        prior=priors.StandardNormal(4),
        likelihood=likelihood(nets.MLP(4, [64]) if body is None else body),
        posterior=conditionals.DiagonalNormal(nets.MLP(train.event_shape, [64]), 4),
    )
    return fit(vae, train, epochs=epochs, seed=0, progress=False, compile=False)["loss"]


def assert_falls(values: list[float]) -> None:
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def digits() -> Tensor:
    """Whole numbers from 0 to 16."""
    return data.load("digits").train.tensor() * 16


GRAY: dict[str, MakeLikelihood] = {
    "ContinuousBernoulli": lambda body: likelihoods.ContinuousBernoulli(body, IMAGE),
    "Normal": lambda body: likelihoods.Normal(body, IMAGE),
    "SigmaNormal": lambda body: likelihoods.SigmaNormal(body, IMAGE),
    "Laplace": lambda body: likelihoods.Laplace(body, IMAGE),
    "Huber": lambda body: likelihoods.Huber(body, IMAGE),
    "StudentT": lambda body: likelihoods.StudentT(body, IMAGE),
    "Dequantized Normal": lambda body: likelihoods.Dequantized(likelihoods.Normal(body, IMAGE), levels=17),
    "Dequantized Beta": lambda body: likelihoods.Dequantized(likelihoods.Beta(body, IMAGE), levels=17),
    "Dequantized LogitNormal": lambda body: likelihoods.Dequantized(likelihoods.LogitNormal(body, IMAGE), levels=17),
    "DiscretizedLogistic": lambda body: likelihoods.DiscretizedLogistic(body, IMAGE, levels=17),
    "MixtureOfDiscretizedLogistics": lambda body: likelihoods.MixtureOfDiscretizedLogistics(body, IMAGE, levels=17),
    "Categorical": lambda body: likelihoods.Categorical(17, body, IMAGE, spacing=1 / 16),
    "Binomial": lambda body: likelihoods.Binomial(body, IMAGE, total_count=16),
}
COUNTS: dict[str, MakeLikelihood] = {
    "Poisson": lambda body: likelihoods.Poisson(body, IMAGE),
    "NegativeBinomial": lambda body: likelihoods.NegativeBinomial(body, IMAGE),
    "ZeroInflatedNegativeBinomial": lambda body: likelihoods.ZeroInflatedNegativeBinomial(body, IMAGE),
    "Binomial": lambda body: likelihoods.Binomial(body, IMAGE, total_count=16, spacing=1.0),
    "Categorical": lambda body: likelihoods.Categorical(17, body, IMAGE),
}
SHARES: dict[str, MakeLikelihood] = {
    "Poisson": lambda body: likelihoods.Poisson(body, 64, library_size=True),
    "NegativeBinomial": lambda body: likelihoods.NegativeBinomial(body, 64, library_size=True),
    "ZeroInflatedNegativeBinomial": lambda body: likelihoods.ZeroInflatedNegativeBinomial(body, 64, library_size=True),
    "Multinomial": lambda body: likelihoods.Multinomial(body, 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAY)
def test_likelihoods_of_gray_digits(name: str) -> None:
    assert_falls(losses(GRAY[name], data.load("digits").train))


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_likelihoods_of_digits_as_counts(name: str) -> None:
    assert_falls(losses(COUNTS[name], data.as_dataset(digits())))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARES)
def test_Multinomial_of_digits_as_documents_of_a_known_length(name: str) -> None:
    x = digits().flatten(1)
    assert_falls(losses(SHARES[name], data.as_dataset(x).conditioned_on(x.sum(-1))))


@pytest.mark.slow
def test_Bernoulli_of_binary_digits() -> None:
    train = data.load("digits", binarize="dynamic").train
    assert_falls(losses(lambda body: likelihoods.Bernoulli(body, IMAGE), train))


@pytest.mark.slow
def test_MixtureOfDiscretizedLogistics_on_feature_maps() -> None:
    def mixture(body: nets.Body) -> likelihoods.Likelihood:
        return likelihoods.MixtureOfDiscretizedLogistics(body, IMAGE, levels=17, num_components=5)

    assert_falls(losses(mixture, data.load("digits").train, nets.ConvDecoder(4, IMAGE, [16, 16])))


def with_cells_missing(x: Tensor) -> Tensor:
    """A tenth of all cells become NaN."""
    generator = torch.Generator().manual_seed(0)
    return x.masked_fill(torch.rand(x.shape, generator=generator) < 0.1, torch.nan)


def standardized(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.slow
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("count", [likelihoods.Poisson, likelihoods.NegativeBinomial])
def test_Mixed_of_wine_with_magnesium_as_a_count(count: type[likelihoods.Poisson], missing: bool) -> None:
    raw = torch.tensor(load_wine().data, dtype=torch.float32)
    magnesium = load_wine().feature_names.index("magnesium")
    x = standardized(raw)
    x[:, magnesium] = raw[:, magnesium]
    assert torch.equal(raw[:, magnesium], raw[:, magnesium].round())

    def mixed(body: nets.Body) -> likelihoods.Likelihood:
        table = likelihoods.Mixed(
            body,
            parts=[
                (slice(0, magnesium), likelihoods.Normal),
                (magnesium, count),
                (slice(magnesium + 1, 13), likelihoods.StudentT),
            ],
        )
        return likelihoods.MissingAtRandom(table) if missing else table

    values = losses(mixed, data.as_dataset(with_cells_missing(x) if missing else x), epochs=8)
    assert_falls(values[::2])


@pytest.mark.slow
@pytest.mark.parametrize("missing", [False, True])
def test_Mixed_of_breast_cancer_with_its_class_as_a_category(missing: bool) -> None:
    bunch = load_breast_cancer()
    x = standardized(torch.tensor(bunch.data, dtype=torch.float32))
    x = torch.cat([x, torch.tensor(bunch.target, dtype=torch.float32)[:, None]], -1)

    def mixed(body: nets.Body) -> likelihoods.Likelihood:
        table = likelihoods.Mixed(
            body, parts=[(slice(0, 30), likelihoods.Normal), (30, partial(likelihoods.Categorical, 2))]
        )
        return likelihoods.MissingAtRandom(table) if missing else table

    assert_falls(losses(mixed, data.as_dataset(with_cells_missing(x) if missing else x)))


def test_SigmaNormal_scale_is_set_by_fit_and_is_the_root_mean_squared_error() -> None:
    torch.manual_seed(0)
    train = data.load("digits").train
    likelihood = likelihoods.SigmaNormal(nets.MLP(2, [16]), IMAGE)
    vae = VAE(priors.StandardNormal(2), likelihood, conditionals.DiagonalNormal(nets.MLP(IMAGE, [16]), 2))
    fit(vae, train, epochs=2, seed=0, progress=False)
    x = train.tensor()
    error = (vae.reconstruct(x) - x).square().mean().sqrt()
    assert 0.1 < likelihood.scale < 0.5
    assert likelihood.scale.item() == pytest.approx(error.item(), rel=0.05)  # another draw of z
