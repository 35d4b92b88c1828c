"""Compiled, the losses of Pyro and of users do what they do in Pyro's SVI, and say why where they cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormalMessenger
from torch import Tensor, nn

from pyro_vae import SVI, compilation

pytestmark = [
    pytest.mark.usefixtures("fresh"),
    pytest.mark.filterwarnings("ignore:Failed to verify mean field"),
]

X = torch.randn(6, generator=torch.Generator().manual_seed(0)).double()
PARALLEL = {"enumerate": "parallel"}
Program = Callable[..., Any]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """An empty param store; graphs run as they were recorded, except in slow tests."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(compilation.graph, "compile_graph", lambda graph, inputs: graph)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def parameter(name: str, *values: float) -> Tensor:
    value: Tensor = pyro.param(name, lambda: torch.tensor(values if len(values) > 1 else values[0]).double())
    return value


def mixture(x: Tensor) -> None:
    """x is Normal(loc[k] + shift, 1), k one of three."""
    shift = pyro.sample("shift", dist.Normal(torch.zeros(()).double(), 1.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(logits=parameter("prior", 0.3, 0.0, -0.2)))
        y = pyro.sample("y", dist.Bernoulli(logits=parameter("bits", 0.2, 0.4, -0.3)[k]))
        pyro.sample("x", dist.Normal(parameter("loc", -1.0, 0.5, 1.0)[k] + 0.3 * y + shift, 1.0), obs=x)


def shift_alone(x: Tensor) -> None:
    pyro.sample("shift", dist.Normal(parameter("mean", 0.1), parameter("scale", 0.5).exp()))


def outside(x: Tensor) -> None:
    shift = pyro.sample("shift", dist.Normal(torch.zeros(()).double(), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(parameter("a", 0.5) * shift, 1.0), obs=x)


def mixture_guide(x: Tensor, masses: Program | None = None, infer: Any = None) -> None:
    shift_alone(x)
    with pyro.plate("data", len(x)):
        logits = x[:, None] * parameter("slope", 0.5, 0.1, -0.4)
        if masses is not None:
            logits = masses(logits)
        k = pyro.sample("k", dist.Categorical(logits=logits), infer=infer)
        pyro.sample("y", dist.Bernoulli(logits=parameter("of y", 0.1, 0.4, 0.2)[k]), infer=infer)


def guide(**options: Any) -> Program:
    return lambda x: mixture_guide(x, **options)


def without_the_first(logits: Tensor) -> Tensor:
    """A class of probability 0 for some data, whose log-density is -inf."""
    first = torch.tensor([0.0, -torch.inf, 0.0, 0.0, -torch.inf, 0.0]).double()
    return logits + torch.stack([first, torch.zeros(6).double(), torch.zeros(6).double()], -1)


def chain(x: Tensor) -> None:
    """A hidden Markov model of two states."""
    state: Any = 0
    transition = parameter("transition", 0.7, -0.4)
    for t in pyro.markov(range(len(x))):
        probs = transition.sigmoid()[state]
        state = pyro.sample(f"s{t}", dist.Bernoulli(probs), infer={"enumerate": "parallel"}).long()
        pyro.sample(f"x{t}", dist.Normal(parameter("level", -0.5, 0.8)[state], 1.0), obs=x[t])


def nothing(x: Tensor) -> None:
    parameter("unused", 0.0)


def latent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Laplace(torch.zeros(()).double(), 1.0))
        u = pyro.sample("u", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(parameter("a", 0.5) * u, 1.0), obs=x)


def latent_guide(x: Tensor) -> None:
    """No closed form at z; an auxiliary site."""
    with pyro.plate("data", len(x)):
        e = pyro.sample("e", dist.Normal(torch.zeros(()).double(), 1.0), infer={"is_auxiliary": True})
        z = pyro.sample("z", dist.Normal(parameter("mean", 0.2) * x + 0.1 * e, parameter("scale", 0.1).exp()))
        pyro.sample("u", dist.Normal(z, 0.7))


class Baseline(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.3).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x


def learned_baseline() -> Program:
    baseline = Baseline()
    infer: Any = {"baseline": {"nn_baseline": baseline}}

    def program(x: Tensor) -> None:
        pyro.module("baseline", baseline)
        with pyro.plate("data", len(x)):
            infer["baseline"]["nn_baseline_input"] = x
            pyro.sample("k", dist.Bernoulli(logits=parameter("slope", 0.4) * x), infer=infer)

    return program


def bit(x: Tensor, **_: Any) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.4).double()))
        pyro.sample("x", dist.Normal(k * parameter("a", 0.7), 1.0), obs=x, infer={"was_observed": True})


