"""Time of a training step: pyro_vae's SVI against hand-written PyTorch, stock Pyro and NumPyro.

    python benchmarks/step_time.py
    python benchmarks/step_time.py --network 784-200-200-50 --batch-size 100 --particles 50
    python benchmarks/step_time.py --program vamp --json vamp.json            # or conv, counts: see programs.py
    python benchmarks/step_time.py --first-step --memory --profile --epoch     # these in place of the table
    python benchmarks/step_time.py --device cuda --batch-size 1024

All contenders train the same program with the same Adam, from the same weights, on one stream of indices; each gathers
and binarizes its batches itself. They take turns in short blocks, in a new order every round, and the ratios are of
blocks of one round, because the speed of a shared machine drifts; medians over the rounds are printed, and ratios are
of processor time on one thread.
Before that, their losses in the first steps must agree. ``cores`` is processor time by elapsed time: below the number
of threads at work, which OMP_NUM_THREADS sets for all, the machine is busy. Pixels are random, or MNIST's with --mnist.
On a GPU times are those between CUDA events, and a hand-written step that is captured as a CUDA graph takes part.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import torch
import torch._inductor.config
from contenders import (
    FUSED_ADAM,
    Block,
    Task,
    hand_written,
    has_numpyro,
    our_loss,
    our_vae,
    ours,
    pyro_style_with_our_svi,
    stock,
    with_cuda_graph,
    with_numpyro,
)
from devices import description, device
from programs import PROGRAMS
from ratios import ratio, timed, write
from torch import Tensor

from pyro_vae import SVI, fit
from pyro_vae.compilation.graph import Graph

NETWORKS = {"784-400-20": ([400], 20), "784-200-200-50": ([200, 200], 50)}
CHECKED_STEPS = 30

OURS, BY_HAND = "pyro_vae, compiled", "by hand, compiled"
CONTENDERS: dict[str, Callable[[Task], Block]] = {
    OURS: partial(ours, compile=True),
    "pyro_vae, compiled, bfloat16": partial(ours, compile=True, precision="bfloat16"),
    "pyro_vae, eager": partial(ours, compile=False),
    "pyro_vae, Pyro's example": pyro_style_with_our_svi,
    BY_HAND: partial(hand_written, compile=True, fallback_random=True),  # eager kernels draw faster on one thread
    "by hand, as torch compiles it": partial(hand_written, compile=True),
    "by hand, CUDA graph": with_cuda_graph,
    "by hand, eager": partial(hand_written, compile=False),
    "Pyro, as shipped": partial(stock, fused=False, validate=True),
    "Pyro, no validation": partial(stock, fused=False, validate=False),
    "Pyro, fused": partial(stock, fused=True, validate=True),
    "Pyro, fused, no validation": partial(stock, fused=True, validate=False),
    "NumPyro, jitted update": partial(with_numpyro, loop=False),
    "NumPyro, jitted loop": partial(with_numpyro, loop=True),
}


@dataclass(frozen=True)
class Setting:
    """The command line's."""

    network: str
    batch_size: int
    particles: int
    mnist: bool
    rounds: int
    steps: int
    contenders: tuple[str, ...]
    device: torch.device
    program: str = "mlp"
    json: Path | None = None

    def task(self) -> Task:
        torch.manual_seed(0)
        program = PROGRAMS[self.program]
        dataset = program.dataset(self.mnist).to(self.device)
        return Task(*(program.network or NETWORKS[self.network]), self.particles, self.batch_size, dataset, program)


@dataclass
class Times:
    """Milliseconds per step of the blocks of a contender; ratios are of ``compared``, see ``ratios.py``."""

    elapsed: list[float] = field(default_factory=list)
    compared: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def run(self, block: Block, indices: Tensor) -> None:
        processor = time.process_time()
        elapsed, compared = timed(lambda: block(indices), indices.device)
        self.elapsed.append(elapsed / len(indices))
        self.compared.append(compared / len(indices))
        self.processor.append((time.process_time() - processor) / len(indices) * 1e3)


def measure(setting: Setting) -> dict[str, Times]:
    """Times of the contenders, by name."""
    task = setting.task()
    blocks = {name: CONTENDERS[name](task) for name in setting.contenders}
    batches = task.blocks(setting.steps)
    check(blocks, list(itertools.islice(batches, math.ceil(CHECKED_STEPS / setting.steps))), task.batch_size)
    times = {name: Times() for name in blocks}
    names, shuffle = list(blocks), random.Random(0).shuffle
    for indices in itertools.islice(batches, setting.rounds):
        shuffle(names)
        for name in names:
            times[name].run(blocks[name], indices)
    return times


