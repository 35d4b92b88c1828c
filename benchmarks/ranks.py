"""What a step of several ranks costs, and how well the model in ``scaling.py``, fitted to a part, predicts the rest.

    python benchmarks/ranks.py             # measures; writes benchmarks/results/ranks.json, and compares; 25 minutes
    python benchmarks/ranks.py --rounds 0  # compares what is there

Ranks are processes with gloo on this machine: over the loopback, and where this is run as root of Linux with ``ip`` and
``tc``, each in a network namespace of its own on a bridge, what it sends limited by a token bucket. 784-H-20 is trained
with fused Adam, eagerly, on a stream of a mapped file, whose bits are drawn. Measured of each setting, in seconds:
``compute``, a step without the others, on all ranks at once, and its ``processor`` time; ``communication``, the sum of
losses and gradients alone; ``input``, a batch read with nothing to hide behind; and ``step``, all of it, ``wait`` of it
for input. Every figure is the slowest rank's (processor time: the mean), and the median over rounds, in which settings
take turns. Where ranks and other programs share the processors, all but processor time has it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scaling
import torch
import torch.distributed as dist

from pyro_vae import SVI, VAE, __version__, conditionals, data, distributed, elbo, likelihoods, nets, priors

RESULTS = Path(__file__).parent / "results" / "ranks.json"
PIXELS, REPEATS = 784, 2
RANKS = (1, 2, 3, 4)
# Mbit/s of the network, 0 for no limit; H for .4, 2, 8 and 4 million parameters; data of a batch.
SETTINGS = [*itertools.product((0, 100, 300, 1000), (256, 1228, 4914), [256]), (200, 2457, 512), (600, 2457, 512)]
SETTING = ("namespaces", "ranks", "megabits", "hidden", "parameters", "batch_size")
FIGURES = ("compute", "processor", "communication", "input", "wait", "step")
BURST = 70_000  # bytes: the least that passes a segment of TCP whole


def held_out(row: dict[str, Any]) -> bool:
    """Whether a setting is kept from the fit: sizes, bandwidths and a number of ranks that it does not see."""
    return row["hidden"] not in (256, 4914) or row["megabits"] not in (0, 100, 1000) or row["ranks"] == 3


def build(hidden: int, ranks: distributed.Ranks | None) -> SVI:
    torch.manual_seed(0)
    vae = VAE(
        priors.StandardNormal(20),
        likelihoods.Bernoulli(nets.MLP(20, [hidden]), PIXELS),
        conditionals.DiagonalNormal(nets.MLP(PIXELS, [hidden]), 20),
    )
    optimizer = partial(torch.optim.Adam, lr=1e-4, fused=True)
    return SVI(vae.model, vae.guide, optimizer, elbo.ELBO(), compile=False, isolated=True, ranks=ranks)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def timed(function: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, float]:
    """Seconds per call, and of them the processor's."""
    barrier()
    elapsed, processor = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - elapsed) / repeats, (time.process_time() - processor) / repeats


def block(svi: SVI, batches: Iterator[Any]) -> dict[str, float]:
    """Measures a setting once, on this rank."""
    ranks, waits = svi.ranks, []

    def step() -> None:
        start = time.perf_counter()
        (x,) = next(batches)
        waits.append(time.perf_counter() - start)
        svi.step(x)

    step()  # fills caches
    found = {"input": timed(lambda: next(batches), 8)[0]}
    waits.clear()
    found["step"] = timed(step)[0]
    found["wait"] = statistics.fmean(waits)
    (x,) = next(batches)
    svi.ranks = None
    found["compute"], found["processor"] = timed(lambda: svi.step(x))
    svi.ranks = ranks
    found["communication"] = 0.0
    if ranks is not None:
        parameters = list(svi.parameters.named.values())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        share = partial(ranks.sum_step, 0.0, parameters, [])
        found["communication"] = statistics.fmean(timed(share, 1)[0] for _ in range(REPEATS))
    return found


def limit(megabits: int) -> None:
    """Limits what this namespace sends."""
    subprocess.run(["tc", "qdisc", "del", "dev", "eth0", "root"], capture_output=True, check=False)
    if megabits:
        bucket = ["tbf", "rate", f"{megabits}mbit", "burst", str(BURST), "latency", "400ms"]
        subprocess.run(["tc", "qdisc", "add", "dev", "eth0", "root", *bucket], check=True)


