"""One torch optimiser for all parameters, made from what users of Pyro pass.

A ``pyro.optim`` optimiser steps an optimiser of its own for each parameter, one after the other in Python, which takes
longer than the rest of a small step.
"""

from __future__ import annotations

from typing import Any

import pyro.optim
import torch
from torch import Tensor

_FUSED = {torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad}
_IMPLEMENTATIONS = {"fused", "foreach", "capturable", "differentiable"}


class Joint:
    """Makes one torch optimiser in place of those that a ``pyro.optim`` optimiser has for each parameter.

    The state of both is the same, so that ``get_state`` and ``save`` of Pyro's give what was learned.

    Args:
        recipe: the ``pyro.optim`` optimiser, with the same settings for all parameters, no schedule or clipping of its
            own, and no state yet: :meth:`of` tells.
    """

    def __init__(self, recipe: Any) -> None:
        self._recipe = recipe

    @classmethod
    def of(cls, optimizer: Any) -> Joint | None:
        """The joint optimiser of what may be a ``pyro.optim`` optimiser, if there is one."""
        suits = (
            type(optimizer) is pyro.optim.PyroOptim
            and isinstance(optimizer.pt_optim_constructor, type)
            and isinstance(optimizer.pt_optim_args, dict)
            and not optimizer.pt_clip_args
            and not optimizer.optim_objs
            and not optimizer._state_waiting_to_be_consumed
        )
        return cls(optimizer) if suits else None

    def __call__(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The optimiser, fused where torch has such a one."""
        constructor, settings = self._recipe.pt_optim_constructor, dict(self._recipe.pt_optim_args)
        if constructor in _FUSED and not _IMPLEMENTATIONS & settings.keys():
            settings["fused"] = all(parameter.is_floating_point() for parameter in parameters)
        optimizer: torch.optim.Optimizer = constructor(parameters, **settings)
        self.share(optimizer, parameters)
        return optimizer

    def share(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
        """Lets Pyro's optimiser see the state of new parameters."""
        for parameter in parameters:
            own = self._recipe._get_optim(parameter)
            own.state[parameter] = optimizer.state[parameter]
            self._recipe.optim_objs[parameter] = own
            self._recipe.grad_clip[parameter] = None