def table(setting: Setting) -> None:
    """Times the contenders."""
    times = measure(setting)
    rows = {name: ratio(times[OURS].compared, its.compared) for name, its in times.items()}
    print(f"\n{setting.rounds} rounds of {setting.steps} steps")
    print(f"{'':30} ms/step [min]      cores   {OURS} / this (standard error): it is x faster")
    for name, its in times.items():
        print(
            f"{name:30} {statistics.median(its.elapsed):7.2f} [{min(its.elapsed):.2f}]".ljust(49)
            + f"{sum(its.processor) / sum(its.elapsed):6.2f} {rows[name]['ratio']:11.3f} ({rows[name]['error']:.3f}) "
            + f"{1 / rows[name]['ratio']:22.2f}"
        )
    what = {name: value for name, value in vars(setting).items() if name not in ("device", "json", "contenders")}
    pairs = {f"{OURS} / {name}": rows[name] for name in rows if name != OURS}
    write(setting.json, setting.device, what, pairs)


def check(blocks: dict[str, Block], batches: list[Tensor], batch_size: int) -> None:
    """Raises for contenders whose first steps have other losses than ours beyond their noise.

    Weights and indices are the same, so a step's losses differ by what is drawn: bits and z.
    """
    print("first steps: mean loss in nats per image, and its difference from the first (one standard error)")
    reference: Tensor | None = None
    for name, block in blocks.items():
        losses = torch.tensor([loss for indices in batches for loss in block(indices)]) / batch_size
        reference = losses if reference is None else reference
        difference = float((losses - reference).mean())
        error = float((losses - reference).std()) / math.sqrt(len(losses))
        print(f"{name:30} {float(losses.mean()):8.2f} {difference:+8.3f} ({error:.3f})")
        if not abs(difference) <= 5 * error:
            raise SystemExit(f"error: {name} computes something else than the first: over 5 standard errors apart")


def in_a_process(function: Callable[[Setting, str], Any], setting: Setting, name: str) -> Any:
    """The result of a function in a fresh process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, setting, name).result()


def seconds_to_first_step(setting: Setting, name: str) -> float:
    """From the construction to the end of the first compiled step, ours being the second of all."""
    task = setting.task()
    indices = next(task.blocks(2))
    start = time.perf_counter()
    CONTENDERS[name](task)(indices)
    return time.perf_counter() - start


def first_step(setting: Setting) -> None:
    """Times construction and compilation, without and with the compiler's cache."""
    for name in (OURS, BY_HAND):
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
            cold, warm = (in_a_process(seconds_to_first_step, setting, name) for _ in range(2))
        print(f"{name:30} first compiled step after {cold:5.1f} s, with the compiler's cache {warm:5.1f} s")


def profiled(*, memory: bool = False) -> Any:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=memory)


def peaks(setting: Setting, name: str) -> tuple[float, float]:
    """MB of tensors at a step's peak beyond those that outlast it, and of the process at its own."""
    task = setting.task()
    block, batches = CONTENDERS[name](task), task.blocks(3)
    block(next(batches))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setting.device)
        before = torch.cuda.memory_allocated(setting.device)
        block(next(batches))
        return (torch.cuda.max_memory_allocated(setting.device) - before) / 1e6, resident
    with profiled(memory=True) as profiler:  # also sees what compiled code allocates past the dispatcher
        block(next(batches))
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]")
    return max(held) / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def memory(setting: Setting) -> None:
    """Measures the memory of a step."""
    for name in (OURS, BY_HAND):
        step, process = in_a_process(peaks, setting, name)
        print(f"{name:30} peak of a step {step:.2f} MB beyond what outlasts it; of the process {process:.0f} MB")


PRODUCTS = {"mkldnn::_linear_pointwise", "aten::mm", "aten::addmm", "aten::bmm"}
DRAWS = {"aten::uniform_", "aten::normal_", "aten::rand", "aten::randn", "aten::rand_like", "aten::randn_like"}
GENERATED = ("aten::", "mkldnn::", "graph_", "cpp_fused")
KINDS = ["matrix products", "element-wise and copies", "random numbers", "optimizer", "Python and dispatch"]


def kind(event: Any) -> str:
    """What a profiler's event, without those inside it, is counted as."""
    ancestor = event
    while ancestor is not None:
        if ancestor.name.startswith("Optimizer.step"):
            return "optimizer"
        ancestor = ancestor.cpu_parent
    if event.name in PRODUCTS:
        return "matrix products"
    if event.name in DRAWS:
        return "random numbers"
    return "element-wise and copies" if event.name.startswith(GENERATED) else "Python and dispatch"


