"""What a GPU would do, without one: which operations a CUDA graph gets, and in which order CUDA is called.

A step is recorded on the device "meta", whose tensors have no values: what reads one, or copies one to the CPU, raises,
and what the CPU computes instead shows in the record.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from test_compilation import ADAM, X, pretend, small_vae
from test_compilation_parity import COMPARED, ESTIMATORS, build
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae import SVI, elbo, fit, internals
from pyro_vae.compilation.reasons import unrepeatable
from pyro_vae.compilation.step import Step
from pyro_vae.elbo import Estimator
from pyro_vae.graphs import cuda_graph
from pyro_vae.svi.losses import with_methods
from pyro_vae.traces.modules import modules_of

META = torch.device("meta")


def record(programs: tuple[Any, Any], loss: Any, *args: Tensor) -> GraphModule:
    """Loss and gradients of a step on the device "meta", whose structure was learned on the CPU."""
    gradient = loss.gradient if isinstance(loss, Estimator) else None
    modules = modules_of([*programs, *(gradient.modules() if gradient is not None else ())])
    with internals.one_fake_mode(), internals.without_sample_checks(), pyro.validation_enabled(False):
        with pyro.get_param_store().scope({"params": {}, "constraints": {}}):
            loss.loss(*programs, *args)
        for module in modules:
            module.to(META)
        for part in gradient.parts() if gradient is not None else ():
            vars(part).update({name: v.to(META) for name, v in vars(part).items() if isinstance(v, Tensor)})
        args = tuple(arg.to(META) for arg in args)
        with pyro.get_param_store().scope({"params": {}, "constraints": {}}):
            poutine.replay(programs[0], poutine.trace(programs[1]).get_trace(*args))(*args)
            parameters = dict(pyro.get_param_store().named_parameters())
            step = Step(loss, programs, modules, parameters, args, {})

            def recorded(*_: Tensor) -> list[Tensor]:
                value, gradients = step()
                return [value, *(g for g in gradients if g is not None)]

            return make_fx(recorded)(*step.inputs)


FAST = {"ELBO, one draw", "IWELBO, dreg"}
CELLS = [cell for cell in COMPARED if cell[0] == "VAE" or cell[1] in FAST]  # every estimator, and every program


@pytest.mark.parametrize(
    ("program", "estimator"),
    [pytest.param(*cell, marks=() if cell[1] in FAST else pytest.mark.slow) for cell in CELLS],
)
def test_unrepeatable_finds_nothing_in_a_step(program: str, estimator: str) -> None:
    programs, args = build(program, torch.float32)
    graph = record(programs, with_methods(ESTIMATORS[estimator]()), *args)
    assert unrepeatable(graph, META) == ""


def written(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[x > 0] = x[0, 0]
    return y


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: x + torch.rand(()), "aten.rand.default"),
        (lambda x: x[torch.randint(2, (2,))], "aten.randint.default"),
        (lambda x: x + torch.tensor(2.0), ""),
        (torch.linalg.cholesky, "aten._linalg_check_errors.default"),
        (written, "aten.index_put_.default"),
        (lambda x: x[torch.tensor([0, 1], device=META)].exp(), ""),
    ],
)
def test_unrepeatable_names_what_the_cpu_does_or_is_asked(function: Callable[[Tensor], Tensor], operation: str) -> None:
    graph = make_fx(function)(torch.empty(2, 2, device=META))
    assert unrepeatable(graph, META) == operation


def test_unrepeatable_sees_inputs_on_the_cpu() -> None:
    graph = make_fx(lambda x, scale: x * scale)(torch.empty(2, device=META), torch.tensor(2.0))
    assert unrepeatable(graph, META) == "scale_1"


# Steps as they are captured; the CPU stands for a GPU


class Calls(TorchDispatchMode):
    """What a capture allows: no number is read, and nothing has a size that depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number is read"
        assert torch.Tag.dynamic_output_shape not in func.tags, f"{func} has a size that depends on values"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Takes the CPU for a GPU, whose graphs repeat in Python; notes captures and steps that warm up."""
    noted: list[str] = []
    pretend(monkeypatch)
    repeat = cuda_graph.capture

    def capture(body: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], None]]:
        noted.append("capture")

        def strict() -> Tensor:
            with Calls():
                return body()

        return repeat(strict, device)

    def warm_up(body: Callable[[], Tensor], device: torch.device) -> Tensor:
        noted.append("warm up")
        with torch.no_grad(), Calls():
            return body()

    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(cuda_graph, "warm_up", warm_up)
    return noted


def trainer(loss: Any = None, **options: Any) -> SVI:
    vae = small_vae().float()
    optimizer = partial(ADAM, fused=True)
    return SVI(vae.model, vae.guide, optimizer, loss or elbo.ELBO(), compile=True, **options)


FIRST = ["warm up"] * 3 + ["capture"]  # after an eager step, and two that are compared
BITS = X.float()


def test_CapturedStep_is_captured_once_and_reads_no_number(captures: list[str]) -> None:
    loss = elbo.ELBO()
    svi = trainer(loss, max_grad_norm=1.0, ema_decay=0.9)
    for step in range(20):
        svi.advance(BITS.clone())
        loss.beta = max(step, 10) / 20
    assert captures == FIRST


def test_CapturedStep_an_argument_that_was_the_same_so_far_is_copied_from_then_on(captures: list[str]) -> None:
    svi = trainer()
    for step in range(20):
        svi.advance(BITS if step < 10 else BITS.clone())
    assert captures == 2 * FIRST


def move(svi: SVI) -> None:
    """What moving a module to another device and back does to its parameters."""
    for parameter in svi.named_parameters().values():
        parameter.data = parameter.data.clone()


CHANGES: dict[str, Callable[[SVI], None]] = {
    "clipping": lambda svi: setattr(svi, "max_grad_norm", 1e-9),
    "decay of averages": lambda svi: setattr(svi, "ema_decay", 0.5),
    "betas": lambda svi: group_of(svi).update(betas=(0.1, 0.2)),
    "weight decay": lambda svi: group_of(svi).update(weight_decay=0.5),
    "a loaded state": lambda svi: optimizer_of(svi).load_state_dict(copy.deepcopy(optimizer_of(svi).state_dict())),
    "memory": move,
}


def optimizer_of(svi: SVI) -> torch.optim.Optimizer:
    assert isinstance(svi.optimizer, torch.optim.Optimizer)
    return svi.optimizer


def group_of(svi: SVI) -> dict[str, Any]:
    return optimizer_of(svi).param_groups[0]


@pytest.mark.parametrize("change", CHANGES)
def test_CapturedStep_is_captured_anew_where_another_is_asked_for(change: str, captures: list[str]) -> None:
    svi = trainer()
    for step in range(20):
        if step == 10:
            CHANGES[change](svi)
        svi.advance(BITS)
    assert captures == 2 * FIRST


def test_CapturedStep_gradients_that_are_not_finite_move_nothing(captures: list[str]) -> None:
    class Steep(PyroModule):
        """A loss that is finite, and a gradient that is not, at x = 0."""

        def __init__(self) -> None:
            super().__init__("steep")
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Tensor) -> None:
            assert isinstance(self.seen, Tensor)
            self.seen.add_(x.mean(0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
                root = (x * self.weight).abs().sqrt()
                pyro.sample("x", dist.Normal(z + root, 1.0).to_event(1), obs=x)

    model = Steep()
    svi = SVI(model, AutoNormal(model), partial(ADAM, fused=True), elbo.ELBO(), compile=True)
    x = torch.ones(4, 3)
    for _ in range(8):
        svi.advance(x.clone())
    before, seen = model.weight.detach().clone(), model.seen.clone()
    for _ in range(2):
        assert bool(torch.as_tensor(svi.advance(torch.zeros_like(x))).isnan())
    assert captures == FIRST
    assert torch.equal(model.weight, before)
    assert torch.equal(model.seen, seen)
    assert bool(torch.as_tensor(svi.advance(x.clone())).isfinite())
    assert not torch.equal(model.weight, before)


def test_fit_counts_a_step_of_a_CUDA_graph_that_is_skipped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = SVI.advance

    def as_captured(self: SVI, *args: Any) -> Tensor:
        """Takes a step, as a CUDA graph does, before its loss is known not to be finite."""
        loss = torch.as_tensor(advance(self, *args))
        return loss if self.num_steps % 4 else loss * torch.nan

    monkeypatch.setattr(SVI, "advance", as_captured)
    steps: list[int] = []
    options: dict[str, Any] = {"compile": False, "progress": False, "on_step": lambda step, _: steps.append(step)}
    history = fit(small_vae().float(), BITS, epochs=3, batch_size=4, nonfinite="skip", **options)
    assert [row["skipped"] for row in history.epochs] == [1, 1, 1]
    assert steps == list(range(1, 13))


def test_CapturedStep_that_cannot_be_captured_goes_on_without(
    captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(body: Callable[[], Tensor], device: torch.device) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nSearch for it")

    monkeypatch.setattr(cuda_graph, "capture", refused)
    svi = trainer()
    with pytest.warns(UserWarning, match=r"can repeat; got an error: CUDA error: .* is capturing\. Training goes on"):
        losses = [float(svi.advance(BITS)) for _ in range(12)]
    assert len(set(losses)) == 12
    assert captures == ["warm up"] * 9


def test_can_capture_no_step_that_calls_a_users_code() -> None:
    weight, device = [nn.Parameter(torch.ones(2))], torch.device("cuda:0")

    class Own(torch.optim.Adam):
        pass

    assert cuda_graph.can_capture(torch.optim.AdamW(weight, fused=True), device)
    assert not cuda_graph.can_capture(torch.optim.Adam(weight), device)
    assert not cuda_graph.can_capture(torch.optim.SGD(weight, fused=True), device)
    assert not cuda_graph.can_capture(Own(weight, fused=True), device)
    assert not cuda_graph.can_capture(torch.optim.Adam(weight, fused=True), torch.device("cpu"))
    hooked = torch.optim.Adam(weight, fused=True)
    handle = hooked.register_step_post_hook(lambda *_: None)
    assert not cuda_graph.can_capture(hooked, device)
    handle.remove()
    assert cuda_graph.can_capture(hooked, device)


def test_CapturedStep_learning_rates_are_of_32_bits_as_fused_kernels_read_them(captures: list[str]) -> None:
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, partial(ADAM, fused=True), elbo.ELBO(), compile=True)
    for _ in range(8):
        svi.advance(X)
    assert captures == FIRST
    assert group_of(svi)["lr"].dtype == torch.float32


# The order in which CUDA is called


class Stand:
    """What torch.cuda has, noting what is called."""

    def __init__(self, noted: list[str], name: str) -> None:
        self.noted, self.name = noted, name

    def __enter__(self) -> None:
        self.noted.append(f"enter {self.name}")

    def __exit__(self, *_: object) -> None:
        self.noted.append(f"exit {self.name}")

    def wait_stream(self, other: Stand) -> None:
        self.noted.append(f"{self.name} waits for {other.name}")

    def replay(self) -> None:
        self.noted.append("replay")


def test_capture_is_on_the_device_and_the_stream_that_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[str] = []

    def graph(graph: Stand, stream: Stand, capture_error_mode: str) -> Stand:
        return Stand(noted, f"capture on {stream.name}, {capture_error_mode}")

    stands = {
        "CUDAGraph": lambda: Stand(noted, "graph"),
        "Stream": lambda device: Stand(noted, f"side of {device}"),
        "current_stream": lambda device: Stand(noted, f"present of {device}"),
        "stream": lambda stream: Stand(noted, stream.name),
        "device": lambda device: Stand(noted, str(device)),
        "graph": graph,
    }
    for name, stand in stands.items():
        monkeypatch.setattr(torch.cuda, name, stand)
    cuda_graph._side_stream.cache_clear()

    def body() -> Tensor:
        noted.append(f"body, gc {gc.isenabled()}, gradients {torch.is_grad_enabled()}")
        return torch.ones(())

    device = torch.device("cuda:1")
    cuda_graph.warm_up(body, device)
    _, replay = cuda_graph.capture(body, device)
    replay()
    cuda_graph._side_stream.cache_clear()
    assert noted == [
        "side of cuda:1 waits for present of cuda:1",
        "enter side of cuda:1",
        "body, gc True, gradients False",
        "exit side of cuda:1",
        "present of cuda:1 waits for side of cuda:1",
        "enter cuda:1",
        "enter capture on side of cuda:1, thread_local",
        "body, gc False, gradients False",
        "exit capture on side of cuda:1, thread_local",
        "exit cuda:1",
        "replay",
    ]
    assert gc.isenabled()
