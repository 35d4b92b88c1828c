"""Time and memory of the log marginal likelihood, beside a hand-written loop that encodes once and decodes in chunks.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py
    python benchmarks/evaluation.py --images 1000 --blocks 1
    python benchmarks/evaluation.py --images 1000 --device cuda --memory 1000000000 --rows 100000

Both take turns on the same images, network and number of draws; ratios are of runs side by side, because the speed of
a shared machine drifts, and of processor time on one thread. Images are MNIST's test images where --mnist is
given, else random bits.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from devices import description, device
from ratios import ratio, timed, write
from torch import Tensor
from torch.distributions import Normal

from pyro_vae import VAE, conditionals, data, evaluation, likelihoods, nets, priors
from pyro_vae.graphs.memory import peak_memory

HIDDEN, LATENT = [200, 200], 50


@torch.no_grad()
def hand_written(vae: VAE, x: Tensor, num_particles: int, rows: int) -> Tensor:
    """Log p(x), (N,), as one writes it without a library; ``rows`` draws are decoded at once."""
    guide, decoder = vae.encode(x).base_dist, vae.likelihood
    loc, scale = guide.loc, guide.scale
    prior = Normal(torch.zeros(LATENT, device=x.device), 1.0)
    batch, bound = max(1, rows // num_particles), []
    for start in range(0, len(x), batch):
        m, s, target = (t[start : start + batch] for t in (loc, scale, x))
        log_weights = []
        for done in range(0, num_particles, rows // batch):
            posterior = Normal(m, s)
            z = posterior.sample((min(rows // batch, num_particles - done),))
            logits = decoder.head(decoder.body(z))["logits"]
            cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, target.expand_as(logits), reduction="none"
            )
            log_weights.append((prior.log_prob(z) - posterior.log_prob(z)).sum(-1) - cross_entropy.sum(-1))
        bound.append(torch.cat(log_weights).logsumexp(0) - math.log(num_particles))
    return torch.cat(bound)


def run(function: Callable[[], Tensor], on: torch.device) -> tuple[tuple[float, float], Tensor]:
    """Milliseconds that a function takes, elapsed and those that ratios are of, and its result."""
    values: list[Tensor] = []
    return timed(lambda: values.append(function()), on), values[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1024, help="draws that the hand-written loop decodes at once")
    parser.add_argument("--memory", type=int, default=2**23, help="bytes that pyro_vae may take")
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda or cuda:1, for example")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the ratio")
    parser.add_argument("--mnist", action="store_true", help="MNIST's images in place of random ones")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "log_marginal_likelihood: expected Pareto")  # nothing is trained here
    torch.manual_seed(0)
    if arguments.mnist:
        x = next(data.load("mnist", binarize="static").test.batches(arguments.images))[0].flatten(1)
    else:
        x = torch.bernoulli(torch.full((arguments.images, 784), 0.2))
    x = x.to(arguments.device)
    vae = VAE(
        prior=priors.StandardNormal(LATENT),
        likelihood=likelihoods.Bernoulli(nets.MLP(LATENT, HIDDEN), (784,)),
        posterior=conditionals.DiagonalNormal(nets.MLP((784,), HIDDEN), LATENT),
    ).to(arguments.device)
    ours, theirs = [], []
    for _ in range(arguments.blocks):
        taken, value = run(
            lambda: (
                evaluation.log_marginal_likelihood(
                    vae, x, num_particles=arguments.particles, memory=arguments.memory, progress=False
                ).value
            ),
            x.device,
        )
        ours.append(taken)
        taken, other = run(lambda: hand_written(vae, x, arguments.particles, arguments.rows), x.device)
        theirs.append(taken)
    (elapsed, compared), (elapsed_theirs, compared_theirs) = zip(*ours, strict=True), zip(*theirs, strict=True)
    found = ratio(compared, compared_theirs)
    print(
        f"{arguments.images} images, K = {arguments.particles}, {arguments.blocks} blocks, "
        f"{description(x.device)}\npyro_vae {statistics.median(elapsed) / 1e3:.2f} s, hand-written "
        f"{statistics.median(elapsed_theirs) / 1e3:.2f} s; pyro_vae / hand-written {found['ratio']:.3f} "
        f"({found['error']:.3f}); largest difference {(value - other).abs().max():.2g} nats"
    )
    setting = {"images": arguments.images, "particles": arguments.particles, "blocks": arguments.blocks}
    write(arguments.json, x.device, setting, {"log_marginal_likelihood / by hand": found})
    for k in (arguments.particles, 10 * arguments.particles):
        peak = peak_memory(
            lambda k=k: evaluation.log_marginal_likelihood(  # type: ignore[misc]
                vae, x[:2], num_particles=k, memory=arguments.memory, progress=False
            )
        )
        print(f"K = {k:,}: {peak:,} bytes of tensors at most, of a budget of {arguments.memory:,}")


if __name__ == "__main__":
    main()
