"""Whether an optimizer can go on with a state that comes from a file."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from pyro_vae.svi.optimizers import held_by


class OptimizerCheck:
    """Raises where an optimizer has been given a state with which it cannot take a step.

    A stand-in for each parameter, which is as large and has gradients of 0, takes one: what is then kept of it is what
    a state has, whatever the optimizer is.

    Args:
        optimizer: before it is given the state.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._like = copy.copy(optimizer)
        self._settings = [self._settings_of(group) for group in optimizer.param_groups]
        self._begun = {parameter: dict(held) for parameter, held in optimizer.state.items() if held}

    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        """Looks at it once it has the state.

        Raises:
            ValueError: it cannot take a step.
        """
        kept: dict[Any, dict[str, Any] | None] = {}
        for i, group in enumerate(optimizer.param_groups):
            if "initial_lr" in self._settings[i] and not isinstance(group["initial_lr"], int | float | Tensor):
                raise ValueError("a learning rate that is no number")
            for parameter in group["params"]:
                key = i, parameter.shape, parameter.dtype, parameter.device
                if key not in kept:
                    kept[key] = self._kept(parameter, self._settings[i])
                    if kept[key] is not None:
                        self._step(parameter, self._settings_of(group))
                self._compare(optimizer.state.get(parameter), self._begun.get(parameter, kept[key]))
        known = held_by(optimizer)
        if not all(isinstance(each, Tensor) and id(each) in known for each in optimizer.state):
            raise ValueError("an optimizer's state of other parameters")

    def _kept(self, parameter: Tensor, settings: dict[str, Any]) -> dict[str, Any] | None:
        """What is kept of a parameter; None for an optimizer that a stand-in does not do for."""
        try:
            return self._step(parameter, settings)
        except Exception:  # noqa: BLE001 - of a user's class, which may do anything
            return None

    def _step(self, parameter: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
        stand_in = torch.zeros_like(parameter).requires_grad_()
        stand_in.grad = torch.zeros_like(parameter)
        self._like.state = defaultdict(dict)
        self._like.param_groups = [{**settings, "params": [stand_in]}]
        type(self._like).step(self._like)  # past the wrapper of a learning-rate schedule, which steps the other
        return dict(self._like.state[stand_in])

    @staticmethod
    def _settings_of(group: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in group.items() if name != "params"}

    @staticmethod
    def _compare(held: dict[str, Any] | None, expected: dict[str, Any] | None) -> None:
        if not held or not expected:  # of a parameter without a gradient so far
            return
        for name, value in expected.items():
            if name not in held or not _is_like(held[name], value):
                raise ValueError(f"an optimizer's state whose {name!r} is another")


def _is_like(held: Any, value: Any) -> bool:
    if isinstance(held, Tensor) and isinstance(value, Tensor):
        return held.shape == value.shape and held.is_floating_point() == value.is_floating_point()
    numbers = isinstance(held, int | float) and isinstance(value, int | float)
    return value is None or numbers or type(held) is type(value)
