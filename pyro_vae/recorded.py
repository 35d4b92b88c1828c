"""Objects that remember the arguments that they were built with, so that they can be built again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

_T = TypeVar("_T", bound="Recorded")
_NAME = "_built_with"


@dataclass(frozen=True)
class Arguments:
    """What a constructor was called with.

    Args:
        args: the arguments by place.
        kwargs: those by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Recorded:
    """Base of the classes whose objects a run folder can describe and build again.

    Every body, likelihood, prior, conditional and program is one. Derive from it first in a class of your own:
    ``class Mine(Recorded, nn.Module)``. Tensors and containers among the arguments are copied; others are kept.
    """

    def __new__(cls: type[_T], *args: Any, **kwargs: Any) -> _T:
        self = super().__new__(cls)
        # Into the dictionary itself, because nn.Module takes no attributes before its __init__.
        self.__dict__[_NAME] = Arguments(
            tuple(map(_kept, args)), {name: _kept(value) for name, value in kwargs.items()}
        )
        return self


def arguments_of(made: Recorded) -> dict[str, Any]:
    """The arguments that an object was built with, by name; those of ``*args`` under its name.

    Example:
        >>> from pyro_vae import nets
        >>> arguments_of(nets.MLP(50, hidden=[200]))
        {'input_shape': 50, 'hidden': [200]}
    """
    given: Arguments = made.__dict__[_NAME]
    return dict(inspect.signature(type(made)).bind(*given.args, **given.kwargs).arguments)


def _kept(value: Any) -> Any:
    """An argument as it is now, though a tensor or a list be changed later."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(map(_kept, value))
    return {name: _kept(each) for name, each in value.items()} if type(value) is dict else value
