"""All that a GPU is to be asked, in one run, the most telling first.

    python benchmarks/gpu.py                    # under 8 minutes on an H200
    python benchmarks/gpu.py --only parity replay
    python benchmarks/gpu.py --device cpu --quick     # tests the script itself, in a minute or two

It prints as it goes. A part that fails is named at the end, and their number is the exit status. A part that may not
end within the budget is left out, with a word; one that takes twice its time on a GPU is stopped, and has failed. Peak
is that of a product of two large matrices, measured here.

MNIST is read from PYRO_VAE_DATA, a folder with MNIST/raw. For a machine without network, and without Pyro, carry what
it lacks, from the root of the checkout, in a folder that git ignores:

    mkdir .whl && echo /.whl/ >> .git/info/exclude
    python -m pip download --no-deps -d .whl pyro-ppl pyro-api zuko jsonargparse platformdirs filelock
    tar -czf .whl/mnist.tar.gz -C "$PYRO_VAE_DATA" MNIST

and there, with .whl carried:

    python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl && tar -xzf .whl/mnist.tar.gz -C /tmp
    PYTHONPATH=/tmp/site:. PYRO_VAE_DATA=/tmp python3 benchmarks/gpu.py
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import deep
import step_time
import torch
from contenders import our_vae
from devices import description, device, milliseconds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyro_vae import SVI, VAE, TopDownVAE, conditionals, data, elbo, fit, likelihoods, nets, priors
from pyro_vae.compilation import Precision

ROOT = Path(__file__).parents[1]
ADAM = partial(torch.optim.Adam, lr=1e-3, fused=True)
say = partial(print, flush=True)


@dataclass(frozen=True)
class Run:
    """What all parts are asked for.

    Attributes:
        device: what is asked.
        quick: with sizes that suit a CPU.
        left: seconds of the budget.
    """

    device: torch.device
    quick: bool
    left: Callable[[], float]

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def vae(self) -> VAE:
        torch.manual_seed(0)
        return VAE(
            priors.StandardNormal(20),
            likelihoods.Bernoulli(nets.MLP(20, [400]), (784,)),
            conditionals.DiagonalNormal(nets.MLP((784,), [400]), 20),
        ).to(self.device)

    def bits(self, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.rand(n, 784, generator=generator).round().to(self.device)

    def setting(self, batch_size: int, particles: int, network: str, contenders: tuple[str, ...]) -> step_time.Setting:
        rounds, steps = (2, 2) if self.quick else (20, 20 if particles == 1 else 5)
        known = tuple(name for name in contenders if self.on_cuda or "CUDA" not in name)
        return step_time.Setting(network, batch_size, particles, False, rounds, steps, known, self.device)


def weights(vae: VAE) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


def captured(run: Run, loss: Any, vae: VAE, x: Tensor, **options: Any) -> SVI:
    """An SVI whose next step is the repetition of a CUDA graph; compiled, on a CPU."""
    svi = SVI(vae.model, vae.guide, ADAM, loss, compile=True, **options)
    for _ in range(8):  # an eager one, those that are compared, and those that warm up
        last = svi.advance(x)
    if run.on_cuda and not isinstance(last, Tensor):
        raise AssertionError("expected the step to be a CUDA graph; got one that is not")
    return svi


def tests(run: Run) -> None:
    """The tests that are marked cuda."""
    files = [str(p) for p in sorted((ROOT / "tests").glob("test_*.py")) if "mark.cuda" in p.read_text("utf-8")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "--tb=short",
        "-m",
        "cuda",
        "-p",
        "no:cacheprovider",
        "-rs",
        *files,
    ]
    lines = [""]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as pytest:
        try:
            for line in pytest.stdout or ():
                lines.append(line.rstrip())
                say(lines[-1])
        except BaseException:  # the part is out of time
            pytest.kill()
            raise
    if pytest.returncode or (run.on_cuda and "skipped" in lines[-1]):
        raise AssertionError(f"expected every test to pass; pytest ended with {pytest.returncode}: {lines[-1]}")


def parity(run: Run) -> None:
    """Loss and gradients of the device, eager and compiled, beside the CPU's with the same noise; 32 bits, no TF32."""
    noise = torch.randn(5, 64, 20, generator=torch.Generator().manual_seed(1))

    def standard_normal(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        return noise.flatten()[: shape.numel()].view(shape).to(device, dtype)

    for name, loss in {
        "ELBO": elbo.ELBO(),
        "IWELBO, K = 5": elbo.IWELBO(5),
        "IWELBO, dreg": elbo.IWELBO(5, gradient="dreg"),
    }.items():
        found = []
        for where in (torch.device("cpu"), run.device):
            here = replace(run, device=where)
            vae, x = here.vae(), here.bits(64)
            with mock.patch("torch.distributions.normal._standard_normal", standard_normal):
                value = loss.loss_and_grads(vae.model, vae.guide, x)
            found.append((value, [p.grad.cpu() for p in vae.parameters() if p.grad is not None]))
        (expected, its), (value, ours) = found
        worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, its, strict=True))
        say(
            f"{name}: loss differs by {abs(value / expected - 1):.1e}, a gradient by at most {worst:.1e} of its largest"
        )
        if not (abs(value / expected - 1) < 1e-5 and worst < 1e-3):
            raise AssertionError(f"{name}: expected the CPU's loss and gradients")
        x, losses = run.bits(64), []
        for mode in (False, True):  # compile=True raises where the results of a graph and of an eager step differ
            vae = run.vae()
            svi = captured(run, loss, vae, x) if mode else SVI(vae.model, vae.guide, ADAM, loss, compile=False)
            torch.manual_seed(1)
            losses.append(torch.tensor([float(svi.advance(x)) for _ in range(30 if mode else 38)][-20:]).mean())
        say(f"{name}: the mean of 20 losses is {losses[1]:.2f} compiled, {losses[0]:.2f} eager")
        if not abs(losses[1] / losses[0] - 1) < 0.02:
            raise AssertionError(f"{name}: expected compiled steps to train as eager ones do")


