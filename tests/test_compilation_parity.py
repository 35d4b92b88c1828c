"""Compiled training is eager training: every estimator on every kind of program, losses and gradients of each step.

Most tests run a graph as it was recorded, in which any difference between recording and running shows; the slow ones
compile it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from bounds import BOUNDS
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import constraints

from pyro_vae import (
    SVI,
    VAE,
    HierarchicalVAE,
    SemiSupervisedVAE,
    compilation,
    conditionals,
    elbo,
    likelihoods,
    nets,
    priors,
)

Programs = tuple[Any, Any]  # model and guide
Gradients = list[Tensor | None]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Relative: of the loss, and of the largest entry of a parameter's gradient."""

X = (torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.5).double()
LABELS = torch.tensor([0, -1, 2, -1, 1])

GRADIENTS = ("pathwise", "stl", "dreg", "score", "vimco")
ESTIMATORS: dict[str, Callable[[], Any]] = {
    f"{name}, {gradient}": partial(make, 4, gradient)
    for (name, make), gradient in product(BOUNDS.items(), GRADIENTS)
    if (name, gradient) != ("VRMax", "dreg")
}
ESTIMATORS |= {
    "ELBO, one draw": elbo.ELBO,
    "ELBO, analytic KL": lambda: elbo.ELBO(4, beta=0.5, analytic_kl=True),
    "ELBO, free bits": lambda: elbo.ELBO(4, analytic_kl=True, free_bits=0.3),
    "IWELBO, leave one out": lambda: elbo.IWELBO(4, elbo.Score("leave_one_out")),
    "ELBO, running mean": lambda: elbo.ELBO(4, gradient=elbo.Score("running_mean")),
    "IWELBO, learned baseline": lambda: elbo.IWELBO(4, elbo.Score(Baseline())),
    "IWELBO, VIMCO arithmetic": lambda: elbo.IWELBO(4, elbo.VIMCO("arithmetic")),
    "IWELBO, OVIS 0": lambda: elbo.IWELBO(4, elbo.OVIS(0.0)),
    "IWELBO, OVIS 1": lambda: elbo.IWELBO(4, elbo.OVIS(1.0)),
    "IWELBO, looped": lambda: elbo.IWELBO(2, "dreg", vectorize=False),
    "PIWELBO": lambda: elbo.PIWELBO(2, num_bounds=2),
    "TVO, covariance": lambda: elbo.ThermodynamicELBO(4, partitions=3, gradient="covariance"),
    "wake": lambda: elbo.ReweightedWakeSleep(4),
    "wake and sleep": lambda: elbo.ReweightedWakeSleep(2, insomnia=0.5),
    "ELBO, enumerate": lambda: elbo.ELBO(2, "enumerate"),
    "pyro, Trace": pyro.infer.Trace_ELBO,
    "pyro, Trace, vectorized": lambda: pyro.infer.Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1),
    "pyro, TraceMeanField": lambda: pyro.infer.TraceMeanField_ELBO(2),
    "pyro, Renyi": lambda: pyro.infer.RenyiELBO(0.5, 4, vectorize_particles=True, max_plate_nesting=1),
    "pyro, Renyi, looped": lambda: pyro.infer.RenyiELBO(0.0, 2),
    "pyro, TraceGraph": lambda: pyro.infer.TraceGraph_ELBO(2),
    "pyro, TraceEnum": lambda: pyro.infer.TraceEnum_ELBO(max_plate_nesting=1),
    "pyro, TraceEnum, vectorized": lambda: pyro.infer.TraceEnum_ELBO(2, vectorize_particles=True, max_plate_nesting=1),
    "pyro, TraceTMC": lambda: pyro.infer.TraceTMC_ELBO(max_plate_nesting=1),
    "pyro, ReweightedWakeSleep": lambda: pyro.infer.ReweightedWakeSleep(3, max_plate_nesting=1),
    "pyro, function": lambda: pyro.infer.Trace_ELBO().differentiable_loss,
}


