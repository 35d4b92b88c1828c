"""Time of a training step: pyro_vae's SVI against a hand-written PyTorch loop and against stock Pyro.

    OMP_NUM_THREADS=1 python benchmarks/step_time.py

All contenders train the same network on the same batches with Adam: fused, but for stock Pyro as shipped. They take
turns in short blocks, and the ratios are of blocks that ran side by side, because the speed of a shared machine drifts;
medians and minima over the blocks are printed. Data are random bits, or MNIST's where --mnist is given.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from torch import Tensor, nn

from pyro_vae import SVI, VAE, conditionals, data, elbo, likelihoods, nets, priors

Batches = Iterator[tuple[Tensor, ...]]
Step = Callable[[Tensor], object]

NETWORKS = {"784-200-200-50": ([200, 200], 50), "784-400-20": ([400], 20)}


def mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers)


def ours(hidden: list[int], latent: int, *, compile: bool = False) -> Step:
    vae = VAE(
        prior=priors.StandardNormal(latent),
        likelihood=likelihoods.Bernoulli(nets.MLP(latent, hidden), (784,)),
        posterior=conditionals.DiagonalNormal(nets.MLP((784,), hidden), latent),
    )
    return SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=1e-3, fused=True), elbo.ELBO(), compile=compile).step


class Encoder(nn.Module):
    def __init__(self, hidden: list[int], latent: int) -> None:
        super().__init__()
        self.body = mlp([784, *hidden])
        self.head = nn.Linear(hidden[-1], 2 * latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.head(self.body(x)).chunk(2, -1)
        return loc, log_scale.exp()


class HandWritten(nn.Module):
    """The loop one writes without a library: cross-entropy plus a one-sample KL."""

    def __init__(self, hidden: list[int], latent: int) -> None:
        super().__init__()
        self.encoder = Encoder(hidden, latent)
        self.decoder = nn.Sequential(mlp([latent, *hidden]), nn.Linear(hidden[-1], 784))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=1e-3, fused=True)

    def forward(self, x: Tensor) -> Tensor:
        loc, scale = self.encoder(x)
        noise = torch.randn_like(loc)
        z = loc + scale * noise
        cross_entropy = nn.functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        return cross_entropy + (0.5 * (z.square() - noise.square()) - scale.log()).sum()

    def step(self, x: Tensor) -> float:
        loss = self(x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class PyroStyle(nn.Module):
    """The class of Pyro's own VAE example."""

    def __init__(self, hidden: list[int], latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = Encoder(hidden, latent)
        self.decoder = nn.Sequential(mlp([latent, *hidden]), nn.Linear(hidden[-1], 784))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def stock(hidden: list[int], latent: int) -> Step:
    pyro.clear_param_store()
    vae = PyroStyle(hidden, latent)
    optimizer = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3})  # what pyro.optim.Adam makes
    return pyro.infer.SVI(vae.model, vae.guide, optimizer, pyro.infer.Trace_ELBO()).step


def stock_unvalidated(hidden: list[int], latent: int) -> Step:
    step = stock(hidden, latent)

    def unvalidated(x: Tensor) -> object:
        with pyro.validation_enabled(False):
            return step(x)

    return unvalidated


def hand_written_compiled(hidden: list[int], latent: int) -> Step:
    module = HandWritten(hidden, latent)
    module.compile(dynamic=False)
    return module.step


CONTENDERS: dict[str, Callable[[list[int], int], Step]] = {
    "pyro_vae SVI, compiled": partial(ours, compile=True),
    "pyro_vae SVI, eager": ours,
    "hand-written, compiled": hand_written_compiled,
    "hand-written, eager": lambda hidden, latent: HandWritten(hidden, latent).step,
    "stock Pyro, as shipped": stock,
    "stock Pyro, validation off": stock_unvalidated,
}


def endless(dataset: data.Dataset, batch_size: int) -> Batches:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from dataset.batches(batch_size, shuffle=True, generator=generator, drop_last=True)


def block(step: Step, batches: Batches, steps: int) -> float:
    """Milliseconds per step, data path included."""
    start = time.perf_counter()
    for _ in range(steps):
        step(next(batches)[0])
    return (time.perf_counter() - start) / steps * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="784-200-200-50")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--steps", type=int, default=10, help="steps per block")
    parser.add_argument("--mnist", action="store_true", help="MNIST's pixels in place of random ones")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.mnist:
        greys = data.load("mnist").train.images.flatten(1)
    else:
        greys = torch.randint(256, (10_000, 784), dtype=torch.uint8)
    dataset = data.Dataset("pixels", greys, levels=255, binarization="dynamic")
    steps = {name: make(*NETWORKS[arguments.network]) for name, make in CONTENDERS.items()}
    streams = {name: endless(dataset, arguments.batch_size) for name in steps}
    for name, step in steps.items():
        block(step, streams[name], 5)  # warm up
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.blocks):
        for name, step in steps.items():
            times[name].append(block(step, streams[name], arguments.steps))
    print(
        f"{arguments.network}, batch {arguments.batch_size}, {arguments.blocks} blocks of {arguments.steps} steps, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, Pyro {pyro.__version__}"
    )
    print(f"{'':28} {'ms/step':>8} {'min':>7}   pyro_vae / this, median [min]: compiled, eager")
    for name, values in times.items():
        ratios = [
            [a / b for a, b in zip(times[f"pyro_vae SVI, {mode}"], values, strict=True)]
            for mode in ("compiled", "eager")
        ]
        cells = "   ".join(f"{statistics.median(ratio):.3f} [{min(ratio):.3f}]" for ratio in ratios)
        print(f"{name:28} {statistics.median(values):8.2f} {min(values):7.2f}   {cells}")


if __name__ == "__main__":
    main()
