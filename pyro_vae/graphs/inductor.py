"""A recorded graph, compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_vae.graphs.onednn import use_onednn


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compiles a recorded graph for inputs of these shapes, or takes it from the cache of an earlier process."""
    import torch._inductor  # a second, and settings of the process, that only compiling is worth

    use_onednn(graph)
    _keep_draws(graph)
    # Eager kernels draw the random numbers, in the order of an eager step: the same numbers, and no slower on a CPU.
    options = {"config_patches": {"fallback_random": True, "reorder_for_peak_memory": False}}
    with torch.no_grad():
        return torch._inductor.standalone_compile(
            graph, list(inputs), dynamic_shapes="from_example_inputs", options=options
        )


def _keep_draws(graph: GraphModule) -> None:
    """Writes draws in the way that Inductor leaves to eager kernels: it would make those of bernoulli from uniforms."""
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.bernoulli.default):
        with graph.graph.inserting_before(node):
            empty = graph.graph.call_function(torch.ops.aten.empty_like.default, node.args)
            draw = graph.graph.call_function(torch.ops.aten.bernoulli_.Tensor, (empty, *node.args))
        node.replace_all_uses_with(draw)
        graph.graph.erase_node(node)
    graph.recompile()


def mutates(node: Node) -> bool:
    """Whether an operation writes into an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
