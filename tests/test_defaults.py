"""What suits data is what was made: each set is of a known kind, and its likelihood accepts it and trains."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_vae import SVI, conditionals, data, defaults, elbo, likelihoods, nets, priors
from pyro_vae.checkpoint.description import build, describe
from pyro_vae.data import Dataset
from pyro_vae.tables import Inputs

N = 200


def seeded(make: Callable[[torch.Generator], Any]) -> Callable[[], Dataset]:
    return lambda: data.as_dataset(make(torch.Generator().manual_seed(0)))


def uniform(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(N, *shape, generator=g)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    """Reals that a few factors explain."""
    size = int(np.prod(shape))
    factors, loadings = torch.randn(N, 2, generator=g), torch.randn(2, size, generator=g)
    return (factors @ loadings + 0.5 * torch.randn(N, size, generator=g)).reshape(N, *shape)


def counts(g: torch.Generator, *shape: int, spread: float) -> Tensor:
    return torch.poisson((spread * normal(g, *shape) + 1).exp().clamp(max=200), generator=g)


def with_missing(x: Tensor) -> Tensor:
    return torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.2, torch.nan, x)


def frame(g: torch.Generator) -> pd.DataFrame:
    x = normal(g, 2)
    words = np.array(["blue", "brown", "green"])[torch.randint(3, (N,), generator=g).numpy()]
    children = torch.poisson(uniform(g), generator=g).long().numpy()
    return pd.DataFrame({"m": x[:, 0].numpy(), "income": x[:, 1].exp().numpy(), "children": children, "eyes": words})


def frame_with_missing(g: torch.Generator) -> pd.DataFrame:
    return frame(g).mask(pd.DataFrame(uniform(g, 4).numpy() < 0.2, columns=["m", "income", "children", "eyes"]))


def grays(g: torch.Generator, *shape: int) -> Tensor:
    return (255 * normal(g, *shape).sigmoid()).round().to(torch.uint8)


STANDARDIZED, MISSING = ("Standardized",), ("MissingAtRandom",)

SETS: dict[str, tuple[Callable[[], Dataset], str, tuple[str, ...], str]] = {
    "digits": (lambda: data.load("digits").train.take(N), "Binomial", (), "17 levels, 0 to 16: Binomial(16)"),
    "dynamic digits": (
        lambda: data.load("digits", binarize="dynamic").train.take(N), "Bernoulli", (), "dynamic binarization",
    ),
    "static digits": (
        lambda: data.load("digits", binarize="static").train.take(N), "Bernoulli", (), "static binarization",
    ),
    "bits as booleans": (seeded(lambda g: uniform(g, 12) < 0.3), "Bernoulli", (), "values 0 and 1: Bernoulli"),
    "bits as floats": (seeded(lambda g: (uniform(g, 12) < 0.3).float()), "Bernoulli", (), "values 0 and 1"),
    "black and white pictures": (
        seeded(lambda g: 255 * (uniform(g, 1, 8, 8) < 0.5).to(torch.uint8)), "Bernoulli", (), "values 0 and 1",
    ),
    "bits with missing": (
        seeded(lambda g: with_missing((uniform(g, 12) < 0.3).float())), "Bernoulli", MISSING, "values are missing",
    ),
    "one-hot rows": (
        seeded(lambda g: torch.eye(5)[torch.randint(5, (N,), generator=g)]), "OneHotCategorical", (), "a single 1",
    ),
    "one-hot rows of booleans": (
        seeded(lambda g: torch.eye(5)[torch.randint(5, (N,), generator=g)] > 0), "OneHotCategorical", (), "a single 1",
    ),
    "gray images": (
        seeded(lambda g: grays(g, 1, 8, 8)), "DiscretizedLogistic", (), "256 levels k / 255: DiscretizedLogistic",
    ),
    "color images": (seeded(lambda g: grays(g, 3, 16, 16)), "DiscretizedLogistic", (), "256 levels"),
    "grays as k / 255": (seeded(lambda g: grays(g, 1, 8, 8) / 255), "DiscretizedLogistic", (), "256 levels"),
    "flat grays as k / 255": (seeded(lambda g: grays(g, 64) / 255), "DiscretizedLogistic", (), "256 levels"),
    "grays as k / 255 with missing": (
        seeded(lambda g: with_missing(grays(g, 1, 8, 8) / 255)), "DiscretizedLogistic", MISSING, "256 levels",
    ),
    "grays as 0 to 255": (
        seeded(lambda g: torch.cat([grays(g, 1, 8, 8).float()[1:], torch.full((1, 1, 8, 8), 255.0)])),
        "Binomial", (), "256 whole levels, 0 to 255",
    ),
    "levels as k / 16": (
        seeded(lambda g: (uniform(g, 1, 8, 8) * 16).round() / 16), "Binomial", (), "17 levels, 0 to 16: Binomial(16)",
    ),
    "levels 0 to 4 of images": (
        seeded(lambda g: (uniform(g, 1, 6, 6) * 5).floor()), "Binomial", (), "5 whole levels, 0 to 4: Binomial(4)",
    ),
    "levels 0 to 16 of rows": (
        lambda: data.as_dataset(16 * data.load("digits").train.take(N).tensor().flatten(1)), "Binomial", (),
        "17 whole levels, 0 to 16",
    ),
    "continuous grays": (
        seeded(lambda g: normal(g, 1, 8, 8).sigmoid()), "ContinuousBernoulli", (), "gray values in [0, 1]",
    ),
    "continuous grays with missing": (
        seeded(lambda g: with_missing(normal(g, 1, 8, 8).sigmoid())), "ContinuousBernoulli", MISSING, "gray values",
    ),
    "rows in [0, 1]": (seeded(lambda g: uniform(g, 6)), "ContinuousBernoulli", (), "values in [0, 1]"),
    "shares": (seeded(lambda g: normal(g, 5).softmax(-1)), "ContinuousBernoulli", (), "rows that sum to 1"),
    "Poisson counts": (
        seeded(lambda g: torch.poisson(torch.full((N, 6), 20.0), generator=g)), "Poisson", (), "counts, of variance",
    ),
    "over-dispersed counts": (seeded(lambda g: counts(g, 6, spread=1.0)), "NegativeBinomial", (), "counts"),
    "counts as integers": (seeded(lambda g: counts(g, 6, spread=1.0).long()), "NegativeBinomial", (), "counts"),
    "counts with missing": (
        seeded(lambda g: with_missing(counts(g, 6, spread=1.0))), "NegativeBinomial", MISSING, "counts",
    ),
    "rare counts": (
        seeded(lambda g: torch.poisson(0.1 + 0.2 * uniform(g, 20), generator=g)), "Poisson", (), "counts",
    ),
    "images of counts": (seeded(lambda g: counts(g, 1, 8, 8, spread=1.0)), "NegativeBinomial", (), "counts"),
    "whole numbers of both signs": (seeded(lambda g: (5 * normal(g, 4)).round()), "Normal", STANDARDIZED, "real"),
    "reals": (seeded(lambda g: 1000 + 50 * normal(g, 6)), "Normal", STANDARDIZED, "standardized, with a learned scale"),
    "small reals": (seeded(lambda g: 0.5 + 0.01 * normal(g, 6)), "Normal", STANDARDIZED, "real values"),
    "reals with missing": (
        seeded(lambda g: with_missing(normal(g, 6))), "Normal", MISSING + STANDARDIZED, "243 values are missing",
    ),
    "real images": (seeded(lambda g: normal(g, 3, 16, 16)), "Normal", STANDARDIZED, "real values"),
    "positive reals": (seeded(lambda g: (2 * normal(g, 6)).exp()), "LogNormal", (), "logarithms are less skewed"),
    "positive reals with missing": (
        seeded(lambda g: with_missing((2 * normal(g, 6)).exp())), "LogNormal", MISSING, "logarithms",
    ),
    "a series of one constant": (seeded(lambda g: torch.full((N, 2), 3.5)), "Normal", STANDARDIZED, "real values"),
    "a table": (seeded(frame), "Tabular", (), "a table of columns, 1 real, 1 positive, 1 count, 1 category: Tabular"),
    "a table with missing": (seeded(frame_with_missing), "Tabular", MISSING, "a table of columns"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sets() -> dict[str, Dataset]:
    return {name: make() for name, (make, *_) in SETS.items()}


def first_batch(train: Dataset, size: int = N) -> Tensor:
    x, *_ = next(train.batches(size, generator=torch.Generator().manual_seed(0)))
    return x


@pytest.mark.parametrize("name", SETS)
def test_likelihood_is_that_of_the_kind_and_accepts_the_data(name: str, sets: dict[str, Dataset]) -> None:
    _, kind, wrappers, because = SETS[name]
    train = sets[name]
    choice = defaults.likelihood(train)
    assert (choice.name, choice.wrappers) == (kind, wrappers), choice.because
    assert because in choice.because
    made: Any = choice.make(nets.MLP(2, [4]))
    made.check_data(first_batch(train))
    assert made.event_shape == train.event_shape
    for wrapper in wrappers:
        assert type(made).__name__ == wrapper
        made = made.likelihood
    alone = getattr(likelihoods, choice.name)(nets.MLP(2, [4]), **choice.arguments)
    assert type(made) is type(alone)
    assert made.parameter_shapes() == alone.parameter_shapes()


def loss_of(svi: SVI, x: Tensor) -> float:
    torch.manual_seed(2)
    return sum(float(svi.evaluate_loss(x)) for _ in range(3)) / (3 * len(x))


def check_trains(train: Dataset, network: str, steps: int = 60) -> None:
    torch.manual_seed(0)
    program, _ = defaults.vae(train, latent_dim=2, network=network, sizes=[16, 8])
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), elbo.ELBO())  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(3)
    x = first_batch(train)
    before = loss_of(svi, x)
    for _ in range(steps):
        (batch, *_) = train.batch(torch.randint(len(train), (50,), generator=generator), generator)
        svi.step(batch)
    after = loss_of(svi, x)
    assert np.isfinite([before, after]).all()
    assert after < before
    assert not program.sample(5).isnan().any()


@pytest.mark.slow
@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", SETS)
def test_vae_of_each_set_trains(name: str, sets: dict[str, Dataset]) -> None:
    check_trains(sets[name], "auto")


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", ["digits", "positive reals with missing", "reals with missing"])
def test_vae_trains(name: str, sets: dict[str, Dataset]) -> None:
    check_trains(sets[name], "auto", steps=20)


@pytest.mark.slow
@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", ["color images", "grays as k / 255 with missing", "real images", "images of counts"])
@pytest.mark.parametrize("network", ["conv", "resnet"])
def test_vae_of_convolutions_trains(name: str, network: str, sets: dict[str, Dataset]) -> None:
    check_trains(sets[name], network, steps=30)


# What the networks are given


def test_networks_give_the_encoder_what_suits_the_data(sets: dict[str, Dataset]) -> None:
    def transform(name: str) -> Any:
        return defaults.networks(sets[name], 2).encoder.transform

    reals, income = sets["reals"].tensor(), sets["positive reals"].tensor()
    torch.testing.assert_close(transform("reals")(reals).mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(transform("positive reals")(income).std(0, correction=0), torch.ones(6))
    assert torch.equal(transform("over-dispersed counts")(torch.tensor([0.0, 3.0])), torch.tensor([1.0, 4.0]).log())
    assert isinstance(transform("a table"), Inputs)
    assert all(transform(name) is None for name in ("digits", "bits as floats", "gray images", "continuous grays"))


def test_networks_say_what_the_encoder_is_given(sets: dict[str, Dataset]) -> None:
    given = {
        name: defaults.networks(sets[name], 2).because.partition("the encoder is given ")[2]
        for name in ("digits", "reals", "positive reals", "counts with missing", "bits with missing")
    }
    assert given == {
        "digits": "",
        "reals": "standardized values",
        "positive reals": "standardized logarithms",
        "counts with missing": "log(1 + x) and which values are missing",
        "bits with missing": "which values are missing",
    }


def test_networks_standardize_an_image_by_channel_for_pixels_that_hardly_vary() -> None:
    x = torch.randn(50, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 5 + 2 * x[:, 1]
    x[1:, 0, 0, 0] = x[0, 0, 0, 0] + 1e-6 * x[1:, 0, 0, 0]
    transform: Any = defaults.networks(data.as_dataset(x), 2).encoder.transform
    assert transform.mean.shape == (2, 1, 1)
    torch.testing.assert_close(transform.mean.flatten(), x.mean((0, 2, 3)))
    assert transform(x).abs().max() < 5


@pytest.mark.parametrize("name", [name for name in SETS if "missing" in name])
def test_networks_mask_what_is_missing(name: str, sets: dict[str, Dataset]) -> None:
    encoder = defaults.networks(sets[name], 2).encoder
    assert encoder.masked
    x = first_batch(sets[name])
    assert encoder(x).isfinite().all()


def test_networks_are_those_of_the_name_and_sizes(sets: dict[str, Dataset]) -> None:
    train = sets["color images"]
    conv = defaults.networks(train, 3, "conv", [5, 7])
    assert isinstance(conv.encoder, nets.ConvEncoder)
    assert isinstance(conv.decoder, nets.ConvDecoder)
    assert (conv.encoder.feature_shape, conv.decoder.feature_shape) == ((7, 4, 4), (5, 16, 16))
    resnet = defaults.networks(train, 3, "resnet", [5, 7])
    assert isinstance(resnet.encoder, nets.ResidualEncoder)
    assert isinstance(resnet.decoder, nets.ResidualDecoder)
    assert resnet.because == "residual blocks, channels of 5, 7"
    mlp = defaults.networks(train, 3, "mlp", [5, 7])
    widths = [m.out_features for body in (mlp.encoder, mlp.decoder) for m in body.modules() if isinstance(m, nn.Linear)]
    assert widths == [5, 7, 7, 5]
    assert mlp.because == "layers of 5, 7"
    assert defaults.networks(train, 3, "mlp", []).because == "no layers"


def test_networks_take_convolutions_for_large_images_alone(sets: dict[str, Dataset]) -> None:
    names = {name: defaults.networks(sets[name], 2).name for name in ("digits", "color images", "reals", "a table")}
    assert names == {"digits": "mlp", "color images": "conv", "reals": "mlp", "a table": "mlp"}
    odd = data.as_dataset(torch.zeros(3, 3, 64, 33, dtype=torch.uint8))
    assert defaults.networks(odd, 2).encoder.feature_shape[1:] == (8, 5)


# The whole


def test_vae_says_why() -> None:
    train = data.load("digits").train
    program, why = defaults.vae(train, latent_dim=4, prior=priors.VampPrior(train.tensor()[:5]))
    assert why[0] == defaults.likelihood(train).because
    assert why[1] == defaults.networks(train, 4).because
    assert why[2] == "prior VampPrior: posterior DiagonalNormal"
    assert program.prior.event_shape == (4,)


def test_vae_takes_a_likelihood_and_a_prior_of_another_support(sets: dict[str, Dataset]) -> None:
    program, why = defaults.vae(
        sets["grays as k / 255"],
        latent_dim=3,
        prior=priors.HypersphericalUniform(3),
        likelihood=lambda body: likelihoods.Normal(body, (1, 8, 8)),
    )
    assert isinstance(program.posterior, conditionals.VonMisesFisher)
    assert isinstance(program.likelihood, likelihoods.Normal)
    assert why[0] == "as asked for: Normal"


@pytest.mark.parametrize("name", ["digits", "positive reals with missing", "reals with missing", "a table"])
def test_vae_is_described_and_built_again(name: str, sets: dict[str, Dataset]) -> None:
    program, _ = defaults.vae(sets[name], latent_dim=2)
    tensors: dict[str, Tensor] = {}
    again = build(describe(program, tensors), tensors)
    again.load_state_dict(program.state_dict())
    x = first_batch(sets[name], 5)
    assert torch.equal(again.encode(x).mean, program.encode(x).mean)


# Refused


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: defaults.likelihood(torch.zeros(3, 2)),  # type: ignore[arg-type]
            TypeError,
            "defaults.likelihood: expected train to be a Dataset; got Tensor. Use data.as_dataset(x).",
        ),
        (
            lambda: defaults.likelihood(data.as_dataset(torch.full((3, 2), torch.nan), "holes")),
            ValueError,
            "defaults: expected values that are observed; got NaN alone in 'holes'. Give the training data.",
        ),
        (
            lambda: defaults.likelihood(data.as_dataset(pd.DataFrame({"a": [1.5, 1.5], "b": [1.0, 2.5]}))),
            ValueError,
            "Tabular likelihood: expected columns that vary; got 'a', which never does. Drop it.",
        ),
        (
            lambda: defaults.networks(data.as_dataset(torch.zeros(3, 2)), 2, "conv"),
            ValueError,
            "defaults.networks: expected images (channels, height, width) for 'conv'; got data of shape (2,). Use",
        ),
        (
            lambda: defaults.networks(data.as_dataset(torch.zeros(3, 2)), 2, "transformer"),
            ValueError,
            "defaults.networks: expected name one of 'auto', 'mlp', 'conv', 'resnet'; got 'transformer'.",
        ),
        (
            lambda: defaults.networks(data.as_dataset(torch.zeros(3, 2)), 0),
            ValueError,
            "defaults.networks: expected latent_dim at least 1; got 0.",
        ),
        (
            lambda: defaults.networks(data.as_dataset(torch.zeros(3, 2)), 2, "mlp", [8, 0]),
            ValueError,
            "defaults.networks: expected every size at least 1; got 0.",
        ),
        (
            lambda: defaults.vae(data.as_dataset(torch.zeros(3, 2), "a").conditioned_on(torch.zeros(3)), latent_dim=2),
            ValueError,
            "defaults.networks: expected data without a context; got 1 in 'a'. Build the networks with context_shapes",
        ),
        (
            lambda: defaults.vae(data.as_dataset(torch.zeros(3, 2)), latent_dim=2, prior=priors.StandardNormal(3)),
            ValueError,
            "VAE: expected the latent shape of prior and posterior to be equal; got (3,) and (2,).",
        ),
    ],
)
def test_defaults_refuse_what_does_not_fit(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
