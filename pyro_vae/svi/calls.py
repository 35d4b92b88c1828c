"""The arguments that a step is called with, and what is known of earlier calls like it."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from typing import Any, TypeAlias

import pyro
from torch import Tensor

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]


class Calls:
    """What earlier calls of a model and a guide have shown.

    Attributes:
        declared: names of the parameters that were declared, by what tells calls apart whose programs may declare
            others: shapes, and what is no tensor.
        validated: shapes of the calls that Pyro has validated.
    """

    def __init__(self) -> None:
        self.declared: dict[Hashable, set[str]] = {}
        self.validated: set[Any] = set()

    def is_known(self, args: Args, kwargs: Kwargs) -> bool:
        """Whether a call of these shapes was validated."""
        return _shapes(args, kwargs) in self.validated

    @contextlib.contextmanager
    def validation(self, args: Args, kwargs: Kwargs) -> Iterator[None]:
        """Context manager: Pyro's validation as the user set it for the first call of a shape, and off after that."""
        key = _shapes(args, kwargs)
        if key in self.validated:
            with pyro.validation_enabled(False):
                yield
        else:
            yield
            self.validated.add(key)

    def declare(self, args: Args, kwargs: Kwargs, names: set[str]) -> None:
        """Takes note of the parameters that a call has declared."""
        self.declared[_call(args, kwargs)] = names

    def declared_by(self, args: Args, kwargs: Kwargs) -> set[str]:
        """Names of what a call declares; of all that were declared so far, for a call that was compiled at once."""
        return self.declared.get(_call(args, kwargs)) or set().union(*self.declared.values())


def out_of_inference(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """The arguments with copies of the tensors that were made in inference mode, which autograd does not take."""
    if any(isinstance(a, Tensor) and a.is_inference() for a in (*args, *kwargs.values())):
        return tuple(map(_usual, args)), {name: _usual(value) for name, value in kwargs.items()}
    return args, kwargs


def cuda_devices(args: Args) -> list[int]:
    """Indices of the CUDA devices that the arguments lie on."""
    return sorted({a.device.index for a in args if isinstance(a, Tensor) and a.is_cuda})


def _usual(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _shapes(args: Args, kwargs: Kwargs) -> Hashable:
    return tuple((a.shape, a.dtype) if isinstance(a, Tensor) else None for a in (*args, *kwargs.values()))


def _call(args: Args, kwargs: Kwargs) -> Hashable:
    values = (*args, *kwargs.values())
    return tuple((a.shape, a.dtype) if isinstance(a, Tensor) else repr(a) for a in values), tuple(kwargs)
