"""InferenceData has a program's draws, densities and data, and ArviZ finds the exact answers of a conjugate one."""

from __future__ import annotations

import math
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import members
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae import evaluation

SCALE = 2.0  # of x given z; then p(x) is Normal of variance 5, and p(z|x) Normal(x / 5, 4 / 5)
X = torch.tensor([-2.0, 0.0, 0.5, 1.0, 3.0])
K = 4000


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, SCALE), obs=x)


def posterior(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 5, math.sqrt(0.8)))


def prior(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


@pytest.fixture(scope="module")
def az() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz")


@pytest.fixture(scope="module")
def found(az: Any) -> Any:
    torch.manual_seed(0)
    program = SimpleNamespace(model=model, guide=posterior)
    return evaluation.to_inference_data(program, X, num_samples=K, batch_size=2)


def test_to_inference_data_has_groups_dims_and_coordinates(found: Any) -> None:
    assert set(found.groups()) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "sample_stats",
        "prior",
        "prior_predictive",
        "observed_data",
    }
    for group, name in (("posterior", "z"), ("log_likelihood", "x"), ("prior_predictive", "x")):
        values = found[group][name]
        assert values.dims == ("chain", "draw", "data")
        assert values.sizes["draw"] == K
        assert values.coords["data"].values.tolist() == [0, 1, 2, 3, 4]
    assert found.observed_data["x"].values.tolist() == X.tolist()
    assert found.posterior.attrs["inference_library"] == "pyro_vae"


def test_to_inference_data_densities_are_those_of_the_draws(found: Any) -> None:
    z = torch.as_tensor(found.posterior["z"].values)
    wanted = dist.Normal(z, SCALE).log_prob(X)
    assert torch.allclose(torch.as_tensor(found.log_likelihood["x"].values), wanted, atol=1e-5)
    exact = dist.Normal(0.0, math.sqrt(5)).log_prob(X)  # at every draw of the exact posterior
    assert torch.allclose(torch.as_tensor(found.sample_stats["log_weight"].values), exact.expand(1, K, 5), atol=1e-5)


@pytest.mark.parametrize(
    ("group", "name", "mean", "variance"),
    [
        ("posterior", "z", X / 5, 0.8),
        ("posterior_predictive", "x", X / 5, 4.8),
        ("prior", "z", torch.zeros(5), 1.0),
        ("prior_predictive", "x", torch.zeros(5), 5.0),
    ],
)
def test_to_inference_data_draws_have_their_moments(
    group: str, name: str, mean: Tensor, variance: float, found: Any
) -> None:
    draws = torch.as_tensor(found[group][name].values[0])
    assert ((draws.mean(0) - mean).abs() < 5 * math.sqrt(variance / K)).all()
    assert ((draws.var(0) - variance).abs() < 5 * variance * math.sqrt(2 / K)).all()


def test_to_inference_data_prior_predictive_belongs_to_the_prior(found: Any) -> None:
    """The covariance of z and x is that of z, 1; its standard error that of a product, sqrt((1 * 5 + 1) / K)."""
    z, x = (
        torch.as_tensor(found[group][name].values[0]) for group, name in (("prior", "z"), ("prior_predictive", "x"))
    )
    assert (((z * x).mean(0) - 1).abs() < 5 * math.sqrt(6 / K)).all()


def test_arviz_summary_has_the_exact_posterior(found: Any, az: Any) -> None:
    table = az.summary(found, kind="stats", round_to="none")
    assert list(table.index) == [f"z[{i}]" for i in range(5)]
    assert np.abs(table["mean"] - X.numpy() / 5).max() < 5 * math.sqrt(0.8 / K)
    assert np.abs(table["sd"] - math.sqrt(0.8)).max() < 5 * math.sqrt(0.8 / (2 * K))


def test_arviz_loo_has_the_log_marginal_likelihood(found: Any, az: Any) -> None:
    """With draws of the exact posterior; the standard error is that of averages of 1 / p(x|z), by the delta method."""
    loo = az.loo(found, pointwise=True)
    inverse = np.exp(-found.log_likelihood["x"].values[0].astype(float))
    errors = inverse.std(0) / inverse.mean(0) / math.sqrt(K)
    exact = dist.Normal(0.0, math.sqrt(5)).log_prob(X)
    assert np.all(np.abs(loo.loo_i.values - exact.numpy()) < 5 * errors)
    assert abs(loo.elpd_loo - float(exact.sum())) < 5 * math.sqrt((errors**2).sum())


def test_arviz_smooths_the_weights_of_a_guide_that_is_not_exact(az: Any) -> None:
    torch.manual_seed(0)
    found = evaluation.to_inference_data(SimpleNamespace(model=model, guide=prior), X, num_samples=K)
    log_weight = found.sample_stats["log_weight"].values[0].astype(float)
    _, k_hat = az.psislw(log_weight.T)
    assert (k_hat < 0.7).all()  # weights are bounded
    exact = dist.Normal(0.0, math.sqrt(5)).log_prob(X).numpy()
    weights = np.exp(log_weight)
    errors = weights.std(0) / weights.mean(0) / math.sqrt(K)
    assert (np.abs(np.log(weights.mean(0)) - exact) < 5 * errors).all()


@pytest.mark.parametrize("name", members.PROGRAMS)
def test_to_inference_data_of_every_program(name: str, az: Any) -> None:
    program, args = members.PROGRAMS[name]()
    program.train()
    found = evaluation.to_inference_data(program, *args, num_samples=3, batch_size=4)
    assert program.training
    assert "z" in found.posterior or "z1" in found.posterior
    for latent in found.posterior:
        assert found.posterior[latent].shape == found.prior[latent].shape
        assert found.posterior[latent].shape[:3] == (1, 3, 7)
    assert found.posterior_predictive["x"].shape == found.prior_predictive["x"].shape == (1, 3, *args[0].shape)
    assert found.log_likelihood["x"].shape == (1, 3, 7)
    for i, each in enumerate(args[1:]):
        assert np.array_equal(found.constant_data[f"context{i}"].values, each.numpy())


def test_to_inference_data_missing_arviz_is_an_error_that_names_the_extra(monkeypatch: Any) -> None:
    program = SimpleNamespace(model=model, guide=posterior)
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"expected arviz before version 1 .*; got .*pip install 'pyro-vae\[arviz\]'"):
        evaluation.to_inference_data(program, X)
    monkeypatch.setitem(sys.modules, "arviz", SimpleNamespace(InferenceData=None))
    with pytest.raises(ValueError, match="to_inference_data: expected num_samples at least 1; got 0"):
        evaluation.to_inference_data(program, X, num_samples=0)


def test_to_inference_data_refuses_a_guide_that_does_not_draw_all() -> None:
    def mixture(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(c.float(), 1.0), obs=x)

    with pytest.raises(ValueError, match=r"expected a guide that draws every latent of the model; got \['c'\]"):
        evaluation.to_inference_data(SimpleNamespace(model=mixture, guide=lambda x: None), X)