class Baseline(nn.Module):
    """A regression of the score's signal on x."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return nn.functional.linear(x, self.linear.weight.to(x), self.linear.bias.to(x)).squeeze(-1)


def vae(
    prior: priors.Prior | None = None, posterior: Callable[..., conditionals.Conditional] = conditionals.DiagonalNormal
) -> Programs:
    likelihood = likelihoods.Bernoulli(nets.MLP(2, [3]), 4)
    whole = VAE(prior or priors.StandardNormal(2), likelihood, posterior(nets.MLP(4, [3]), 2))
    return whole.model, whole.guide


def hierarchy(inference: Any) -> Programs:
    whole = HierarchicalVAE(
        priors.StandardNormal(2),
        [conditionals.DiagonalNormal(nets.MLP(2, [3]), 3)],
        likelihoods.Bernoulli(nets.MLP(3, [3]), 4),
        [conditionals.DiagonalNormal(nets.MLP(4, [3]), 3), conditionals.DiagonalNormal(nets.MLP(3, [3]), 2)],
        inference=inference,
    )
    return whole.model, whole.guide


def semi_supervised() -> Programs:
    whole = SemiSupervisedVAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(nets.MLP(2, [3], context_shapes=[3]), 4),
        conditionals.DiagonalNormal(nets.MLP(4, [3], context_shapes=[3]), 2),
        conditionals.OneHotCategorical(nets.MLP(4, [3]), 3),
        classification_weight=2.0,
    )
    return whole.model, whole.guide


class Mixture(PyroModule):
    """x ~ Normal(W z, 1), z ~ Normal(loc[c], 1), c ~ Categorical: c is summed out of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.loc = nn.Parameter(torch.tensor([0.3, 0.0, -0.2])), nn.Parameter(torch.randn(3, 2))
        self.linear = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.loc[c], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.linear(z), 1.0).to_event(1), obs=x)


def mixture() -> Programs:
    _, guide = vae()
    return Mixture(), guide


def functions() -> Programs:
    def model(x: Tensor) -> None:
        weight = pyro.param("weight", lambda: x.new_tensor([[0.5, -0.3, 0.2, 0.1], [0.1, 0.4, -0.2, 0.3]]))
        noise = pyro.param("noise", lambda: x.new_tensor(0.8), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        weight = pyro.param("amortized", lambda: x.new_tensor([[0.5, -0.3], [0.2, 0.1], [0.1, 0.4], [-0.2, 0.3]]))
        scale = pyro.param("scale", lambda: x.new_tensor([0.6, 0.9]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, scale).to_event(1))

    return model, guide


def autoguide() -> Programs:
    model, _ = vae()
    return model, AutoNormal(model)


PROGRAMS: dict[str, Callable[[], Programs]] = {
    "VAE": vae,
    "VampPrior": lambda: vae(priors.VampPrior(X[:3].float())),
    "IAF": lambda: vae(
        posterior=partial(conditionals.InverseAutoregressiveFlow, num_layers=2, hidden=[4], context_dim=2)
    ),
    "bottom-up": lambda: hierarchy("bottom-up"),
    "top-down": lambda: hierarchy("top-down"),
    "bits": lambda: vae(priors.Bernoulli(2), conditionals.Bernoulli),
    "classes": semi_supervised,
    "summed class": mixture,
    "functions": functions,
    "autoguide": autoguide,
}


def build(program: str, dtype: torch.dtype) -> tuple[Programs, tuple[Tensor, ...]]:
    """Model, guide and their arguments; the same weights each time."""
    torch.manual_seed(0)
    programs = PROGRAMS[program]()
    for part in programs:
        if isinstance(part, nn.Module):
            part.to(dtype)
    return programs, (X.to(dtype), LABELS) if program == "classes" else (X.to(dtype),)


class Training:
    """Stochastic gradient descent whose losses and gradients are kept."""

    def __init__(
        self, programs: Programs, loss: pyro.infer.ELBO, mode: compilation.Compile, optimizer: Any = torch.optim.SGD
    ) -> None:
        self.losses: list[float] = []
        self.gradients: list[Gradients] = []
        self.make_optimizer = optimizer
        self.svi = SVI(*programs, self.watched, loss, compile=mode, isolated=True)
        torch.manual_seed(1)

    def watched(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.make_optimizer(parameters, lr=1e-3)
        optimizer.register_step_pre_hook(lambda *_: self.gradients.append(self.gradient()))
        return optimizer

    def gradient(self) -> Gradients:
        return [None if p.grad is None else p.grad.clone() for p in self.svi.named_parameters().values()]

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.svi.named_parameters().values()])

    def step(self, *args: Tensor) -> None:
        self.losses.append(self.svi.step(*args))


def train(
    program: str, estimator: str, dtype: torch.dtype, mode: compilation.Compile, steps: int = 4, **options: Any
) -> Training:
    programs, args = build(program, dtype)
    training = Training(programs, ESTIMATORS[estimator](), mode, **options)
    for _ in range(steps):
        training.step(*args)
    return training


