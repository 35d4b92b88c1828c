"""Programs as text: the classes that they were built of, with their arguments, from which they are built again.

A description names classes. Known are those of this package, the activations of ``torch.nn``, and those that the reader
gives to :func:`build`: nothing is imported because a file names it.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae import conditionals, likelihoods, models, nets, priors, schedules, tables
from pyro_vae.checkpoint.tree import pack, unpack
from pyro_vae.checks import printable
from pyro_vae.internals import TorchDispatchMode, bytes_of_result
from pyro_vae.recorded import Recorded, arguments_of

_MODULES = {
    "pyro_vae": models,
    "pyro_vae.conditionals": conditionals,
    "pyro_vae.likelihoods": likelihoods,
    "pyro_vae.nets": nets,
    "pyro_vae.priors": priors,
    "pyro_vae.schedules": schedules,
    "pyro_vae.tables": tables,
}
_MOST_COLUMNS = 1_000_000
_ACTIVATIONS = {name: getattr(nn, name) for name in nn.modules.activation.__all__}


def describe(program: object, tensors: dict[str, Tensor], own: dict[str, Any] | None = None) -> Any:
    """A program as :func:`build` reads it.

    Args:
        program: an object whose class is :class:`~pyro_vae.recorded.Recorded`.
        tensors: where tensors among the arguments are put, by their places.
        own: where the classes and functions are put, by name, that :func:`build` is to be given.

    Raises:
        TypeError: something in it that cannot be built again; the message says what, where, and the remedy.

    Example:
        >>> describe(nets.MLP(2, [8], activation=nn.ReLU), {})["arguments"]
        {'input_shape': 2, 'hidden': [8], 'activation': {'$type': 'torch.nn.ReLU'}}
    """
    known = {made: name for name, made in _known(()).items()}
    places: dict[int, str] = {}
    names: dict[str, Any] = {} if own is None else own

    def name_of(made: Any) -> str:
        if made in known:
            return known[made]
        name = made.__qualname__
        if "<" in name or names.setdefault(name, made) is not made or name in known.values():
            raise TypeError(
                f"Checkpoint: expected functions and classes with names of their own; got {made!r}. Define it at the "
                "top level of a module, under a name that nothing else here has."
            )
        return name

    def other(value: Any, path: str) -> Any:
        if isinstance(value, Recorded):
            if id(value) in places:
                return {"$same": places[id(value)]}
            places[id(value)] = path
            return {"$class": name_of(type(value)), "arguments": pack(arguments_of(value), tensors, path, other)}
        if isinstance(value, partial):
            packed = (pack(part, tensors, f"{path}.{name}", other) for name, part in _parts(value).items())
            return {"$partial": pack(value.func, tensors, path, other), **dict(zip(_parts(value), packed, strict=True))}
        if isinstance(value, slice) and all(map(_is_end, (value.start, value.stop, value.step))):
            return {"$slice": [value.start, value.stop, value.step]}
        if isinstance(value, np.generic):
            return pack(value.item(), tensors, path)
        if isinstance(value, torch.dtype):
            return {"$dtype": str(value).removeprefix("torch.")}
        if inspect.isclass(value) or inspect.isroutine(value):
            return {"$type": name_of(value)}
        raise _not_recorded(value, path)

    return pack(program, tensors, "", other)


def _not_recorded(value: object, path: str) -> TypeError:
    """The error for what cannot be built again."""
    if path and type(value) in _ACTIVATIONS.values():
        return TypeError(
            f"Checkpoint: expected classes of activations among the arguments; got a {type(value).__name__} at "
            f"{path!r}, whose own arguments are not recorded. Give the class, nn.{type(value).__name__}, or "
            "functools.partial of it with arguments, and make the module in your constructor."
        )
    where = f" as argument {path!r}" if path else ""
    if isinstance(value, nn.Module):
        return TypeError(
            "Checkpoint: expected modules that record the arguments they are built with; got "
            f"{type(value).__name__}{where}. Derive a class of yours from pyro_vae.checkpoint.Recorded first, as "
            "nets.Body does; in place of a module as an argument give what it is made of, and make it in the "
            "constructor. checkpoint.save keeps weights alone."
        )
    return TypeError(
        "Checkpoint: expected numbers, words, tensors, lists, dictionaries, classes and recorded objects as "
        f"arguments; got {type(value).__name__}{where}. Give one of these: a tensor for an array, a list for "
        "another container. checkpoint.save keeps weights alone."
    )


def build(description: Any, tensors: Mapping[str, Tensor], classes: Iterable[Any] = (), budget: int = 0) -> Any:
    """The program that was described, with weights that are yet to be loaded.

    Args:
        description: what :func:`describe` returned.
        tensors: those among the arguments, by their places.
        classes: the user's own classes and functions that the description names.
        budget: bytes of tensors that building it may take; none where it is 0.

    Raises:
        ValueError: it is no description, names an unknown class, gives an argument that a class does not take, or
            would need far more memory than its weights do.

    Example:
        >>> build({"$class": "pyro_vae.nets.MLP", "arguments": {"input_shape": 2, "hidden": [8]}}, {}).feature_shape
        torch.Size([8])
    """
    known = _known(classes)
    try:
        if unknown := sorted(_named(description) - known.keys()):
            raise ValueError(
                "Checkpoint: expected classes of pyro_vae, or of classes=...; got "
                f"{', '.join(map(repr, unknown)):.200}. Give what the program was built of: "
                f"classes=[{printable(', '.join(unknown))}]."
            )
        with _Budget(budget):
            return _Builder(known, tensors).at("", description)
    except RecursionError as error:
        raise _unreadable(description) from error


class _Builder:
    """Builds what a description says, from the inside out.

    Args:
        known: what it may name.
        tensors: those among the arguments, by their places.
    """

    def __init__(self, known: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._known, self._tensors = known, tensors
        self._made: dict[str, Any] = {}

    def at(self, path: str, packed: Any) -> Any:
        """What is described at a place."""
        if isinstance(packed, list):
            return [self.at(_join(path, i), value) for i, value in enumerate(packed)]
        kind = next(iter(packed), "") if isinstance(packed, dict) else ""
        if isinstance(packed, dict) and not kind.startswith("$"):
            return {name: self.at(_join(path, name), value) for name, value in packed.items()}
        if kind == "$class" and isinstance(packed.get("arguments"), dict):
            given = {name: self.at(_join(path, name), value) for name, value in packed["arguments"].items()}
            self._made[path] = _called(self._known[str(packed["$class"])], given)
            return self._made[path]
        if kind == "$tuple" and isinstance(packed[kind], list):
            return tuple(self.at(path, packed[kind]))
        if kind == "$pairs" and isinstance(packed[kind], list) and all(_is_pair(each) for each in packed[kind]):
            return {key: self.at(_join(path, key), value) for key, value in packed[kind]}
        if kind == "$partial":
            parts = {name: self.at(f"{path}.{name}", packed.get(name)) for name in ("args", "keywords")}
            function = self.at(path, packed[kind])
            if callable(function) and isinstance(parts["args"], list) and isinstance(parts["keywords"], dict):
                return partial(function, *parts["args"], **parts["keywords"])
        return unpack(packed, self._tensors, self._other)

    def _other(self, packed: dict[str, Any]) -> Any:
        kind, content = next(iter(packed.items()))
        if kind == "$same" and isinstance(content, str) and content in self._made:
            return self._made[content]
        if kind == "$type":
            return self._known[str(content)]
        if kind == "$slice" and isinstance(content, list) and len(content) == 3 and all(map(_is_end, content)):
            return slice(*content)
        if kind == "$dtype" and isinstance(content, str) and content in _DTYPES:
            return _DTYPES[content]
        raise _unreadable(packed)


def _is_pair(each: Any) -> bool:
    """Whether it is a key that is a number or a word, and a value."""
    return isinstance(each, list) and len(each) == 2 and isinstance(each[0], bool | int | float | str | None)


_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


def _is_end(value: Any) -> bool:
    """Whether a slice of the columns of a table may end there, which are listed one by one."""
    return value is None or (isinstance(value, int) and abs(value) <= _MOST_COLUMNS)


def _known(classes: Iterable[Any]) -> dict[str, Any]:
    """What a description may name."""
    known: dict[str, Any] = {f"torch.nn.{name}": made for name, made in _ACTIVATIONS.items()}
    for module_name, module in _MODULES.items():
        names = getattr(module, "__all__", vars(module))
        of_module = {
            f"{module_name}.{name}": vars(module)[name] for name in names if inspect.isclass(vars(module)[name])
        }
        known |= {name: each for name, each in of_module.items() if each.__module__.startswith("pyro_vae.")}
    for each in classes:
        if not hasattr(each, "__qualname__"):
            raise TypeError(
                f"Checkpoint: expected classes of classes and functions; got {type(each).__name__}. Give the classes "
                "themselves, classes=[MyBody]."
            )
        known[each.__qualname__] = each
    return known


def _named(packed: Any) -> set[str]:
    """The classes and functions that a description names."""
    if isinstance(packed, list):
        return {name for each in packed for name in _named(each)}
    if not isinstance(packed, dict):
        return set()
    own = {str(packed[kind]) for kind in ("$class", "$type") if kind in packed}
    return own | {name for each in packed.values() for name in _named(each)}


_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a class may raise of arguments that it was never meant to have."""


