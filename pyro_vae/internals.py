"""What torch and Pyro keep to themselves and this package needs: the one place of their private names.

A release of either may change any of it; ``.ci/versions`` runs its tests on the releases that ``setup.cfg`` admits.
Everything may import this module, and it imports nothing of the package.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from pyro.infer.util import Dice
from pyro.nn import PyroModule
from pyro.ops.provenance import detach_provenance
from pyro.optim import PyroOptim
from pyro.poutine.runtime import _PYRO_STACK
from pyro.util import warn_if_nan
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.distributions import Distribution
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.nn.modules import module as every_module
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.optim import optimizer as every_optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

__all__ = [
    "BatchNorm",
    "TorchDispatchMode",
    "bytes_of_result",
    "calls_of",
    "category_of",
    "children_of",
    "compile_graph",
    "dim_to_symbol",
    "enumerate_dim",
    "enumerate_symbol",
    "forward_hooks",
    "global_calls",
    "has_step_hooks",
    "is_mutable",
    "is_out_of_memory",
    "linear_by_onednn",
    "num_handlers",
    "one_fake_mode",
    "optimizer_of",
    "packed_dims",
    "planar_log_det",
    "planar_parameters",
    "pyro_name",
    "recorded_node",
    "refused_by_cuda_graphs",
    "return_memory",
    "set_pyro_name",
    "standard_gamma",
    "storage_key",
    "sums_of_dice",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "waiting_state",
    "without_nan_warnings",
    "without_pyro_parameters",
    "without_sample_checks",
]


def return_memory() -> None:
    """Gives memory that was freed back to the system, where the C library holds it: glibc's, which does so for long.

    Small tensors that are kept, between large ones that are freed, leave holes too small for the next large ones; of
    5,000 draws in chunks of 25, which need 180 MB at a time, it held 3 GB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def bytes_of_result(function: Any, args: Any, kwargs: Any) -> int:
    """Bytes of new memory that an operation is about to take for what it returns, as tensors without values tell."""
    schema = function._schema
    if schema.is_mutable or any(
        each.alias_info is not None or "Tensor" not in str(each.type) for each in schema.returns
    ):
        return 0
    given = {name: value for name, value in kwargs.items() if name != "generator"}
    args, given = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, given))
    if "device" in given or not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, given))):
        given["device"] = "meta"
    try:
        found = tree_leaves(function(*args, **given))
    except (RuntimeError, TypeError):  # those whose result depends on values, or that fail anyway
        return 0
    return sum(leaf.numel() * leaf.element_size() for leaf in found if isinstance(leaf, Tensor))


def one_fake_mode() -> AbstractContextManager[Any]:
    """Context manager in which recording makes one mode of fake tensors; each operation would make one of its own."""
    return tracing(TracingContext(FakeTensorMode()))


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """A recorded graph by Inductor, for inputs of these shapes.

    Eager kernels draw the random numbers, in the order of an eager step: the same numbers, and no slower on a CPU.
    """
    import torch._inductor  # a second, and settings of the process, that only compiling is worth

    # Whole steps are captured here, optimizer included: its own CUDA graphs would be captured within.
    patches = {"fallback_random": True, "reorder_for_peak_memory": False, "triton.cudagraphs": False}
    options = {"config_patches": patches}
    return torch._inductor.standalone_compile(
        graph, list(inputs), dynamic_shapes="from_example_inputs", options=options
    )


def recorded_node(tensor: Tensor) -> Node | None:
    """While operations are recorded, the one that made a tensor; None for one that comes from elsewhere."""
    mode = get_proxy_mode()
    slot: Any = None if mode is None else get_proxy_slot(detach_provenance(tensor), mode.tracer, None)
    return None if slot is None else slot.proxy.node


def refused_by_cuda_graphs(graph: GraphModule) -> set[Node]:
    """Operations of a record that read numbers on a GPU, or of which Inductor knows that a CUDA graph refuses them."""
    from torch._inductor.utils import get_first_incompatible_cudagraph_node  # as heavy as compiling

    found = set(graph.graph.find_nodes(op="call_function", target=torch.ops.aten._linalg_check_errors.default))
    first = get_first_incompatible_cudagraph_node(graph)
    return found if first is None else {*found, first}


def has_step_hooks(optimizer: Any) -> bool:
    """Whether something is called before or after every step of an optimizer."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or every_optimizer._global_optimizer_pre_hooks
        or every_optimizer._global_optimizer_post_hooks
    )


def is_mutable(node: Node) -> bool:
    """Whether a recorded operation writes into an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, a CPU's, of which torch says so in words alone, or a GPU's."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    )


