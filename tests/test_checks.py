"""Checks of plain arguments: what passes, as which type, and the message of what does not."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_vae import VAE, checks, evaluation, likelihoods, nets, priors


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)])
def test_whole_accepts_whole_numbers_of_any_kind(value: Any) -> None:
    assert checks.whole("S", "n", value) == 3
    assert type(checks.whole("S", "n", value)) is int


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(True), 2.0, np.float32(2), "2", None, math.nan, [2]])
def test_whole_refuses_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"S: expected n a whole number; got .*\. Give an int of at least 1\."):
        checks.whole("S", "n", value)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5)])
def test_number_accepts_numbers_of_any_kind(value: Any) -> None:
    assert checks.number("S", "x", value, above=0, below=1) == 0.5
    assert type(checks.number("S", "x", value)) is float


@pytest.mark.parametrize("value", [True, "0.5", None, [0.5], torch.ones(2), 1j, np.ones(3)])
def test_number_refuses_what_is_no_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"S: expected x a number; got .*\. Give a float\."):
        checks.number("S", "x", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, 1, -1])
def test_number_refuses_numbers_out_of_bounds(value: float) -> None:
    with pytest.raises(ValueError, match=r"S: expected x above 0 and below 1; got .*\. Give such a number\."):
        checks.number("S", "x", value, above=0, below=1)


def test_number_without_bounds_is_finite() -> None:
    with pytest.raises(ValueError, match="S: expected x finite; got nan"):
        checks.number("S", "x", math.nan)


def test_arguments_name_the_class_that_was_called_and_the_argument_that_was_meant() -> None:
    body = nets.MLP(2, [3])
    with pytest.raises(
        TypeError, match=r"^Normal: expected arguments of the names body, event_shape, scale, .* Use scale\.$"
    ):
        likelihoods.Normal(body, 4, scal=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^MLP: .* got 'hiden'\. Use hidden\.$"):
        nets.MLP(2, hiden=[3])  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^StandardNormal: expected the arguments latent_dim; got others \(missing"):
        priors.StandardNormal()  # type: ignore[call-arg]


def test_named_leaves_the_signature_and_tells_the_argument_that_was_meant() -> None:
    assert list(inspect.signature(VAE).parameters) == ["prior", "likelihood", "posterior"]
    with pytest.raises(TypeError, match=r"^VAE: expected arguments .*; got 'priors'\. Use prior\.$"):
        VAE(priors=priors.StandardNormal(2))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^VAE: expected arguments .*; got 'epochs'\. Leave it out\.$"):
        VAE(epochs=3)  # type: ignore[call-arg]


def test_bound_tells_the_argument_of_an_evaluation_that_was_meant() -> None:
    with pytest.raises(TypeError, match=r"^elbo_terms: .* got 'num_particle'\. Use num_particles\.$"):
        evaluation.elbo_terms(None, None, num_particle=2)  # type: ignore[call-arg, arg-type]
