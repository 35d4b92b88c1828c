"""The update of a step: one optimizer that holds what was registered, and moves it by its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pyro.optim
import torch
from torch import Tensor

from pyro_vae.distributed import is_sharded, whole
from pyro_vae.svi.optimizers import FusedOptimizer, held_by, keep_precision, made_of, owned

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Move:
    """The update of a step and what it reads beside tensors: equal to one that does the same.

    Attributes:
        move: moves parameters, given the names of what a step has declared.
        declared: these names.
        max_grad_norm: of an SVI.
        ema_decay: likewise.
    """

    move: Callable[[Collection[str]], None]
    declared: frozenset[str]
    max_grad_norm: float | None
    ema_decay: float | None

    def __call__(self) -> None:
        self.move(self.declared)


class Update:
    """Moves parameters by their gradients, with an optimizer that is made when there are parameters.

    Args:
        optimizer: makes a ``torch.optim.Optimizer`` from a list of parameters, or a ``pyro.optim`` optimizer, which
            becomes one fused torch optimizer where its settings are the same for all parameters and nobody else has it.

    Attributes:
        optimizer: what moves them; None before there are any.
        make: what made it, or will.
        moved: parameters that had a gradient in a step; noted for Pyro's optimizers alone.
    """

    def __init__(self, optimizer: OptimizerFactory | pyro.optim.PyroOptim) -> None:
        self.optimizer: torch.optim.Optimizer | pyro.optim.PyroOptim | None = None
        self.make: Any = optimizer
        self.moved: set[Tensor] = set()
        if isinstance(optimizer, pyro.optim.PyroOptim):
            self.make = owned(optimizer, self)
            if self.make is optimizer:
                self.optimizer = optimizer

    def unfuse(self, optimizer: pyro.optim.PyroOptim) -> None:
        """Goes on with Pyro's own optimizer in place of a fused one, because another SVI shares it."""
        if isinstance(self.optimizer, torch.optim.Optimizer) and isinstance(self.make, FusedOptimizer):
            self.make.give_back(self.optimizer)
        self.optimizer = self.make = optimizer

    @property
    def is_as_pyro(self) -> bool:
        """Whether the optimizer is Pyro's, which moves what takes no part in a step too."""
        return isinstance(self.optimizer, pyro.optim.PyroOptim) or isinstance(self.make, FusedOptimizer)

    def adopt(self, new: list[Tensor], named: dict[str, Tensor]) -> None:
        """Gives the optimizer parameters that were registered since the last step.

        Args:
            new: these parameters.
            named: all parameters by name.
        """
        if isinstance(self.optimizer, torch.optim.Optimizer):  # the user may have added a group
            known = held_by(self.optimizer)
            new = [parameter for parameter in new if id(parameter) not in known]
        if not new or isinstance(self.optimizer, pyro.optim.PyroOptim):
            return
        if self.optimizer is None:
            self.optimizer = made_of(self.make, new, named)
        else:
            self.optimizer.add_param_group({"params": new})
            if isinstance(self.make, FusedOptimizer):
                self.make.share(self.optimizer, new)

    def keep_precision(self) -> None:
        """Gives the optimizer's averages the precision that its parameters have now."""
        keep_precision(self.optimizer)

    def __call__(self, named: dict[str, Tensor], declared: Collection[str], max_grad_norm: float | None) -> None:
        """Moves the parameters; for Pyro's optimizer, where the param store has them, since it asks for their names.

        Args:
            named: the parameters, with their gradients, by name.
            declared: names of what the step has declared, which Pyro's optimizers move by a gradient of 0 where it has
                none.
            max_grad_norm: clip the gradient of all together to this Euclidean norm; None for no clipping.
        """
        # A tensor registered under two names, by a module that model and guide share, is clipped and moved once.
        parameters = list(dict.fromkeys(named.values()))
        if self.is_as_pyro:
            for name in declared:
                parameter = named.get(name)
                if parameter is not None and parameter.grad is None and parameter in self.moved:
                    parameter.grad = torch.zeros_like(parameter)
            self.moved.update(p for p in parameters if p.grad is not None)
        if max_grad_norm is not None:
            _clip(parameters, max_grad_norm)
        if isinstance(self.optimizer, pyro.optim.PyroOptim):
            self.optimizer([p for p in parameters if p.grad is not None])
        elif self.optimizer is not None:
            self.optimizer.step()


def _clip(parameters: list[Tensor], max_norm: float) -> None:
    """Clips the gradient of all parameters together."""
    if not any(map(is_sharded, parameters)):
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    gradients = [p.grad for p in parameters if p.grad is not None]  # of which torch's function takes no mixture
    norm = math.sqrt(sum(float(whole(gradient.square().sum())) for gradient in gradients))
    for gradient in gradients:
        gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