def linear_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` by oneDNN, on a CPU."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def storage_key(tensor: Tensor) -> int:
    """What tells the memory of a tensor from that of others as long as it lives."""
    return tensor.untyped_storage()._cdata


def standard_gamma(concentration: Tensor) -> Tensor:
    """A reparameterized draw of Gamma(concentration, 1)."""
    return torch._standard_gamma(concentration)


def children_of(module: nn.Module) -> list[object]:
    """The submodules and parameters of a module itself, and how many there are of each."""
    return [child for held in (module._modules, module._parameters) for child in (len(held), *held.values())]


def buffers_of(module: nn.Module) -> list[Tensor]:
    """The buffers of a module itself, and its frozen parameters; ten times as fast as ``buffers(recurse=False)``."""
    held = [buffer for buffer in module._buffers.values() if buffer is not None]
    return held + [p for p in module._parameters.values() if p is not None and not p.requires_grad]


def calls_of(module: nn.Module) -> list[object]:
    """What a call of a module does beside its class's forward: hooks, and a forward of its own; mostly nothing."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    backward, backward_before = module._backward_hooks, module._backward_pre_hooks
    if not (before or after or backward or backward_before or "forward" in vars(module)):
        return []
    hooks = [hook for each in (before, after, backward, backward_before) for hook in each.values()]
    return [module, *hooks, vars(module).get("forward")]


_GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    every_module._global_forward_pre_hooks,
    every_module._global_forward_hooks,
    every_module._global_backward_pre_hooks,
    every_module._global_backward_hooks,
)


def global_calls() -> list[object]:
    """The hooks of all modules."""
    return [hook for hooks in _GLOBAL_HOOKS if hooks for hook in hooks.values()]


def without_pyro_parameters(module: Any) -> bool:
    """Whether a PyroModule has neither ``PyroParam`` nor ``PyroSample`` attributes of its own."""
    return not (module._pyro_params or module._pyro_samples)


def packed_dims(tensor: Any) -> str:
    """Symbols of the dims of a tensor that Pyro has packed for enumeration."""
    return tensor._pyro_dims


def num_handlers() -> int:
    """How many of Pyro's effect handlers are at work."""
    return len(_PYRO_STACK)


class _Masked(TorchFunctionMode):
    """Context manager in which what a mask leaves out is 0 in place of absent: the same in a sum, of static size."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is Tensor.all:  # asked of the mask, to spare the selection
            return False
        if func is Tensor.masked_select:
            value, mask = args
            return value.where(mask, 0.0)
        return func(*args, **(kwargs or {}))


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def sums_of_dice() -> AbstractContextManager[None]:
    """Context manager in which the expectations of ``pyro.infer.TraceEnum_ELBO`` select nothing by its value."""
    compute = Dice.compute_expectation

    def compute_expectation(self: Dice, costs: Any) -> Any:
        with _Masked():
            return compute(self, costs)

    return _replaced(Dice, "compute_expectation", compute_expectation)


@contextmanager
def without_nan_warnings() -> Iterator[None]:
    """Context manager in which Pyro's losses, and those that are made like them, do not look whether they are NaN."""
    with ExitStack() as stack:
        for module in [m for m in sys.modules.values() if getattr(m, "__dict__", {}).get("warn_if_nan") is warn_if_nan]:
            stack.enter_context(_replaced(module, "warn_if_nan", lambda value, *_, **__: value))
        yield


def without_sample_checks() -> AbstractContextManager[None]:
    """Context manager in which no distribution asks whether a value is in its support.

    One that was made while Pyro validated, and is held by a module as a prior often is, would ask ever after.
    """
    return _replaced(Distribution, "_validate_sample", lambda self, value: None)


def enumerate_dim(site: Any) -> Any:
    """The dim in which Pyro lays out the values of an enumerated site; None of another."""
    return site["infer"].get("_enumerate_dim")


def enumerate_symbol(site: Any) -> str:
    """The letter that Pyro gives to that dim in a packed tensor."""
    return site["infer"]["_enumerate_symbol"]


def dim_to_symbol(site: Any) -> dict[int, str]:
    """The letters of the dims of a site's packed density."""
    return site["infer"]["_dim_to_symbol"]


def waiting_state(optimizer: PyroOptim) -> dict[str, Any]:
    """What was loaded into an optimizer of Pyro's, for parameters that it has not met yet."""
    return optimizer._state_waiting_to_be_consumed


def optimizer_of(recipe: PyroOptim, parameter: Tensor) -> Any:
    """The optimizer that one of Pyro's makes for a parameter."""
    return recipe._get_optim(parameter)


def forward_hooks(module: nn.Module) -> dict[str, list[Any]]:
    """The hooks of a module's calls, by the attributes that hold them."""
    return {kind: list(vars(module)[kind].values()) for kind in ("_forward_hooks", "_forward_pre_hooks")}


def pyro_name(module: object) -> str | None:
    """The name under which a PyroModule's parameters are in Pyro's store."""
    return getattr(module, "_pyro_name", None)


def set_pyro_name(module: PyroModule, name: str) -> None:
    """Gives a PyroModule another such name."""
    module._pyro_name = name


def category_of(one_hot: Any) -> Distribution:
    """The Categorical that a OneHotCategorical of torch is made from."""
    return one_hot._categorical


def planar_parameters(transform: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Bias, u and w of a ConditionedPlanar of Pyro's."""
    return transform._params


def planar_log_det(transform: Any) -> Tensor | None:
    """The log-determinant that it has kept of its last call."""
    return transform._cached_logDetJ
