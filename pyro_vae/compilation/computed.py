"""What a loss computes, as tensors: also that of Pyro's and of users, which compute numbers and call ``backward``.

A loss of ``pyro.infer`` reads its value from tensors, number by number, and calls ``backward`` on what it
differentiates. While a step is recorded, the numbers stay tensors, and what ``backward`` is called on is noted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae import internals
from pyro_vae.elbo import Estimator
from pyro_vae.traces.tracing import PyroProgram


def computed(
    loss: Any, programs: tuple[PyroProgram, PyroProgram], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """A loss, and the scalar whose gradient a step of it follows: itself, or the surrogates that ``backward`` sees.

    Raises:
        ValueError: the loss is a number without tensors, or has no gradient.
    """
    if isinstance(loss, Estimator):
        own = loss.differentiable_loss(*programs, *args, **kwargs)
        return own, own
    with internals.sums_of_dice(), internals.without_nan_warnings(), _Tensors() as tensors:
        result = loss.loss_and_grads(*programs, *args, **kwargs)
    value: Any = sum(result) if isinstance(result, tuple) else result
    name = type(loss).__name__
    if not isinstance(value, Tensor):
        raise ValueError(f"the loss of {name} is the number {value}, which it does not compute from tensors")
    if not tensors.roots:
        raise ValueError(f"{name} calls backward on nothing")
    return value.detach().reshape(()), torch.stack(tensors.roots).sum()


def parts_of(loss: Any) -> list[object]:
    """What holds the settings of a loss: itself, and the parts of its gradient."""
    return (
        [loss, *loss.gradient.parts()] if isinstance(loss, Estimator) else [loss] if hasattr(loss, "__dict__") else []
    )


def held_by(loss: Any) -> list[object]:
    """The modules of a loss of ours; of another everything that it holds, modules or functions that may call some."""
    return [*loss.gradient.modules()] if isinstance(loss, Estimator) else [*getattr(loss, "__dict__", {}).values()]


class _Tensors(TorchFunctionMode):
    """Context manager in which numbers that a loss reads stay tensors, and its backward passes are left out.

    Not those of the programs themselves, whose numbers may say what they do: where Pyro's handlers are at work.

    Attributes:
        roots: scalars that ``backward`` was called on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Tensor] = []
        self._handlers = internals.num_handlers()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if internals.num_handlers() == self._handlers:
            if func is Tensor.item:
                return args[0].detach()
            if func is Tensor.backward:
                if len(args) > 1 or (kwargs or {}).get("gradient") is not None:
                    raise ValueError("it calls backward with a gradient")
                self.roots.append(args[0].reshape(()))
                return None
        return func(*args, **(kwargs or {}))
