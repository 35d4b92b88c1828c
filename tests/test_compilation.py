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
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import SVI, VAE, compilation, conditionals, data, elbo, likelihoods, nets, priors
from pyro_vae.compilation import compiler, graph
from pyro_vae.compilation.step import Step
from pyro_vae.graphs import cuda_graph, onednn

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
def test_compile_compiled_steps_are_eager_steps(name: str) -> None:
    eager, compiled = small_vae(), small_vae()
    _, expected = train(eager, LOSSES[name](), False)
    svi, losses = train(compiled, LOSSES[name](), True)
    assert svi.compiler.num_graphs == 1
    assert losses == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_compile_seed_reproduces_a_compiled_run_bit_for_bit_and_steps_differ() -> None:
    first, second = small_vae(), small_vae()
    _, losses = train(first, elbo.ELBO(), True)
    _, again = train(second, elbo.ELBO(), True)
    assert losses == again
    assert torch.equal(weights(first), weights(second))
    torch.manual_seed(0)
    frozen = SVI(first.model, first.guide, partial(torch.optim.SGD, lr=0.0), elbo.ELBO(), compile=True)
    assert len({frozen.step(X) for _ in range(6)}) == 6


@pytest.mark.slow
def test_compile_beta_and_the_learning_rate_do_not_recompile_but_shapes_and_modes_do() -> None:
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
    svi.step(X[:5])  # the first step of a shape is eager, and validated
    assert svi.compiler.num_graphs == 1
    svi.step(X[:5])
    assert svi.compiler.num_graphs == 2
    vae.eval()
    svi.step(X)
    assert svi.compiler.num_graphs == 3


@pytest.mark.slow
def test_compile_functions_with_pyro_param_are_compiled_with_their_constraints() -> None:
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
        pyro.clear_param_store()
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


def test_compile_control_flow_that_depends_on_data_is_refused() -> None:
    svi = SVI(branching, branching_guide, ADAM, elbo.ELBO(), compile=True)
    svi.step(X[:, 0])
    with pytest.raises(RuntimeError, match="SVI: expected a step that can be compiled"):
        svi.step(X[:, 0])


def test_compile_auto_goes_on_eagerly_with_one_warning() -> None:
    svi = SVI(branching, branching_guide, ADAM, elbo.ELBO())
    svi.compiler.auto_steps = 0
    svi.step(X[:, 0])
    with pytest.warns(UserWarning, match="Training goes on without compiling"):
        svi.step(X[:, 0])
    svi.step(X[:, 0])  # no second warning, which the test configuration would make an error
    assert svi.compiler.num_graphs == 0


def test_compile_auto_compiles_only_after_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO())
    svi.compiler.auto_steps = 3
    asked: list[int] = []
    monkeypatch.setattr(svi.compiler, "_graph", lambda step: asked.append(svi.num_steps))
    for _ in range(6):
        svi.step(X)
    assert asked == [4]  # after the first step, which finds the parameters, and three more


def test_compile_wrong_graph_is_found_by_the_comparison_with_an_eager_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph whose gradients are stale, as those of a parameter recorded as a constant are after an update."""
    vae, expected = small_vae(), small_vae()

    class Stale:
        checks = 2

        def __init__(self, step: Step) -> None:
            self.result = step.dry_run(step)

        def __call__(self, step: Step) -> Any:
            step()  # uses the random numbers of a step
            return self.result

    monkeypatch.setattr(compiler, "Graph", Stale)
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


@pytest.mark.slow
def test_compile_without_a_compiler_training_goes_on_with_one_warning(tmp_path: Path) -> None:
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


def test_compile_refuses_an_unknown_mode() -> None:
    vae = small_vae()
    with pytest.raises(ValueError, match="expected compile True, False or 'auto'; got 'always'"):
        SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile="always")  # type: ignore[arg-type]


class Tempered(nets.Body):
    """A decoder whose slope is a number in Python, or a buffer."""

    def __init__(self, slope: float | Tensor) -> None:
        super().__init__([2], 4)
        self.linear = nn.Linear(2, 4)
        if isinstance(slope, Tensor):
            self.register_buffer("slope", slope)
        else:
            self.slope = slope
        self.counting = False
        self.calls = 0

    def features(self, *inputs: Tensor) -> Tensor:
        self.calls += self.counting
        return torch.tanh(self.linear(inputs[0]) * self.slope)


def tempered(slope: float | Tensor) -> tuple[VAE, Tempered]:
    torch.manual_seed(0)
    body = Tempered(slope)
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(body, 6),
        conditionals.DiagonalNormal(nets.MLP(6, [4]), 2),
    )
    return vae.double(), body


@pytest.mark.slow
def test_compile_buffer_that_changes_every_step_is_an_input() -> None:
    results = []
    for mode in (False, True):
        vae, body = tempered(torch.tensor(1.0))
        svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=mode)
        torch.manual_seed(1)
        for step in range(8):
            body.get_buffer("slope").fill_(1.0 + step)
            svi.step(X)
        results.append(weights(vae))
        assert svi.compiler.num_graphs == int(mode)
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs recorded graphs as they are recorded, for what does not concern the compiler."""
    monkeypatch.setattr(graph, "compile_graph", lambda recorded, _: recorded)