def replay(run: Run) -> None:
    """Repetitions draw afresh, from the seed; follow the learning rate; and move nothing where a loss is not finite."""
    vae, x = run.vae(), run.bits(64)
    svi = captured(run, elbo.ELBO(), vae, x)
    optimizer: Any = svi.optimizer
    group = optimizer.param_groups[0]

    def losses(steps: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.tensor([float(svi.advance(x)) for _ in range(steps)])

    group["lr"] = 0.0
    before = weights(vae)
    first, second, again = losses(50, 0), losses(50, 1), losses(50, 0)
    expected = torch.tensor([elbo.ELBO().loss(vae.model, vae.guide, x) for _ in range(50)])
    error = float((first.var() / 50 + expected.var() / 50).sqrt())
    say(
        f"at lr 0: {len(set(first.tolist()))} losses of 50 differ; mean {first.mean():.3f}, eager {expected.mean():.3f}"
    )
    assert torch.equal(weights(vae), before), "expected lr 0 to move nothing"
    assert len(set(first.tolist())) == 50, "expected new random numbers in every repetition"
    assert torch.equal(first, again), "expected the seed to give the same losses"
    assert not torch.equal(first, second), "expected another seed to give others"
    assert abs(float(first.mean() - expected.mean())) < 5 * error, "expected the mean of eager losses"
    held = [t for state in optimizer.state.values() for t in state.values()]
    kept = [t.clone() for t in (*held, *vae.parameters())]
    moved = []
    for rate in (1e-3, 2e-3):
        with torch.no_grad():
            for tensor, value in zip((*held, *vae.parameters()), kept, strict=True):
                tensor.copy_(value)
        group["lr"] = rate
        losses(1, 3)
        moved.append(weights(vae) - before)
    ratio = float(moved[1].norm() / moved[0].norm())
    say(f"twice the learning rate moves {ratio:.4f} times as far")
    assert abs(ratio - 2) < 1e-2, "expected twice as far"
    if run.on_cuda:
        before = weights(vae)
        assert not bool(torch.as_tensor(svi.advance(torch.full_like(x, torch.nan))).isfinite())
        assert torch.equal(weights(vae), before), "expected a loss that is NaN to move nothing"
        svi.advance(x)
        assert bool(weights(vae).isfinite().all())


def peak(run: Run) -> float:
    """Floating-point operations per second of a product of large matrices of 32 bits, without TF32."""
    n = 512 if run.quick else 8192
    matrix = torch.randn(n, n, device=run.device)
    times = [milliseconds(lambda: matrix @ matrix, run.device) for _ in range(5)]
    return 2 * n**3 / min(times) * 1e3


def steps(run: Run) -> None:
    """Step times at three batch sizes, and fractions of peak."""
    most = peak(run)
    say(f"peak, measured: {most / 1e12:.2f} TFLOP/s")
    names = (step_time.OURS, step_time.BY_HAND, "by hand, CUDA graph", "pyro_vae, eager", "Pyro, fused")
    for batch_size in (16, 64) if run.quick else (128, 1024, 8192):
        compare(run, run.setting(batch_size, 1, "784-400-20", names), most)


def several(run: Run) -> None:
    """Step times and memory of IWELBO with K = 50."""
    names = (step_time.OURS, step_time.BY_HAND, "by hand, CUDA graph", "pyro_vae, eager", "Pyro, fused")
    for batch_size in (4,) if run.quick else (20, 128):
        compare(run, run.setting(batch_size, 50, "784-200-200-50", names), peak(run))


def compare(run: Run, setting: step_time.Setting, most: float) -> None:
    """Times contenders; raises where ours takes 1.25 times as long as the captured hand-written step."""
    task = setting.task()
    loss = elbo.ELBO() if setting.particles == 1 else elbo.IWELBO(setting.particles)
    vae = our_vae(task)
    with FlopCounterMode(display=False) as counter:
        loss.loss_and_grads(vae.model, vae.guide, task.gather(next(task.blocks(1))[0]))
    times = {name: min(its.elapsed) for name, its in step_time.measure(setting).items()}
    say(f"\n{setting.network}, batch {setting.batch_size}, K = {setting.particles}: ms/step, data/s, of peak")
    for name, taken in times.items():
        share = counter.get_total_flops() / taken * 1e3 / most
        say(f"  {name:24} {taken:8.3f} {1e3 * setting.batch_size / taken:10.0f} {share:7.1%}")
    best = times.get("by hand, CUDA graph", torch.inf)
    if times[step_time.OURS] > 1.25 * best + 0.02:
        raise AssertionError(f"expected a step within 1.25 of the captured hand-written one at {setting}")


def training(run: Run) -> None:
    """A run of fit, whose bound is that of other programs of this size."""
    sets = data.load("digits" if run.quick else "mnist", binarize="dynamic", device=run.device)
    shape = sets.train.event_shape
    torch.manual_seed(0)
    vae = VAE(
        priors.StandardNormal(20),
        likelihoods.Bernoulli(nets.MLP(20, [400]), shape, data_mean=sets.train.mean()),
        conditionals.DiagonalNormal(nets.MLP(shape, [400]), 20),
    ).to(run.device)
    started = time.perf_counter()
    epochs = 2 if run.quick else 20
    history = fit(vae, sets.train, sets.test, epochs=epochs, optimizer=ADAM, seed=0, compile=True, progress=False)
    for row in (history.epochs[0], history.epochs[-1]):
        say(f"epoch {row['epoch']:2.0f}: {row['seconds']:.2f} s, ELBO of test images {row['validation_elbo']:.2f}")
    say(f"{epochs} epochs in {time.perf_counter() - started:.1f} s, compilation and figures included")
    first, last = (row["validation_elbo"] for row in (history.epochs[0], history.epochs[-1]))
    if not (last > first if run.quick else last > -107.0):
        raise AssertionError(f"expected a higher ELBO at the end; got {last:.2f}")


def memory(run: Run) -> None:
    """Memory of a step, eager and as it is captured, and of a last, smaller batch beside it."""
    if not run.on_cuda:
        say("of a GPU alone")
        return
    for mode in (False, True):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        vae, x = run.vae(), run.bits(8192)
        svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=mode)
        for rows in (x, x[:100]):
            for _ in range(10):
                svi.advance(rows)
        torch.cuda.synchronize()
        used, reserved = torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
        say(f"compile={mode}: {used / 2**20:.0f} MiB allocated at most, {reserved / 2**20:.0f} MiB reserved at the end")
        del svi, vae


