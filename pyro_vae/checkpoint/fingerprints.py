"""Values as JSON that can be compared: whether a setting, a function or an object is the one that it was.

Tensors and arrays are told apart by their values, generators by their states, functions by their code and by what they
close over, objects by their class and what they hold.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import random
from collections.abc import Mapping
from functools import partial
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae import checks, internals
from pyro_vae.checkpoint.files import bytes_of

_OURS = ("pyro_vae.", "torch.", "pyro.", "numpy.", "builtins")
_DEPTH = 8
# What counts objects of this process, what estimators remember of programs, and what Pyro and ours keep beside.
_LEFT_OUT = ("_name", "_structures", "optimizer", "_built_with", "_pyro_name", "_pyro_context")
_OF_EVERY_MODULE = vars(nn.Module()).keys()


def described(value: Any, depth: int = _DEPTH) -> Any:
    """A value as it is compared.

    Example:
        >>> described({"rate": 0.1, "values": (1, None)})
        {'rate': 0.1, 'values': [1, None]}
        >>> described(lambda x: 2 * x)["code"] == described(lambda x: 3 * x)["code"]
        False
    """
    if depth == 0:
        return type(value).__qualname__

    def inner(each: Any) -> Any:
        return described(each, depth - 1)

    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # which strict JSON lacks
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [inner(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, Mapping):
        return {str(key): inner(each) for key, each in value.items()}
    if isinstance(value, Tensor | np.ndarray):
        return {type(value).__name__: str(value.dtype), "shape": list(value.shape), "values": _digest_of(value)}
    if isinstance(value, np.random.Generator):
        return {"generator": inner(value.bit_generator.state)}
    if isinstance(value, torch.Generator):
        return {"generator": _digest_of(value.get_state())}
    if isinstance(value, random.Random):
        return {"generator": hashlib.sha256(repr(value.getstate()).encode()).hexdigest()[:12]}
    if isinstance(value, partial):
        return {"function": inner(value.func), "args": inner(value.args), "keywords": inner(value.keywords)}
    if inspect.isclass(value):
        return class_of(value)
    if inspect.ismethod(value):
        return {"method": inner(value.__func__), "of": inner(value.__self__)}
    if inspect.isroutine(value):
        return _function(value, inner)
    if isinstance(value, nn.Module):
        tensors = [*value.named_parameters(), *value.named_buffers()]
        return {"module": class_of(type(value)), "tensors": {name: list(tensor.shape) for name, tensor in tensors}}
    held = {name: each for name, each in getattr(value, "__dict__", {}).items() if name not in _LEFT_OUT}
    return {"class": class_of(type(value)), **inner(held)}


def class_of(made: type) -> str:
    """The name of a class, and of a user's own what its functions do."""
    own = [base for base in made.__mro__ if not f"{base.__module__}.".startswith(_OURS)]
    functions = [
        function
        for base in own
        for each in vars(base).values()
        if inspect.isfunction(function := getattr(each, "__func__", getattr(each, "fget", each)))
    ]
    code = b"".join(_code(inspect.unwrap(function).__code__) for function in functions)
    cells = [cell.cell_contents for function in functions for cell in inspect.unwrap(function).__closure__ or ()]
    code += repr([described(each) for each in cells if not inspect.isclass(each)]).encode()  # not of super()
    return f"{made.__qualname__} of code {hashlib.sha256(code).hexdigest()[:8]}" if functions else made.__qualname__


def others_of(program: nn.Module) -> dict[str, Any]:
    """What modules hold that no file keeps: functions, arrays, sets and objects, as they are compared."""
    return {
        f"{name}.{key}".lstrip("."): described(value)
        for name, module in program.named_modules()
        for key, value in vars(module).items()
        if is_own(key) and not isinstance(value, np.generic) and not checks.is_plain(value, Tensor, nn.Module)
    } | {
        f"{name}.{kind}".lstrip("."): [described(hook) for hook in hooks]
        for name, module in program.named_modules()
        for kind, hooks in internals.forward_hooks(module).items()
        if hooks
    }


def is_own(name: str) -> bool:
    """Whether an attribute of a module is not one of every module."""
    return name not in _OF_EVERY_MODULE and name not in _LEFT_OUT


def _function(value: Any, inner: Any) -> Any:
    code, cells = getattr(value, "__code__", None), getattr(value, "__closure__", None) or ()
    if code is None:
        return value.__qualname__
    return {
        "function": value.__qualname__,
        "code": hashlib.sha256(_code(code)).hexdigest()[:12],
        "closes over": [inner(cell.cell_contents) for cell in cells],
        "defaults": inner(getattr(value, "__defaults__", None)),
        "reads": inner(_globals_of(value)),
    }


def _globals_of(function: Any) -> dict[str, Any]:
    """The global values, and functions of its own module, that a function reads."""
    found = {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    return {
        name: value
        for name, value in found.items()
        if checks.is_plain(value, Tensor, np.ndarray, np.generic)
        or (inspect.isfunction(value) and value.__module__ == function.__module__ and value is not function)
    }


def _code(code: CodeType) -> bytes:
    """What a function does, wherever it stands: its operations, names and constants, and the functions within."""
    constants = [_code(each) if isinstance(each, CodeType) else repr(each).encode() for each in code.co_consts]
    return b"|".join([code.co_code, *(name.encode() for name in code.co_names), *constants])


def _digest_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        content: Any = repr(value.tolist()).encode() if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
    else:
        content = bytes_of(value.detach().cpu().contiguous())
    return hashlib.sha256(content).hexdigest()[:12]