def work(rank: int, size: int, limited: bool, images: str, folder: str) -> None:
    """A rank: measures all settings in turn; ranks find each other, and leave what they found, in a folder."""
    if size > 1:
        wait = datetime.timedelta(minutes=2)
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size, timeout=wait)
    ranks = distributed.ranks()
    stream = data.stream(images, levels=255, binarize="dynamic", rank=rank, world_size=size)
    rows = []
    for megabits, hidden, batch_size in SETTINGS if limited else [each for each in SETTINGS if not each[0]]:
        if limited:
            barrier()
            limit(megabits)
        svi = build(hidden, ranks)
        own: Any = block(svi, stream.batches(batch_size, shuffle=True, generator=torch.Generator().manual_seed(0)))
        every = [own] * size
        if ranks is not None:
            dist.all_gather_object(every, own)
        slowest = {name: max(each[name] for each in every) for name in own}
        slowest["processor"] = statistics.fmean(each["processor"] for each in every)
        setting = {"namespaces": limited, "ranks": size, "megabits": megabits, "hidden": hidden}
        setting |= {"parameters": sum(p.numel() for p in svi.parameters.named.values()), "batch_size": batch_size}
        rows.append(setting | slowest)
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    if ranks is not None:
        dist.destroy_process_group()


@contextlib.contextmanager
def namespaces(size: int) -> Iterator[list[list[str]]]:
    """Network namespaces on a bridge, removed at the end: for each the beginning of a command that runs in it."""
    hub, *names = [f"ranks-{os.getpid()}-{i}" for i in range(size + 1)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        ip("netns", "add", hub)
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for i, name in enumerate(names):
            ip("netns", "add", name)
            ip("-n", hub, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", hub, "link", "set", f"port{i}", "master", "bridge", "up")
            ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in (hub, *names):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def launch(size: int, limited: bool, images: Path) -> list[dict[str, Any]]:
    """Measures with so many ranks, on a file of images."""
    where: contextlib.AbstractContextManager[list[list[str]]] = contextlib.nullcontext([[]] * size)
    if limited:
        where = namespaces(size)
    interface = {"GLOO_SOCKET_IFNAME": "eth0" if limited else "lo", "OMP_NUM_THREADS": "1"}
    with where as prefixes, tempfile.TemporaryDirectory() as folder:
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, prefix in enumerate(prefixes):
                settings = json.dumps([rank, size, limited, str(images), folder])
                command = [*prefix, sys.executable, __file__, "--work", settings]
                processes.append(subprocess.Popen(command, env={**os.environ, **interface}))
            if any(process.wait() for process in processes):
                raise SystemExit(f"error: a rank of {size} failed")
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return list(json.loads(Path(folder, "rows.json").read_text()))


def measure(rounds: int) -> list[dict[str, Any]]:
    """Measures all settings; medians."""
    can = sys.platform == "linux" and os.geteuid() == 0 and None not in (shutil.which("ip"), shutil.which("tc"))
    if not can:
        print("Network namespaces are left out, as they need root, ip and tc: only the loopback is measured.")
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "x.npy")
        np.save(images, np.random.default_rng(0).integers(0, 256, (40_000, PIXELS), dtype=np.uint8))
        for number, size, limited in itertools.product(range(rounds), RANKS, [False, True] if can else [False]):
            if size > 1 or not limited:
                print(f"round {number + 1}, {size} ranks, {'namespaces' if limited else 'loopback'}", flush=True)
                for row in launch(size, limited, images):
                    found.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    return [summary(dict(zip(SETTING, setting, strict=True)), alike) for setting, alike in found.items()]


def summary(setting: dict[str, Any], alike: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of a setting, and its steps."""
    medians = {name: float(f"{statistics.median(row[name] for row in alike):.4g}") for name in FIGURES}
    steps = sorted(float(f"{row['step']:.4g}") for row in alike)
    return setting | {"held_out": held_out(setting)} | medians | {"steps": steps}


def write(rows: list[dict[str, Any]], rounds: int) -> None:
    about = {
        "date": datetime.date.today().isoformat(),
        "pyro_vae": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, one thread a rank",
        "rounds": rounds,
    }
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(f'{{"about": {json.dumps(about)},\n "rows": [\n{lines}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that namespaces are removed
    if arguments.rounds:
        write(measure(arguments.rounds), arguments.rounds)
    rows = json.loads(RESULTS.read_text())["rows"]
    costs = scaling.fit(rows)
    print(f"{costs}\n{'':9} {'':10} ranks Mbit/s parameters  batch    step, s   by the model")
    for row in rows:
        fitted = "" if scaling.is_fitted(row) else "held out" if scaling.is_modeled(row) else "unmodeled"
        where = "namespaces" if row["namespaces"] else "loopback"
        error = costs.predict(row)["step"] / row["step"] - 1
        print(
            f"{fitted:9} {where:10} {row['ranks']:5} {row['megabits'] or '':6} {row['parameters']:10,} "
            f"{row['batch_size']:6} {row['step']:10.4f} {error:+14.1%}"
        )


if __name__ == "__main__":
    main()
