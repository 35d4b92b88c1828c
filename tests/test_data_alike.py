"""Training and validation data whose numbers mean the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.optim import Adam

from pyro_vae import VAE, conditionals, data, fit, lab, likelihoods, nets, priors
from pyro_vae.data.alike import check_alike


def frame(*kinds: Any, known: Any = None, **reals: Any) -> pd.DataFrame:
    return pd.DataFrame({"kind": pd.Categorical(kinds, known), **reals})


PIXELS = np.array([[0, 128], [255, 3]], np.uint8)
REALS = pd.DataFrame({"a": [0.5, 1.5], "b": [2.0, 3.0]})


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (REALS, REALS[["b", "a"]], r"columns of the training data; got 'b' for 'a' as column 0.*list\(train.columns\)"),
        (REALS, REALS[["a"]], "got 'none' for 'b' as column 1"),
        (REALS[["a"]], REALS, "got 'b' for 'none' as column 1"),
        (frame("x", "y"), frame("y", "y"), r"categories.*; got \['y'\] for \['x', 'y'\] of 'kind'.*CategoricalDtype"),
        (frame("x", "y"), pd.DataFrame({"kind": [0, 1]}), r"got \[\] for \['x', 'y'\] of 'kind'"),
        (pd.DataFrame({"kind": [0, 1]}), frame("x", "y"), r"got \['x', 'y'\] for \[\] of 'kind'"),
        (PIXELS, PIXELS.astype(float), "on one scale; got values up to 1, of uint8 scaled by 1/255, and whole numbers"),
        (PIXELS.astype(int), PIXELS, "and whole numbers up to 255. Give both in one dtype"),
    ],
)
def test_numbers_of_another_meaning_are_refused(train: Any, validation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_alike("fit", data.as_dataset(train), data.as_dataset(validation))


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (REALS, REALS + 1),
        (REALS, REALS.to_numpy()),
        (frame("x", "y"), frame("y", "y", known=["x", "y"])),
        (frame("x", "y"), np.array([[0.0], [1.0]])),
        (PIXELS, PIXELS / 255),
        (PIXELS, PIXELS > 128),
        (PIXELS, PIXELS / 255 + 1),
        (PIXELS.astype(int), PIXELS.astype(float)),
        (PIXELS, np.array([[np.nan, 1.0]])),
    ],
)
def test_numbers_of_one_meaning_are_taken(train: Any, validation: Any) -> None:
    check_alike("fit", data.as_dataset(train), data.as_dataset(validation))


def test_training_and_races_ask_for_such_data() -> None:
    vae = VAE(
        priors.StandardNormal(1),
        likelihoods.Normal(nets.MLP(1, [2]), 2),
        conditionals.DiagonalNormal(nets.MLP(2, [2]), 1),
    )
    train, validation = data.as_dataset(REALS), data.as_dataset(REALS[["b", "a"]])
    message = r"expected validation data with the columns of the training data; got 'b' for 'a'"
    with pytest.raises(ValueError, match=f"fit: {message}"):
        fit(vae, REALS, REALS[["b", "a"]], progress=False)
    with pytest.raises(ValueError, match=f"race: {message}"):
        lab.race(vae, train, validation, {}, optimizer=Adam, steps=1, num_points=1)


def test_categories_go_with_a_set() -> None:
    dataset = data.as_dataset(frame("y", "x", None, r=[1.0, 2.0, 3.0]))
    assert dataset.categories == (("x", "y"), ())
    assert dataset.subset(torch.tensor([1])).categories == dataset.categories
    assert data.as_dataset(REALS).categories == ()
    for names in ({"columns": ("a",)}, {"categories": (("a",),)}):
        with pytest.raises(ValueError, match=r"expected (columns|categories) of each of 2; got 1. Give all or none"):
            data.Dataset("a", torch.ones(3, 2), **names)
