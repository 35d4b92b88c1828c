"""What is read from tensors past the operations on them, so that a record would have its values as constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from pyro_vae import internals

_READERS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.__deepcopy__}
_NUMBERS: dict[Any, Callable[[Any], Any]] = {
    Tensor.item: lambda number: number,
    Tensor.__int__: int,
    Tensor.__index__: int,
    Tensor.__float__: float,
    Tensor.__bool__: bool,
}
_SIZED_FROM = {torch.tensor_split: 1, Tensor.tensor_split: 1, torch.ctc_loss: 2}
"""Functions that read sizes from tensors, by the first argument that they do so from."""


class ReadError(ValueError):
    """Something is read from a tensor that is another in the next run."""


class Reading(TorchFunctionMode):
    """Context manager that finds, while operations are recorded, what is read from tensors past them.

    A single number that is read, or a branch, is an error of recording itself. What depends on constants alone, such as
    the values of ``torch.arange(3)``, over which Pyro's sequential plates run, may be read.

    Raises:
        ReadError: something is read that depends on the inputs or on random numbers.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        read: list[Any] = [args[0]] if func in _READERS else []
        if func in _SIZED_FROM:
            read = [*args[_SIZED_FROM[func] :], *kwargs.values()]
        if any(isinstance(value, Tensor) and _varies(value) for value in read):
            raise ReadError(f"{getattr(func, '__name__', func)} reads the values of a tensor")
        if func in _NUMBERS and args[0].numel() == 1 and not _varies(args[0]):
            number = args[0].detach().reshape(()).tolist()  # unlike a single number, recording lets a list be read
            return _NUMBERS[func](number)
        return func(*args, **kwargs)


def draws_random_numbers(node: Node) -> bool:
    """Whether an operation draws from a generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _varies(tensor: Tensor) -> bool:
    """Whether a tensor depends on the inputs of what is being recorded, or on its random numbers."""
    node = internals.recorded_node(tensor)
    seen, ahead = {node}, [] if node is None else [node]
    while ahead:
        one = ahead.pop()
        if one.op == "placeholder" or draws_random_numbers(one):
            return True
        new = set(one.all_input_nodes) - seen
        seen |= new
        ahead += new
    return False