def test_compile_first_step_of_every_shape_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    uncompiled(monkeypatch)
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=True)
    for _ in range(5):
        svi.step(X)
    with pytest.raises(ValueError, match="expected binary values, 0 or 1"):
        svi.step(X[:5] + 0.5)
    svi.step(X.t().contiguous().t())  # other strides are another graph
    assert svi.compiler.num_graphs == 2


def test_compile_another_number_in_python_is_another_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    uncompiled(monkeypatch)
    results = []
    for mode in (False, True):
        vae, body = tempered(1.0)
        svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=mode)
        torch.manual_seed(1)
        for step in range(8):
            body.slope = 1.0 if step < 4 else 3.0
            svi.step(X)
        results.append(weights(vae))
        assert svi.compiler.num_graphs == 2 * mode
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("what", ["a schedule", "a side effect"])
def test_compile_number_in_python_that_changes_every_step_is_named(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uncompiled(monkeypatch)
    vae, body = tempered(1.0)
    body.counting = what == "a side effect"
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=True)
    name = "calls" if body.counting else "slope"

    def train_with_a_schedule() -> None:
        for step in range(20):
            body.slope = 1.0 if body.counting else 1.0 + step
            svi.step(X)

    message = f"every step needs a graph of its own, because these change: Tempered.{name}"
    with pytest.raises(RuntimeError, match=message):
        train_with_a_schedule()


def normalized() -> tuple[Callable[[Tensor], None], Callable[[Tensor], None], nn.BatchNorm1d]:
    """Functions that reach a module with running means by name."""
    torch.manual_seed(0)
    norm, decoder, encoder = nn.BatchNorm1d(6).double(), nn.Linear(2, 6).double(), nn.Linear(6, 2).double()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("norm", norm)
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(norm(x)), 1.0).to_event(1))

    return model, guide, norm


def test_compile_buffers_of_modules_that_functions_name_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    uncompiled(monkeypatch)
    means = []
    for mode in (False, True):
        model, guide, norm = normalized()
        svi = SVI(model, guide, ADAM, elbo.ELBO(), compile=mode)
        torch.manual_seed(1)
        for start in range(6):
            svi.step(X[start : start + 8])
        assert svi.compiler.num_graphs == int(mode)
        assert norm.running_mean is not None
        means.append(norm.running_mean)
    torch.testing.assert_close(means[1], means[0], rtol=1e-12, atol=0.0)


def test_compile_needs_a_buffer_for_a_tensor_that_is_written_to() -> None:
    total = torch.zeros((), dtype=torch.float64)

    def model(x: Tensor) -> None:
        total.add_(x.sum())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    svi = SVI(model, branching_guide, ADAM, elbo.ELBO(), compile=True)
    svi.step(X[:, 0])
    with pytest.raises(RuntimeError, match=r"it writes into a tensor of shape \(\), which is no parameter"):
        svi.step(X[:, 0])


