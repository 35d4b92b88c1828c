"""A recorded graph, compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae import internals
from pyro_vae.graphs.onednn import use_onednn


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compiles a recorded graph for inputs of these shapes, or takes it from the cache of an earlier process."""
    use_onednn(graph)
    _keep_draws(graph)
    with torch.no_grad():
        return internals.compile_graph(graph, inputs)


def _keep_draws(graph: GraphModule) -> None:
    """Writes draws in the way that Inductor leaves to eager kernels: it would make those of bernoulli from uniforms."""
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.bernoulli.default):
        with graph.graph.inserting_before(node):
            empty = graph.graph.call_function(torch.ops.aten.empty_like.default, node.args)
            draw = graph.graph.call_function(torch.ops.aten.bernoulli_.Tensor, (empty, *node.args))
        node.replace_all_uses_with(draw)
        graph.graph.erase_node(node)
    graph.recompile()
