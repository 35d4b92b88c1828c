"""What a training step computes, and every tensor that it reads."""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType
from typing import Any, Literal, TypeVar

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.compilation.arguments import kind_of, tensors_in
from pyro_vae.compilation.computed import computed, held_by, parts_of
from pyro_vae.elbo import Estimator
from pyro_vae.internals import buffers_of, calls_of, children_of, global_calls
from pyro_vae.traces.modules import bindings_of, is_bound
from pyro_vae.traces.tracing import PyroProgram

Precision = Literal["float32", "tf32", "bfloat16"]
Prepare = Callable[..., tuple[Any, ...]]
Result = tuple[Tensor, list[Tensor | None]]
Signature = tuple[Hashable, ...]
Constants = list[tuple[str, Hashable]]
_T = TypeVar("_T")

_SETTINGS = {bool, int, float, str, NoneType, FunctionType, MethodType, BuiltinFunctionType, partial}


class Step:
    """Loss and gradients of one call of a loss, and every tensor that they are computed from.

    Args:
        loss: any; the ``beta`` of an estimator of ours becomes a tensor here, so that a schedule may change it.
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
        loss: Any,
        programs: tuple[PyroProgram, PyroProgram],
        modules: Sequence[nn.Module],
        parameters: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        prepare: Prepare | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.is_ours = isinstance(loss, Estimator)
        self.loss: Any = copy.copy(loss) if self.is_ours else loss
        self.programs, self.args, self.kwargs = programs, args, kwargs
        self.by_name, self.parameters = parameters, list(parameters.values())
        self.prepare, self.precision = prepare, precision
        self._original: Any = loss
        self._modules = modules
        self._children = self._read_children()
        self._bindings = bindings_of([*programs, *held_by(loss)])
        self.inputs: list[Tensor] = []
        self._beta: list[Tensor] = []
        self._beta_value = 0.0
        self.buffers = self._read_buffers()
        self._take(args, kwargs)
        settings = [
            (part, name, value)
            for part in (*parts_of(loss), *modules)
            for name, value in vars(part).items()
            if _is_setting(value) and not (self.is_ours and part is loss and name == "beta")
        ]
        self._places = [vars(part) for part, _, _ in settings]  # lists that are compared fast at every step
        self._names = [name for _, name, _ in settings]
        self._values = [value for _, _, value in settings]
        self._kinds = [kind_of(value) for value in (*args, *kwargs.values())]
        self.constants: Constants = [(f"{type(part).__name__}.{name}", value) for part, name, value in settings]
        self.constants += zip((*map("argument {}".format, range(1, len(args) + 1)), *kwargs), self._kinds, strict=True)
        self.signature: Signature = (
            tuple(map(kind_of, self.inputs)),
            tuple(map(id, self.parameters)),
            tuple(modules),
            tuple(self._read_calls()),
            tuple(self._kinds),
            tuple(kwargs),
            tuple(self._values),
        )

    def again(self, parameters: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Takes other arguments, where neither they nor anything else that the step reads needs another graph."""
        values = (*args, *kwargs.values())
        buffers = self._read_buffers()
        same = (
            parameters is self.by_name
            and list(kwargs) == list(self.kwargs)
            and len(values) == len(self._kinds)
            and len(buffers) == len(self.buffers)
            and all(map(operator.eq, map(kind_of, values), self._kinds))
            and all(one is other for one, other in zip(buffers, self.buffers, strict=True))
            and len(children := self._read_children()) == len(self._children)
            and all(map(operator.is_, children, self._children))
            and all(map(is_bound, self._bindings))
            and list(map(dict.get, self._places, self._names)) == self._values
        )
        if same:
            self._take(args, kwargs)
        return same

    def _read_children(self) -> list[object]:
        """Submodules, parameters and hooks, each of which the user may replace."""
        return [child for module in self._modules for child in children_of(module)] + self._read_calls()

    def _read_calls(self) -> list[object]:
        sizes = list(map(len, map(vars, self._modules)))  # a new attribute may hide one of the class
        return [*sizes, *global_calls(), *(call for module in self._modules for call in calls_of(module))]

    def _take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        if self.is_ours and hasattr(self._original, "beta"):
            beta = float(self._original.beta)
            if not self._beta or self._beta_value != beta:
                self._beta_value = beta
                self._beta = [self.parameters[0].new_full((), beta)]  # filled by a GPU, which does not wait for it
                vars(self.loss)["beta"] = self._beta[0]  # a tensor, past the check of a number
        self.inputs = [*self.parameters, *self.buffers, *tensors_in((*args, *kwargs.values())), *self._beta]

    def _read_buffers(self) -> list[Tensor]:
        # A frozen parameter is read like a buffer: it may be thawed, trained, and frozen again.
        held = [buffer for module in self._modules for buffer in buffers_of(module)]
        return [*self._original.gradient.buffers(), *held] if self.is_ours else held

    def __call__(self) -> Result:
        """Runs the programs: the loss and a gradient, or None, for each parameter; as tensors, to be recorded."""
        with torch.enable_grad(), pyro.validation_enabled(False):
            with reduced(self.precision, self.parameters[0].device):
                loss, root = computed(self.loss, self.programs, self._prepared(), self.kwargs)
            gradients = torch.autograd.grad(root, self.parameters, allow_unused=True)
        pairs = zip(self.parameters, gradients, strict=True)
        return loss.detach(), [None if gradient is None else laid_out_as(gradient, p) for p, gradient in pairs]

    def eager(self) -> Result:
        """What the loss itself does, in a step without a graph."""
        if self.is_ours:
            return self()
        with torch.enable_grad(), pyro.validation_enabled(False), reduced(self.precision, self.parameters[0].device):
            result = self.loss.loss_and_grads(*self.programs, *self._prepared(), **self.kwargs)
        loss = sum(map(float, result)) if isinstance(result, tuple) else float(result)
        return self.parameters[0].new_tensor(loss), [parameter.grad for parameter in self.parameters]

    def _prepared(self) -> tuple[Any, ...]:
        return self.args if self.prepare is None else self.prepare(*self.args)

    @property
    def fixed(self) -> range:
        """Which of the inputs are buffers: masks and indices among them are taken to select as many at every step."""
        return range(len(self.parameters), len(self.parameters) + len(self.buffers))

    def dry_run(self, run: Callable[[], _T]) -> _T:
        """Runs, and leaves random generators, gradients and buffers (for example running means) as they were."""
        devices = sorted({tensor.device.index for tensor in self.inputs if tensor.is_cuda})
        before = [buffer.clone() for buffer in self.buffers]
        try:
            with torch.random.fork_rng(devices=devices):
                return run()
        finally:
            for buffer, value in zip(self.buffers, before, strict=True):
                buffer.copy_(value)
            for parameter in self.parameters:
                parameter.grad = None

    def changed(self, former: Constants) -> str:
        """What constants differ from those of a former step."""
        pairs = zip(self.constants, former, strict=False)
        return "; ".join(
            f"{name}: {before!r}, then {value!r}" for (name, value), (_, before) in pairs if value != before
        )


def laid_out_as(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient with its numbers in the order of the parameter's in memory, in which fused optimizers read both."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


@contextlib.contextmanager
def reduced(precision: Precision, device: torch.device) -> Iterator[None]:
    """Context manager in which matrix products have a precision, whatever torch's own setting is."""
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


def _is_setting(value: Any) -> bool:
    """Whether a value of Python's is one that a graph has as a constant, and that tells whether it has changed."""
    return type(value) in _SETTINGS or (type(value) is tuple and all(map(_is_setting, value)))
