"""What users of Pyro pass for a loss: an ``ELBO``, an object with its methods, or a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro.infer
import torch
from torch import Tensor, nn

from pyro_vae.traces.tracing import PyroProgram


class FunctionLoss:
    """A loss given as a function of model, guide and their arguments, with the methods of a ``pyro.infer.ELBO``.

    Args:
        function: returns a scalar tensor to differentiate, as ``elbo.differentiable_loss`` does, or
            ``pyro.infer.EnergyDistance`` when called.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def differentiable_loss(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> Tensor:
        """What the function returns.

        Raises:
            TypeError: it is no tensor, and so has no gradient.
        """
        loss = self.function(model, guide, *args, **kwargs)
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"SVI: expected a loss function that returns a tensor; got {type(loss).__name__}, which has no "
                "gradient. Pass the estimator itself or its differentiable_loss, not its loss."
            )
        return loss

    def loss(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, without gradients."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; adds its gradients to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()


def with_methods(loss: Any) -> Any:
    """A loss with the methods of a ``pyro.infer.ELBO``: itself where it has them.

    Raises:
        TypeError: it has not, and is no function either; a class, or a module, which is a function of something else.
    """
    if isinstance(loss, pyro.infer.ELBO):
        return loss
    if not isinstance(loss, type | nn.Module):
        if all(callable(getattr(loss, name, None)) for name in ("loss", "loss_and_grads")):
            return loss
        if callable(loss):
            return FunctionLoss(loss)
    raise TypeError(
        f"SVI: expected loss a pyro.infer.ELBO; got {type(loss).__name__}. "
        "Pass pyro_vae.elbo.ELBO() or pyro.infer.Trace_ELBO()."
    )


def as_number(loss: Any) -> float:
    """What a loss returns as a number: the sum of one in two parts, for the model and for the guide."""
    return sum(map(float, loss)) if isinstance(loss, tuple) else float(loss)


def leaves_value_out(loss: Any) -> bool:
    """Whether a loss has gradients but no value, for which it returns infinity."""
    return isinstance(loss, pyro.infer.TraceTailAdaptive_ELBO)


def is_sound(loss: Any, value: float, named: Mapping[str, Tensor]) -> bool:
    """Whether the value of a loss is finite; of a loss that has gradients alone, and infinity, whether these are.

    Args:
        loss: the loss.
        value: what it returned.
        named: the parameters, with their gradients, by name.
    """
    if math.isfinite(value) or math.isnan(value) or not leaves_value_out(loss):
        return math.isfinite(value)
    gradients = [p.grad for p in named.values() if p.grad is not None]
    return all(bool(gradient.isfinite().all()) for gradient in gradients)
