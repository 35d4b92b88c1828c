"""Runs that are killed at random moments, and go on: each is to end as the undisturbed run did, to the last bit.

    OMP_NUM_THREADS=1 python benchmarks/kill.py --runs 200
    OMP_NUM_THREADS=1 python benchmarks/kill.py --ranks 2 --runs 10   # one run of torchrun, in which 10 processes die

Each run trains with a checkpoint every few steps, in a process of its own that SIGKILL ends at a moment drawn uniformly
over the run's length, most of them while a file is written. Another process goes on from the folder, and may be killed
too; the last one ends the run. Weights, averages and history (but for the seconds) are compared bit by bit.

With ``--ranks``, processes of torchrun train together; a random one of them is killed at a random moment of its work,
and torchrun starts all again. Steps that are taken again are counted: a checkpoint is written every `EVERY` steps, and
the last may have been lost while it was written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import safetensors.torch
import torch
from torch import Tensor

from pyro_vae import VAE, conditionals, elbo, fit, likelihoods, nets, priors, schedules

EPOCHS, BATCH_SIZE = 4, 20
EVERY = 2  # steps between checkpoints


def bits() -> Tensor:
    return (torch.rand(200, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def vae(**parts: Any) -> VAE:
    standard: dict[str, Any] = {
        "prior": priors.StandardNormal(2),
        "likelihood": likelihoods.Bernoulli(nets.MLP(2, [32]), 6),
        "posterior": conditionals.DiagonalNormal(nets.MLP(6, [32]), 2),
    }
    return VAE(**{**standard, **parts})


def discrete() -> VAE:
    return vae(
        prior=priors.Bernoulli(3),
        likelihood=likelihoods.Bernoulli(nets.MLP(3, [32]), 6),
        posterior=conditionals.Bernoulli(nets.MLP(6, [32]), 3),
    )


RUNS: dict[str, tuple[Callable[[], VAE], Callable[[], dict[str, Any]]]] = {
    "ELBO with a schedule": (vae, lambda: {"beta": schedules.linear(0.0, 1.0, epochs=2)}),
    "IWELBO, dreg": (vae, lambda: {"loss": elbo.IWELBO(3, "dreg")}),
    "score, running mean": (discrete, lambda: {"loss": elbo.ELBO(2, elbo.Score("running_mean"))}),
    "VampPrior, average of weights": (lambda: vae(prior=priors.VampPrior(bits()[:4])), lambda: {"ema_decay": 0.9}),
    "early stopping and a schedule of rates": (
        vae,
        lambda: {
            "patience": 3,
            "validation": bits()[:50],
            "scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
        },
    ),
}


def train(name: str, folder: Path, *, compile: bool) -> None:
    """One process of a run: from the beginning, or from where the folder is."""
    make, arguments = RUNS[name]
    pyro.clear_param_store()
    torch.manual_seed(0)
    program = make()
    given: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "seed": 1, "progress": False, **arguments()}
    fit(program, bits(), compile=compile, folder=folder, resume=True, checkpoint_every=f"{EVERY} steps", **given)


def in_a_process(name: str, folder: Path, *, compile: bool, seconds: float | None) -> bool:
    """Trains in a process of its own, which SIGKILL ends after some seconds; whether it ended by itself."""
    child = os.fork()
    if child == 0:
        try:
            warnings.simplefilter("ignore")
            train(name, folder, compile=compile)
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - told by the exit status; pytest is not to see it twice
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"the run {name!r} failed in {folder}")
    return True


def outcome(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """What a run has left: its weights and its history, without the times."""
    (last,) = (folder / "checkpoints").glob("*.safetensors")
    weights = safetensors.torch.load_file(folder / "weights.safetensors") | safetensors.torch.load_file(last)
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return weights, [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def same(one: Path, other: Path) -> bool:
    (weights, rows), (others, other_rows) = outcome(one), outcome(other)
    return (
        rows == other_rows
        and weights.keys() == others.keys()
        and all(torch.equal(weights[name], others[name]) for name in weights)
    )


def kill(runs: int, seed: int, *, compile: bool = False) -> Counter[str]:
    """Kills runs and lets them go on; how many ended as they should, and how often they were killed."""
    counts: Counter[str] = Counter()
    moments = random.Random(seed)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports, for seconds, what every child then has
    with tempfile.TemporaryDirectory() as root:
        lengths = {}
        for name, kind in itertools.product(RUNS, ("first", "undisturbed")):  # the first reads what later ones have
            start = time.perf_counter()
            in_a_process(name, Path(root, f"{name} {kind}"), compile=compile, seconds=None)
            lengths[name] = time.perf_counter() - start
        while counts["bit-equal"] + counts["different"] < runs:
            i = counts["bit-equal"] + counts["different"]
            name, folder = list(RUNS)[i % len(RUNS)], Path(root, f"run {i}")
            kills = 0
            for _ in range(1 + i % 3):  # one to three, unless it is quicker than the signal
                if in_a_process(name, folder, compile=compile, seconds=moments.uniform(0.0, lengths[name])):
                    break
                kills += 1
            else:
                in_a_process(name, folder, compile=compile, seconds=None)
            if not kills:  # it ended before the signal came, and counts for nothing
                shutil.rmtree(folder)
                continue
            counts["kills"] += kills
            counts["bit-equal" if same(folder, Path(root, f"{name} undisturbed")) else "different"] += 1
            shutil.rmtree(folder)
    return counts


def train_together(folder: Path) -> None:
    """One rank: it notes which process it is, and the first one every step that it takes."""
    rank = os.environ["RANK"]
    (folder / f"rank-{rank}").write_text(str(os.getpid()))

    def note(step: int, _: float) -> None:
        if rank == "0":
            with (folder / "steps.txt").open("a") as file:
                file.write(f"{step}\n")
        time.sleep(0.05)  # a run long enough to be killed in the middle

    torch.manual_seed(0)
    how: dict[str, Any] = {"epochs": 5 * EPOCHS, "batch_size": BATCH_SIZE, "seed": 1, "progress": False}
    checkpoints: dict[str, Any] = {"folder": folder / "run", "resume": True, "checkpoint_every": f"{EVERY} steps"}
    fit(vae(), bits(), compile=False, on_step=note, **how, **checkpoints)


def kill_ranks(kills: int, seed: int, ranks: int) -> Counter[str]:
    """Kills random processes of one run of torchrun; how many, what steps were taken again, and how the run ended."""
    moments = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root:
        folders = {name: Path(root, name) for name in ("undisturbed", "killed")}
        for name, folder in folders.items():
            folder.mkdir()
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            command += [f"--max-restarts={kills}", __file__, "--rank-of", str(folder)]
            with (folder / "log.txt").open("w") as log:
                process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT)
                dead = {""}
                while name == "killed" and counts["kills"] < kills and process.poll() is None:
                    file, begun = folder / f"rank-{moments.randrange(ranks)}", _steps(folder)
                    time.sleep(moments.uniform(0.1, 1.0))
                    pid = file.read_text() if file.exists() else ""
                    if pid not in dead and len(_steps(folder)) > len(begun):  # at work, and not at its end
                        dead.add(pid)
                        os.kill(int(pid), signal.SIGKILL)
                        counts["kills"] += 1
                if process.wait():
                    raise RuntimeError((folder / "log.txt").read_text()[-2000:])
        steps = Counter(_steps(folders["killed"]))
        counts["steps"], counts["taken again"] = len(steps), steps.total() - len(steps)
        counts["most in a row"] = max(_lost(_steps(folders["killed"])), default=0)
        equal = same(*(folder / "run" for folder in folders.values()))
        counts["bit-equal" if equal and len(steps) == len(set(_steps(folders["undisturbed"]))) else "different"] = 1
    return counts


def _steps(folder: Path) -> list[int]:
    path = folder / "steps.txt"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def _lost(steps: list[int]) -> list[int]:
    """Steps that were taken again, after each death."""
    return [before + 1 - after for before, after in itertools.pairwise(steps) if after <= before]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--ranks", type=int, help="processes that train together; --runs is then how many are killed")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        train_together(args.rank_of)
        return
    if args.ranks:
        counts = kill_ranks(args.runs, args.seed, args.ranks)
        print(", ".join(f"{count} {name}" for name, count in counts.items()))
        sys.exit(1 if counts["different"] or counts["kills"] < args.runs or counts["most in a row"] > 2 * EVERY else 0)
    counts = kill(args.runs, args.seed, compile=args.compile)
    print(
        f"{args.runs} runs, {counts['kills']} kills: {counts['bit-equal']} bit-equal, {counts['different']} different"
    )
    sys.exit(1 if counts["different"] else 0)


if __name__ == "__main__":
    main()
