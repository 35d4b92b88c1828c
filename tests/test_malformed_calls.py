"""Malformed calls of the public API: a result, or an error in our words, and nothing from inside.

Each call starts from right arguments (tests/calls.py), of which one or two are replaced by something else, drawn with
the seed of the call's name.
"""

from __future__ import annotations

import inspect
import math
import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calls
import numpy as np
import pyro
import pytest
import torch
from torch import nn

SHAPE = (7, 1, 2, 2)
MALFORMED: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "a word": lambda: "nonsense",
    "bytes": lambda: b"x",
    "-1": lambda: -1,
    "0": lambda: 0,
    "2.5": lambda: 2.5,
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "an empty list": list,
    "[0]": lambda: [0],
    "[-1]": lambda: [-1],
    "['a']": lambda: ["a"],
    "a dictionary": dict,
    "an object": object,
    "a function": lambda: lambda *args, **kwargs: None,
    "an empty tensor": lambda: torch.empty(0),
    "NaN in a tensor": lambda: torch.full(SHAPE, math.nan),
    "a scalar NaN": lambda: torch.tensor(math.nan),
    "a matrix": lambda: torch.ones(2, 3),
    "one dim more": lambda: torch.ones(*SHAPE, 2),
    "int64": lambda: torch.ones(SHAPE, dtype=torch.int64),
    "complex": lambda: torch.ones(SHAPE, dtype=torch.complex64),
    "float64": lambda: torch.zeros(SHAPE, dtype=torch.float64),
    "no rows": lambda: torch.empty(0, 1, 2, 2),
    "twos": lambda: torch.full(SHAPE, 2.0),
    "strings": lambda: np.array(["a", "b"]),
    "objects": lambda: np.array([object()], dtype=object),
    "a module": lambda: nn.Linear(2, 2),
    "a set": lambda: {1},
    "a type": lambda: int,
}
# Each takes a tenth of a second or more.
HEAVY = re.compile(
    r"^(fit|lab\.|evaluation\.(ais|bdmc|amortization_gap|calibration|elbo_surgery|report|predictive_checks)|testing\.|SVI|plots\.(?!images|reconstructions|curves|rate_distortion|weights))"
)
NAMES = [pytest.param(name, marks=pytest.mark.slow if HEAVY.match(name) else ()) for name in calls.CALLS]


@pytest.fixture(autouse=True)
def a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For calls that write: one argument may be the word that names a file."""
    monkeypatch.chdir(tmp_path)


def run(function: Callable[..., Any], given_arguments: dict[str, Any]) -> Any:
    """Calls a function with arguments by name; those of ``*args`` stand under its name."""
    parameters = inspect.signature(function).parameters
    star = next((n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL and n in given_arguments), None)
    arguments = dict(given_arguments)
    if star is None:
        result = function(**arguments)
    else:
        before = [arguments.pop(name) for name in list(parameters)[: list(parameters).index(star)]]
        result = function(*before, *arguments.pop(star), **arguments)
    return list(result) if inspect.isgenerator(result) else result


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", NAMES)
def test_calls_that_malformed_ones_start_from_are_right(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(*calls.CALLS[name]())


def changes_of(name: str, names: list[str], most: int) -> Iterator[dict[str, str]]:
    """Different replacements of one or two arguments, kinds by name: ``most``, or as many as there are."""
    generator = random.Random(name)  # in place of hypothesis, which takes longer to choose than the calls take
    seen: set[tuple[tuple[str, str], ...]] = set()
    while len(seen) < min(most, len(names) * len(MALFORMED)):
        chosen = sorted(generator.sample(names, min(len(names), generator.randint(1, 2))))
        changes = tuple((argument, generator.choice(list(MALFORMED))) for argument in chosen)
        if changes not in seen:
            seen.add(changes)
            yield dict(changes)


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("name", NAMES)
def test_calls_that_are_malformed_are_refused_in_our_words(name: str) -> None:
    for changes in changes_of(name, sorted(calls.CALLS[name]()[1]), 30 if HEAVY.match(name) else 100):
        function, arguments = calls.CALLS[name]()
        for argument, kind in changes.items():
            value = MALFORMED[kind]()
            arguments[argument] = (value,) if argument in ("args", "context") else value
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run(function, arguments)
        except (ValueError, TypeError, OSError, FloatingPointError) as error:
            if not re.search(r"expected .* got ", str(error), re.DOTALL):
                raise AssertionError(f"{name} {changes}: {error!r:.300}") from error
        except Exception as error:
            raise AssertionError(f"{name} {changes}: {type(error).__name__}: {error!s:.300}") from error
        finally:
            pyro.clear_param_store()
