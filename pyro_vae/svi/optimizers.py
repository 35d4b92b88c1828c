"""One torch optimizer for all parameters, made from what users of Pyro pass.

A ``pyro.optim`` optimizer steps an optimizer of its own for each parameter, one after the other in Python, which takes
longer than the rest of a small step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

import pyro.optim
import torch
from torch import Tensor

from pyro_vae import internals

_FUSED = {torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad}
_IMPLEMENTATIONS = {"fused", "foreach", "capturable", "differentiable"}


class FusedOptimizer:
    """Makes one torch optimizer in place of those that a ``pyro.optim`` optimizer has for each parameter.

    The state of both is the same, so that ``get_state`` and ``save`` of Pyro's give what was learned.

    Args:
        recipe: the ``pyro.optim`` optimizer, with the same settings for all parameters, no schedule or clipping of its
            own, and no state yet: :func:`owned` tells.
    """

    def __init__(self, recipe: Any) -> None:
        self._recipe = recipe

    def __call__(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The optimizer, fused where torch has such a one."""
        constructor, settings = self._recipe.pt_optim_constructor, dict(self._recipe.pt_optim_args)
        if constructor in _FUSED and not _IMPLEMENTATIONS & settings.keys():
            # torch's fused momentum fails where only some parameters have taken part in a step
            settings["fused"] = not settings.get("momentum") and all(p.is_floating_point() for p in parameters)
        optimizer: torch.optim.Optimizer = constructor(parameters, **settings)
        self.share(optimizer, parameters)
        return optimizer

    def share(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
        """Lets Pyro's optimizer see the state of new parameters."""
        for parameter in parameters:
            own = internals.optimizer_of(self._recipe, parameter)
            own.state[parameter] = optimizer.state[parameter]
            self._recipe.optim_objs[parameter] = own
            self._recipe.grad_clip[parameter] = None

    def give_back(self, optimizer: torch.optim.Optimizer) -> None:
        """Leaves Pyro's optimizer with what became of the settings, learning rates for example; it has the state."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                own = self._recipe.optim_objs.get(parameter)
                if own is not None:
                    kept = {k: v for k, v in group.items() if k not in {"params", *_IMPLEMENTATIONS}}
                    own.param_groups[0].update(kept)


class Owner(Protocol):
    """Who holds a ``pyro.optim`` optimizer."""

    def unfuse(self, optimizer: pyro.optim.PyroOptim) -> None:
        """Gives up a fused optimizer that was made in its place."""


_owners: WeakKeyDictionary[pyro.optim.PyroOptim, ref[Owner]] = WeakKeyDictionary()


def owned(optimizer: Any, owner: Owner) -> FusedOptimizer | pyro.optim.PyroOptim:
    """What makes one optimizer of all parameters; a ``pyro.optim`` optimizer itself where there is none.

    There is none where parameters have settings of their own, or a schedule, or where several owners share the
    optimizer: its state is by parameter, and so it stays common.
    """
    former = _owners.get(optimizer, lambda: None)()
    if former is not None:
        former.unfuse(optimizer)
        return optimizer
    _owners[optimizer] = ref(owner)
    suits = (
        type(optimizer) is pyro.optim.PyroOptim
        and isinstance(optimizer.pt_optim_constructor, type)
        and isinstance(optimizer.pt_optim_args, dict)
        and not optimizer.pt_clip_args
        and not optimizer.optim_objs
        and not internals.waiting_state(optimizer)
    )
    return FusedOptimizer(optimizer) if suits else optimizer


def one_of(optimizer: Any, optim: Any) -> Any:
    """The optimizer that was given by either name.

    Raises:
        TypeError: by none or both, or it is none, such as one that already holds parameters.
    """
    if (optimizer is None) == (optim is None):
        given = "none" if optimizer is None else "both optimizer and optim"
        raise TypeError(f"SVI: expected one optimizer; got {given}. Pass functools.partial(torch.optim.Adam, lr=1e-3).")
    chosen = optim if optimizer is None else optimizer
    if isinstance(chosen, torch.optim.Optimizer) or not callable(chosen):
        built = "one that is built, " if isinstance(chosen, torch.optim.Optimizer) else ""
        raise TypeError(
            "SVI: expected optimizer a callable from parameters to a torch.optim.Optimizer, or a pyro.optim "
            f"optimizer; got {built}{type(chosen).__name__}. Pass functools.partial(torch.optim.Adam, lr=1e-3), for "
            "example."
        )
    check_dense(chosen)
    return chosen


def made_of(make: Any, parameters: list[Tensor], named: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    """The optimizer that a user's function makes of parameters, once it holds all of them.

    Args:
        make: the function.
        parameters: to optimize.
        named: these and others by name, for messages.

    Raises:
        TypeError: it makes no optimizer, or one that cannot take a step by gradients alone.
        ValueError: the optimizer lacks some.
    """
    try:
        optimizer = make(parameters)
    except TypeError as error:
        raise TypeError(
            f"SVI: expected optimizer to make a torch.optim.Optimizer of {len(parameters)} parameters; got an "
            f"error ({error}). Pass functools.partial(torch.optim.Adam, lr=1e-3), for example."
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"SVI: expected optimizer to make a torch.optim.Optimizer; got {type(optimizer).__name__}. Return "
            "the optimizer, as functools.partial(torch.optim.Adam, lr=1e-3) does."
        )
    check_dense(optimizer)
    missing = {id(parameter) for parameter in parameters} - held_by(optimizer)
    names = [name for name, parameter in named.items() if id(parameter) in missing]
    if names:
        raise ValueError(
            f"SVI: expected an optimizer of all parameters that it is given; got one without {listed(names)}. "
            "Freeze what is not to be trained with requires_grad_(False)."
        )
    return optimizer


def held_by(optimizer: torch.optim.Optimizer) -> set[int]:
    """Identities of the parameters of an optimizer."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def check_dense(optimizer: Any) -> None:
    """Raises for torch optimizers, and ``pyro.optim`` ones of these, that need several losses or sparse gradients.

    Raises:
        TypeError: it is such a one.
    """
    constructor = getattr(optimizer, "pt_optim_constructor", type(optimizer))
    if isinstance(constructor, type) and issubclass(constructor, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise TypeError(
            "SVI: expected an optimizer that takes one step by dense gradients; got "
            f"{constructor.__name__}. Use torch.optim.Adam, for example."
        )


def keep_precision(optimizer: torch.optim.Optimizer | pyro.optim.PyroOptim | None) -> None:
    """Gives an optimizer's averages the precision that its parameters have now: ``double()`` changes only these."""
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else []
    if isinstance(optimizer, pyro.optim.PyroOptim):  # a scheduler holds its optimizer
        optimizers = [getattr(own, "optimizer", own) for own in optimizer.optim_objs.values()]
    for each in optimizers:
        for parameter, state in each.state.items():
            for name, value in state.items():
                if name != "step" and isinstance(value, Tensor) and value.is_floating_point():
                    state[name] = value.to(parameter.dtype)


def listed(names: list[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