def breakdown(setting: Setting, name: str) -> tuple[float, dict[str, float]]:
    """Milliseconds of a step without the profiler, and by kind of operation with it."""
    torch._inductor.config.cpp.enable_kernel_profile = True  # generated kernels show as events
    task = setting.task()
    block, batches, times = CONTENDERS[name](task), task.blocks(10 * setting.steps), Times()
    block(next(batches))
    times.run(block, next(batches))
    with profiled() as profiler:
        times.run(block, next(batches))
    parts = dict.fromkeys(KINDS, 0.0)
    for event in profiler.events():
        parts[kind(event)] += event.self_cpu_time_total / 1e3 / (10 * setting.steps)
    plain, total = times.elapsed
    parts["Python and dispatch"] += total - sum(parts.values())  # between events
    return plain, parts


def profile(setting: Setting) -> None:
    """Breaks a step's time down."""
    for name in (OURS, BY_HAND):
        plain, parts = in_a_process(breakdown, setting, name)
        total = sum(parts.values())
        print(f"{name}: {plain:.2f} ms per step; {total:.2f} under the profiler, of these")
        for part, taken in parts.items():
            print(f"    {part:26} {taken:7.2f} ms {taken / total:6.1%}")


def epoch(setting: Setting) -> None:
    """Measures the shares of an epoch of fit: its second, as the first compiles."""
    task = setting.task()
    spent = {"steps": 0.0, "the compiled graph": 0.0}
    epochs: list[tuple[float, dict[str, float]]] = []

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = time.perf_counter()
            result = function(*args)
            spent[part] += time.perf_counter() - start
            return result

        return run

    def on_epoch(row: dict[str, float]) -> None:
        epochs.append((time.perf_counter(), {"the loop over batches": row["seconds"]} | spent))
        spent.update(dict.fromkeys(spent, 0.0))

    step, graph = timed("steps", SVI.advance), timed("the compiled graph", Graph.__call__)
    with mock.patch.object(SVI, "advance", step), mock.patch.object(Graph, "__call__", graph):
        fit(
            our_vae(task),
            task.dataset,
            loss=our_loss(task),
            optimizer=FUSED_ADAM,
            epochs=2,
            batch_size=task.batch_size,
            compile=True,
            progress=False,
            on_epoch=on_epoch,
        )
    (first, _), (second, parts) = epochs
    print(f"an epoch of fit, {len(task.dataset)} images: {second - first:.2f} s, of these")
    for part, seconds in parts.items():
        print(f"    {part:26} {seconds:7.2f} s {seconds / (second - first):6.1%}")


ON_CPU = {"--profile": profile, "--epoch": epoch}
MODES = {"--first-step": first_step, "--memory": memory, **ON_CPU}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", choices=PROGRAMS, default="mlp", help="what is trained, see programs.py")
    parser.add_argument("--network", choices=NETWORKS, help="of mlp and vamp; 784-400-20 when left out")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--particles", type=int, default=1, help="1 for the ELBO, K for IWELBO")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, help="of a block: 10, or 2 with several particles")
    parser.add_argument("--mnist", action="store_true", help="MNIST's pixels in place of random ones")
    parser.add_argument("--bfloat16", action="store_true", help="also pyro_vae with precision='bfloat16'")
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda or cuda:1, for example")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the table's figures")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""], help="names of contenders beside the first")
    for flag, mode in MODES.items():
        parser.add_argument(flag, dest="modes", action="append_const", const=mode, help=mode.__doc__)
    arguments = parser.parse_args()
    on_cuda = arguments.device.type == "cuda"
    if on_cuda and any(mode in ON_CPU.values() for mode in arguments.modes or ()):
        parser.error(f"expected {' and '.join(ON_CPU)} without --device cuda, which they cannot see into")
    if arguments.network and PROGRAMS[arguments.program].network:
        parser.error(f"expected no --network with --program {arguments.program}, which has its own")
    names = [OURS, *(name for name in CONTENDERS if name != OURS and any(word in name for word in arguments.only))]
    if not arguments.bfloat16:
        names = [name for name in names if "bfloat16" not in name]
    if not on_cuda:
        names = [name for name in names if "CUDA" not in name]
    if not has_numpyro(arguments.device):
        print(f"NumPyro is left out: it cannot be imported, or computes elsewhere than on {arguments.device}")
        names = [name for name in names if not name.startswith("NumPyro")]
    if arguments.program != "mlp":
        names = [name for name in names if not name.startswith("NumPyro")]
    setting = Setting(
        network=arguments.network or "784-400-20",
        batch_size=arguments.batch_size,
        particles=arguments.particles,
        mnist=arguments.mnist,
        rounds=arguments.rounds,
        steps=arguments.steps or (10 if arguments.particles == 1 else 2),
        contenders=tuple(names),
        device=arguments.device,
        program=arguments.program,
        json=arguments.json,
    )
    print(
        f"{setting.program}, batch {setting.batch_size}, {setting.particles} particles, "
        f"{description(setting.device)}, Pyro {pyro.__version__}"
    )
    for mode in arguments.modes or [table]:
        mode(setting)


if __name__ == "__main__":
    main()