def deviation(one: Training, other: Training) -> float:
    """The largest difference of a loss or a gradient at any step, relative to it."""
    assert len(one.gradients) == len(other.gradients) == len(one.losses) == len(other.losses)
    worst = max(abs(a - b) / abs(b) for a, b in zip(one.losses, other.losses, strict=True))
    for mine, its in zip(one.gradients, other.gradients, strict=True):
        for a, b in zip(mine, its, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None and not torch.equal(a, b):
                worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return worst


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs run as they were recorded."""
    monkeypatch.setattr(compilation.graph, "compile_graph", lambda graph, inputs: graph)
    with tracing(TracingContext(FakeTensorMode())):  # without one, recording makes one for every operation
        yield


# What there is to compare, and what is refused


DISCRETE = ("bits", "classes")
NOT_REPARAMETERIZED = "expected a reparameterized guide at site"
NO_CLOSED_FORM = "expected a closed form at site"
OTHER_ORDER = "expected the guide to draw its latents in the model's order"


def refusal(program: str, estimator: str) -> str:
    """The error that an eager step raises; empty where it raises none."""
    if estimator == "pyro, TraceMeanField":
        return {"summed class": "c"}.get(program, "must be fully reparameterized" if program in DISCRETE else "")
    if estimator == "pyro, TraceGraph":  # which draws the class, and then misses it in the guide
        return "c" if program == "summed class" else ""
    needs = (", pathwise", ", stl", ", dreg", ", looped", "PIWELBO", "one draw", "analytic KL", "free bits")
    if program in DISCRETE and estimator.endswith(needs) and not estimator.startswith("pyro"):
        return NOT_REPARAMETERIZED
    if estimator in ("ELBO, analytic KL", "ELBO, free bits"):
        without = ("VampPrior", "IAF", "summed class", "autoguide")
        return OTHER_ORDER if program == "bottom-up" else NO_CLOSED_FORM if program in without else ""
    if estimator == "wake and sleep":
        return {"classes": "expected the observed value of site 'label'", "autoguide": "that the model dreams up"}.get(
            program, ""
        )
    return ""


Cell = tuple[str, str]
ALL: list[Cell] = list(product(PROGRAMS, ESTIMATORS))
REFUSED = [cell for cell in ALL if refusal(*cell)]
COMPARED = [cell for cell in ALL if cell not in REFUSED]

# One of each way to compute a loss: the others differ in the bound, which knows nothing of the program.
KINDS = (
    "ELBO, one draw",
    "ELBO, analytic KL",
    "ELBO, beta, score",
    "IWELBO, dreg",
    "IWELBO, vimco",
    "IWELBO, looped",
    "PIWELBO",
    "wake and sleep",
    "pyro, Trace",
)


def cells() -> list[Any]:
    """Fast: every estimator on a VAE, and four on every program; the rest is slow."""
    four = ("ELBO, one draw", "ELBO, beta, score", "IWELBO, dreg", "ELBO, enumerate", "pyro, Trace")
    found = []
    for (program, estimator), dtype in product(COMPARED, TOLERANCE):
        if program != "VAE" and estimator not in KINDS and dtype == torch.float32:
            continue  # precision matters to estimators and to programs, but not to each pair of them
        fast = (estimator in four or program == "VAE") and dtype == torch.float64
        name = f"{program}, {estimator}, {str(dtype).removeprefix('torch.')}"
        found.append(pytest.param(program, estimator, dtype, id=name, marks=() if fast else (pytest.mark.slow,)))
    return found


pytestmark = pytest.mark.filterwarnings(
    "ignore:Site 'z'. stl and dreg evaluate",  # slowly, an autoregressive flow
    r"ignore:\w+\s+If you want to enumerate sites",  # Pyro, of a class that is marked for it and drawn
    "ignore:Failed to verify mean field",
    "ignore:.*ound no sample sites configured for enumeration",
    "ignore:Found vars in model but not guide",
    "ignore:.* was not registered in the param store because requires_grad=False",
)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(("program", "estimator", "dtype"), cells())
def test_record_step_is_an_eager_step(program: str, estimator: str, dtype: torch.dtype) -> None:
    eager, graph = (train(program, estimator, dtype, mode) for mode in (False, True))
    assert graph.svi.compiler.num_graphs == 1
    assert deviation(graph, eager) <= TOLERANCE[dtype]
    assert eager.losses[1:] != eager.losses[:-1]


@pytest.mark.parametrize(("program", "estimator"), REFUSED)
def test_record_refuses_what_is_refused_eagerly_at_the_same_step(program: str, estimator: str) -> None:
    for mode in (False, True):
        with pytest.raises((ValueError, NotImplementedError, KeyError), match=refusal(program, estimator)):
            train(program, estimator, torch.float64, mode)


# A gradient for each site


BY_SITE: dict[str, Callable[[], elbo.Estimator]] = {
    "score": lambda: elbo.ELBO(2, {"y": "score", "z": "pathwise"}),
    "enumerate": lambda: elbo.ELBO(2, {"y": "enumerate", "z": "stl"}),
    "enumerate, score": lambda: elbo.ELBO(2, {"y": "enumerate", "z": "score"}, beta=0.7, vectorize=False),
    "left out": lambda: elbo.ELBO(3, {"y": elbo.Score("leave_one_out"), "z": "score"}),
    "running mean": lambda: elbo.ELBO(1, {"y": elbo.Score("running_mean"), "z": "pathwise"}),
    "learned": lambda: elbo.ELBO(1, {"y": elbo.Score(Baseline()), "z": "pathwise"}),
    "IWELBO": lambda: elbo.IWELBO(3, {"y": "vimco", "z": "pathwise"}),
    "IWELBO, ovis": lambda: elbo.IWELBO(3, {"y": "ovis", "z": elbo.Score("running_mean")}),
}


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("name", BY_SITE)
def test_record_step_by_site_is_an_eager_step(name: str) -> None:
    results = []
    for mode in (False, True):
        programs, args = build("classes", torch.float64)
        training = Training(programs, BY_SITE[name](), mode)
        for _ in range(4):
            training.step(*args)
        assert training.svi.compiler.num_graphs == int(mode)
        results.append(training)
    same(*results)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    "make",
    [elbo.ELBO, partial(elbo.IWELBO, gradient="vimco"), partial(elbo.MIWELBO, num_bounds=1), elbo.ReweightedWakeSleep],
)
def test_compile_while_the_number_of_particles_changes(make: Callable[[int], elbo.Estimator]) -> None:
    """Every number has a graph of its own, which serves again when the number comes back."""
    results = []
    for mode in (False, True):
        programs, args = build("VAE", torch.float64)
        loss = make(2)
        training = Training(programs, loss, mode)
        for num_particles in (2, 2, 5, 5, 2, 5):
            loss.num_particles = num_particles
            training.step(*args)
        assert training.svi.compiler.num_graphs == (2 if mode else 0)
        results.append(training)
    same(*results)


# Changes on the way


class Noisy(nets.Body):
    """A body with a layer that does something else in evaluation mode."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__([4], 3)
        self.layers = nn.Sequential(nn.Linear(4, 3, bias=False), layer, nn.Tanh())

    def features(self, *inputs: Tensor) -> Tensor:
        return self.layers(inputs[0])


def same(one: Training, other: Training) -> None:
    assert deviation(one, other) <= TOLERANCE[torch.float64]
    torch.testing.assert_close(one.weights(), other.weights(), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm1d(3), lambda: nn.Dropout(0.3)], ids=["BatchNorm", "Dropout"])
