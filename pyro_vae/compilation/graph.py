"""A step as a graph of tensor operations: recorded, then compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import internals
from pyro_vae.compilation.reasons import sized_by_values, unrepeatable
from pyro_vae.compilation.step import Precision, Result, Step, reduced
from pyro_vae.graphs.cuda_graph import CapturedStep
from pyro_vae.graphs.inductor import compile_graph
from pyro_vae.graphs.layouts import convolution, replication_pad2d_backward
from pyro_vae.graphs.reading import Reading
from pyro_vae.graphs.special import digamma

CHECKS = 2
"""Results of a graph that are compared with the eager step's: the first, and one after an update, because a parameter
that is recorded as a constant passes the first."""

_WRITTEN_OUT: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.convolution.default: convolution,
    torch.ops.aten.digamma.default: digamma,
    torch.ops.aten.replication_pad2d_backward.default: replication_pad2d_backward,
}
"""What a graph records in place of operations of PyTorch, because the compiler makes more of it."""


class Graph:
    """A step, recorded and compiled.

    Args:
        step: the step to record.

    Attributes:
        checks: results that are yet to be compared with the eager step's.
        runs: how often it was run.
        repeatable: whether it is of operations that a CUDA graph can repeat.
    """

    def __init__(self, step: Step) -> None:
        self.checks = CHECKS
        self.runs = 0
        self._inputs = step.inputs
        self._moves = [False] * len(step.inputs)
        self._captured: CapturedStep | None = None

        def recorded(*_: Tensor) -> list[Tensor]:
            loss, gradients = step()
            self._has_gradient = [gradient is not None for gradient in gradients]
            return [loss, *(gradient for gradient in gradients if gradient is not None)]

        with internals.one_fake_mode(), internals.without_sample_checks(), Reading():
            graph = step.dry_run(lambda: make_fx(recorded, _WRITTEN_OUT)(*step.inputs))
        if (constant := _written_constant(graph)) is not None:
            raise ValueError(
                f"it writes into a tensor of shape {constant}, which is no parameter, buffer or argument: register it "
                "as a buffer of the model or the guide"
            )
        if operation := sized_by_values(graph.graph, step.fixed):
            raise ValueError(
                f"it makes a tensor whose size depends on values that differ from step to step, by {operation}: use a "
                "mask"
            )
        self.repeatable = not unrepeatable(graph, step.inputs[0].device)
        compiled = compile_graph(graph, step.inputs)
        # The record of bfloat16 has its roundings in it; tf32 is a mode of the kernels that it calls.
        precision: Precision = "tf32" if step.precision == "tf32" else "float32"

        def run(*inputs: Tensor) -> Sequence[Tensor]:
            with torch.no_grad(), reduced(precision, inputs[0].device):
                return compiled(*inputs)

        self._run = run

    def __call__(self, step: Step) -> Result:
        """The result of a step of the same signature."""
        self.runs += 1
        self._inputs = step.inputs
        loss, *present = self._run(*step.inputs)
        remaining = iter(present)
        return loss, [next(remaining) if has else None for has in self._has_gradient]

    def advance(self, step: Step, optimizer: torch.optim.Optimizer, update: Callable[[], None]) -> Tensor:
        """Takes a whole step on a GPU, update included, and returns the loss."""
        self.runs += 1
        if self._captured is None or not self._captured.suits(step.inputs, optimizer, update):
            # Arguments alone may be others: what is written into parameters and buffers is to stay in them.
            fixed = len(step.parameters) + len(step.buffers)
            pairs = zip(self._moves, step.inputs, self._inputs, strict=True)
            self._moves = [i >= fixed and (moved or t is not last) for i, (moved, t, last) in enumerate(pairs)]
            present = [p for p, has in zip(step.parameters, self._has_gradient, strict=True) if has]
            buffers = [buffer for buffer in step.buffers if not isinstance(buffer, nn.Parameter)]
            self._captured = None  # gives its memory back
            self._captured = CapturedStep(self._run, step.inputs, self._moves, present, buffers, optimizer, update)
        self._inputs = step.inputs
        return self._captured(step.inputs).clone()


def _written_constant(graph: GraphModule) -> tuple[int, ...] | None:
    """The shape of a tensor that a recorded graph writes into though it is none of its inputs."""
    for node in graph.graph.nodes:
        written = node.args[0] if internals.is_mutable(node) else None
        if isinstance(written, Node) and written.op == "get_attr":
            return tuple(written.meta["val"].shape)
    return None