def _called(made: Any, arguments: dict[str, Any]) -> Any:
    """An object of a class, with arguments by name that the class takes."""
    signature = inspect.signature(made)
    unknown = arguments.keys() - signature.parameters.keys()
    missing = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in arguments
    ]
    if unknown or missing:
        raise ValueError(
            f"Checkpoint: expected the arguments of {made.__name__}{signature}; got "
            f"{printable(', '.join(sorted(unknown)) or 'none')} too many and {', '.join(missing) or 'none'} too few. "
            "It was saved by another version of the class: build the program yourself, and load its weights with "
            "checkpoint.load."
        )
    bound = signature.bind_partial()
    bound.arguments.update({name: arguments[name] for name in signature.parameters if name in arguments})
    try:
        return made(*bound.args, **bound.kwargs)
    except _REFUSALS as error:
        reason = printable(" ".join(str(error).split()), 500)
        raise ValueError(
            f"Checkpoint: expected arguments that build {made.__name__}; got an error: {reason}"
        ) from error


def _parts(value: partial[Any]) -> dict[str, Any]:
    return {"args": list(value.args), "keywords": dict(value.keywords)}


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _unreadable(packed: Any) -> ValueError:
    return ValueError(f"Checkpoint: expected a description of a program; got {packed!r:.80}. Save it again.")


class _Budget(TorchDispatchMode):
    """Raises for a program that takes more memory, or operations, than one of its weights can."""

    _OPERATIONS = 50_000

    def __init__(self, budget: int) -> None:
        super().__init__()
        self._most = budget
        self._taken: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._most:
            self._taken["operations"] += 1
            if self._taken["operations"] > self._OPERATIONS:
                raise self._error(f"more than {self._OPERATIONS} operations")
            self._taken["bytes"] += bytes_of_result(function, args, kwargs or {})
            if self._taken["bytes"] > self._most:
                raise self._error(f"one that needs {self._taken['bytes']} bytes or more")
        return function(*args, **(kwargs or {}))

    def _error(self, got: str) -> ValueError:
        return ValueError(
            f"Checkpoint: expected a description of a program of {self._most} bytes at most, by the size of its "
            f"weights; got {got}. The two do not belong together: save the program again."
        )
