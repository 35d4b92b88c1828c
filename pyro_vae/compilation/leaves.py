"""The tensors that a backward pass gives gradients to, whichever way a program reaches them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Leaves(TorchFunctionMode):
    """Context manager that finds the leaves of graphs that ``Tensor.backward`` or ``torch.autograd.grad`` is called on.

    Example:
        >>> import torch
        >>> weight = torch.ones(3, requires_grad=True)
        >>> with Leaves() as leaves:
        ...     (2 * weight).sum().backward()
        >>> leaves.found == {weight}
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: set[Tensor] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.backward or func is torch.autograd.grad:
            for root in args[0] if isinstance(args[0], list | tuple) else args[:1]:
                self.found |= _leaves(root)
        return func(*args, **(kwargs or {}))


def _leaves(root: Tensor) -> set[Tensor]:
    if root.grad_fn is None:
        return {root} if root.requires_grad else set()
    leaves: set[Tensor] = set()
    seen, ahead = {root.grad_fn}, [root.grad_fn]
    while ahead:
        node = ahead.pop()
        if hasattr(node, "variable"):  # a leaf's AccumulateGrad
            leaves.add(node.variable)
        new = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= new
        ahead += new
    return leaves
