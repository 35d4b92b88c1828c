"""How often ``evaluation.report`` misses a fault that was planted, and how often it names one that is not there.

    OMP_NUM_THREADS=1 python benchmarks/report_rates.py --faulty 10 --healthy 20
    OMP_NUM_THREADS=1 python benchmarks/report_rates.py --json rates.json

Programs are linear VAEs of random size and parameters: their posterior is known, so a healthy one has the exact guide
and data from its own model, and a faulty one differs from such a program in the fault alone. Half of the healthy ones
are conditional. A third kind are healthy programs with a unit that the data have no use for: a note, no fault.
Rates have binomial standard errors; those of the checks go into ``pyro_vae/evaluation/findings.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn

from pyro_vae import VAE, ConditionalVAE
from pyro_vae.conditionals import Conditional
from pyro_vae.evaluation import Report, report
from pyro_vae.evaluation.findings import CHECKS
from pyro_vae.likelihoods import Normal
from pyro_vae.nets import MLP
from pyro_vae.priors import StandardNormal

NUM_DATA = 1000


class LinearPosterior(Conditional):
    """z|x, c ~ Normal(linear(x, c), L L') with a covariance that is the same for all data."""

    scale_tril: Tensor

    def __init__(self, body: MLP, scale_tril: Tensor) -> None:
        super().__init__(body, len(scale_tril))
        self.register_buffer("scale_tril", scale_tril)

    def parameter_shapes(self) -> dict[str, Size]:
        return {"loc": self.event_shape}

    def distribution(self, *, loc: Tensor) -> TorchDistribution:  # type: ignore[override]
        return dist.MultivariateNormal(loc, scale_tril=self.scale_tril)


@dataclass(frozen=True)
class Linear:
    """z ~ Normal(0, I), x|z, c ~ Normal(W z + V c + b, s^2 I), for D data dims, L latent ones and C of the context.

    Attributes:
        weight: W, (D, L).
        context_weight: V, (D, C); of no columns where there is no context.
        bias: b, (D,).
        scale: s.
    """

    weight: Tensor
    context_weight: Tensor
    bias: Tensor
    scale: float

    @classmethod
    def random(cls, num_contexts: int = 0, *, larger: int = 1) -> Linear:
        """Signal and noise of the same order, 6 to 10 data dims and 2 to 4 latent ones, or so many times more."""
        data_dim, latent_dim = larger * int(torch.randint(6, 11, ())), larger * int(torch.randint(2, 5, ()))
        weight = torch.randn(data_dim, latent_dim, dtype=torch.float64)
        context_weight = torch.randn(data_dim, num_contexts, dtype=torch.float64) / 2
        return cls(weight, context_weight, torch.randn(data_dim).double(), 0.3 + 0.7 * torch.rand(()).item())

    @classmethod
    def fitted(cls, x: Tensor, latent_dim: int) -> Linear:
        """The maximum-likelihood estimate for data (N, D): probabilistic PCA."""
        bias = x.mean(0)
        values, vectors = torch.linalg.eigh((x - bias).T @ (x - bias) / len(x))
        variance = values[:-latent_dim].mean()
        weight = vectors[:, -latent_dim:] * (values[-latent_dim:] - variance).sqrt()
        return cls(weight, x.new_zeros(len(bias), 0), bias, variance.sqrt().item())

    def draw(self, noise: Callable[[Size], Tensor] | None = None) -> tuple[Tensor, ...]:
        """Data and, where there is one, their context; ``noise`` of unit variance in place of the Normal's."""
        z = torch.randn(NUM_DATA, self.weight.shape[1], dtype=torch.float64)
        c = torch.randn(NUM_DATA, self.context_weight.shape[1], dtype=torch.float64)
        shape = Size((NUM_DATA, len(self.bias)))
        epsilon = torch.randn(shape, dtype=torch.float64) if noise is None else noise(shape).double()
        x = z @ self.weight.T + c @ self.context_weight.T + self.bias + self.scale * epsilon
        return (x, c) if c.shape[1] else (x,)

    def program(self, *, conditional: bool = False, guide_scale: float = 1.0) -> VAE | ConditionalVAE:
        """With the exact posterior as its guide, or that with its scale multiplied."""
        (data_dim, latent_dim), num_contexts = self.weight.shape, self.context_weight.shape[1]
        contexts = [num_contexts] if conditional else []
        likelihood = Normal(MLP(latent_dim, [], context_shapes=contexts), data_dim, scale=self.scale)
        _set(likelihood.head.layer, torch.cat([self.weight, self.context_weight], 1), self.bias)
        precision = self.weight.T @ self.weight + self.scale**2 * torch.eye(latent_dim, dtype=torch.float64)
        covariance = self.scale**2 * torch.linalg.inv(precision)
        body = MLP(data_dim, [], context_shapes=contexts)
        posterior = LinearPosterior(body, guide_scale * torch.linalg.cholesky(covariance))
        to_loc = torch.linalg.solve(precision, self.weight.T)
        weights = torch.cat([to_loc, -to_loc @ self.context_weight], 1)
        _set(posterior.head.layer, weights, -to_loc @ self.bias)
        kind = ConditionalVAE if conditional else VAE
        return kind(StandardNormal(latent_dim), likelihood, posterior).double()


def _set(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.weight, layer.bias = nn.Parameter(weight.contiguous().clone()), nn.Parameter(bias.clone())


@dataclass(frozen=True)
class Case:
    """A program, held-out data and training data, with their contexts."""

    program: VAE | ConditionalVAE
    data: tuple[Tensor, ...]
    train: tuple[Tensor, ...]

    def report(self) -> Report:
        return report(self.program, *self.data, train=self.train)


def healthy() -> Case:
    conditional = bool(torch.rand(()) < 0.5)
    linear = Linear.random(2 if conditional else 0)
    return Case(linear.program(conditional=conditional), linear.draw(), linear.draw())


def spare_unit() -> Case:
    """Healthy, with a unit more than the data have use for."""
    linear = _without_a_unit(Linear.random())
    return Case(linear.program(), linear.draw(), linear.draw())


def narrow_guide() -> Case:
    linear = Linear.random()
    return Case(linear.program(guide_scale=0.5), linear.draw(), linear.draw())


def dead_unit() -> Case:
    """The data have use for a unit that decoder and guide ignore."""
    linear = Linear.random()
    return Case(_without_a_unit(linear).program(), linear.draw(), linear.draw())


def wrong_likelihood() -> Case:
    """Student's t or Laplace noise, of the variance of the Normal likelihood's."""
    linear = Linear.random()
    noises: list[Callable[[Size], Tensor]] = [
        lambda shape: torch.distributions.StudentT(3.0).sample(shape) / math.sqrt(3),
        lambda shape: torch.distributions.StudentT(4.0).sample(shape) / math.sqrt(2),
        lambda shape: torch.distributions.Laplace(0.0, math.sqrt(0.5)).sample(shape),
    ]
    noise = noises[int(torch.randint(len(noises), ()))]
    return Case(linear.program(), linear.draw(noise), linear.draw(noise))


def overfitting() -> Case:
    """Fitted to 30 data, fewer than it has parameters: some 4.7 nats more probable than new data."""
    truth = Linear.random(larger=2)
    (x,) = truth.draw()
    train = x[:30]
    return Case(Linear.fitted(train, truth.weight.shape[1]).program(), truth.draw(), (train,))


def shuffled_context() -> Case:
    """Half of the time in training, so that the model has learned to ignore it; else in the held-out data."""
    linear = Linear.random(2)
    (x, c), (train, train_c) = linear.draw(), linear.draw()
    shuffled = c[torch.randperm(len(c))]
    if torch.rand(()) < 0.5:
        return Case(linear.program(conditional=True), (x, shuffled), (train, train_c))
    ignoring = Linear(
        torch.cat([linear.weight, linear.context_weight], 1),  # what the context did is in two more latents
        torch.zeros_like(linear.context_weight),
        linear.bias,
        linear.scale,
    )
    return Case(ignoring.program(conditional=True), (x, c), (train, train_c[torch.randperm(len(train_c))]))


def collapsed_posterior() -> Case:
    """The decoder alone, fitted to the data's mean and variance."""
    linear = Linear.random()
    variance = linear.scale**2 + linear.weight.square().sum(1).mean().item()
    collapsed = replace(linear, weight=torch.zeros_like(linear.weight), scale=math.sqrt(variance))
    return Case(collapsed.program(), linear.draw(), linear.draw())


def _without_a_unit(linear: Linear) -> Linear:
    weight = linear.weight.clone()
    weight[:, int(torch.randint(weight.shape[1], ()))] = 0.0
    return replace(linear, weight=weight)


PLANTED: dict[str, tuple[Callable[[], Case], tuple[str, ...]]] = {
    "guide's scale halved": (narrow_guide, ("narrow guide",)),
    "dead unit": (dead_unit, ("unused units",)),
    "wrong likelihood": (wrong_likelihood, ("likelihood of wrong tails", "likelihood of wrong spread")),
    "overfitting": (overfitting, ("overfitting",)),
    "shuffled context": (shuffled_context, ("context without information",)),
    "collapsed posterior": (collapsed_posterior, ("collapsed posterior",)),
}
"""Makers of a faulty program, and the findings one of which is to name it."""


@dataclass
class Tally:
    """What was found in the programs of one kind."""

    programs: int
    measured: Counter[str]
    found: Counter[str]
    named: int
    noted: int
    faulted: int

    @classmethod
    def of(cls, make: Callable[[], Case], programs: int, seed: int, names: tuple[str, ...] = ()) -> Tally:
        tally = cls(programs, Counter(), Counter(), 0, 0, 0)
        for number in range(programs):
            torch.manual_seed(seed + number)
            verdicts = make().report()
            tally.measured.update(finding.name for finding in verdicts.findings)
            found = [finding.name for finding in verdicts.found]
            tally.found.update(found)
            tally.named += any(name in found for name in names)
            tally.noted += bool(found)
            tally.faulted += any(finding.check.severity == "fault" for finding in verdicts.found)
        return tally


def rate(count: int, total: int) -> str:
    """A share with its binomial standard error, of the share with one more of either kind, lest that of none be 0."""
    likely = (count + 1) / (total + 2)
    error = math.sqrt(likely * (1 - likely) / total)
    return f"{count:3d} of {total:3d} = {100 * count / total:5.1f}% ± {100 * error:.1f}%"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faulty", type=int, default=50, help="programs with each fault")
    parser.add_argument("--healthy", type=int, default=200)
    parser.add_argument("--json", type=Path, help="where to keep the counts")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    start = time.perf_counter()
    tallies = {
        name: Tally.of(make, arguments.faulty, 10_000 * i, names)
        for i, (name, (make, names)) in enumerate(PLANTED.items())
    }
    tallies["healthy, spare unit"] = Tally.of(spare_unit, arguments.faulty, 100_000)
    tallies["healthy"] = fine = Tally.of(healthy, arguments.healthy, 200_000)
    seconds = (time.perf_counter() - start) / sum(tally.programs for tally in tallies.values())
    print(f"{NUM_DATA} data, {seconds:.1f} s per report\n\nplanted, named, and all that was found")
    for name, tally in tallies.items():
        named = rate(tally.named, tally.programs) if name in PLANTED else ""
        found = ", ".join(f"{finding} {count}" for finding, count in tally.found.most_common()) or "nothing"
        print(f"{name:22} {named:32} {found}")
    for name in ("healthy, spare unit", "healthy"):
        tally = tallies[name]
        print(f"{name}: faulted {rate(tally.faulted, tally.programs)}; or noted {rate(tally.noted, tally.programs)}")
    print("\nfalse alarms of each check in healthy programs")
    for name in CHECKS:
        print(f"{name:32} {rate(fine.found[name], fine.measured[name]) if fine.measured[name] else 'not measured'}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({name: vars(tally) for name, tally in tallies.items()}, indent=1))


if __name__ == "__main__":
    main()
