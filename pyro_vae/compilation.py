"""A training step's loss and gradients as one compiled graph.

Pyro's handlers break the graph that ``torch.compile`` looks for, so compiling a program's ``forward`` gains nothing.
But a program of static structure performs the same tensor operations at every step: ``make_fx`` records them, loss and
gradients together, in one run, and the record, some hundreds of operations without a trace of Python, is what is
compiled. Gradients are recorded rather than left to autograd, so that the hooks and detached terms of the gradient
estimators are in the graph.

The tensors that a step reads (parameters, buffers, arguments, beta) are inputs of the graph, found by identity, so it
does not matter whether a program reaches a parameter through a module or through ``pyro.param``. A number that a module
holds in Python is a constant of the graph, and another value of it needs another graph: what changes from step to step
belongs in a buffer.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import pyro
import pyro.infer
import torch
import torch._inductor
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.cuda_graph import CapturedStep, can_capture
from pyro_vae.elbo import ELBO, Enumerate, Estimator, RenyiELBO
from pyro_vae.elbo.tracing import PyroProgram
from pyro_vae.onednn import use_onednn

Compile = Literal["auto"] | bool
Precision = Literal["float32", "tf32", "bfloat16"]
Prepare = Callable[..., tuple[Any, ...]]
Result = tuple[Tensor, list[Tensor | None]]
Signature = tuple[Hashable, ...]
Settings = list[tuple[object, str, Hashable]]
_T = TypeVar("_T")

AUTO_STEPS = 2_500
"""Steps on data of one shape that ``compile="auto"`` runs eagerly first: compiling takes the ten seconds or so that as
many small steps save."""

MAX_GRAPHS = 8
"""Graphs kept; the one unused for longest goes first."""

_MAX_UNUSED = 4  # graphs made one after the other that no second step could use
_CHECKS = 2  # the first step, and one after an update: a parameter recorded as a constant passes the first
# Of the largest entry: the operations are the same, their order of summation and the rounding in between are not. An
# importance weight is the exponential of a sum over the whole datum, which rounding to 8 bits may move by a tenth.
_TOLERANCES: dict[Precision | torch.dtype, float] = {
    torch.float64: 1e-9,
    "float32": 1e-3,
    "tf32": 3e-2,
    "bfloat16": 0.25,
}
_SETTINGS = (bool, int, float, str)


@contextlib.contextmanager
def reduced(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within it, matrix products have a precision, whatever torch's own setting is."""
    if precision == "bfloat16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif precision == "tf32":
        if device.type != "cuda":
            raise ValueError(
                f"SVI: expected parameters on a CUDA device for precision 'tf32'; got {device}. Use 'bfloat16' or "
                "'float32' there."
            )
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
    elif precision == "float32":
        yield
    else:
        raise ValueError(
            f"SVI: expected precision 'float32', 'tf32' or 'bfloat16'; got {precision!r}. Use one of these."
        )


