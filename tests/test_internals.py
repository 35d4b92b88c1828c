"""The private names of torch and Pyro: what is relied on of each, and that they stand in one file."""

import re
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import internals

ROOT = Path(__file__).parents[1] / "pyro_vae"
PRIVATE = re.compile(
    r"^(from|import) (torch|pyro)\S*\._|^from torch\S* import .*\b_(?!size)[a-zA-Z]|\btorch(\.\w+)*\._(?!_)|"
    r"\._(cdata|schema|pyro_params|pyro_samples|pyro_dims|pyro_name|categorical|params|cached_logDetJ|get_optim|trainer)\b|"
    r"\b_(forward_hooks|forward_pre_hooks|state_waiting_to_be_consumed|enumerate_dim|enumerate_symbol|dim_to_symbol)\b",
    re.MULTILINE,
)


def test_internals_has_the_private_names_in_one_file() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): match[0]
        for path in ROOT.rglob("*.py")
        if path.name != "internals.py" and (match := PRIVATE.search(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize("line", ["import torch._inductor", "from torch._guards import tracing", "x._cdata"])
def test_internals_private_name_is_seen(line: str) -> None:
    assert PRIVATE.search(line)


def test_children_of_and_calls_of_a_module() -> None:
    outer = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU())
    assert internals.children_of(outer) == [2, outer[0], outer[1], 0]
    assert internals.calls_of(outer) == []

    def hook(module: nn.Module, given: object) -> None: ...

    outer.register_forward_pre_hook(hook)
    assert internals.calls_of(outer) == [outer, hook, None]


def test_compile_graph_takes_a_recorded_graph() -> None:
    def function(x: torch.Tensor) -> list[torch.Tensor]:
        y = x.clone()
        y.mul_(2)
        return [y]

    x = torch.arange(3.0)
    with internals.one_fake_mode():
        graph = make_fx(function)(x)
    assert [internals.is_mutable(node) for node in graph.graph.nodes if node.op == "call_function"] == [False, True]
    assert internals.compile_graph(graph, [x])(x)[0].tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_is_out_of_memory_knows_torchs_words(error: Exception) -> None:
    assert internals.is_out_of_memory(error)
    assert not internals.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_is_out_of_memory_knows_what_torch_raises() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert internals.is_out_of_memory(caught.value)


def test_linear_by_onednn_is_a_product() -> None:
    x, weight, bias = torch.randn(4, 3), torch.randn(5, 3), torch.randn(5)
    torch.testing.assert_close(internals.linear_by_onednn(x, weight, bias), x @ weight.T + bias)


def test_standard_gamma_has_gradients() -> None:
    a = torch.full((10_000,), 2.0, requires_grad=True)
    draws = internals.standard_gamma(a)
    assert abs(draws.mean().item() - 2) < 5 * (2 / 10_000) ** 0.5
    (gradient,) = torch.autograd.grad(draws.sum(), a)
    assert gradient.mean().item() == pytest.approx(1, abs=0.05)  # d E[x] / da, standard error .01


def test_storage_key_is_shared_by_views() -> None:
    x = torch.zeros(4)
    assert internals.storage_key(x) == internals.storage_key(x[1:])
    assert internals.storage_key(x) != internals.storage_key(x.clone())


def test_without_pyro_parameters_sees_parameters_of_pyro() -> None:
    assert internals.without_pyro_parameters(PyroModule("module"))
    module = PyroModule("module")
    module.scale = PyroParam(torch.ones(()), dist.constraints.positive)
    assert not internals.without_pyro_parameters(module)


def test_without_sample_checks_asks_no_distribution_that_is_held() -> None:
    held = dist.Gamma(torch.ones(2), 1.0, validate_args=True)
    with internals.without_sample_checks():
        held.log_prob(-torch.ones(2))
    with pytest.raises(ValueError, match="within the support"):
        held.log_prob(-torch.ones(2))