def bit_guide(x: Tensor, observations: Any = None, **baseline: Any) -> None:
    x = x if observations is None else observations["x"]
    with pyro.plate("data", x.shape[-1]):
        logits = parameter("slope", 0.4) * x + parameter("offset", 0.1)
        infer: Any = {"baseline": baseline}
        pyro.sample("k", dist.Bernoulli(logits=logits), infer=infer)


class Own(pyro.infer.Trace_ELBO):
    """A user's: half of the loss twice, with its value read from tensors."""

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        total = 0.0
        for _ in range(2):
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
            (loss / 2).backward()
            total += loss.item() / 2
        return total


def enum(**options: Any) -> Callable[[], pyro.infer.ELBO]:
    return lambda: pyro.infer.TraceEnum_ELBO(max_plate_nesting=1, **options)


def marked(program: Program, **options: Any) -> Callable[[], Program]:
    return lambda: config_enumerate(program, **options)


Case = tuple[Callable[[], Program], Callable[[], Program], Callable[[], Any]]
CASES: dict[str, Case] = {
    "enum, guide": (lambda: mixture, marked(mixture_guide), enum()),
    "enum, guide, nesting guessed": (lambda: mixture, marked(mixture_guide), pyro.infer.TraceEnum_ELBO),
    "enum, guide, expanded, particles": (
        lambda: mixture,
        marked(mixture_guide, expand=True),
        enum(num_particles=2, vectorize_particles=True),
    ),
    "enum, guide, looped": (lambda: mixture, marked(mixture_guide), enum(num_particles=2)),
    "enum, drawn": (lambda: mixture, lambda: mixture_guide, enum(strict_enumeration_warning=False)),
    "enum, impossible values": (lambda: mixture, lambda: guide(masses=without_the_first, infer=PARALLEL), enum()),
    "enum, several draws": (lambda: mixture, lambda: guide(infer={**PARALLEL, "num_samples": 4}), enum()),
    "enum, model": (marked(mixture), lambda: shift_alone, enum()),
    "enum, markov": (lambda: chain, lambda: nothing, lambda: pyro.infer.TraceEnum_ELBO(max_plate_nesting=0)),
    "enum, sequential": (
        lambda: lambda x: bit(x[:1]),
        lambda: config_enumerate(lambda x: bit_guide(x[:1]), "sequential"),
        enum(),
    ),
    "tmc": (
        lambda: mixture,
        marked(mixture_guide, num_samples=3, expand=False),
        lambda: pyro.infer.TraceTMC_ELBO(max_plate_nesting=1),
    ),
    "graph": (lambda: mixture, lambda: mixture_guide, pyro.infer.TraceGraph_ELBO),
    "graph, particles": (lambda: mixture, lambda: mixture_guide, lambda: pyro.infer.TraceGraph_ELBO(3)),
    "graph, learned baseline": (lambda: bit, learned_baseline, pyro.infer.TraceGraph_ELBO),
    "score": (lambda: mixture, lambda: mixture_guide, lambda: pyro.infer.Trace_ELBO(2)),
    "mean field": (lambda: latent, lambda: latent_guide, pyro.infer.TraceMeanField_ELBO),
    "renyi, no plate around everything": (lambda: outside, lambda: shift_alone, lambda: pyro.infer.RenyiELBO(0.0, 3)),
    "renyi": (lambda: latent, lambda: latent_guide, lambda: pyro.infer.RenyiELBO(0.5, 3)),
    "wake and sleep": (
        lambda: bit,
        lambda: bit_guide,
        lambda: pyro.infer.ReweightedWakeSleep(3, insomnia=0.5, vectorize_particles=False),
    ),
    "guide messenger": (lambda: latent, lambda: AutoNormalMessenger(latent), pyro.infer.Trace_ELBO),
    "own": (lambda: bit, lambda: bit_guide, Own),
    "a function": (lambda: latent, lambda: latent_guide, lambda: pyro.infer.Trace_ELBO().differentiable_loss),
}


