"""Which steps are compiled, which graphs are kept, and whether they are right."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.infer
import torch
from torch import Tensor

from pyro_vae.compilation.arguments import array_in, tensors_in
from pyro_vae.compilation.computed import held_by, parts_of
from pyro_vae.compilation.graph import Graph
from pyro_vae.compilation.leaves import Leaves
from pyro_vae.compilation.reasons import Watch, reason_of
from pyro_vae.compilation.step import Constants, Precision, Prepare, Result, Signature, Step
from pyro_vae.graphs.cuda_graph import can_capture
from pyro_vae.traces.modules import modules_of
from pyro_vae.traces.tracing import PyroProgram

Compile = Literal["auto"] | bool

AUTO_STEPS = 2_500
"""Steps on data of one shape that ``compile="auto"`` runs eagerly first: compiling takes the ten seconds or so that as
many small steps save."""

MAX_GRAPHS = 8
"""Graphs kept; the one unused for longest goes first."""

_MAX_UNUSED = 4  # graphs made one after the other that no second step could use
# Of the largest entry: the operations are the same, their order of summation and the rounding in between are not.
_TOLERANCES: dict[Precision | torch.dtype, float] = {
    torch.float64: 1e-9,
    "float32": 1e-3,
    "tf32": 1e-2,
    "bfloat16": 5e-2,
}


# Of the largest gradient of all.
_ROUNDING: dict[Precision | torch.dtype, float] = {
    torch.float64: 1e-14,
    "float32": 4e-6,
    "tf32": 1e-4,
    "bfloat16": 1e-3,
}


class Compiler:
    """Compiles the steps of one loss, and keeps a graph for each signature.

    A signature is the shapes, types and devices of all tensors, the other arguments, and the Python numbers and words
    that the modules (for example training mode) and the loss hold. The values of tensors, and beta, are inputs.

    Args:
        loss: an estimator of :mod:`pyro_vae.elbo`, or any other, of Pyro or of a user, with the methods ``loss`` and
            ``loss_and_grads``.
        mode: True to compile at the first step of every signature, and raise where that fails; ``"auto"`` to compile
            after :attr:`auto_steps` steps on data of its shape, and to go on eagerly, with a warning, where that
            fails; False for never.
        prepare: makes the programs' arguments from a step's.
        precision: of matrix products.

    Attributes:
        steps: those run so far by the shapes of their tensors, until they are compiled.
        unsettled: whether the last :meth:`run` met a program that makes parameters, or differentiates by tensors that
            are none, so that the eager step in its place is to be accounted for.
    """

    def __init__(
        self,
        loss: pyro.infer.ELBO,
        mode: Compile,
        prepare: Prepare | None = None,
        precision: Precision = "float32",
    ) -> None:
        if not isinstance(mode, bool) and not (isinstance(mode, str) and mode == "auto"):
            raise ValueError(f"SVI: expected compile True, False or 'auto'; got {mode!r}. Use one of these.")
        self.mode = mode
        self.auto_steps = AUTO_STEPS
        self.unsettled = False
        self._prepare, self._precision = prepare, precision
        self._last: tuple[Constants, Graph] | None = None
        self._recent: tuple[Step, Graph] | None = None
        self._unused = 0
        self._graphs: OrderedDict[Signature, Graph | None] = OrderedDict()
        self.steps: Counter[tuple[torch.Size, ...]] = Counter()
        self.loss: Any = loss
        self._off = not mode

    @property
    def gave_up(self) -> bool:
        """Whether steps go on eagerly because they cannot be compiled."""
        return bool(self.mode) and self._off

    def give_up(self) -> None:
        """Goes on eagerly, as a run did that this one continues."""
        self._off = True

    @property
    def num_graphs(self) -> int:
        """Graphs at hand."""
        return sum(graph is not None for graph in self._graphs.values())

    def run(
        self,
        programs: tuple[PyroProgram, PyroProgram],
        parameters: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        optimizer: object,
        update: Callable[[], None],
    ) -> tuple[Tensor, bool] | None:
        """A step's loss, a scalar, and whether parameters are updated; else their gradients are left with them.

        To be called in the scope that holds the parameters, after a first eager step has made them.

        Args:
            programs: model and guide.
            parameters: to differentiate by, by name.
            args: positional arguments of the step.
            kwargs: keyword arguments of both programs.
            optimizer: of the parameters.
            update: updates the parameters by their gradients.

        Returns:
            None where the step is to be run eagerly.
        """
        self.unsettled = False
        if self._off or not parameters:
            return None
        if getattr(self.loss, "chunk_size", None) is not None:
            if self.mode is True:
                self._give_up("chunk_size draws random numbers a second time, which a graph does not", None)
            return None
        values = (*args, *kwargs.values())
        shapes = tuple(value.shape for value in tensors_in(values))
        self.steps[shapes] += 1
        if self.mode == "auto" and self.steps[shapes] <= self.auto_steps:
            return None
        if array := array_in(values):
            self._give_up(f"a step is called with a {array}, whose values would stay as they are: give a tensor", None)
            return None
        modules = modules_of([*programs, *held_by(self.loss)])
        step = Step(self.loss, programs, modules, parameters, args, kwargs, self._prepare, self._precision)
        if step.signature not in self._graphs:
            self.unsettled = self._needs_others(step)
            if self.unsettled:
                return None
            while len(self._graphs) >= MAX_GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[step.signature] = self._graph(step)
        self._graphs.move_to_end(step.signature)
        graph = self._graphs[step.signature]
        if graph is None:
            return None
        if graph.checks:
            graph.checks -= 1
            expected = step.dry_run(step.eager)
            loss, gradients = graph(step)
            if differing := _differing(step, (loss, gradients), expected):
                self._graphs[step.signature] = None
                self._give_up(f"{differing} differs from the eager step's on the same random numbers", None)
                loss, gradients = expected
        else:
            self._recent = step, graph
            return _advance(step, graph, optimizer, update)
        _set_gradients(step, gradients)
        return loss, False

    def repeat(
        self,
        parameters: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        optimizer: object,
        update: Callable[[], None],
    ) -> tuple[Tensor, bool] | None:
        """What :meth:`run` does, without a look at the programs and outside their scope.

        Returns:
            None where the step is to be run in another way: for example for other shapes than the last.
        """
        if self._recent is None:
            return None
        step, graph = self._recent
        if step.again(parameters, args, kwargs):
            return _advance(step, graph, optimizer, update)
        self._recent = None
        return None

    def _needs_others(self, step: Step) -> bool:
        """Runs a step whose result is not needed, to see whether it trains tensors that are no parameters yet.

        It also teaches estimators a program's structure, which is not to be recorded, and shows what a step changes
        beside tensors.
        """
        watch = Watch(() if step.is_ours else parts_of(self.loss))
        with contextlib.suppress(Exception), Leaves() as leaves:  # recording meets an error again, and tells of it
            step.dry_run(step)
        if changes := watch.changes():
            watch.undo()
            self._give_up(changes[0], None)
            return True
        return watch.makes_parameters() or not leaves.found <= set(step.inputs)

    def _graph(self, step: Step) -> Graph | None:
        if self._last is not None:
            before, made = self._last
            self._unused = self._unused + 1 if made.runs <= 1 else 0
            if self._unused >= _MAX_UNUSED:
                changed = step.changed(before) or "shapes or parameters"
                self._give_up(f"every step needs a graph of its own, because these change: {changed}", None)
                return None
        try:
            graph = Graph(step)
        except Exception as error:  # noqa: BLE001 - a program or a compiler may fail in any way; it is told of
            self._give_up(reason_of(error), error)
            return None
        self._last = step.constants, graph
        return graph

    def _give_up(self, reason: str, error: Exception | None) -> None:
        message = f"SVI: expected a step that can be compiled; got one that cannot: {reason.removesuffix('.')}."
        if self.mode is True:
            raise RuntimeError(f"{message} Use compile=False or 'auto'.") from error
        self._off = True  # one warning, not one for each signature
        warnings.warn(f"{message} Training goes on without compiling.", stacklevel=5)


def _advance(step: Step, graph: Graph, optimizer: object, update: Callable[[], None]) -> tuple[Tensor, bool]:
    captured = graph.repeatable and can_capture(optimizer, step.inputs[0].device)
    if isinstance(optimizer, torch.optim.Optimizer) and captured:
        return graph.advance(step, optimizer, update), True
    loss, gradients = graph(step)
    _set_gradients(step, gradients)
    return loss, False


def _set_gradients(step: Step, gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(step.parameters, gradients, strict=True):
        parameter.grad = gradient


def _differing(step: Step, result: Result, expected: Result) -> str:
    """What differs between two results of a step beyond rounding; empty where nothing does.

    A gradient that is 0 but for rounding, as that of a bias before batch normalization, is a sum of terms that cancel,
    each of the size of other gradients: hence an allowance on the scale of the largest.
    """
    sizes = [_size(gradient) for gradient in expected[1] if gradient is not None]
    largest = max(sizes, default=0.0)
    names = ["the loss", *(f"the gradient of {name}" for name in step.by_name)]
    for name, one, other in zip(names, [result[0], *result[1]], [expected[0], *expected[1]], strict=True):
        if one is None or other is None:
            same = one is other
        else:  # what is not finite in both is the step's own to report
            key = other.dtype if other.dtype in _TOLERANCES else step.precision
            if key == "float32" and other.is_cuda:
                key = "tf32"  # torch lets a GPU convolve so, and two layouts of a convolution round differently
            atol = (_size(other) + 1e-8) * _TOLERANCES[key]
            if one is not result[0]:
                atol += largest * _ROUNDING[key]
            same = torch.allclose(one, other, rtol=0.0, atol=atol, equal_nan=True)
        if not same:
            return name
    return ""


def _size(tensor: Tensor) -> float:
    return float(tensor.nan_to_num(0.0, 0.0, 0.0).abs().max()) if tensor.numel() else 0.0
