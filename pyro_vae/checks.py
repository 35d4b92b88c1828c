"""Checks of plain arguments, in one wording; imports nothing, so that every module may use it.

Each returns the value as the type it is declared to be, and says what was expected, what came, and the remedy.
"""

from __future__ import annotations

import collections.abc
import difflib
import enum
import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Collection, Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints


def whole(subject: str, name: str, value: Any, minimum: int = 1) -> int:
    """A whole number, of Python or numpy, that is at least ``minimum``.

    Raises:
        TypeError: something else; ``True`` is no number.
        ValueError: a smaller one.

    Example:
        >>> whole("IWELBO", "num_particles", 5)
        5
        >>> whole("IWELBO", "num_particles", 0)
        Traceback (most recent call last):
        ValueError: IWELBO: expected num_particles at least 1; got 0. Give a larger number.
    """
    try:
        number_ = operator.index(_plain(value))
    except TypeError:
        raise TypeError(
            f"{subject}: expected {name} a whole number; got {_shown(value)}. Give an int of at least {minimum}."
        ) from None
    if number_ < minimum:
        raise ValueError(f"{subject}: expected {name} at least {minimum}; got {number_}. Give a larger number.")
    return number_


def number(
    subject: str,
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> float:
    """A finite number, of Python, numpy or torch, within the bounds.

    Raises:
        TypeError: something else; ``True`` is no number.
        ValueError: NaN, infinity, or a number out of bounds.

    Example:
        >>> number("ELBO", "beta", 0.5, at_least=0)
        0.5
        >>> number("ELBO", "beta", float("nan"), at_least=0)
        Traceback (most recent call last):
        ValueError: ELBO: expected beta at least 0; got nan. Give such a number.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number_ = float(_plain(value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{subject}: expected {name} a number; got {_shown(value)}. Give a float.") from None
    within = above < number_ < below and at_least <= number_ <= at_most
    if not (within and math.isfinite(number_)):
        bounds = [("above", above), ("at least", at_least), ("below", below), ("at most", at_most)]
        wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound)) or "finite"
        raise ValueError(f"{subject}: expected {name} {wanted}; got {number_:g}. Give such a number.")
    return number_


def flag(subject: str, name: str, value: Any) -> bool:
    """True or False.

    Raises:
        TypeError: something else.

    Example:
        >>> flag("ELBO", "analytic_kl", "yes")
        Traceback (most recent call last):
        TypeError: ELBO: expected analytic_kl True or False; got 'yes'. Give one of these.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{subject}: expected {name} True or False; got {_shown(value)}. Give one of these.")
    return value


def takes(subject: str, name: str, function: Callable[..., Any], what: str) -> None:
    """Raises for a function that cannot be called with one argument.

    Raises:
        TypeError: naming what the argument is.

    Example:
        >>> takes("fit", "beta", lambda epoch, step: 1.0, "the epoch")
        Traceback (most recent call last):
        TypeError: fit: expected beta a function of the epoch; got one of (epoch, step). Give one of one argument.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some of those written in C have none
        return
    try:
        signature.bind(0.0)
    except TypeError:
        raise TypeError(
            f"{subject}: expected {name} a function of {what}; got one of {signature}. Give one of one argument."
        ) from None


def choice(subject: str, name: str, value: Any, choices: Collection[str]) -> Any:
    """One of some words.

    Raises:
        ValueError: something else.

    Example:
        >>> choice("VIMCO", "mean", "median", ["geometric", "arithmetic"])
        Traceback (most recent call last):
        ValueError: VIMCO: expected mean one of 'geometric', 'arithmetic'; got 'median'. Give one of these.
    """
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{subject}: expected {name} one of {listed}; got {_shown(value)}. Give one of these.")
    return value


def instance(subject: str, name: str, value: Any, kind: type | tuple[type, ...], remedy: str) -> Any:
    """A value of a type, or of one of several.

    Raises:
        TypeError: something else.

    Example:
        >>> instance("VAE.sample", "name", 3, str, "Give a word.")
        Traceback (most recent call last):
        TypeError: VAE.sample: expected name to be a str; got 3. Give a word.
    """
    if not isinstance(value, kind):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(f"{subject}: expected {name} to be a {kinds}; got {_shown(value)}. {remedy}")
    return value


def is_plain(value: Any, *others: type) -> bool:
    """Whether JSON can hold a value, also in lists, tuples and dictionaries by name; or it is of one of other types.

    Example:
        >>> is_plain({"rates": (0.1, None)}), is_plain({1: "one"}), is_plain(object())
        (True, False, False)
    """
    if type(value) in (list, tuple):
        return all(is_plain(each, *others) for each in value)
    if type(value) is dict:
        return all(isinstance(name, str) for name in value) and all(is_plain(v, *others) for v in value.values())
    plain = value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, enum.Enum))
    return plain or (bool(others) and isinstance(value, others))


def printable(text: object, most: int = 200) -> str:
    r"""What a file says, as a message shows it: on one line, without control characters, cut where it is long.

    Example:
        >>> printable("a\n\x1b[2J")
        'a\\n\\x1b[2J'
        >>> printable("a" * 100, 8)
        'aaaaa...'
    """
    shown = str(text)[: most + 1]
    shown = shown if shown.isprintable() else ascii(shown)[1:-1]
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def _plain(value: Any) -> Any:
    """The value, unless it is a truth value, which Python, numpy and torch count as a number."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        raise TypeError
    return value


def _shown(value: Any) -> str:
    """A value as a message shows it: itself where it is short, else its type."""
    plain = value is None or isinstance(value, bool | int | float | complex | str | bytes)
    return repr(value) if plain and len(repr(value)) <= 60 else type(value).__name__


F = TypeVar("F", bound=Callable[..., Any])


def arguments(subject: str, function: F) -> F:
    """A function whose arguments are held against its annotations when it is called; ranges are its own to check.

    For constructors and functions that are called now and then: it takes some microseconds an argument.

    Example:
        >>> def mean(x: float, weights: Sequence[int] = (), *, unbiased: bool = False) -> float: ...
        >>> arguments("mean", mean)(2.0, [1, "2"])
        Traceback (most recent call last):
        TypeError: mean: expected weights[1] a whole number; got '2'. Give an int.
    """
    signature = inspect.signature(function)
    cache: dict[str, Any] = {}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not cache:
            cache.update(_hints(function))
        who = _who(subject, signature, args)
        for name, value in bound(who, signature, args, kwargs).items():
            if name in cache and signature.parameters[name].kind not in _VARIADIC:
                _conform(who, name, value, cache[name])
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


def named(subject: str, function: F) -> F:
    """A function of which a call that does not fit its signature is told the argument that was meant.

    Example:
        >>> def mean(x: float, *, weights: Sequence[int] = ()) -> float: ...
        >>> named("mean", mean)(2.0, wieghts=[1])
        Traceback (most recent call last):
        TypeError: mean: expected arguments of the names x, weights; got 'wieghts'. Use weights.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        bound(_who(subject, signature, args), signature, args, kwargs)
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


def bound(subject: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of the signature.

    Raises:
        TypeError: the call does not fit the signature.
    """
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        names = [n for n, p in signature.parameters.items() if n != "self" and p.kind not in _VARIADIC]
        unknown = next((name for name in kwargs if name not in names), None)
        if unknown is None:
            raise TypeError(
                f"{subject}: expected the arguments {', '.join(names)}; got others ({error}). Mend the call."
            ) from None
        near = difflib.get_close_matches(unknown, names, n=1)
        raise TypeError(
            f"{subject}: expected arguments of the names {', '.join(names)}; got {unknown!r}. "
            f"{f'Use {near[0]}' if near else 'Leave it out'}."
        ) from None


def _who(subject: str, signature: inspect.Signature, args: tuple[Any, ...]) -> str:
    """The class of a method's object, which may have inherited the method, or else the subject."""
    return type(args[0]).__name__ if args and "self" in signature.parameters else subject


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return {"return": None, **get_type_hints(function)}
    except NameError:  # an annotation for type checkers alone
        return {"return": None}


def _conform(subject: str, name: str, value: Any, hint: Any) -> None:
    """Raises TypeError or ValueError where a value is not of an annotation's type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        _conform_to_one(subject, name, value, parts)
    elif origin is Literal:
        if isinstance(value, bool) or not any(type(value) is type(part) and value == part for part in parts):
            listed = ", ".join(map(repr, parts))
            raise ValueError(f"{subject}: expected {name} one of {listed}; got {_shown(value)}. Give one of these.")
    elif hint is bool:
        flag(subject, name, value)
    elif hint is int:
        _number_of(subject, name, value, operator.index, "a whole number", "Give an int.")
    elif hint is float:
        number(subject, name, value)
    elif hint is type(None):
        if value is not None:
            raise TypeError(f"{subject}: expected {name} None; got {_shown(value)}. Leave it out.")
    elif origin in (Sequence, list, tuple):
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise TypeError(f"{subject}: expected {name} a sequence; got {_shown(value)}. Give a list or tuple.")
        for i, each in enumerate(value if len(parts) == 1 else ()):
            _conform(subject, f"{name}[{i}]", each, parts[0])
    elif origin in (Callable, collections.abc.Callable):
        if not callable(value):
            raise TypeError(f"{subject}: expected {name} callable; got {_shown(value)}. Give a class or a function.")
    elif origin is os.PathLike:
        instance(subject, name, value, os.PathLike, "Give a path.")
    elif isinstance(hint, type) and hint not in (object, Any) and not getattr(hint, "_is_protocol", False):
        instance(subject, name, value, hint, getattr(hint, "how_to_make", f"Give a {hint.__name__}."))


def _conform_to_one(subject: str, name: str, value: Any, hints: tuple[Any, ...]) -> None:
    if isinstance(value, str) and any(get_origin(hint) is Literal for hint in hints):
        return None  # the function knows the words, and what to say of another
    errors = []
    for hint in hints:
        try:
            if hint is float:
                return _number_of(subject, name, value, float, "a number", "Give a float.")
            return _conform(subject, name, value, hint)
        except (TypeError, ValueError) as error:
            errors.append(error)
    raise errors[0]


def _number_of(subject: str, name: str, value: Any, convert: Callable[[Any], Any], kind: str, remedy: str) -> None:
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        convert(_plain(value))
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{subject}: expected {name} {kind}; got {_shown(value)}. {remedy}") from None
