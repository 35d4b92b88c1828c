"""A training step's loss and gradients as one compiled graph.

Pyro's handlers break the graph that ``torch.compile`` looks for, so compiling a program's ``forward`` gains nothing.
But a program of static structure performs the same tensor operations at every step: ``make_fx`` records them, loss and
gradients together, in one run, and the record, some hundreds of operations without a trace of Python, is what is
compiled. Gradients are recorded rather than left to autograd, so that the hooks and detached terms of the gradient
estimators are in the graph.

The tensors that a step reads (parameters, buffers, arguments, beta) are inputs of the graph, found by identity, so it
does not matter whether a program reaches a parameter through a module or through ``pyro.param``.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Literal

import pyro
import pyro.infer
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.elbo import ELBO, Enumerate, Estimator, RenyiELBO, Score
from pyro_vae.elbo.tracing import PyroProgram

Compile = Literal["auto"] | bool
Result = tuple[Tensor, list[Tensor | None]]
Signature = tuple[Hashable, ...]

AUTO_STEPS = 5_000
"""Steps on data of one shape that ``compile="auto"`` runs eagerly first: compiling takes the ten seconds or so that as
many small steps save."""

MAX_GRAPHS = 8
"""Graphs kept; the one unused for longest goes first."""

_CHECKS = 2  # the first step, and one after an update: a parameter recorded as a constant passes the first
_TOLERANCE = {torch.float64: 1e-9}  # of the largest entry; the operations are the same, their order of summation is not
_DEFAULT_TOLERANCE = 1e-3


class Step:
    """Loss and gradients of one call of an estimator, and every tensor that they are computed from.

    Args:
        estimator: its ``beta``, if it has one, becomes a tensor here, so that a schedule may change it.
        programs: model and guide.
        parameters: what to differentiate by.
        args: positional arguments of both programs.
        kwargs: keyword arguments of both.
    """

    def __init__(
        self,
        estimator: Estimator,
        programs: tuple[PyroProgram, PyroProgram],
        parameters: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.estimator: Any = copy.copy(estimator)
        self.programs, self.parameters, self.args, self.kwargs = programs, parameters, args, kwargs
        modules = [module for program in programs for module in _modules(program)]
        values = [*args, *kwargs.values()]
        self.buffers = [buffer for module in modules for buffer in module.buffers()]
        self.inputs = [*parameters, *self.buffers, *(value for value in values if isinstance(value, Tensor))]
        settings = [
            (name, value)
            for part in (estimator, estimator.gradient)
            for name, value in vars(part).items()
            if name != "beta" and isinstance(value, (bool, int, float, str))
        ]
        if hasattr(self.estimator, "beta"):
            beta = torch.tensor(float(self.estimator.beta), dtype=parameters[0].dtype, device=parameters[0].device)
            self.estimator.beta = beta
            self.inputs.append(beta)
        self.signature: Signature = (
            tuple((t.shape, t.dtype, t.device, t.requires_grad) for t in self.inputs),
            tuple(map(id, parameters)),
            tuple(repr(value) for value in values if not isinstance(value, Tensor)),
            tuple(kwargs),
            tuple(module.training for module in modules),
            tuple(settings),
        )

    def __call__(self) -> Result:
        """Runs the programs: the loss and a gradient, or None, for each parameter."""
        with torch.enable_grad(), pyro.validation_enabled(False):
            loss = self.estimator.differentiable_loss(*self.programs, *self.args, **self.kwargs)
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), list(gradients)

    def rehearse(self, run: Callable[[], Result]) -> Result:
        """Runs, and leaves random generators and buffers (running means, say) as they were."""
        devices = sorted({tensor.device.index for tensor in self.inputs if tensor.is_cuda})
        before = [buffer.clone() for buffer in self.buffers]
        with torch.random.fork_rng(devices=devices):
            result = run()
        for buffer, value in zip(self.buffers, before, strict=True):
            buffer.copy_(value)
        return result


class Graph:
    """A step, recorded and compiled.

    Args:
        step: the step to record.
    """

    def __init__(self, step: Step) -> None:
        self.checks = _CHECKS
        # Estimators learn the structure of programs at their first run, which is not to be recorded.
        step.rehearse(step)

        def recorded(*_: Tensor) -> list[Tensor]:
            loss, gradients = step()
            self.has_gradient = [gradient is not None for gradient in gradients]
            return [loss, *(gradient for gradient in gradients if gradient is not None)]

        def first() -> Result:
            graph = make_fx(recorded)(*step.inputs)
            # Eager kernels draw the random numbers: those of an eager step, and no slower on a CPU.
            self._run = torch.compile(graph, dynamic=False, fullgraph=True, options={"fallback_random": True})
            return self(step)

        step.rehearse(first)

    def __call__(self, step: Step) -> Result:
        """The result of a step of the same signature."""
        with torch.no_grad():
            loss, *present = self._run(*step.inputs)
        remaining = iter(present)
        return loss, [next(remaining) if has else None for has in self.has_gradient]


class Compiler:
    """Compiles the steps of one loss, and keeps a graph for each signature.

    A signature is the shapes, types and devices of all tensors, the other arguments, training mode and the settings of
    the loss. The values of tensors, and beta, are inputs.

    Args:
        loss: an estimator of :mod:`pyro_vae.elbo`, or of Pyro where ours has its equal.
        mode: True to compile at the first step of every signature, and raise where that fails; ``"auto"`` to compile
            after :attr:`auto_steps` steps on data of its shape, and to go on eagerly, with a warning, where that
            fails; False for never.
    """

    def __init__(self, loss: pyro.infer.ELBO, mode: Compile) -> None:
        if mode not in (True, False, "auto"):
            raise ValueError(f"SVI: expected compile True, False or 'auto'; got {mode!r}. Use one of these.")
        self.mode = mode
        self.auto_steps = AUTO_STEPS
        self._loss = loss
        self._graphs: OrderedDict[Signature, Graph | None] = OrderedDict()
        self._steps: Counter[tuple[torch.Size, ...]] = Counter()
        self._estimator = _equal_estimator(loss) if mode else None
        if mode is True and self._estimator is None:
            self._give_up(f"{type(loss).__name__} keeps state in Python, or has no equal in pyro_vae.elbo", None)

    @property
    def num_graphs(self) -> int:
        """Graphs at hand."""
        return sum(graph is not None for graph in self._graphs.values())

    def run(
        self,
        programs: tuple[PyroProgram, PyroProgram],
        parameters: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor | None:
        """The loss, a scalar, with its gradients left in the parameters; None where the step is to be run eagerly.

        To be called in the scope that holds the parameters, after a first eager step has made them.
        """
        if self._estimator is None or not parameters:
            return None
        shapes = tuple(value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        self._steps[shapes] += 1
        if self.mode == "auto" and self._steps[shapes] <= self.auto_steps:
            return None
        step = Step(self._estimator, programs, parameters, args, kwargs)
        if step.signature not in self._graphs:
            while len(self._graphs) >= MAX_GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[step.signature] = self._graph(step)
        self._graphs.move_to_end(step.signature)
        graph = self._graphs[step.signature]
        if graph is None:
            return None
        if graph.checks:
            graph.checks -= 1
            expected = step.rehearse(step)
            loss, gradients = graph(step)
            if differing := _differing((loss, gradients), expected):
                self._graphs[step.signature] = None
                self._give_up(f"{differing} differs from the eager step's on the same random numbers", None)
                loss, gradients = expected
        else:
            loss, gradients = graph(step)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss

    def _graph(self, step: Step) -> Graph | None:
        try:
            return Graph(step)
        except Exception as error:  # noqa: BLE001 - a program or a compiler may fail in any way; it is told of
            self._give_up(next(iter(str(error).strip().splitlines()), type(error).__name__), error)
            return None

    def _give_up(self, reason: str, error: Exception | None) -> None:
        message = f"SVI: expected a step that can be compiled; got one that cannot: {reason}."
        if self.mode is True:
            raise RuntimeError(f"{message} Use compile=False or 'auto'.") from error
        self._estimator = None  # one warning, not one for each signature
        warnings.warn(f"{message} Training goes on without compiling.", stacklevel=5)


def _equal_estimator(loss: Any) -> Estimator | None:
    """The estimator to record for a loss: itself, or the equal of one of Pyro's; None where there is none."""
    if isinstance(loss, Estimator):
        in_python = isinstance(loss.gradient, Score) and loss.gradient.baseline == "running_mean"
        return None if in_python or isinstance(loss.gradient, Enumerate) else loss
    if type(loss) is pyro.infer.Trace_ELBO:
        return ELBO(loss.num_particles, vectorize=loss.vectorize_particles)
    if type(loss) is pyro.infer.TraceMeanField_ELBO:
        return ELBO(loss.num_particles, analytic_kl=True, vectorize=loss.vectorize_particles)
    if type(loss) is pyro.infer.RenyiELBO:
        return RenyiELBO(loss.alpha, loss.num_particles, vectorize=loss.vectorize_particles)
    return None


def _differing(result: Result, expected: Result) -> str:
    """What differs between two results beyond rounding; empty where nothing does."""
    names = ["the loss", *(f"gradient {i}" for i in range(len(result[1])))]
    for name, one, other in zip(names, [result[0], *result[1]], [expected[0], *expected[1]], strict=True):
        if one is None or other is None:
            same = one is other
        else:  # what is not finite in both is the step's own to report
            size = float(other.nan_to_num(0.0, 0.0, 0.0).abs().max()) + 1e-8
            atol = size * _TOLERANCE.get(other.dtype, _DEFAULT_TOLERANCE)
            same = torch.allclose(one, other, rtol=0.0, atol=atol, equal_nan=True)
        if not same:
            return name
    return ""


def _modules(program: PyroProgram) -> list[nn.Module]:
    """The module that a program is, or is a method of."""
    candidates = (program, getattr(program, "__self__", None), *getattr(program, "args", ()))
    return [candidate for candidate in candidates if isinstance(candidate, nn.Module)]
