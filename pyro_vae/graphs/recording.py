"""A function of tensors as the list of the tensor operations that it performs.

Pyro's handlers take time at every run of a program and hold every intermediate result until its end. A program of
static structure performs the same operations each time, so one run tells all of them, and also which of them draw no
random numbers, nor depend on any: an encoder's are done once for all draws of a datum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import internals
from pyro_vae.graphs.onednn import use_onednn
from pyro_vae.graphs.reading import Reading, draws_random_numbers

Function = Callable[..., list[Tensor]]


def record(function: Function, *args: Tensor) -> GraphModule | None:
    """The operations of a function; None where it does something else with tensors too, such as branch on a value.

    Random generators are left as they were.
    """
    with random_state(args), internals.without_sample_checks(), Reading():
        try:
            recorded = make_fx(lambda *inputs: function(*inputs))(*args)  # it would count the self of a method
        except Exception:  # noqa: BLE001 - a function may refuse in any way; it is run as it is then
            return None
    recorded.graph.eliminate_dead_code()
    recorded.recompile()
    return recorded


def random_state(args: Iterable[Tensor]) -> AbstractContextManager[None]:
    """Context manager in which random numbers may be drawn that are drawn again after it."""
    return torch.random.fork_rng(devices=sorted({a.device.index for a in args if a.is_cuda}))


class Recorded:
    """A function's record in two parts: what does not depend on random numbers, and the rest.

    Args:
        graph: the record.
    """

    def __init__(self, graph: GraphModule) -> None:
        nodes = list(graph.graph.nodes)
        written = {node.args[0] for node in nodes if internals.is_mutable(node)}
        random: set[Node] = set()
        for node in nodes:
            if draws_random_numbers(node) or node in written or any(i in random for i in node.all_input_nodes):
                random.add(node)
        constants = [node for node in nodes if node.op == "get_attr"]
        fixed = [node for node in nodes if node.op == "call_function" and node not in random]
        output = nodes[-1]
        results: list[Node] = output.args[0]
        passed = [node for node in fixed if any(user in random or user is output for user in node.users)]
        inputs = [node for node in nodes if node.op == "placeholder"]
        self._once = _part(graph, inputs, [*constants, *fixed], passed)
        self._each = _part(graph, [*inputs, *passed], [*constants, *(n for n in nodes if n in random)], results)

    def start(self, *args: Tensor) -> Callable[[], list[Tensor]]:
        """Does what is done once for these arguments; each call of the result does the rest, with new draws."""
        fixed = self._once(*args)
        return lambda: list(self._each(*args, *fixed))


def recorded(function: Function, examples: Sequence[Sequence[Tensor]]) -> Recorded | None:
    """The record of a function that draws random numbers of torch's generators alone; None where there is none.

    Args:
        function: of tensors.
        examples: arguments of equal shapes. The first is recorded; on each, the record must give what the function
            gives with the same random numbers.
    """
    graph = record(function, *examples[0])
    if graph is None or any(internals.is_mutable(n) and not _is_new(n.args[0]) for n in graph.graph.nodes):
        return None
    use_onednn(graph)
    result = Recorded(graph)
    for args in examples:
        with random_state(args):
            expected = function(*args)
        with random_state(args):
            actual = result.start(*args)()
        if not all(torch.allclose(a, b, rtol=1e-4, equal_nan=True) for a, b in zip(actual, expected, strict=True)):
            return None
    return result


def _is_new(node: object) -> bool:
    """Whether a node is a tensor that nothing else is a view of, made to be filled."""
    return isinstance(node, Node) and "empty" in str(node.target)


def _part(graph: GraphModule, inputs: list[Node], nodes: list[Node], outputs: list[Node]) -> GraphModule:
    """Some operations of a record, as a function from some of its nodes to others."""
    part = Graph()
    copies = {node: part.placeholder(node.name) for node in inputs}
    for node in nodes:
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output([copies[node] for node in outputs])
    part.eliminate_dead_code()
    return GraphModule(graph, part)
