"""Figures with their unit, sizes and error, as text and as JSON."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pyro_vae.evaluation import Estimate
from pyro_vae.evaluation.results import Result, table


def test_Estimate_error_is_that_of_data_drawn_from_a_population() -> None:
    estimate = Estimate.of(torch.tensor([1.0, 2.0, 3.0, 6.0]), num_particles=7)
    assert estimate.value == 3.0
    assert estimate.standard_error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert (estimate.unit, estimate.num_data, estimate.num_particles) == ("nats", 4, 7)


def test_Estimate_of_a_single_datum_has_no_standard_error() -> None:
    assert math.isnan(Estimate.of(torch.ones(1), 1).standard_error)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-89.1234, 0.213, "-89.12 ± 0.21"),
        (1234.5, 20.0, "1234 ± 20"),
        (0.00123456, 0.0000123, "0.001235 ± 0.000012"),
        (1e-12, 1e-13, "1e-12 ± 1.0e-13"),
        (2.5, math.nan, "2.5 ± nan"),
        (2.5, 0.0, "2.5 ± 0"),
    ],
)
def test_rounded_keeps_two_digits_of_the_error(value: float, error: float, text: str) -> None:
    assert str(Estimate(value, error, "nats", 1000, 5)) == f"{text} nats (N = 1,000, K = 5)"


@dataclass(frozen=True)
class _Example(Result):
    total: Estimate
    by_site: dict[str, Estimate]
    values: Tensor
    num_data: int


EXAMPLE = _Example(
    Estimate(1.0, 0.5, "nats", 2, 3), {"z": Estimate(2.0, math.nan, "bits", 2, 3)}, torch.tensor([1.0, math.inf]), 2
)


def test_Result_turns_into_json_that_any_reader_takes() -> None:
    total = {"value": 1.0, "standard_error": 0.5, "unit": "nats", "num_data": 2, "num_particles": 3}
    by_site = {"value": 2.0, "standard_error": None, "unit": "bits", "num_data": 2, "num_particles": 3}
    assert json.loads(EXAMPLE.to_json(), parse_constant=pytest.fail) == {
        "total": total,
        "by_site": {"z": by_site},
        "by_site, z": by_site,
        "values": [1.0, "inf"],
        "num_data": 2,
    }


def test_Result_prints_as_a_table() -> None:
    assert str(EXAMPLE).splitlines() == [
        "            value  ± s.e.  unit  data  particles",
        "total        1.00    0.50  nats     2          3",
        "by site, z      2     nan  bits     2          3",
    ]


def test_table_aligns_columns() -> None:
    assert table(["a", "b"], [["long", "1"], ["x", "100"]]) == "a       b\nlong    1\nx     100"
