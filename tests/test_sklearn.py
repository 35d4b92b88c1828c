"""The scikit-learn estimators: its own checks, closed forms of what they return, and its tools around them."""

from __future__ import annotations

import math
import os
import pickle
import random
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from joblib import parallel_config  # type: ignore[import-untyped]
from numpy.typing import NDArray
from oracles import FactorAnalysis, LinearVAE
from pyro.distributions.torch_distribution import TorchDistribution
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import pyro_vae
from pyro_vae import conditionals, evaluation, likelihoods, nets, priors
from pyro_vae.sklearn import VAEDensity, VAETransformer, estimators

Floats = NDArray[np.float64]
QUICK: dict[str, Any] = {"epochs": 2, "num_particles": 20, "random_state": 0}


def rows(n: int = 60, seed: int = 0) -> Floats:
    """Four columns of two factors, on scales from .01 to 1000."""
    generator = np.random.default_rng(seed)
    factors = generator.normal(size=(n, 2)) @ [[1.0, -1.0, 0.5, 0.0], [0.0, 0.5, 1.0, -1.0]]
    return (factors + 0.2 * generator.normal(size=(n, 4))) * [0.01, 1.0, 10.0, 1000.0] + [0.0, 5.0, 0.0, -2000.0]


X = rows()


@pytest.fixture(scope="module")
def transformer() -> VAETransformer:
    return VAETransformer(3, **QUICK).fit(X)


@pytest.fixture(scope="module")
def density() -> VAEDensity:
    return VAEDensity(3, **QUICK).fit(X)


@parametrize_with_checks([VAETransformer(epochs=1, num_particles=5), VAEDensity(epochs=1, num_particles=5)])  # type: ignore[untyped-decorator]
def test_estimators_pass_each_check_of_scikit_learn(estimator: Any, check: Any) -> None:
    """One is skipped, of arrays of other libraries: SciPy reads whether there are any when it is imported."""
    check(estimator)


