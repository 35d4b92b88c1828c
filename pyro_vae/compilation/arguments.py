"""What a step is called with: the tensors in it are inputs of a graph, and the rest is constant.

Lists, tuples, dictionaries and data classes are looked into. Another object is a constant as long as it is the same,
and prints the same; arrays that are no tensors have no graph, since they are data and their values would be constants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Iterator
from numbers import Number
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BY_VALUE = (Number, str, bytes, NoneType, torch.dtype, torch.device)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors of some arguments, in order."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif (inner := _inner(value)) is not None:
            yield from tensors_in(inner.values())


def kind_of(value: Any) -> Hashable:
    """What a graph depends on of an argument: all but the values of tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    if isinstance(value, _BY_VALUE):
        return _Value(type(value), repr(value))
    inner = _inner(value)
    if inner is None:
        return _Object(value)
    return type(value), tuple((key, kind_of(each)) for key, each in inner.items())


def array_in(values: Iterable[Any]) -> str:
    """The type of an array among some arguments that is no tensor; empty where there is none."""
    for value in values:
        if isinstance(value, (Tensor, *_BY_VALUE)):
            continue
        if hasattr(value, "__array__") or hasattr(value, "toarray"):
            return type(value).__name__
        inner = _inner(value)
        if inner is not None and (found := array_in(inner.values())):
            return found
    return ""


class _Value(NamedTuple):
    """A constant that another object may equal."""

    type: type
    text: str

    def __repr__(self) -> str:
        return self.text


class _Object:
    """An object as a constant."""

    def __init__(self, value: Any) -> None:
        self._value, self._text = value, repr(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Object) and self._value is other._value and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return self._text


def _inner(value: Any) -> dict[Any, Any] | None:
    """What a container holds, by key; None for what is none."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None