class Step:
    """Loss and gradients of one call of an estimator, and every tensor that they are computed from.

    Args:
        estimator: its ``beta``, if it has one, becomes a tensor here, so that a schedule may change it.
        programs: model and guide.
        modules: all modules of the programs.
        parameters: what to differentiate by, by name.
        args: positional arguments of the step.
        kwargs: keyword arguments of both programs.
        prepare: makes the positional arguments of both programs from the step's; None where they are the same.
        precision: of matrix products.
    """

    def __init__(
        self,
        estimator: Estimator,
        programs: tuple[PyroProgram, PyroProgram],
        modules: Sequence[nn.Module],
        parameters: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        prepare: Prepare | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.estimator: Any = copy.copy(estimator)
        self.programs, self.args, self.kwargs = programs, args, kwargs
        self.by_name, self.parameters = parameters, list(parameters.values())
        self.prepare, self.precision = prepare, precision
        self._original: Any = estimator
        self._modules = modules
        self._children = [child for module in modules for child in module._modules.values()]
        self.inputs: list[Tensor] = []
        self._beta: list[Tensor] = []
        self._beta_value = 0.0
        self.buffers = self._read_buffers()
        self._take(args, kwargs)
        self.settings: Settings = [
            (part, name, value)
            for part in (estimator, estimator.gradient, *modules)
            for name, value in vars(part).items()
            if type(value) in _SETTINGS and not (part is estimator and name == "beta")
        ]
        self.signature: Signature = (
            tuple(map(_kind, self.inputs)),
            tuple(map(id, self.parameters)),
            tuple(modules),
            tuple(_kind(value) for value in (*args, *kwargs.values())),
            tuple(kwargs),
            tuple(value for _, _, value in self.settings),
        )

    def again(self, parameters: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Takes other arguments, where neither they nor anything else that the step reads needs another graph."""
        values, former = (*args, *kwargs.values()), (*self.args, *self.kwargs.values())
        buffers = self._read_buffers()
        children = [child for module in self._modules for child in module._modules.values()]
        same = (
            parameters is self.by_name
            and list(kwargs) == list(self.kwargs)
            and len(values) == len(former)
            and len(buffers) == len(self.buffers)
            and all(one is other or _kind(one) == _kind(other) for one, other in zip(values, former, strict=True))
            and all(one is other for one, other in zip(buffers, self.buffers, strict=True))
            and children == self._children
            and all(vars(part).get(name) == value for part, name, value in self.settings)
        )
        if same:
            self._take(args, kwargs)
        return same

    def _take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        if hasattr(self._original, "beta"):
            beta = float(self._original.beta)
            if not self._beta or self._beta_value != beta:
                self._beta_value = beta
                self._beta = [self.parameters[0].new_tensor(beta)]
                self.estimator.beta = self._beta[0]
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.inputs = [*self.parameters, *self.buffers, *tensors, *self._beta]

    def _read_buffers(self) -> list[Tensor]:
        buffers = [buffer for module in self._modules for buffer in module._buffers.values() if buffer is not None]
        # A frozen parameter is read like a buffer: it may be thawed, trained, and frozen again.
        frozen = [p for m in self._modules for p in m._parameters.values() if p is not None and not p.requires_grad]
        return [*self._original.gradient.buffers(), *buffers, *frozen]

    def __call__(self) -> Result:
        """Runs the programs: the loss and a gradient, or None, for each parameter."""
        with torch.enable_grad(), pyro.validation_enabled(False):
            with reduced(self.precision, self.parameters[0].device):
                args = self.args if self.prepare is None else self.prepare(*self.args)
                loss = self.estimator.differentiable_loss(*self.programs, *args, **self.kwargs)
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), list(gradients)

    def rehearse(self, run: Callable[[], _T]) -> _T:
        """Runs, and leaves random generators and buffers (running means, say) as they were."""
        devices = sorted({tensor.device.index for tensor in self.inputs if tensor.is_cuda})
        before = [buffer.clone() for buffer in self.buffers]
        with torch.random.fork_rng(devices=devices):
            result = run()
        for buffer, value in zip(self.buffers, before, strict=True):
            buffer.copy_(value)
        return result

    def changed_settings(self, former: Settings) -> str:
        """What Python values of modules and loss differ from those of a former step."""
        names = [
            f"{type(part).__name__}.{name}: {before!r}, then {value!r}"
            for (part, name, value), (_, _, before) in zip(self.settings, former, strict=False)
            if value != before
        ]
        return "; ".join(names)


def _kind(value: Any) -> Hashable:
    """What a graph depends on of an argument."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.requires_grad
    return repr(value)


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compiles a recorded graph for inputs of these shapes, or takes it from the cache of an earlier process."""
    use_onednn(graph)
    _keep_draws(graph)
    # Eager kernels draw the random numbers: those of an eager step, and no slower on a CPU.
    options = {"config_patches": {"fallback_random": True}}
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


class Graph:
    """A step, recorded and compiled.

    Args:
        step: the step to record.
    """

    def __init__(self, step: Step) -> None:
        self.checks = _CHECKS
        self.runs = 0
        self._inputs = step.inputs
        self._captured: CapturedStep | None = None

        def recorded(*_: Tensor) -> list[Tensor]:
            loss, gradients = step()
            self._has_gradient = [gradient is not None for gradient in gradients]
            return [loss, *(gradient for gradient in gradients if gradient is not None)]

        with tracing(TracingContext(FakeTensorMode())):  # else each operation recorded would make one
            graph = step.rehearse(lambda: make_fx(recorded)(*step.inputs))
        if (constant := _written_constant(graph)) is not None:
            raise ValueError(
                f"it writes into a tensor of shape {constant}, which is no parameter, buffer or argument: register it "
                "as a buffer of the model or the guide"
            )
        self._run = compile_graph(graph, step.inputs)

    def __call__(self, step: Step) -> Result:
        """The result of a step of the same signature."""
        self.runs += 1
        self._inputs = step.inputs
        with torch.no_grad(), reduced("tf32" if step.precision == "tf32" else "float32", step.inputs[0].device):
            loss, *present = self._run(*step.inputs)
        remaining = iter(present)
        return loss, [next(remaining) if has else None for has in self._has_gradient]

    def advance(self, step: Step, optimizer: torch.optim.Optimizer, update: Callable[[], None]) -> Tensor:
        """Takes a whole step on a GPU, update included, and returns the loss."""
        self.runs += 1
        if self._captured is None or not self._captured.suits(step.inputs):
            present = [p for p, has in zip(step.parameters, self._has_gradient, strict=True) if has]
            self._captured = CapturedStep(self._run, step.inputs, self._inputs, present, optimizer, update)
        self._inputs = step.inputs
        return self._captured(step.inputs).clone()


class Compiler:
    """Compiles the steps of one loss, and keeps a graph for each signature.

    A signature is the shapes, types and devices of all tensors, the other arguments, and the Python numbers and words
    that the modules (training mode, say) and the loss hold. The values of tensors, and beta, are inputs.

    Args:
        loss: an estimator of :mod:`pyro_vae.elbo`, or of Pyro where ours has its equal.
        mode: True to compile at the first step of every signature, and raise where that fails; ``"auto"`` to compile
            after :attr:`auto_steps` steps on data of its shape, and to go on eagerly, with a warning, where that
            fails; False for never.
        prepare: makes the programs' arguments from a step's.
        precision: of matrix products.
    """

    def __init__(
        self,
        loss: pyro.infer.ELBO,
        mode: Compile,
        prepare: Prepare | None = None,
        precision: Precision = "float32",
    ) -> None:
        if mode not in (True, False, "auto"):
            raise ValueError(f"SVI: expected compile True, False or 'auto'; got {mode!r}. Use one of these.")
        self.mode = mode
        self.auto_steps = AUTO_STEPS
        self._prepare, self._precision = prepare, precision
        self._last: tuple[Settings, Graph] | None = None
        self._recent: tuple[Step, Graph] | None = None
        self._unused = 0
        self._graphs: OrderedDict[Signature, Graph | None] = OrderedDict()
        self._steps: Counter[tuple[torch.Size, ...]] = Counter()
        self._loss: Any = loss
        self._estimator = _equal_estimator(loss) if mode else None
        if mode is True and self._estimator is None:
            self._give_up(f"{type(loss).__name__} reads numbers from tensors, or has no equal in pyro_vae.elbo", None)

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
        if self._estimator is None or not parameters:
            return None
        shapes = tuple(value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        self._steps[shapes] += 1
        if self.mode == "auto" and self._steps[shapes] <= self.auto_steps:
            return None
        modules = _modules([*programs, self._estimator.gradient])
        step = Step(self._estimator, programs, modules, parameters, args, kwargs, self._prepare, self._precision)
        if step.signature not in self._graphs:
            if self._makes_parameters(step):
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
            expected = step.rehearse(step)
            if self._loss is not self._estimator:  # one of Pyro's, which does another thing with some programs
                expected = self._loss_of(step), expected[1]
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
            None where the step is to be run in another way: for other shapes than the last, say.
        """
        if self._recent is None:
            return None
        step, graph = self._recent
        if step.again(parameters, args, kwargs):
            return _advance(step, graph, optimizer, update)
        self._recent = None
        return None

    def _makes_parameters(self, step: Step) -> bool:
        """Runs a step whose result is not needed: it may make parameters, and teaches estimators a program's structure.

        Neither is to be recorded.
        """
        known = len(pyro.get_param_store())
        with contextlib.suppress(Exception):  # recording meets it again, and tells of it
            step.rehearse(step)
        return len(pyro.get_param_store()) > known

    def _loss_of(self, step: Step) -> Tensor:
        """The loss of Pyro's own class, on the random numbers of the step that follows."""

        def run() -> Tensor:
            with torch.no_grad(), pyro.validation_enabled(False):
                args = step.args if step.prepare is None else step.prepare(*step.args)
                return step.parameters[0].new_tensor(self._loss.loss(*step.programs, *args, **step.kwargs))

        return step.rehearse(run)

    def _graph(self, step: Step) -> Graph | None:
        if self._last is not None:
            before, made = self._last
            self._unused = self._unused + 1 if made.runs <= 1 else 0
            if self._unused >= _MAX_UNUSED:
                changed = step.changed_settings(before) or "shapes or parameters"
                self._give_up(f"every step needs a graph of its own, because these change: {changed}", None)
                return None
        try:
            graph = Graph(step)
        except Exception as error:  # noqa: BLE001 - a program or a compiler may fail in any way; it is told of
            self._give_up(next(iter(str(error).strip().splitlines()), type(error).__name__), error)
            return None
        self._last = step.settings, graph
        return graph

    def _give_up(self, reason: str, error: Exception | None) -> None:
        message = f"SVI: expected a step that can be compiled; got one that cannot: {reason}."
        if self.mode is True:
            raise RuntimeError(f"{message} Use compile=False or 'auto'.") from error
        self._estimator = None  # one warning, not one for each signature
        warnings.warn(f"{message} Training goes on without compiling.", stacklevel=5)


def _advance(step: Step, graph: Graph, optimizer: object, update: Callable[[], None]) -> tuple[Tensor, bool]:
    if isinstance(optimizer, torch.optim.Optimizer) and can_capture(optimizer, step.inputs[0].device):
        return graph.advance(step, optimizer, update), True
    loss, gradients = graph(step)
    _set_gradients(step, gradients)
    return loss, False


def _set_gradients(step: Step, gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(step.parameters, gradients, strict=True):
        parameter.grad = gradient


def _equal_estimator(loss: Any) -> Estimator | None:
    """The estimator to record for a loss: itself, or the equal of one of Pyro's; None where there is none."""
    if isinstance(loss, Estimator):
        return None if isinstance(loss.gradient, Enumerate) else loss
    if type(loss) is pyro.infer.Trace_ELBO:
        return ELBO(loss.num_particles, vectorize=loss.vectorize_particles)
    if type(loss) is pyro.infer.TraceMeanField_ELBO:
        return ELBO(loss.num_particles, analytic_kl=True, vectorize=loss.vectorize_particles)
    if type(loss) is pyro.infer.RenyiELBO:
        return RenyiELBO(loss.alpha, loss.num_particles, vectorize=loss.vectorize_particles)
    return None


def _written_constant(graph: GraphModule) -> tuple[int, ...] | None:
    """The shape of a tensor that a recorded graph writes into though it is none of its inputs."""
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable and node.args[0].op == "get_attr":
            return tuple(node.args[0].meta["val"].shape)
    return None


def _differing(step: Step, result: Result, expected: Result) -> str:
    """What differs between two results of a step beyond rounding; empty where nothing does."""
    names = ["the loss", *(f"the gradient of {name}" for name in step.by_name)]
    for name, one, other in zip(names, [result[0], *result[1]], [expected[0], *expected[1]], strict=True):
        if one is None or other is None:
            same = one is other
        else:  # what is not finite in both is the step's own to report
            size = float(other.nan_to_num(0.0, 0.0, 0.0).abs().max()) + 1e-8
            atol = size * _TOLERANCES.get(other.dtype, _TOLERANCES[step.precision])
            same = torch.allclose(one, other, rtol=0.0, atol=atol, equal_nan=True)
        if not same:
            return name
    return ""


def _modules(programs: Sequence[Any]) -> list[nn.Module]:
    """All modules of programs: those that they are, are methods of, close over or name."""
    seen: dict[nn.Module, None] = {}
    for program in programs:
        owner = getattr(program, "__self__", None)
        function = getattr(program, "__func__", program)
        candidates = [program, owner, *getattr(program, "args", ()), *getattr(owner, "__dict__", {}).values()]
        if inspect.isfunction(function):
            variables = inspect.getclosurevars(function)
            candidates += [*variables.nonlocals.values(), *variables.globals.values()]
        for candidate in candidates:
            if isinstance(candidate, nn.Module):
                seen |= dict.fromkeys(candidate.modules())
    return list(seen)