def train(case: Case, kind: Callable[..., Any], steps: int = 5) -> tuple[list[float], dict[str, Tensor]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide, loss = (make() for make in case)
    svi = kind(model, guide, pyro.optim.SGD({"lr": 0.05}), loss)  # type: ignore[attr-defined]
    losses = [svi.step(X) for _ in range(steps)]
    if isinstance(svi, SVI):
        assert svi.compiler.num_graphs == 1
    values = {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}
    if isinstance(svi, SVI):
        values |= {name: p.detach().clone() for name, p in svi.named_parameters().items()}
    return losses, values


def compiled(*args: Any) -> SVI:
    return SVI(*args, compile=True)


def check(name: str) -> None:
    def of_pyro(model: Program, guide: Program, optimizer: Any, loss: Any) -> Any:
        if not isinstance(loss, pyro.infer.ELBO):
            loss = pyro.infer.Trace_ELBO()
        return pyro.infer.SVI(model, guide, optimizer, loss)

    expected, their_values = train(CASES[name], of_pyro)
    losses, values = train(CASES[name], compiled)
    expected = [sum(map(float, loss)) if isinstance(loss, tuple) else loss for loss in expected]
    assert losses == pytest.approx(expected, rel=1e-10)
    assert len(set(losses)) == len(losses)
    assert values.keys() == their_values.keys()
    for key, value in values.items():
        torch.testing.assert_close(value, their_values[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_step_is_pyros(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_compiled_step_is_pyros(name: str) -> None:
    check(name)


def test_a_recorded_enumeration_is_exact() -> None:
    """Loss and gradients are those of the sum over both bits of every datum."""
    gradients: list[Tensor | None] = []

    def still(parameters: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.0)
        optimizer.register_step_pre_hook(lambda *_: gradients.extend(p.grad for p in parameters))
        return optimizer

    svi = compiled(bit, config_enumerate(bit_guide), still, enum()())
    losses = [svi.step(X) for _ in range(4)]
    values = {name: p.detach().clone().requires_grad_() for name, p in svi.named_parameters().items()}
    k = torch.tensor([[0.0], [1.0]]).double()
    log_p = dist.Bernoulli(torch.tensor(0.4).double()).log_prob(k) + dist.Normal(k * values["a"], 1.0).log_prob(X)
    log_q = dist.Bernoulli(logits=values["slope"] * X + values["offset"]).log_prob(k)
    exact = (log_q.exp() * (log_q - log_p)).sum()
    assert svi.compiler.num_graphs == 1
    assert losses == pytest.approx([exact.item()] * 4, rel=1e-12)
    expected = torch.autograd.grad(exact, list(values.values()))
    for gradient, its in zip(gradients[-len(values) :], expected, strict=True):
        torch.testing.assert_close(gradient, its, rtol=1e-12, atol=1e-14)


# What has no graph


def refusal(model: Program, guide: Program, loss: Any, match: str, *args: Any, optimizer: Any = None) -> None:
    """A step without a graph is an error that says why, or eager with a warning, and is then Pyro's."""
    optimizer = optimizer or pyro.optim.SGD  # type: ignore[attr-defined]
    message = f"SVI: expected a step that can be compiled; got one that cannot: {match}"
    results = []
    for kind in (pyro.infer.SVI, SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi: Any = kind(model, guide, optimizer({"lr": 0.05}), loss())
        if isinstance(svi, SVI):
            svi.compiler.auto_steps = 0
            svi.step(*args)
            with pytest.warns(UserWarning, match=message):
                svi.step(*args)
        else:
            svi.step(*args)
            svi.step(*args)
        results.append([svi.step(*args) for _ in range(4)])
    assert svi.compiler.num_graphs == 0
    assert results[1] == pytest.approx(results[0], rel=1e-12)
    pyro.clear_param_store()
    svi = SVI(model, guide, optimizer({"lr": 0.05}), loss(), compile=True)
    svi.step(*args)
    with pytest.raises(RuntimeError, match=message):
        svi.step(*args)


def test_a_running_baseline_in_pyros_store_is_named() -> None:
    def program(x: Tensor) -> None:
        bit_guide(x, use_decaying_avg_baseline=True)

    match = "it replaces the parameter '__baseline_avg_downstream_cost_k' of Pyro's param store"
    refusal(bit, program, pyro.infer.TraceGraph_ELBO, match, X)


class Counting(pyro.infer.Trace_ELBO):
    """Scales the gradient by what it remembers of past losses."""

    def __init__(self) -> None:
        super().__init__()
        self.past = 1.0

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        (loss / self.past).backward()
        self.past = 0.9 * self.past + 0.1 * loss.item()
        return loss.item()


class Backward(pyro.infer.Trace_ELBO):
    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        torch.autograd.backward(loss)
        return loss.item()


class Branching(pyro.infer.Trace_ELBO):
    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        (loss if loss.item() > 0 else 2 * loss).backward()
        return loss.item()


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (Counting, "Counting changes its 'past' as it runs"),
        (Backward, "Backward calls backward on nothing"),
        (Branching, r"'loss_and_grads' reads numbers from a tensor.*at test_compilation_computed.py:\d+"),
        (
            lambda: pyro.infer.TraceTailAdaptive_ELBO(3, vectorize_particles=True),
            "the loss of TraceTailAdaptive_ELBO is the number inf, which it does not compute from tensors",
        ),
    ],
)
def test_a_loss_that_has_no_graph_is_named(loss: Any, match: str) -> None:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(parameter("mean", 0.2) * x, parameter("scale", 0.1).exp()))
            pyro.sample("u", dist.Normal(z, 0.7))

    refusal(latent, program, loss, match, X)