def throughput(run: Run) -> None:
    """Images per second of residual convolutions and of a hierarchy of 20 groups."""
    batch, channels = (4, 4) if run.quick else (256, 32)
    x = deep.shapes(batch, 0).to(run.device)
    logistic = deep.LIKELIHOODS["logistic"]
    programs: dict[str, Callable[[], VAE | TopDownVAE]] = {
        "residual": partial(deep.flat, logistic, channels),
        "top-down": partial(deep.deep, logistic, channels),
    }
    modes: list[tuple[Precision, bool]] = [("float32", False), ("float32", True), ("bfloat16", True)]
    for (precision, compiled), (name, make) in itertools.product(modes[: 1 if run.quick else 3], programs.items()):
        if compiled and run.left() < 60:
            say(f"{name}, {precision}: left out, as {run.left():.0f} s are left of the budget")
            continue
        torch.manual_seed(0)
        program = make().to(run.device)
        options: dict[str, Any] = {"compile": compiled, "precision": precision, "max_grad_norm": 200.0 * batch}
        svi = SVI(program.model, program.guide, ADAM, elbo.ELBO(), **options)
        count, start = 2 if run.quick else 8, time.perf_counter()
        for _ in range(count):
            svi.advance(x)
        before = time.perf_counter() - start
        taken = milliseconds(lambda svi=svi, n=count: [svi.advance(x) for _ in range(n)], run.device)  # type: ignore[misc]
        say(
            f"{name}, {precision}, compile={compiled}: {1e3 * batch * count / taken:.0f} images/s, after {before:.0f} s"
        )


