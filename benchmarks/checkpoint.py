"""What keeping a run in a folder costs: the time of one checkpoint, and its share of a run that writes one a minute.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint.py

For networks of several sizes the benchmark writes checkpoints of a run under way, each to a new file that is forced to
the disk, and takes the median of their times. Steps without a folder are timed beside steps with one, in turn, none of
which writes a checkpoint: what is left is the question whether one is due.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from pyro_vae import VAE, conditionals, fit, likelihoods, nets, priors
from pyro_vae.training import saving
from pyro_vae.training.run import Run

SIZES = {"784-400-20": ([400], 20), "784-2000-2000-50": ([2000, 2000], 50), "784-5000-5000-50": ([5000, 5000], 50)}


def vae(hidden: list[int], latent: int) -> VAE:
    torch.manual_seed(0)
    return VAE(
        prior=priors.StandardNormal(latent),
        likelihood=likelihoods.Bernoulli(nets.MLP(latent, hidden), 784),
        posterior=conditionals.DiagonalNormal(nets.MLP(784, hidden), latent),
    )


def seconds_of_a_checkpoint(hidden: list[int], latent: int, x: Tensor, repetitions: int) -> float:
    """The median time of writing one."""
    times: list[float] = []
    write = saving.Saving.write

    def timed(self: saving.Saving, run: Run) -> None:
        start = time.perf_counter()
        write(self, run)
        times.append(time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(saving.Saving, "write", timed):
        fit(
            vae(hidden, latent), x, steps=repetitions, folder=folder, checkpoint_every="1 steps", progress=False,
            compile=False,
        )  # fmt: skip
    return statistics.median(times)


def seconds_of_a_step(folder: Path | None, x: Tensor, steps: int) -> float:
    """The median time of a step, with what comes after it."""
    moments: list[float] = []
    fit(
        vae(*SIZES["784-400-20"]), x, steps=steps, folder=folder, checkpoint_every="10 hours", progress=False,
        compile=False, on_step=lambda step, loss: moments.append(time.perf_counter()),
    )  # fmt: skip
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(moments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    args = parser.parse_args()
    x = (torch.rand(1280, 784) < 0.3).float()
    print(f"{'network':>18}  {'parameters':>12}  {'checkpoint':>10}  share of a minute")
    for name in args.sizes:
        seconds = seconds_of_a_checkpoint(*SIZES[name], x, args.repetitions)
        count = sum(parameter.numel() for parameter in vae(*SIZES[name]).parameters())
        print(f"{name:>18}  {count:>12,}  {seconds * 1e3:>7.0f} ms  {seconds / 60:.2%}", flush=True)
    ratios = []
    for _ in range(args.repetitions):
        with tempfile.TemporaryDirectory() as folder:
            pair = [seconds_of_a_step(each, x, 60) for each in (None, Path(folder, "x"))]
        ratios.append(pair[1] / pair[0])
    print(f"a step with a folder, beside one without: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
