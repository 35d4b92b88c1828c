from typing import Any

import pytest

from pyro_vae import schedules


@pytest.mark.parametrize("kind", [schedules.linear, schedules.cosine])
def test_linear_and_cosine_go_from_start_to_end_and_stay(kind: Any) -> None:
    curve = kind(0.2, 3.0, epochs=4)
    values = [curve(epoch / 10) for epoch in range(60)]
    assert values[0] == pytest.approx(0.2)
    assert values == sorted(values)
    assert values[40:] == pytest.approx([3.0] * 20)
    assert curve(2) == pytest.approx(1.6)


def test_cyclical_begins_anew() -> None:
    curve = schedules.cyclical(0.0, 2.0, period=5, rising=0.4)
    assert [curve(epoch) for epoch in (0, 1, 2, 4.99, 5, 6, 11)] == pytest.approx([0, 1, 2, 2, 0, 1, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.linear(0, 1, epochs=0), "linear: expected epochs above 0; got 0"),
        (lambda: schedules.cosine(float("nan"), 1, epochs=2), "cosine: expected start finite; got nan"),
        (
            lambda: schedules.cyclical(0, 1, period=2, rising=2),
            "cyclical: expected rising above 0 and at most 1; got 2",
        ),
    ],
)
def test_schedules_refuse_what_is_none(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
