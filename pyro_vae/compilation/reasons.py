"""Why a step has no graph: what its programs or its loss do beside operations on tensors."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from pyro_vae import internals
from pyro_vae.graphs.reading import ReadError, draws_random_numbers

_PACKAGES = [str(Path(file).parent) for file in (torch.__file__, pyro.__file__, str(Path(__file__).parent))]
_READERS = [str(Path(file).parent) for file in (torch.distributions.__file__, pyro.__file__)]


class Watch:
    """Looks at Pyro's param store, and at what objects hold, before something is run.

    Args:
        parts: the objects.
    """

    def __init__(self, parts: Iterable[object]) -> None:
        self._parts: list[Any] = list(parts)
        self._held = [dict(vars(part)) for part in self._parts]
        self._parameters = dict(pyro.get_param_store().named_parameters())

    def changes(self) -> list[str]:
        """What is another now, in words."""
        now = dict(pyro.get_param_store().named_parameters())
        return [
            *(
                f"{type(part).__name__} changes its {name!r} as it runs"
                for part, held in zip(self._parts, self._held, strict=True)
                for name, value in vars(part).items()
                if not _is_same(held.get(name), value)
            ),
            *(
                f"it replaces the parameter {name!r} of Pyro's param store as it runs"
                for name, parameter in self._parameters.items()
                if now.get(name) is not parameter
            ),
        ]

    def undo(self) -> None:
        """Puts everything back."""
        for part, held in zip(self._parts, self._held, strict=True):
            vars(part).clear()
            vars(part).update(held)
        pyro.get_param_store().set_state({"params": self._parameters, "constraints": {}})

    def makes_parameters(self) -> bool:
        """Whether the param store has more parameters now."""
        return len(pyro.get_param_store()) > len(self._parameters)


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(other, bool | int | float | str) and type(one) is type(other) and one == other)


def reason_of(error: Exception) -> str:
    """An error of recording or compiling, in a line that says where numbers are read from tensors."""
    text = str(error)
    if not isinstance(error, ReadError) and "get value out of a tracing tensor" not in text:
        return next(iter(text.strip().splitlines()), type(error).__name__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_PACKAGES, "<"))]
    theirs = [frame for frame in frames if frame.filename.startswith(tuple(_READERS))]
    frame = (own or theirs or frames)[-1]
    return (
        f"{frame.name!r} reads numbers from a tensor, or branches on one, at {Path(frame.filename).name}:"
        f"{frame.lineno}, and does what they say: {frame.line}"
    )


def sized_by_values(graph: Graph, fixed: range) -> str:
    """The operation of a graph whose result has a size that differs from step to step; empty where none has.

    Args:
        graph: of a step.
        fixed: placeholders whose values no step changes, by number.
    """
    varying: set[Node] = set()
    for number, node in enumerate(graph.nodes):
        if node.op == "placeholder":
            varying |= {node} if number not in fixed else set()
        elif draws_random_numbers(node) or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
        if not varying.isdisjoint(_sizing(node)):
            return str(node.target)
    return ""


def unrepeatable(graph: GraphModule, device: torch.device) -> str:
    """The operation of a graph for which a GPU waits for the CPU, or that the CPU does; empty where there is none.

    What the CPU draws, or is given, would stay as it was when a CUDA graph was captured. A number that it computes from
    constants is one.

    Args:
        graph: of a step.
        device: the GPU.
    """
    live = set[Node]()
    for node in reversed(graph.graph.nodes):
        if node.op == "output" or internals.is_mutable(node) or not live.isdisjoint(node.users):
            live.add(node)
    refused = internals.refused_by_cuda_graphs(graph)
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        elsewhere = isinstance(value, Tensor) and value.device != device
        varies = node.op == "placeholder" or draws_random_numbers(node)
        if (
            node in refused
            or (node in live and elsewhere and (varies or value.ndim > 0))
            or _sizing(node)
            or (node.target in _WRITING and any(map(_is_mask, node.args[1])))
        ):
            return str(node.target)
    return ""


_WRITING = {torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


def _is_mask(index: Node | None) -> bool:
    return index is not None and index.meta["val"].dtype in (torch.bool, torch.uint8)


def _sizing(node: Node) -> list[Node]:
    """The arguments of an operation whose values say how large its result is."""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return []
    if node.target is torch.ops.aten.index.Tensor:
        indices: Any = node.args[1]
        return [i for i in indices if _is_mask(i)]
    return list(node.all_input_nodes)
