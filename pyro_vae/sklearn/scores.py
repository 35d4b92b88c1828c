"""Scores of rows, each of which is a number of its own.

Shapes: N data, D features, K particles.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Size, Tensor

from pyro_vae.models import VAE

_NUMBERS_AT_ONCE = 2**20  # in the widest layer of the draws in flight


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's generator for a while."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def log_marginal_likelihood(vae: VAE, x: Tensor, num_particles: int, seed: int) -> Tensor:
    """The estimate of log p(x) of each row alone, with the same random numbers for each; (N,).

    Args:
        vae: the program.
        x: data, (N, D).
        num_particles: K, draws per row.
        seed: of the random numbers.
    """

    def of_row(row: Tensor) -> Tensor:
        q, shape = vae.encode(row[None]), Size((num_particles,))
        z = q.rsample(shape) if q.has_rsample else q.sample(shape)
        log_weights = vae.prior().log_prob(z) + vae.decode(z).log_prob(row) - q.log_prob(z)
        return log_weights.logsumexp(0)[0] - math.log(num_particles)

    def of_rows(rows: Tensor) -> Tensor:
        with seeded(seed):
            return torch.vmap(of_row, randomness="same")(rows)

    def one_by_one(rows: Tensor) -> Tensor:
        results = []
        for row in rows:
            with seeded(seed):
                results.append(of_row(row))
        return torch.stack(results)

    widest = max(size for part in vae.parameters() for size in part.shape)
    chunks = x.split(max(1, _NUMBERS_AT_ONCE // (num_particles * widest)))
    try:
        return torch.cat([of_rows(chunk) for chunk in chunks])
    except RuntimeError:  # densities that branch on values, draws by rejection
        return torch.cat([one_by_one(chunk) for chunk in chunks])
