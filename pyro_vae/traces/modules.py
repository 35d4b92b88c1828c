"""The modules that a Pyro program consists of, whichever way it reaches them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import CellType
from typing import Any

from torch import nn

Binding = tuple[Any, str | None, Any]
"""A place that a program reads modules from, a name space or a closure's cell, the name in it, and the value there: a
module, or a list, tuple or dictionary of modules."""


def modules_of(programs: Iterable[Any]) -> list[nn.Module]:
    """All modules of programs: those that they are, are methods of, close over or name, and all within these."""
    return list(dict.fromkeys(module for root in roots_of(programs) for module in root.modules()))


def roots_of(programs: Iterable[Any]) -> list[nn.Module]:
    """The outermost of :func:`modules_of`."""
    found: dict[nn.Module, None] = {}
    for program in programs:
        for value in (*_values(program), *(value for _, _, value in bindings_of([program]))):
            found |= dict.fromkeys(_modules_in(value))
    inner = {module for root in found for module in list(root.modules())[1:]}
    return [root for root in found if root not in inner]


def bindings_of(programs: Iterable[Any]) -> list[Binding]:
    """Where functions read modules from by name: global variables and closures, which a user may bind anew."""
    bindings: list[Binding] = []
    for function in map(_function, programs):
        if function is None:
            continue
        names = inspect.getclosurevars(function).globals
        bindings += [(function.__globals__, name, value) for name, value in names.items() if _modules_in(value)]
        bindings += [(cell, None, value) for cell in function.__closure__ or () if _modules_in(value := _content(cell))]
    return bindings


def is_bound(binding: Binding) -> bool:
    """Whether a name still means what it meant."""
    place, name, value = binding
    return (_content(place) if name is None else place.get(name)) is value


def _modules_in(value: Any) -> list[nn.Module]:
    if isinstance(value, dict):
        value = list(value.values())
    return [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, nn.Module)]


def _values(program: Any) -> Iterator[Any]:
    owner = getattr(program, "__self__", None)
    yield program
    yield owner
    yield from getattr(owner, "__dict__", {}).values()
    if isinstance(program, partial):
        yield from program.args
        yield from _values(program.func)


def _function(program: Any) -> Callable[..., Any] | None:
    while isinstance(program, partial):
        program = program.func
    function = inspect.unwrap(getattr(program, "__func__", program)) if callable(program) else program
    return function if inspect.isfunction(function) else None


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None