@pytest.mark.slow
def test_estimators_pass_all_checks_without_a_skip() -> None:
    code = (
        "from sklearn.utils.estimator_checks import check_estimator\n"
        "from pyro_vae.sklearn import VAEDensity, VAETransformer\n"
        "for estimator in (VAETransformer(epochs=1), VAEDensity(epochs=1)):\n"
        "    assert {result['status'] for result in check_estimator(estimator)} == {'passed'}\n"
    )
    environment = {**os.environ, "SCIPY_ARRAY_API": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# What they return.


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_score_samples_is_the_closed_form_of_a_linear_vae(factor: float) -> None:
    """Exactly with the posterior as the guide; with one that is wider, within what 1,000 draws leave."""
    oracle = LinearVAE.random(4, 2)
    x = oracle.draw(50)
    density = VAEDensity(2, **{**QUICK, "num_particles": 1000}).fit(x.numpy())
    density.vae_ = oracle.vae()
    density.vae_.get_buffer("guide.posterior.scale_tril").mul_(factor)
    error = density.score_samples(x.numpy()) - oracle.log_marginal_likelihood(x).numpy()
    # Var(w) / E(w)^2 = (f^2 / sqrt(2 f^2 - 1))^2 - 1 for two latents
    standard_error = math.sqrt((factor**4 / (2 * factor**2 - 1) - 1) / 1000)
    assert abs(error).max() < 5 * standard_error + 1e-6
    assert abs(error).max() > standard_error / 100


@pytest.mark.slow
def test_score_samples_after_training_is_that_of_probabilistic_pca() -> None:
    """The optimum of a linear VAE; steps of a fixed size end near it, by a part of the 1.9 nats that scores vary by."""
    x = LinearVAE.random(6, 2).draw(500).numpy() * [1, 10, 100, 1, 0.1, 1]
    how: dict[str, Any] = {"hidden": (), "posterior": "FullRankNormal", "learning_rate": 0.005, "batch_size": 100}
    vae = VAETransformer(2, epochs=400, num_particles=1000, random_state=0, **how).fit(x)
    scaler = StandardScaler().fit(x)
    expected = PCA(2).fit(scaler.transform(x)).score_samples(scaler.transform(x)) - np.log(scaler.scale_).sum()
    error = vae.score_samples(x) - expected
    assert abs(error.mean()) < 0.02
    assert error.std() < 0.15


def test_score_samples_counts_the_units_of_each_column(density: VAEDensity) -> None:
    other = clone(density).fit(X * 1000)
    difference = density.score_samples(X) - other.score_samples(X * 1000)
    np.testing.assert_allclose(difference, 4 * math.log(1000), atol=1e-3)  # training is in single precision


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        ("StandardNormal", "DiagonalNormal"),
        ("StandardNormal", partial(conditionals.MixtureOfNormals, num_components=2)),  # a row at a time
        pytest.param("HypersphericalUniform", "VonMisesFisher", marks=pytest.mark.slow),  # by rejection, likewise
        pytest.param("RealNVP", "InverseAutoregressiveFlow", marks=pytest.mark.slow),
        pytest.param(partial(priors.MixtureOfNormals, num_components=3), "FullRankNormal", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:log_marginal_likelihood")
def test_score_samples_agrees_with_the_evaluation_of_the_package(prior: Any, posterior: Any) -> None:
    how: dict[str, Any] = {"epochs": 30, "learning_rate": 0.01, "num_particles": 1000, "random_state": 0}
    density = VAEDensity(3, prior=prior, posterior=posterior, **how).fit(X)
    scores, x = density.score_samples(X[:10]), torch.tensor(X[:10])
    np.testing.assert_allclose(scores[[3]], density.score_samples(X[3:4]), rtol=1e-9)
    expected = evaluation.log_marginal_likelihood(density.vae_, x, num_particles=4000, progress=False)
    errors = (scores - expected.value.numpy()) / (math.sqrt(5) * expected.standard_error.numpy())
    assert (abs(errors) < 5).all()
    assert abs(errors).max() > 0.1  # other draws


def test_score_is_the_mean_of_score_samples(density: VAEDensity) -> None:
    assert density.score(X) == pytest.approx(density.score_samples(X).mean(), rel=1e-12)


def test_transform_is_the_mean_of_the_posterior_and_inverse_transform_that_of_the_likelihood(
    transformer: VAETransformer,
) -> None:
    latents = transformer.transform(X)
    np.testing.assert_array_equal(latents, transformer.vae_.encode(torch.tensor(X)).mean.numpy())
    means = transformer.inverse_transform(latents)
    np.testing.assert_array_equal(means, transformer.vae_.decode(torch.tensor(latents)).mean.numpy())
    assert latents.shape == (60, 3)
    assert means.shape == X.shape
    assert means.mean(0) == pytest.approx(X.mean(0), abs=3 * X.std(0).max())  # in the units of the data


@pytest.mark.slow
def test_inverse_transform_rebuilds_what_the_latents_hold() -> None:
    vae = VAETransformer(2, epochs=100, learning_rate=0.01, random_state=0).fit(rows(500))
    test = rows(500, seed=1)
    left = ((vae.inverse_transform(vae.transform(test)) - test) ** 2).mean(0) / test.var(0)
    assert (left < 0.15).all()  # the noise of the columns is from .03 to .04 of their variance


def test_sample_has_the_moments_of_the_model(density: VAEDensity) -> None:
    drawn = density.sample(20_000, random_state=1)
    assert drawn.shape == (20_000, 4)
    np.testing.assert_array_equal(drawn, density.sample(20_000, random_state=1))
    z = torch.randn(20_000, 3, dtype=torch.float64)
    p = density.vae_.decode(z)
    mean, deviation = p.mean.mean(0), (p.variance.mean(0) + p.mean.var(0)).sqrt()
    error = deviation.numpy() / math.sqrt(20_000)
    assert (abs(drawn.mean(0) - mean.numpy()) < 5 * math.sqrt(2) * error).all()
    assert (abs(drawn.std(0) / deviation.numpy() - 1) < 0.05).all()


def test_estimators_are_in_evaluation_mode() -> None:
    class Dropping(nets.Body):
        def __init__(self) -> None:
            super().__init__([4], 8)
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))

        def features(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.layers(*inputs)

    vae = VAETransformer(
        posterior=lambda body, latent_dim: conditionals.DiagonalNormal(Dropping(), latent_dim), **QUICK
    ).fit(X)
    latents, scores = vae.transform(X), vae.score_samples(X)
    vae.vae_.train()  # by a user who trains on
    np.testing.assert_array_equal(vae.transform(X), latents)
    np.testing.assert_array_equal(vae.score_samples(X), scores)
    np.testing.assert_allclose(vae.transform(X[:1]), latents[:1])


# Kinds of data.


def test_estimators_keep_single_precision_where_it_comes_in(transformer: VAETransformer) -> None:
    single = X.astype(np.float32)
    latents = transformer.transform(single)
    assert latents.dtype == transformer.inverse_transform(latents).dtype == np.float32
    np.testing.assert_allclose(latents, transformer.transform(X), atol=1e-4)
    assert transformer.transform(pd.DataFrame(single).to_numpy()).dtype == np.float32
    assert transformer.transform(X).dtype == transformer.score_samples(single).dtype == np.float64


@pytest.mark.parametrize("data", [X[:1], X[:, :1], X[:1, :1], [[0.0], [0.0]]])
def test_estimators_take_one_row_and_one_column(data: Any) -> None:
    vae = VAETransformer(**QUICK).fit(data)
    assert vae.transform(data).shape == (len(data), 2)
    assert np.isfinite(vae.score_samples(data)).all()
    assert vae.inverse_transform(vae.transform(data)).shape == np.shape(data)


@pytest.mark.parametrize(
    ("data", "chosen", "transform"),
    [
        (X > 0, likelihoods.Bernoulli, "Standardize"),
        (np.round(abs(X)), likelihoods.NegativeBinomial, "log1p"),
        (np.round(X), likelihoods.Standardized, "Standardize"),
    ],
)
def test_likelihood_auto_goes_by_the_values(data: Floats, chosen: type, transform: str) -> None:
    vae = VAETransformer(likelihood="auto", **QUICK).fit(data)
    assert type(vae.vae_.likelihood) is chosen
    assert transform in repr(vae.vae_.posterior.body.transform)
    assert np.isfinite(vae.score(data))


def test_likelihood_of_counts_gives_probabilities() -> None:
    counts = np.arange(4.0)[:, None]
    vae = VAETransformer(likelihood="Poisson", **QUICK).fit(counts)
    total = np.exp(vae.score_samples(np.arange(200.0)[:, None])).sum()
    assert total == pytest.approx(1, abs=0.3)  # the error of 20 draws


def with_gaps(n: int) -> Floats:
    gaps = rows(n)
    gaps[np.random.default_rng(0).random(gaps.shape) < 0.2] = np.nan
    return gaps


def test_missing_values_are_integrated_out() -> None:
    gaps, oracle = with_gaps(60), FactorAnalysis.random(4, 2)
    vae = VAETransformer(**QUICK).fit(gaps)
    x = oracle.draw(60).masked_fill(torch.tensor(np.isnan(gaps)), math.nan)
    vae.vae_ = oracle.vae()
    np.testing.assert_allclose(vae.score_samples(x.numpy()), oracle.log_marginal_likelihood(x).numpy(), atol=1e-6)


@pytest.mark.slow
def test_missing_values_are_imputed_better_than_by_means() -> None:
    gaps = with_gaps(300)
    vae = VAETransformer(2, epochs=60, learning_rate=0.01, random_state=0).fit(gaps)
    imputed = vae.inverse_transform(vae.transform(gaps))
    error = (((imputed - rows(300)) / np.nanstd(gaps, 0)) ** 2)[np.isnan(gaps)].mean()
    assert error < 0.6  # by means it is 1


# scikit-learn's tools.


def test_names_of_columns_are_kept_and_checked() -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    vae = VAETransformer(**QUICK).fit(frame)
    assert list(vae.feature_names_in_) == list("abcd")
    assert list(vae.get_feature_names_out()) == ["vaetransformer0", "vaetransformer1"]
    with pytest.raises(ValueError, match="feature names should match"):
        vae.transform(frame[list("badc")])
    out = vae.set_output(transform="pandas").transform(frame.set_index(frame.index + 7))
    assert list(out.columns) == ["vaetransformer0", "vaetransformer1"]
    assert out.index[0] == 7


def test_estimators_are_clones_of_their_arguments() -> None:
    arguments: dict[str, Any] = {
        "latent_dim": 4,
        "hidden": [5, 6],
        "likelihood": partial(likelihoods.Normal, scale="per_element"),
        "beta": pyro_vae.schedules.linear(0.0, 1.0, epochs=2),
    }
    density = VAEDensity(contamination=0.2, **QUICK, **arguments)
    again = clone(density)
    assert again.get_params().keys() == density.get_params().keys()
    assert again.set_params(latent_dim=1).latent_dim == 1
    assert density.hidden == [5, 6]
    fitted = density.fit(X)
    assert fitted is density
    layers = [layer for layer in fitted.vae_.modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [6, 5, 8, 5, 6, 8]
    assert fitted.history_["beta"] == [0, 0.5]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"likelihood": "SigmaNormal", "prior": "RealNVP", "posterior": "FullRankNormal"},
        {"likelihood": "StudentT", "prior": partial(priors.MixtureOfNormals, num_components=3)},
    ],
)
def test_fitted_estimators_survive_pickling(how: dict[str, Any]) -> None:
    vae = VAETransformer(3, **QUICK, **how).fit(X)
    scores = vae.score_samples(X)
    again = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(again.score_samples(X), scores)
    np.testing.assert_array_equal(again.transform(X), vae.transform(X))


