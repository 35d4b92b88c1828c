"""Where a step of NumPyro is quicker than ours, and where it is not: the parts of both, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/numpyro_parts.py
    OMP_NUM_THREADS=1 python benchmarks/numpyro_parts.py --network 784-200-200-50 --batch-size 100

Each part is computed by itself, again and again: the matrix products of the ELBO's value and gradient, in order, ours
as a recorded graph of them is compiled; draws of a batch's bits and of z; Adam. What the whole step takes more is the
rest: element-wise operations, copies, and calls. Milliseconds are the processor's, medians of interleaved rounds. Only
a quiet machine tells: where another thread shares the core, products by full and by half vectors come out alike.
"""
# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from contenders import Task
from step_time import CONTENDERS, NETWORKS, OURS, Setting
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.graphs.inductor import compile_graph

WORDS = ("matrix products", "random numbers", "Adam", "whole step")
THEIRS = "NumPyro, jitted update"
CALLS = 10


def products(inputs: Sequence[Any], errors: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
    """Those of layers (in, out): each output, each weight's gradient, and each input's but the first's."""
    found = [x @ weight for x, weight in zip(inputs, weights, strict=True)]
    for i in reversed(range(len(weights))):
        found.append(inputs[i].T @ errors[i])
        if i:
            found.append(errors[i] @ weights[i].T)
    return found


def sizes(task: Task) -> list[tuple[int, int]]:
    return [(weight.shape[1], weight.shape[0]) for weight, _ in task.weights]


def ours(task: Task) -> dict[str, Callable[[], Any]]:
    size, latent = task.batch_size, task.what[1]
    shapes = sizes(task)
    inputs = [torch.randn(size, one) for one, _ in shapes]
    errors = [torch.randn(size, other) for _, other in shapes]
    weights = [torch.randn(other, one) for one, other in shapes]

    given, n = [*inputs, *errors, *weights], len(weights)
    record = make_fx(lambda *all: products(all[:n], all[n : 2 * n], [weight.t() for weight in all[2 * n :]]))(*given)
    graph = compile_graph(record, given)
    parameters = [torch.nn.Parameter(part.clone()) for layer in task.weights for part in layer]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    adam = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    images, index = task.dataset.images, torch.arange(size)

    def draw() -> tuple[Tensor, Tensor]:
        gray = images.index_select(0, index).float() / 255
        return (torch.rand_like(gray) < gray).float(), torch.randn(size, latent)

    return {"matrix products": lambda: graph(*given), "random numbers": draw, "Adam": adam.step}


def theirs(task: Task) -> dict[str, Callable[[], Any]]:
    import jax
    import jax.numpy as jnp
    import numpyro

    size, latent, shapes = task.batch_size, task.what[1], sizes(task)
    keys = iter(jax.random.split(jax.random.key(0), 3 * len(shapes)))
    inputs = [jax.random.normal(next(keys), (size, one)) for one, _ in shapes]
    errors = [jax.random.normal(next(keys), (size, other)) for _, other in shapes]
    weights = [jax.random.normal(next(keys), shape) for shape in shapes]
    images, index = jnp.asarray(task.dataset.images.numpy()), jnp.arange(size)
    adam = numpyro.optim.Adam(1e-3)
    state = [adam.init([jnp.asarray(part.detach().numpy()) for layer in task.weights for part in layer])]
    gradients = [0.1 * part for part in adam.get_params(state[0])]

    def draw(key: Any) -> Any:
        gray = images[index].astype(jnp.float32) / 255
        bits = (jax.random.uniform(key, gray.shape) < gray).astype(jnp.float32)
        return bits, jax.random.normal(key, (size, latent))

    jitted, drawn = jax.jit(products), jax.jit(draw)
    update = jax.jit(adam.update, donate_argnums=1)

    def move() -> None:
        state[0] = jax.block_until_ready(update(gradients, state[0]))

    key = jax.random.key(1)
    return {
        "matrix products": lambda: jax.block_until_ready(jitted(inputs, errors, weights)),
        "random numbers": lambda: jax.block_until_ready(drawn(key)),
        "Adam": move,
    }


def repeated(call: Callable[[], Any]) -> None:
    for _ in range(CALLS):
        call()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="784-400-20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    if torch.get_num_threads() != 1:
        parser.error(f"expected one thread; got {torch.get_num_threads()}. Set OMP_NUM_THREADS=1.")
    setting = Setting(arguments.network, arguments.batch_size, 1, False, 1, CALLS, (), torch.device("cpu"))
    task = setting.task()
    blocks = task.blocks(CALLS)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for who, parts in ((OURS, ours(task)), (THEIRS, theirs(task))):
        step = CONTENDERS[who](task)
        calls |= {(who, part): partial(repeated, call) for part, call in parts.items()}
        calls[who, "whole step"] = partial(lambda step: step(next(blocks)), step)
    taken: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for i in range(arguments.rounds + 3):
            for name, call in calls.items():
                start = time.process_time()
                call()
                if i >= 3:  # past compiling
                    taken[name].append(1e3 * (time.process_time() - start) / CALLS)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    print(f"{arguments.network}, batch {arguments.batch_size}, one thread; ms of processor time\n")
    print(f"{'':18}{OURS:>24}{THEIRS:>26}{'difference':>13}")
    for who in (OURS, THEIRS):
        medians[who, "the rest"] = 2 * medians[who, "whole step"] - sum(medians[who, part] for part in WORDS)
    for part in ("matrix products", "random numbers", "Adam", "the rest", "whole step"):
        one, other = medians[OURS, part], medians[THEIRS, part]
        print(f"{part:18}{one:24.2f}{other:26.2f}{one - other:+13.2f}")


if __name__ == "__main__":
    main()
