"""Objects written as calls, ``IWELBO(16, gradient="dreg")`` or ``linear(0, 1, epochs=10)``, of which nothing is run."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from typing import Any

from pyro_vae.checks import printable


def made(subject: str, text: str, known: Mapping[str, Any]) -> Any:
    """What a call in words makes.

    Args:
        subject: what it is for, in errors.
        text: a name, or a name with literal arguments.
        known: what the names are.

    Raises:
        ValueError: another name, or what is no such call, or arguments that it does not take.

    Example:
        >>> from pyro_vae import schedules
        >>> made("beta", "linear(0, 1, epochs=10)", vars(schedules))
        linear(start=0, end=1, epochs=10)
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            call = ast.Call(call, [], [])
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("another expression")
        name = call.func.id
        args = [ast.literal_eval(each) for each in call.args]
        kwargs = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(
            f"{subject}: expected a name, or a name with arguments such as IWELBO(16, gradient='dreg'); got "
            f"{printable(text)!r}. Write numbers and words alone as arguments."
        ) from None
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        remedy = f"Did you mean {close[0]}?" if close else "Choose one of these."
        raise ValueError(f"{subject}: expected one of {', '.join(known)}; got {name}. {remedy}")
    try:
        return known[name](*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{subject}: expected arguments of {name}; got {printable(text)!r} ({error}).") from error
