"""The compiled step: parity with the eager one, and what happens where there is none."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor

from pyro_vae import SVI, VAE, compilation, conditionals, elbo, likelihoods, nets, priors

ADAM = partial(torch.optim.Adam, lr=1e-3)
X = (torch.rand(16, 6, generator=torch.Generator().manual_seed(0)) < 0.5).double()


def small_vae() -> VAE:
    torch.manual_seed(0)
    return VAE(
        prior=priors.MixtureOfNormals(2, num_components=3),
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [4]), 6),
        posterior=conditionals.DiagonalNormal(nets.MLP(6, [4]), 2),
    ).double()


def train(vae: VAE, loss: pyro.infer.ELBO, mode: compilation.Compile, steps: int = 12) -> tuple[SVI, list[float]]:
    svi = SVI(vae.model, vae.guide, ADAM, loss, compile=mode)
    torch.manual_seed(1)
    return svi, [svi.step(X) for _ in range(steps)]


def weights(vae: VAE) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


LOSSES: dict[str, Callable[[], pyro.infer.ELBO]] = {
    "ELBO": elbo.ELBO,
    "IWELBO, dreg": lambda: elbo.IWELBO(3, gradient="dreg"),
    "IWELBO, vimco": lambda: elbo.IWELBO(3, gradient="vimco"),
    "running mean": lambda: elbo.ELBO(gradient=elbo.Score("running_mean")),
    "Trace_ELBO": pyro.infer.Trace_ELBO,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_steps_are_eager_steps(name: str) -> None:
    eager, compiled = small_vae(), small_vae()
    _, expected = train(eager, LOSSES[name](), False)
    svi, losses = train(compiled, LOSSES[name](), True)
    assert svi.compiler.num_graphs == 1
    assert losses == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_a_seed_reproduces_a_compiled_run_bit_for_bit_and_steps_differ() -> None:
    first, second = small_vae(), small_vae()
    _, losses = train(first, elbo.ELBO(), True)
    _, again = train(second, elbo.ELBO(), True)
    assert losses == again
    assert torch.equal(weights(first), weights(second))
    torch.manual_seed(0)
    frozen = SVI(first.model, first.guide, partial(torch.optim.SGD, lr=0.0), elbo.ELBO(), compile=True)
    assert len({frozen.step(X) for _ in range(6)}) == 6


@pytest.mark.slow
def test_beta_and_the_learning_rate_do_not_recompile_but_shapes_and_modes_do() -> None:
    vae, loss = small_vae(), elbo.ELBO()
    eager = copy.deepcopy(vae)
    svi, reference = (SVI(v.model, v.guide, ADAM, loss, compile=mode) for v, mode in ((vae, True), (eager, False)))
    for step in range(8):
        loss.beta = step / 8
        for one in (svi, reference):
            if isinstance(one.optimizer, torch.optim.Optimizer):
                one.optimizer.param_groups[0]["lr"] = 1e-3 * (step + 1)
            torch.manual_seed(step)
            one.step(X)
    assert svi.compiler.num_graphs == 1
    torch.testing.assert_close(weights(vae), weights(eager), rtol=1e-10, atol=1e-12)
    svi.step(X[:5])
    assert svi.compiler.num_graphs == 2
    vae.eval()
    svi.step(X)
    assert svi.compiler.num_graphs == 3


@pytest.mark.slow
def test_functions_with_pyro_param_are_compiled_with_their_constraints() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: x.new_zeros(len(x)))
        scale = pyro.param("scale", lambda: x.new_ones(len(x)), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    x = X[:, 0]
    results = []
    for mode in (False, True):
        optimizer = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 0.05})
        svi = SVI(model, guide, optimizer, pyro.infer.Trace_ELBO(), compile=mode)
        torch.manual_seed(0)
        results.append([svi.step(x) for _ in range(12)])
        assert svi.compiler.num_graphs == int(mode)
    assert results[1] == pytest.approx(results[0], rel=1e-10)


def branching(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        scale = 1.0 if z.sum() > 0 else 2.0  # control flow that depends on a draw
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def branching_guide(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: x.new_zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def test_control_flow_that_depends_on_data_is_refused() -> None:
    svi = SVI(branching, branching_guide, ADAM, elbo.ELBO(), compile=True)
    svi.step(X[:, 0])
    with pytest.raises(RuntimeError, match="SVI: expected a step that can be compiled"):
        svi.step(X[:, 0])


def test_auto_goes_on_eagerly_with_one_warning() -> None:
    svi = SVI(branching, branching_guide, ADAM, elbo.ELBO())
    svi.compiler.auto_steps = 0
    svi.step(X[:, 0])
    with pytest.warns(UserWarning, match="Training goes on without compiling"):
        svi.step(X[:, 0])
    svi.step(X[:, 0])  # no second warning, which the test configuration would make an error
    assert svi.compiler.num_graphs == 0


def test_auto_compiles_only_after_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO())
    svi.compiler.auto_steps = 3
    asked: list[int] = []
    monkeypatch.setattr(svi.compiler, "_graph", lambda step: asked.append(svi.num_steps))
    for _ in range(6):
        svi.step(X)
    assert asked == [4]  # after the first step, which finds the parameters, and three more


def test_a_wrong_graph_is_found_by_the_comparison_with_an_eager_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph whose gradients are stale, as those of a parameter recorded as a constant are after an update."""
    vae, expected = small_vae(), small_vae()

    class Stale:
        checks = 2

        def __init__(self, step: compilation.Step) -> None:
            self.result = step.rehearse(step)

        def __call__(self, step: compilation.Step) -> Any:
            step()  # uses the random numbers of a step
            return self.result

    monkeypatch.setattr(compilation, "Graph", Stale)
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(gradient="stl"))
    svi.compiler.auto_steps = 0
    torch.manual_seed(1)
    svi.step(X)
    svi.step(X)
    with pytest.warns(UserWarning, match="differs from the eager step's on the same random numbers"):
        svi.step(X)
    svi.step(X)
    assert svi.compiler.num_graphs == 0
    train(expected, elbo.ELBO(gradient="stl"), False, steps=4)
    torch.testing.assert_close(weights(vae), weights(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", [elbo.ELBO(gradient="enumerate"), pyro.infer.TraceGraph_ELBO()])
def test_what_has_no_graph_is_refused_when_asked_for(loss: pyro.infer.ELBO) -> None:
    vae = small_vae()
    with pytest.raises(RuntimeError, match=f"{type(loss).__name__} reads numbers from tensors, or has no equal"):
        SVI(vae.model, vae.guide, ADAM, loss, compile=True)
    assert SVI(vae.model, vae.guide, ADAM, loss).step(X)


@pytest.mark.slow
def test_without_a_compiler_training_goes_on_with_one_warning(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_compilation import *
vae = small_vae()
svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO())
svi.compiler.auto_steps = 0
losses = [svi.step(x) for x in (X, X, X[:5], X, X)]
print(len(losses), svi.compiler.num_graphs)
"""
    environment = {**os.environ, "PATH": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    environment.pop("CXX", None)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.stdout.split() == ["5", "0"], result.stderr
    assert result.stderr.count("Training goes on without compiling") == 1


def test_an_unknown_mode_is_refused() -> None:
    vae = small_vae()
    with pytest.raises(ValueError, match="expected compile True, False or 'auto'; got 'always'"):
        SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile="always")  # type: ignore[arg-type]