def test_random_state_makes_fits_repeat_and_leaves_all_generators_alone() -> None:
    def states() -> bytes:
        return pickle.dumps([torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()])  # noqa: NPY002

    before = states()
    density = VAEDensity(**QUICK)
    first = density.fit(X).score_samples(X)
    np.testing.assert_array_equal(density.fit(X).score_samples(X), first)
    assert states() == before
    assert len(pyro.get_param_store()) == 0
    assert abs(clone(density).set_params(random_state=1).fit(X).score_samples(X) - first).min() > 0
    generator = np.random.RandomState(0)
    scores = [VAEDensity(**{**QUICK, "random_state": generator}).fit(X).score(X) for _ in range(2)]
    assert scores[0] != scores[1]


def test_fit_is_quiet(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    VAEDensity(**QUICK).fit(X).predict(X)
    assert capfd.readouterr() == ("", "")
    assert list(recwarn) == []


def test_threads_give_what_one_gives() -> None:
    alone = cross_val_score(VAETransformer(**QUICK), X, cv=3)
    with parallel_config(backend="threading", n_jobs=3):
        together = cross_val_score(VAETransformer(**QUICK), X, cv=3)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.slow
def test_grid_search_over_a_pipeline_in_two_processes() -> None:
    data, labels = rows(200), rows(200)[:, 0] > 0
    pipeline = make_pipeline(StandardScaler(), VAETransformer(epochs=5, random_state=0), LogisticRegression())
    grid = {"vaetransformer__latent_dim": [1, 2], "vaetransformer__hidden": [(), (16,)]}
    searches = [GridSearchCV(pipeline, grid, cv=2, n_jobs=jobs).fit(data, labels) for jobs in (None, 2)]
    means = [search.cv_results_["mean_test_score"] for search in searches]
    np.testing.assert_array_equal(*means)
    assert searches[1].best_estimator_.score(data, labels) > 0.8


def test_grid_search_goes_by_the_likelihood_of_new_data() -> None:
    search = GridSearchCV(VAEDensity(random_state=0, learning_rate=0.01), {"epochs": [1, 20]}, cv=2).fit(X)
    assert search.best_params_ == {"epochs": 20}
    assert search.best_estimator_.offset_ < search.best_score_


# Outliers.


def test_predict_calls_the_share_of_contamination_outliers() -> None:
    density = VAEDensity(contamination=0.1, **QUICK).fit(X)
    assert (density.predict(X) == -1).sum() == 6
    np.testing.assert_array_equal(density.decision_function(X), density.score_samples(X) - density.offset_)
    np.testing.assert_array_equal(density.fit_predict(X), density.predict(X))
    far = X[:1] + 1000 * X.std(0)
    assert density.predict(far) == [-1]
    assert density.predict(X[:1] * 1e200) == [-1]


@pytest.mark.slow
def test_VAEDensity_finds_malignant_tumors_about_as_well_as_an_isolation_forest() -> None:
    data, benign = load_breast_cancer(return_X_y=True)
    train, test = data[benign == 1][:250], np.r_[data[benign == 1][250:], data[benign == 0]]
    malignant = np.r_[np.zeros(107), np.ones(212)]
    likelihood = partial(likelihoods.Normal, scale="per_element", min_scale=0.3)
    density = VAEDensity(5, likelihood=likelihood, random_state=0).fit(train)
    ours, forest = (
        roc_auc_score(malignant, -model.score_samples(test))
        for model in (density, IsolationForest(random_state=0).fit(train))
    )
    assert ours > 0.93
    assert ours > forest - 0.03


# What is refused.


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"latent_dim": 0}, "VAETransformer: expected latent_dim at least 1; got 0"),
        ({"latent_dim": 2.5}, "VAETransformer: expected latent_dim a whole number; got 2.5"),
        ({"hidden": 64}, "VAETransformer: expected hidden to be a list or tuple; got 64"),
        ({"likelihood": "Gaussian"}, "VAETransformer: expected likelihood one of 'Bernoulli', .*; got 'Gaussian'"),
        ({"likelihood": "Likelihood"}, "VAETransformer: expected likelihood one of .*; got 'Likelihood'"),
        ({"likelihood": 3}, "VAETransformer: expected likelihood a name or a function; got int"),
        ({"likelihood": lambda body, size: body}, "VAETransformer: expected likelihood .* Likelihood; got MLP"),
        (
            {"likelihood": partial(likelihoods.Poisson, library_size=True)},
            "VAETransformer: expected a likelihood of rows alone; got Poisson, which takes library_size too",
        ),
        ({"likelihood": "Bernoulli"}, "Bernoulli likelihood: expected binary values, 0 or 1"),
        ({"prior": "VampPrior"}, "VAETransformer: expected prior one of .*; got 'VampPrior'"),
        ({"posterior": "VonMisesFisher"}, "VAE: expected a posterior on the support of the prior StandardNormal"),
        (
            {"prior": "HypersphericalUniform", "posterior": "VonMisesFisher"},
            "VAETransformer: expected latents that are real vectors, for a mean to be one; got VonMisesFisher",
        ),
        (
            {"posterior": "InverseAutoregressiveFlow"},
            "VAETransformer: expected a posterior with a mean in closed form; got InverseAutoregressiveFlow",
        ),
        ({"epochs": 0}, "fit: expected epochs at least 1; got 0"),
        ({"batch_size": 0}, "fit: expected batch_size at least 1; got 0"),
        ({"learning_rate": 0}, "VAETransformer: expected learning_rate above 0; got 0"),
        ({"num_particles": 0}, "VAETransformer: expected num_particles at least 1; got 0"),
        ({"beta": -1}, "fit: expected beta at least 0; got -1"),
        ({"random_state": "a"}, "cannot be used to seed"),
    ],
)
def test_fit_refuses_arguments_by_name(how: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        VAETransformer(**{**QUICK, **how}).fit(X)


@pytest.mark.parametrize("contamination", [0, 0.6, "auto"])
def test_contamination_is_refused_out_of_range(contamination: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="VAEDensity: expected contamination"):
        VAEDensity(contamination=contamination, **QUICK).fit(X)


def test_fit_refuses_columns_that_single_precision_cannot_tell_apart() -> None:
    dates = X.copy()
    dates[:, 2] = 1.7e9 + np.arange(60)
    with pytest.raises(ValueError, match=r"got values up to 1\.7e\+09 of deviation 17.32 in column 2\. Put a Standard"):
        VAETransformer(**QUICK).fit(dates)
    scaled = make_pipeline(StandardScaler(), VAETransformer(**QUICK)).fit(dates)
    assert len(np.unique(scaled.transform(dates)[:, 0])) == 60
    dates[:, 2] = 1e9 + 0.3  # one that never varies
    with pytest.raises(ValueError, match="in column 2"):
        VAETransformer(**QUICK).fit(dates)


def test_missing_values_are_refused_where_there_were_none(transformer: VAETransformer) -> None:
    gap = X.copy()
    gap[0, 1] = np.nan
    for method in (transformer.transform, transformer.score_samples, transformer.score):
        with pytest.raises(
            ValueError, match="VAETransformer: expected data without NaN, like those that it was fitted"
        ):
            method(gap)
    gap[:, 1] = np.nan
    with pytest.raises(ValueError, match="expected a value in every column; got NaN alone in column 1"):
        VAETransformer(**QUICK).fit(gap)


def test_data_outside_of_the_support_are_refused_when_scored_too() -> None:
    vae = VAETransformer(likelihood="Bernoulli", **QUICK).fit(X > 0)
    for method in (vae.transform, vae.score_samples):
        with pytest.raises(ValueError, match="Bernoulli likelihood: expected binary values, 0 or 1"):
            method(X)


def test_inverse_transform_refuses_other_latents_and_likelihoods_without_a_mean(transformer: VAETransformer) -> None:
    with pytest.raises(ValueError, match="VAETransformer: expected latents of 3 columns; got 4"):
        transformer.inverse_transform(X)

    class Cauchy(likelihoods.Normal):
        def density(self, loc: torch.Tensor, scale: torch.Tensor) -> TorchDistribution:
            return dist.StudentT(1.0, loc, scale)

    vae = VAETransformer(likelihood=Cauchy, **QUICK).fit(X)
    with pytest.raises(ValueError, match="VAETransformer: expected a likelihood with a mean; got Standardized without"):
        vae.inverse_transform(vae.transform(X))


def test_scores_that_are_no_numbers_are_refused(density: VAEDensity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "log_marginal_likelihood", lambda vae, x, *how: x[:, 0].log())
    with pytest.raises(ValueError, match=r"VAEDensity: expected densities that are numbers; got NaN for .* of 60 rows"):
        density.predict(X)


def test_an_interrupted_fit_is_no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "fit", lambda *args, **how: pyro_vae.History(stopped="interrupted"))
    vae = VAETransformer(**QUICK)
    with pytest.raises(KeyboardInterrupt):
        vae.fit(X)
    assert not hasattr(vae, "vae_")
