"""Nested values as JSON and tensors: what a file can hold without code."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Size, Tensor

from pyro_vae import checks

Other = Callable[[Any, str], Any]
"""What becomes of a value that is neither JSON's nor a tensor; the second argument is its place."""


def pack(value: Any, tensors: dict[str, Tensor], path: str = "", other: Other | None = None) -> Any:
    """A value as JSON holds it, with its tensors by the place that they have in it.

    Numbers, words, None, lists and dictionaries with names as keys are themselves; what JSON lacks is a dictionary with
    one name that begins with $.

    Args:
        value: numbers, words, None, tensors, and lists, tuples and dictionaries of these.
        tensors: where the tensors are put.
        path: the place of the value, for names and messages.
        other: makes JSON of what is something else.

    Raises:
        TypeError: something else, where ``other`` is left out.

    Example:
        >>> import torch
        >>> found = {}
        >>> pack({"lr": 0.1, "betas": (0.9, 0.99), "step": torch.tensor(3.0)}, found)
        {'lr': 0.1, 'betas': {'$tuple': [0.9, 0.99]}, 'step': {'$tensor': 'step'}}
        >>> found
        {'step': tensor(3.)}
    """
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, Tensor):
        while path in tensors:  # a name with a dot may spell the place of another
            path += "'"
        tensors[path] = value.detach()
        return {"$tensor": path}
    if type(value) in (list, tuple, Size):
        items = [pack(each, tensors, _join(path, i), other) for i, each in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple" if type(value) is tuple else "$size": items}
    if type(value) in (dict, Counter):
        named = type(value) is dict and all(isinstance(key, str) and not key.startswith("$") for key in value)
        pairs = [(key, pack(each, tensors, _join(path, key), other)) for key, each in value.items()]
        kind = "$pairs" if type(value) is dict else "$counter"
        return dict(pairs) if named else {kind: [[pack(key, tensors, path, other), each] for key, each in pairs]}
    if other is not None:
        return other(value, path)
    raise TypeError(
        f"Checkpoint: expected numbers, words and tensors; got {type(value).__name__} at {path!r}. It cannot be saved."
    )


def unpack(packed: Any, tensors: Mapping[str, Tensor], other: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The value that was packed.

    Args:
        packed: what :func:`pack` returned.
        tensors: the tensors by their places.
        other: makes a value of a dictionary whose first name begins with $ and is none of ours.

    Raises:
        ValueError: it was not made by :func:`pack`, or a tensor is missing.
    """
    if isinstance(packed, list):
        return [unpack(each, tensors, other) for each in packed]
    if not isinstance(packed, dict):
        return packed
    kind = next(iter(packed), "")
    if not kind.startswith("$"):
        return {key: unpack(each, tensors, other) for key, each in packed.items()}
    content = packed[kind]
    if kind == "$tensor" and isinstance(content, str) and content in tensors:
        return tensors[content]
    if kind == "$tuple" and isinstance(content, list):
        return tuple(unpack(each, tensors, other) for each in content)
    if kind == "$size" and isinstance(content, list) and all(type(each) is int for each in content):
        return Size(content)
    if (
        kind in ("$pairs", "$counter")
        and isinstance(content, list)
        and all(isinstance(p, list) and len(p) == 2 for p in content)
    ):
        pairs = [(unpack(key, tensors, other), unpack(each, tensors, other)) for key, each in content]
        if all(isinstance(key, bool | int | float | str | tuple | None) for key, _ in pairs):
            return dict(pairs) if kind == "$pairs" else Counter(dict(pairs))
    if other is not None:
        return other(packed)
    raise ValueError(
        f"Checkpoint: expected a value that was saved; got {kind!r:.60} of {content!r:.60}. Save it again."
    )


def alike(saved: Any, present: Any) -> bool:
    """Whether a value of a file may take the place of a present one: a number that of a number, and so on.

    Of lists every value is to be like the one in its place, or like the first present one where their lengths differ;
    of dictionaries those of the same name. Any plain value or tensor may take the place of None, and of what is not
    there; None takes that of a number, of a word, or of None.

    Example:
        >>> alike([0.1, 3], [0.5]), alike({"lr": "x"}, {"lr": 0.5}), alike(True, 1)
        (True, False, False)
    """
    if isinstance(present, bool) or isinstance(saved, bool):
        return isinstance(saved, bool) and (present is None or isinstance(present, bool))
    if isinstance(saved, Tensor) and isinstance(present, Tensor):
        return saved.shape == present.shape and saved.is_floating_point() == present.is_floating_point()
    if isinstance(present, list | tuple):
        if not isinstance(saved, list | tuple):
            return False
        likes = present if len(present) == len(saved) else [present[0] if present else None] * len(saved)
        return all(alike(each, like) for each, like in zip(saved, likes, strict=True))
    if isinstance(present, Mapping):
        return isinstance(saved, Mapping) and all(alike(each, present.get(key)) for key, each in saved.items())
    if saved is None and isinstance(present, str):
        return True
    if present is None:
        return saved is None or checks.is_plain(saved, Tensor)
    if isinstance(present, int | float):
        return saved is None or isinstance(saved, int | float)
    return type(saved) is type(present)


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)
