"""Every bound with every gradient, at fixed weights: bias, variance, signal-to-noise ratio, cost and memory, as JSON.

    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/estimator_table.py --json docs/data/estimators.json

Three models whose log p(x) is known, and a VAE of MNIST's bits (784-64-16, one epoch of the ELBO). A pair that the
library refuses is in the file with the refusal. The rows are of the guide's parameters; ``lab.Row`` says what each
figure is. What the file holds of other models than ``--models`` stays.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae
from pyro_vae import VAE, conditionals, data, elbo, fit, lab, likelihoods, nets, priors

Bound = Callable[[int, Any], elbo.Estimator]

BOUNDS: dict[str, Bound] = {
    "ELBO": elbo.ELBO,
    "IWELBO": elbo.IWELBO,
    "MIWELBO": lambda k, gradient: elbo.MIWELBO(k // 2, gradient, num_bounds=2),
    "CIWELBO": lambda k, gradient: elbo.CIWELBO(k, gradient, beta=0.5),
    "PIWELBO": lambda k, gradient: elbo.PIWELBO(k // 2, gradient, num_bounds=2),
    "RenyiELBO": lambda k, gradient: elbo.RenyiELBO(k, gradient, alpha=0.5),
    "VRMax": elbo.VRMax,
    "JackknifeELBO": elbo.JackknifeELBO,
    "ThermodynamicELBO": lambda k, gradient: elbo.ThermodynamicELBO(k, gradient, partitions=5),
}
GRADIENTS: dict[str, Callable[[], Any]] = {
    "pathwise": elbo.Pathwise,
    "stl": elbo.STL,
    "dreg": elbo.DReG,
    "score": elbo.Score,
    "score, leave one out": partial(elbo.Score, "leave_one_out"),
    "vimco": elbo.VIMCO,
    "ovis": elbo.OVIS,
    "enumerate": elbo.Enumerate,
    "covariance": elbo.Covariance,
}
PARTICLES = (4, 32)


def normal(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal_guide(loc: float, variance: float, x: Tensor) -> None:
    mean = pyro.param("loc", lambda: torch.tensor(loc))
    log_scale = pyro.param("log_scale", lambda: torch.tensor(math.log(variance) / 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(mean, log_scale.exp()))


def two_states(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
        pyro.sample("x", dist.Bernoulli(torch.where(z > 0, x.new_tensor(0.9), x.new_tensor(0.2))), obs=x)


def two_states_guide(x: Tensor) -> None:
    logit = pyro.param("logit", lambda: torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=logit))


def mnist() -> tuple[Any, Any, Tensor, None]:
    """A VAE after one epoch of the ELBO, and ten images."""
    train, _, test = data.load("mnist", binarize="dynamic")
    torch.manual_seed(0)
    vae = VAE(
        prior=priors.StandardNormal(16),
        likelihood=likelihoods.Bernoulli(nets.MLP(16, [64]), (1, 28, 28), data_mean=train.mean()),
        posterior=conditionals.DiagonalNormal(nets.MLP((1, 28, 28), [64]), 16),
    )
    fit(vae, train, epochs=1, progress=False)
    (x,) = next(test.batches(10))
    return vae.model, vae.guide, x, None


MODELS: dict[str, Callable[[], tuple[Any, Any, Tensor, Tensor | None]]] = {
    "Normal, guide off": lambda: (
        normal,
        partial(normal_guide, 1.0, 2 / 3),
        torch.ones(1),
        dist.Normal(0.0, math.sqrt(2)).log_prob(torch.ones(1)),
    ),
    "Normal, guide exact": lambda: (
        normal,
        partial(normal_guide, 0.5, 0.5),
        torch.ones(1),
        dist.Normal(0.0, math.sqrt(2)).log_prob(torch.ones(1)),
    ),
    "two states": lambda: (
        two_states,
        two_states_guide,
        torch.ones(1),
        torch.tensor([math.log(0.7 * 0.2 + 0.3 * 0.9)]),
    ),
    "MNIST": mnist,
}


def estimators(k: int, model: Any, guide: Any, x: Tensor) -> tuple[dict[str, elbo.Estimator], dict[str, str]]:
    """The pairs that work for a program, and for the others the reason why not."""
    works: dict[str, elbo.Estimator] = {}
    refused: dict[str, str] = {}
    pairs: list[tuple[str, Callable[[Any], elbo.Estimator], Callable[[], Any]]]
    pairs = [(f"{b} / {g}", partial(bound, k), make) for b, bound in BOUNDS.items() for g, make in GRADIENTS.items()]
    pairs.append(("ReweightedWakeSleep / its own", lambda gradient: elbo.ReweightedWakeSleep(k), lambda: None))
    for name, bound, make in pairs:
        try:
            estimator = bound(make())
            estimator.loss_and_grads(model, guide, x)
        except ValueError as error:
            refused[name] = str(error)
        else:
            works[name] = bound(make())
    return works, refused


def written(row: lab.Row) -> dict[str, Any]:
    """A row as JSON has it, which knows no infinity: the signal-to-noise ratio of a gradient without noise is null."""
    bound, gradient = row.estimator.split(" / ")
    figures = {name: None if value in (math.inf, -math.inf) else value for name, value in asdict(row).items()}
    return {**figures, "bound_name": bound, "gradient": gradient, "biased": row.biased}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="to write")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--draws", type=int, default=400, help="of each gradient; a quarter of it on MNIST")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    former = json.loads(arguments.json.read_text(encoding="utf-8"))["comparisons"] if arguments.json.exists() else []
    found: list[dict[str, Any]] = [one for one in former if one["model"] not in arguments.models]
    about = {
        "made": datetime.now(timezone.utc).date().isoformat(),
        "version": pyro_vae.__version__,
        "torch": torch.__version__,
        "command": f"python benchmarks/estimator_table.py --draws {arguments.draws}",
        "comparisons": found,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        for k in PARTICLES:
            pyro.clear_param_store()
            model, guide, x, log_p = MODELS[name]()
            works, refused = estimators(k, model, guide, x)
            draws = max(100, arguments.draws // 4) if name == "MNIST" else arguments.draws
            made = lab.compare(model, guide, x, works, draws=draws, log_marginal_likelihood=log_p, progress=False)
            print(f"\n{name}, K = {k}\n{made}", flush=True)
            found.append(
                {
                    "model": name,
                    "num_particles": k,
                    "num_data": len(x),
                    "draws": draws,
                    "log_p": made.log_marginal_likelihood.value,
                    "exact": made.exact,
                    "rows": [written(row) for row in made.rows if row.group == "guide"],
                    "refused": refused,
                }
            )
            arguments.json.write_text(json.dumps(about, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {arguments.json}")


if __name__ == "__main__":
    main()