PARTS: dict[str, tuple[Callable[[Run], None], float]] = {
    "tests": (tests, 90),
    "parity": (parity, 60),
    "replay": (replay, 20),
    "steps": (steps, 90),
    "training": (training, 60),
    "several": (several, 60),
    "memory": (memory, 20),
    "throughput": (throughput, 120),
}
"""Parts in their order, with the seconds that each may take."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Context manager that raises TimeoutError where what is inside takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"expected an end within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 10)  # again, where what is inside has caught it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=device, default="cuda", help="cuda, or cpu, to test the script")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts")
    arguments = parser.parse_args()
    start = time.perf_counter()
    run = Run(arguments.device, arguments.quick, lambda: arguments.budget - (time.perf_counter() - start))
    torch.set_float32_matmul_precision("highest")
    say(description(run.device))
    failed, left_out = [], []
    for name in arguments.only:
        function, seconds = PARTS[name]
        if run.left() < seconds:
            left_out.append(name)
            say(f"\n{name}: left out, as {run.left():.0f} s are left of the budget and it may take {seconds:.0f} s")
            continue
        say(f"\n== {name}: {function.__doc__}")
        before = time.perf_counter()
        try:
            with limited(min(run.left(), 2 * seconds) if run.on_cuda else run.left()):
                function(run)
        except (Exception, SystemExit):  # noqa: BLE001 - the other parts are asked all the same
            failed.append(name)
            say(traceback.format_exc(limit=-8))
        say(f"-- {name}: {'FAILED' if name in failed else 'passed'}, {time.perf_counter() - before:.1f} s")
    ending = f"{len(failed)} failed: {', '.join(failed)}" if failed else "none failed"
    say(f"\n{ending}" + (f"; left out: {', '.join(left_out)}" if left_out else ""))
    sys.exit(len(failed))


if __name__ == "__main__":
    main()
