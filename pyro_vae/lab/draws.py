"""Many independent draws of a gradient, quickly.

A step of an estimator performs the same tensor operations each time. They are recorded once, gradient included, and
``torch.func.vmap`` performs them for thousands of draws at once, each with random numbers of its own. Estimators that
cannot be recorded, such as Pyro's, which look at values on the way, are run one draw at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.infer
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.fx import GraphModule

from pyro_vae import internals
from pyro_vae.graphs.memory import peak_memory
from pyro_vae.graphs.reading import draws_random_numbers
from pyro_vae.graphs.recording import random_state, record
from pyro_vae.traces.tracing import PyroProgram

Consumer = Callable[[Tensor, Tensor], None]

MAX_LOOPED = 2_000
"""Draws of an estimator that can only be run one draw at a time."""

_MEMORY = 2**25  # more takes longer: the system clears what it allots


def named_parameters(model: PyroProgram, guide: PyroProgram, args: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What can be learned, unconstrained, as ``guide.NAME`` and ``model.NAME``; one that is shared is under both."""
    found: dict[str, Tensor] = {}
    with torch.no_grad(), random_state(args):
        with poutine.trace(param_only=True) as of_guide:
            trace = poutine.trace(guide).get_trace(*args)
        with poutine.trace(param_only=True) as of_model:
            poutine.replay(model, trace=trace)(*args)
    for role, program, capture in (("guide", guide, of_guide), ("model", model, of_model)):
        for name, site in capture.trace.nodes.items():
            if site["type"] == "param":
                leaf: Any = site["value"]
                root, _, path = name.partition("$$$")
                own = root == internals.pyro_name(program)
                found[f"{role}.{path if own else name.replace('$$$', '.')}"] = leaf.unconstrained()
    return {name: leaf for name, leaf in found.items() if leaf.requires_grad}


@contextmanager
def unchanged(*programs: PyroProgram) -> Iterator[None]:
    """Context manager in which steps may be taken: gradients and buffers, as BatchNorm's averages, are put back."""
    modules = [program for program in programs if isinstance(program, nn.Module)]
    parameters: list[Tensor] = [parameter for module in modules for parameter in module.parameters()]
    parameters += [parameter for _, parameter in pyro.get_param_store().named_parameters()]
    gradients = [(parameter, parameter.grad) for parameter in parameters]
    values = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for buffer, value in values:
            buffer.copy_(value)


class Sampler:
    """Draws of an estimator's bound and gradient at fixed parameters.

    Shapes: D draws, P parameters.

    Args:
        estimator: any ``pyro.infer.ELBO``.
        model: a Pyro program.
        guide: likewise.
        args: their arguments.
        leaves: what to differentiate by.
    """

    def __init__(
        self,
        estimator: pyro.infer.ELBO,
        model: PyroProgram,
        guide: PyroProgram,
        args: tuple[Tensor, ...],
        leaves: list[Tensor],
    ) -> None:
        self._estimator: Any = estimator
        self._programs = model, guide
        self._args, self._leaves = args, leaves
        self.step()  # validated by Pyro, and estimators learn the structure of the programs
        self._batched = self._batch()

    @property
    def vectorized(self) -> bool:
        """Whether many draws are made at once."""
        return self._batched is not None

    def step(self) -> float:
        """The bound, as a user's step has it; puts the gradients of its loss into the leaves."""
        for leaf in self._leaves:
            leaf.grad = None
        loss = self._estimator.loss_and_grads(*self._programs, *self._args)
        return -float(loss[0] if isinstance(loss, tuple) else loss)

    def draw(self, count: int, consume: Consumer) -> None:
        """Passes on bounds (D,) and their gradients (D, P), some draws at a time."""
        count = count if self.vectorized else min(count, MAX_LOOPED)
        with pyro.validation_enabled(False):
            for done in range(0, count, self._chunk):
                size = min(self._chunk, count - done)
                consume(*(self._at_once(self._batched, size) if self._batched else self._one_by_one(size)))

    def _at_once(self, graph: GraphModule, size: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")  # where vmap loops inside
            bound, gradient = torch.vmap(graph, randomness="different")(self._leaves[0].new_zeros(size))
        return bound, gradient

    def _one_by_one(self, size: int) -> tuple[Tensor, Tensor]:
        bounds, gradients = [], []
        for _ in range(size):
            bounds.append(self.step())
            gradients.append(-self._flat([leaf.grad for leaf in self._leaves]))
        return torch.tensor(bounds, dtype=torch.float64, device=gradients[0].device), torch.stack(gradients)

    def _flat(self, gradients: Sequence[Tensor | None]) -> Tensor:
        return torch.cat(
            [
                torch.zeros_like(leaf).flatten() if gradient is None else gradient.flatten()
                for gradient, leaf in zip(gradients, self._leaves, strict=True)
            ]
        )

    def _bound_and_gradient(self, _: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            loss = self._estimator.differentiable_loss(*self._programs, *self._args)
            gradients = torch.autograd.grad(loss, self._leaves, allow_unused=True)
        return [-loss.detach(), -self._flat(gradients)]

    def _batch(self) -> GraphModule | None:
        """The record, for ``vmap``; None where there is none that gives what a step gives."""
        zero = self._leaves[0].new_zeros(())
        size = sum(leaf.numel() * leaf.element_size() for leaf in self._leaves)
        self._chunk = max(4, _MEMORY // (8 * size))
        with pyro.validation_enabled(False):
            graph = record(self._bound_and_gradient, zero)
            if graph is None:
                return None
            _draw_per_example(graph)
            try:
                with random_state(self._args), torch.no_grad():
                    per_draw = peak_memory(lambda: graph(zero))
                    self._at_once(graph, 2)
                with random_state(self._args):
                    actual = graph(zero)
                with random_state(self._args):
                    expected = self._bound_and_gradient(zero)
            except Exception:  # noqa: BLE001 - an operation may have no rule for a batch
                return None
        self._chunk = max(4, _MEMORY // (per_draw + 8 * size))
        return graph if all(map(_close, actual, expected)) else None


def _draw_per_example(graph: GraphModule) -> None:
    """Makes tensors that are filled with random numbers depend on the input, so that ``vmap`` fills one per example."""
    example = next(node for node in graph.graph.nodes if node.op == "placeholder")
    for node in list(graph.graph.nodes):
        if draws_random_numbers(node) and internals.is_mutable(node):
            with graph.graph.inserting_before(node):
                node.update_arg(0, graph.graph.call_function(_for_example, (node.args[0], example)))
    graph.recompile()


def _for_example(empty: Tensor, example: Tensor) -> Tensor:
    return empty + example.to(empty.dtype)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()), equal_nan=True)
