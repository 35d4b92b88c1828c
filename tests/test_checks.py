"""Checks of plain arguments: what passes, as which type, and the message of what does not."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_vae import checks


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