class PyroExample(nn.Module):
    """The class of Pyro's own VAE example, with its bound methods."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)
        self.decoder = nn.Linear(2, 6)

    def model(self, x: Tensor) -> Tensor:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], 2, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], 2, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = torch.sigmoid(self.decoder.forward(z))
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x.reshape(-1, 6))
            return loc_img

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, log_scale = self.encoder.forward(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(z_loc, log_scale.exp()).to_event(1))


@pytest.mark.slow
@pytest.mark.usefixtures("global_store")
def test_compile_takes_pyros_own_example_by_changing_one_import() -> None:
    losses = []
    for make in (pyro.infer.SVI, partial(SVI, compile=True)):
        pyro.clear_param_store()
        torch.manual_seed(0)
        vae = PyroExample().double()
        svi = make(
            vae.model, vae.guide, pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3}), loss=pyro.infer.Trace_ELBO()
        )
        losses.append([svi.step(X) for _ in range(12)])
    assert isinstance(svi, SVI)
    assert svi.compiler.num_graphs == 1
    assert isinstance(svi.optimizer, torch.optim.Adam)
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


@pytest.mark.slow
def test_compile_has_batches_clipping_schedules_and_averages_in_the_fast_path() -> None:
    images = torch.randint(256, (40, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dataset = data.Dataset("bits", images, levels=255, binarization="dynamic")
    results = []
    for mode in (False, True):
        vae = small_vae().float()
        svi = SVI(
            vae.model,
            vae.guide,
            partial(ADAM, fused=True),
            elbo.ELBO(),
            compile=mode,
            prepare=dataset.gather,
            max_grad_norm=1.0,
            ema_decay=0.9,
        )
        torch.manual_seed(1)
        losses = []
        for step in range(12):
            losses.append(svi.step(torch.arange(step, step + 16), images))
            assert isinstance(svi.optimizer, torch.optim.Adam)
            svi.optimizer.param_groups[0]["lr"] *= 0.9
        assert svi.compiler.num_graphs == int(mode)
        with svi.averaged():
            results.append((weights(vae), losses))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-6)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-5)


@pytest.mark.slow
def test_compile_in_bfloat16_is_the_eager_step_within_its_rounding() -> None:
    x, results = X.float(), []
    for mode in (False, True):
        vae = small_vae().float()
        svi = SVI(
            vae.model, vae.guide, partial(torch.optim.SGD, lr=1e-3), elbo.ELBO(), compile=mode, precision="bfloat16"
        )
        before = weights(vae)
        torch.manual_seed(1)
        losses = [svi.step(x) for _ in range(6)]
        assert svi.compiler.num_graphs == int(mode)
        results.append((weights(vae) - before, losses))
    assert results[1][1] == pytest.approx(results[0][1], rel=2**-8)
    assert (results[1][0] - results[0][0]).norm() < 2**-6 * results[0][0].norm()


@pytest.mark.parametrize(("rows", "features", "outputs"), [(128, 200, 100), (2000, 50, 300)])
def test_use_onednn_takes_large_products(rows: int, features: int, outputs: int) -> None:
    """The second transposes the product's smaller factor."""
    x, weight, bias = torch.randn(rows, features), torch.randn(outputs, features), torch.randn(outputs)

    def products(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        y = torch.nn.functional.linear(x, weight, bias)
        return [y, y.t() @ x, torch.nn.functional.linear(x[:2], weight), y.double() @ weight.double()]  # two are large

    recorded = make_fx(products)(x, weight, bias)
    onednn.use_onednn(recorded)
    replaced = [node for node in recorded.graph.nodes if "pyro_vae" in str(node.target)]
    available = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    assert len(replaced) == (2 if available else 0)
    assert all(result.is_contiguous() for result in recorded(x, weight, bias))
    exact = products(x.double(), weight.double(), bias.double())
    for ours, expected in zip(recorded(x, weight, bias), exact, strict=True):
        # The rounding errors of a sum of n terms grow as a random walk, at most.
        assert (ours - expected).norm() < 2**-24 * max(rows, features) ** 0.5 * expected.norm()


# The whole step as a CUDA graph


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the CPU for a GPU, and repeats in Python what a CUDA graph would repeat."""

    def capture(body: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], None]]:
        result = X.new_zeros(())

        def replay() -> None:
            with torch.no_grad():
                result.copy_(body())

        return result, replay

    def can_capture(optimizer: object, device: torch.device) -> bool:
        return isinstance(optimizer, torch.optim.Adam) and device.type == "cpu"

    uncompiled(monkeypatch)
    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(cuda_graph, "warm_up", torch.no_grad()(lambda body, device: body()))
    monkeypatch.setattr(compiler, "can_capture", can_capture)


def test_CapturedStep_is_an_eager_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With batches, beta and learning rate that change, a schedule that writes numbers, clipping and averages."""
    images = torch.randint(256, (40, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dataset = data.Dataset("bits", images, levels=255, binarization="dynamic")
    results = []
    for mode in (False, True):
        if mode:
            pretend(monkeypatch)
        vae, loss = small_vae().float(), elbo.ELBO()
        svi = SVI(
            vae.model,
            vae.guide,
            partial(ADAM, fused=True),
            loss,
            compile=mode,
            prepare=dataset.gather,
            max_grad_norm=1.0,
            ema_decay=0.9,
        )
        torch.manual_seed(1)
        losses = []
        for step in range(12):
            loss.beta = step / 12
            losses.append(svi.step(torch.arange(step, step + 16), images if step < 8 else images.clone()))
            assert isinstance(svi.optimizer, torch.optim.Adam)
            rate = svi.optimizer.param_groups[0]["lr"]
            assert isinstance(rate, Tensor) == (mode and step > 2)  # after the eager step and two that are checked
            svi.optimizer.param_groups[0]["lr"] = 0.9 * float(rate) if step % 2 else rate
        with svi.averaged():
            results.append((weights(vae), losses))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-7)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-5)


def test_CapturedStep_leaves_the_parameters_where_the_loss_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    vae, x = small_vae().float(), X.float()
    svi = SVI(vae.model, vae.guide, partial(ADAM, fused=True), elbo.ELBO(), compile=True)
    for _ in range(5):
        svi.step(x)
    before, bad = weights(vae), torch.full_like(x, torch.nan)
    assert not bool(torch.isfinite(torch.as_tensor(svi.advance(bad))))
    assert torch.equal(weights(vae), before)
    with pytest.raises(
        FloatingPointError, match=r"expected a finite loss at step 7; got nan\. Sites .*'x' of the model"
    ):
        svi.step(bad)
    assert torch.equal(weights(vae), before)
    assert isinstance(svi.advance(x), Tensor)
    assert not torch.equal(weights(vae), before)


@pytest.mark.cuda
@pytest.mark.parametrize("make", [lambda: elbo.ELBO(), lambda: elbo.IWELBO(5, gradient="dreg")])
def test_CapturedStep_on_cuda_trains_as_eager_steps_do(make: Callable[[], pyro.infer.ELBO]) -> None:
    x, results = X.float().cuda(), []
    for mode in (False, True):
        vae = small_vae().float().cuda()
        svi = SVI(vae.model, vae.guide, partial(ADAM, fused=True), make(), compile=mode)
        torch.manual_seed(1)
        losses = [float(svi.advance(x)) for _ in range(30)]
        assert len(set(losses)) == 30  # new random numbers in each
        results.append((weights(vae), losses))
    # Inductor's kernels round differently, and a CUDA graph may draw other random numbers than eager steps.
    assert sum(results[1][1][-10:]) == pytest.approx(sum(results[0][1][-10:]), rel=0.1)
    assert bool(results[1][0].isfinite().all())


@pytest.mark.cuda
def test_fit_on_cuda_reads_the_loss_once_per_epoch() -> None:
    vae, x = small_vae().float().cuda(), X.float().cuda()
    torch.cuda.set_sync_debug_mode("default")
    svi = SVI(vae.model, vae.guide, partial(ADAM, fused=True), elbo.ELBO(), compile=True)
    for _ in range(5):
        svi.advance(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [svi.advance(x) for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(isinstance(loss, Tensor) and bool(loss.isfinite()) for loss in losses)


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("how", ["another loss", "another setting"])
def test_compile_follows_a_loss_that_the_user_changes(how: str, stock: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    uncompiled(monkeypatch)
    make: Any = pyro.infer.Trace_ELBO if stock else elbo.ELBO
    results = []
    for mode in (False, True):
        vae = small_vae()
        svi = SVI(vae.model, vae.guide, ADAM, make(), compile=mode)
        torch.manual_seed(1)
        for step in range(10):
            if step == 5 and how == "another loss":
                svi.loss = make(3)
            elif step == 5:
                svi.loss.num_particles = 3
            svi.step(X)
        results.append(weights(vae))
        assert (svi.compiler.num_graphs > 0) == mode
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def test_compile_takes_another_module_in_place_of_one_for_another_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    uncompiled(monkeypatch)
    results = []
    for mode in (False, True):
        vae = small_vae()
        svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=mode)
        torch.manual_seed(1)
        for step in range(8):
            if step == 4:
                vae.model.prior = priors.StandardNormal(2).double()
            svi.step(X)
        results.append(weights(vae))
        assert svi.compiler.num_graphs == 2 * mode
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)