@pytest.mark.parametrize("estimator", ["IWELBO, dreg", "pyro, Trace"])
def test_compile_while_batch_sizes_and_modes_change(layer: Callable[[], nn.Module], estimator: str) -> None:
    results = []
    for mode in (False, True):
        torch.manual_seed(0)
        posterior = conditionals.DiagonalNormal(Noisy(layer()), 2)
        whole = VAE(priors.StandardNormal(2), likelihoods.Bernoulli(nets.MLP(2, [3]), 4), posterior).double()
        training = Training((whole.model, whole.guide), ESTIMATORS[estimator](), mode)
        for step in range(10):
            whole.train(step < 4 or step > 6)
            training.step(X[: 3 if step in (3, 5, 8) else 5])
        assert training.svi.compiler.num_graphs == (4 if mode else 0)
        results.append((training, list(whole.buffers())))
    same(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("estimator", ["ELBO, one draw", "ELBO, beta, dreg", "ELBO, analytic KL", "CIWELBO, dreg"])
def test_compile_while_beta_changes_at_every_step(estimator: str) -> None:
    results = []
    for mode in (False, True):
        programs, args = build("VAE", torch.float64)
        loss: Any = ESTIMATORS[estimator]()
        training = Training(programs, loss, mode)
        for step in range(7):
            loss.beta = step / 6
            training.step(*args)
        assert training.svi.compiler.num_graphs == int(mode)
        results.append(training)
    same(*results)


@pytest.mark.usefixtures("recorded")
def test_compile_while_a_parameter_moves_to_a_group_of_its_own() -> None:
    results = []
    for mode in (False, True):
        programs, args = build("VAE", torch.float64)
        training = Training(programs, elbo.ELBO(), mode)
        for step in range(6):
            if step == 3:
                optimizer = training.svi.optimizer
                assert isinstance(optimizer, torch.optim.Optimizer)
                parameter = optimizer.param_groups[0]["params"].pop()
                optimizer.add_param_group({"params": [parameter], "lr": 0.1})
            training.step(*args)
        results.append(training)
    same(*results)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("first", ["trained", "frozen"])
def test_compile_while_a_guide_is_frozen_and_thawed(first: str) -> None:
    results = []
    for mode in (False, True):
        programs, args = build("VAE", torch.float64)
        training = Training(programs, elbo.ELBO(), mode)
        for step in range(9):
            programs[1].requires_grad_((step // 3 % 2 == 0) == (first == "trained"))
            training.step(*args)
        results.append(training)
    same(*results)


@pytest.mark.usefixtures("recorded")
def test_compile_while_a_parameter_is_made_at_a_later_step() -> None:
    """One for every batch size; the optimizer gets the second when a graph is there already."""
    model, _ = functions()

    def guide(x: Tensor) -> None:
        loc = pyro.param(f"loc of {len(x)}", lambda: x.new_zeros(len(x), 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    results = []
    for mode in (False, True):
        training = Training((model, guide), elbo.ELBO(), mode)
        for step in range(8):
            training.step(X[: 3 if step > 3 and step % 2 else 5])
        results.append(training)
    same(*results)


# Compiled


def compiled() -> list[Any]:
    """Every bound with one of its gradients and every other estimator on a VAE, two estimators on every program."""
    bounds = [f"{name}, {gradient}" for name, gradient in product(BOUNDS, GRADIENTS)]
    some = [name for i, name in enumerate(bounds) if i % 5 == i // 5 % 5]
    chosen = [("VAE", name, torch.float32) for name in ESTIMATORS if name in some or name not in bounds]
    chosen += [("classes", "ELBO, enumerate", torch.float64)]
    for program in PROGRAMS:
        names = ("ELBO, beta, score" if program in DISCRETE else "ELBO, one draw", "IWELBO, vimco")
        chosen += [(program, name, torch.float64) for name in names]
    return [pytest.param(*cell, id=f"{cell[0]}, {cell[1]}") for cell in chosen]


@pytest.mark.slow
@pytest.mark.parametrize(("program", "estimator", "dtype"), compiled())
def test_compile_step_is_an_eager_step(program: str, estimator: str, dtype: torch.dtype) -> None:
    eager, graph = (train(program, estimator, dtype, mode) for mode in (False, True))
    assert graph.svi.compiler.num_graphs == 1
    assert deviation(graph, eager) <= TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize(("program", "estimator"), [("VAE", "ELBO, one draw"), ("IAF", "IWELBO, pathwise")])
def test_compile_hundred_steps_give_the_same_weights(program: str, estimator: str) -> None:
    eager, graph = (
        train(program, estimator, torch.float64, mode, steps=100, optimizer=torch.optim.Adam) for mode in (False, True)
    )
    assert graph.svi.compiler.num_graphs == 1
    torch.testing.assert_close(graph.weights(), eager.weights(), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("program", "estimator"), [("VAE", "IWELBO, dreg"), ("bits", "IWELBO, vimco")])
def test_compile_hundred_steps_in_float32_drift_by_their_rounding(program: str, estimator: str) -> None:
    """Weights differ by no more than the sum of what the gradients may."""
    eager, graph = (train(program, estimator, torch.float32, mode, steps=100) for mode in (False, True))
    assert graph.svi.compiler.num_graphs == 1
    allowed = sum(max(float(g.abs().max()) for g in step if g is not None) for step in eager.gradients)
    drift = (graph.weights() - eager.weights()).abs().max()
    assert 0 < drift <= 1e-3 * TOLERANCE[torch.float32] * allowed
