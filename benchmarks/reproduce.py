"""Published tables beside ours: one run a row, kept in a folder, so that a run that was killed goes on.

    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/reproduce.py iwae-1-iwae-5            # as published: hours
    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/reproduce.py iwae-1-vae-1 --passes 400
    python benchmarks/reproduce.py --table                                                      # of what has been run

As published: the stages of Burda et al., learning rate .001 * 10^(-i/7) for 3^i passes, i = 0..7, Adam's eps 1e-4, at a
batch of 100 in place of 20, and beta1 .9 in place of .99. With `--passes`, which marks a row as shortened: Adam's own
eps, and a cosine from .001 to 0 over so many passes. Otherwise one protocol for all rows: 784-200-200-50 with tanh,
Glorot's initialization, 59,999 training images made binary afresh in each pass, and 10,000 test images made binary
once. -ELBO is in nats, as is NLL, -log p(x) by 5,000 importance-weighted draws of the guide, ± its standard error over
test images; active units are those with Var_x(E_q[z|x]) > .01 over 500 training images, the published number in
brackets. Every run writes its settings and figures to `benchmarks/results/reproduce/ROW-PASSES-SEED.json`, with the
number of images at the end where NLL is of fewer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import records
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from pyro_vae import VAE, HierarchicalVAE, conditionals, data, elbo, evaluation, fit, likelihoods, nets, priors

RESULTS = Path(__file__).parent / "results" / "reproduce"
LATENT = 50
STAGES = [3**i for i in range(8)]  # passes at each learning rate
FULL = sum(STAGES)
TEST_IMAGES = 10_000


@dataclass(frozen=True)
class Row:
    """A row of a published table.

    Attributes:
        table: where it was published.
        loss: the bound that is climbed.
        build: makes the program, from the training data.
        published: negative log-likelihood in nats; None where no figure of this very setting is known.
        units: active units as published.
        batch_size: images per step.
    """

    table: str
    loss: Callable[[], elbo.Estimator]
    build: Callable[[data.Dataset], Any]
    published: float | None = None
    units: str = ""
    batch_size: int = 100


def one_layer(train: data.Dataset, prior: Callable[[data.Dataset], priors.Prior] | None = None) -> VAE:
    return VAE(
        prior=priors.StandardNormal(LATENT) if prior is None else prior(train),
        likelihood=likelihoods.Bernoulli(nets.MLP(LATENT, [200, 200]), (1, 28, 28), data_mean=train.mean()),
        posterior=conditionals.DiagonalNormal(nets.MLP((1, 28, 28), [200, 200]), LATENT),
    )


def two_layers(train: data.Dataset) -> HierarchicalVAE:
    return HierarchicalVAE(
        priors.StandardNormal(LATENT),
        [conditionals.DiagonalNormal(nets.MLP(LATENT, [100, 100]), 100)],
        likelihoods.Bernoulli(nets.MLP(100, [200, 200]), (1, 28, 28), data_mean=train.mean()),
        [
            conditionals.DiagonalNormal(nets.MLP((1, 28, 28), [200, 200]), 100),
            conditionals.DiagonalNormal(nets.MLP(100, [100, 100]), LATENT),
        ],
    )


def sigmoid_belief_network(train: data.Dataset) -> HierarchicalVAE:
    """Three layers of 200 binary latents, each a logistic regression on the one above it."""
    return HierarchicalVAE(
        priors.Bernoulli(200),
        [conditionals.Bernoulli(nets.MLP(200, []), 200) for _ in range(2)],
        likelihoods.Bernoulli(nets.MLP(200, []), (1, 28, 28), data_mean=train.mean()),
        [conditionals.Bernoulli(nets.MLP(shape, []), 200) for shape in ((1, 28, 28), 200, 200)],
    )


def vamp(train: data.Dataset) -> priors.Prior:
    return priors.VampPrior(pseudo_inputs=train.tensor()[:500])


def real_nvp(train: data.Dataset) -> priors.Prior:
    return priors.RealNVP(LATENT)


BURDA = "Burda et al., 2016, table 1"
RAINFORTH = "Rainforth et al., 2018"
ROWS = {
    f"iwae-{layers}-{objective}-{k}": Row(
        f"{BURDA}, {layers} stochastic layer{'s' * (layers > 1)}", partial(bound, k), build, nll, units
    )
    for layers, build, figures in (
        (1, one_layer, ((86.76, "19"), (86.47, "20"), (86.35, "20"), (85.54, "22"), (84.78, "25"))),
        (2, two_layers, ((85.33, "16+5"), (85.01, "17+5"), (84.78, "17+5"), (83.89, "21+5"), (82.90, "26+7"))),
    )
    for (objective, bound, k), (nll, units) in zip(
        [("vae", elbo.ELBO, k) for k in (1, 5, 50)] + [("iwae", elbo.IWELBO, k) for k in (5, 50)], figures, strict=True
    )
} | {
    "miwae-8-8": Row(RAINFORTH, partial(elbo.MIWELBO, 8, num_bounds=8), one_layer, 84.97),
    "piwae-8-8": Row(RAINFORTH, partial(elbo.PIWELBO, 8, num_bounds=8), one_layer, 84.46),
    "ciwae-05": Row(RAINFORTH, partial(elbo.CIWELBO, 64, beta=0.05), one_layer, 84.57),
    **{
        f"iwae-64-{gradient}": Row("Tucker et al., 2019", partial(elbo.IWELBO, 64, gradient), one_layer)
        for gradient in ("pathwise", "stl", "dreg")
    },
    "tvo-50": Row("Masrani et al., 2019", partial(elbo.ThermodynamicELBO, 50, partitions=5), one_layer),
    "vamp": Row("Tomczak, Welling, 2018", elbo.ELBO, partial(one_layer, prior=vamp)),
    "real-nvp": Row("a flow as the prior", elbo.ELBO, partial(one_layer, prior=real_nvp)),
    "sbn-vimco-5": Row("Mnih, Rezende, 2016", partial(elbo.IWELBO, 5, "vimco"), sigmoid_belief_network),
    "sbn-wake-sleep-5": Row("Bornschein, Bengio, 2015", partial(elbo.ReweightedWakeSleep, 5), sigmoid_belief_network),
}


def glorot(program: nn.Module) -> None:
    """Draws weights from Glorot's uniform distribution; biases are 0 but for those that a data mean has set."""
    for name, parameter in program.named_parameters():
        if parameter.dim() == 2 and name.endswith("weight"):
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias") and ".head." not in name:
            nn.init.zeros_(parameter)


def stage(epoch: int) -> float:
    """Learning rate of an epoch as published, over that of the first."""
    ends = list(itertools.accumulate(STAGES))
    return 10 ** (-next((i for i, end in enumerate(ends) if epoch < end), len(ends) - 1) / 7)


def reproduce(name: str, passes: int, seed: int, nll_images: int, runs: Path) -> dict[str, Any]:
    """Runs a row, or what is left of it, and writes its figures."""
    row = ROWS[name]
    torch.manual_seed(seed)
    train, _, test = data.load("mnist", binarize="dynamic", validation=1, seed=seed)
    program, loss = row.build(train), row.loss()
    glorot(program)
    as_published = passes == FULL
    history = fit(
        program,
        train,
        loss=loss,
        optimizer=partial(torch.optim.Adam, lr=1e-3, eps=1e-4 if as_published else 1e-8, fused=True),
        scheduler=partial(LambdaLR, lr_lambda=stage) if as_published else partial(CosineAnnealingLR, T_max=passes),
        epochs=passes,
        batch_size=row.batch_size,
        seed=seed,
        folder=runs / f"{name}-{passes}-{seed}",
        resume=True,
        compile=True,  # a few passes are not long enough for "auto", but the steps of large K are slow
        checkpoint_every="5 minutes",
        progress=False,
        on_epoch=lambda epoch: print(
            f"{name} {epoch['epoch']:5} {epoch['train_elbo']:9.2f} {epoch['seconds']:6.1f} s", flush=True
        ),
    )
    start = time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        terms = [evaluation.elbo_terms(program, *batch).elbo for batch in test.batches(1000)]
        # Evenly spaced, since MNIST's first 5,000 test images are cleaner than the rest.
        some = torch.arange(nll_images) * TEST_IMAGES // nll_images
        marginal = evaluation.log_marginal_likelihood(program, *test.batch(some), num_particles=5000, progress=False)
        (images,) = train.take(500).batch(torch.arange(500), torch.Generator().manual_seed(0))
        units = evaluation.active_units(program, images, num_particles=100)
    bound, nll, k_hat = torch.cat(terms), -marginal.value, marginal.pareto_k
    result = {
        "row": name,
        "published in": row.table,
        "published": row.published,
        "published units": row.units,
        "as published": as_published,
        "passes": passes,
        "batch size": row.batch_size,
        "loss": f"{history.settings['loss']}, {loss.num_particles} particles, {type(loss.gradient).__name__}",
        "optimizer": "Adam, lr .001 * 10^(-i/7) for 3^i passes, eps 1e-4" if as_published else "Adam, lr .001, cosine",
        "seed": seed,
        "training images": len(train),
        "-ELBO": float(-bound.mean()),
        "-ELBO error": float(bound.std() / len(bound) ** 0.5),
        "NLL images": nll_images,
        "NLL": float(nll.mean()),
        "NLL error": float(nll.std() / len(nll) ** 0.5),
        "k-hat above .7": float((k_hat > 0.7).float().mean()),
        "active units": {site: int(active.sum()) for site, active in units.active.items()},
        "hours": sum(epoch["seconds"] for epoch in history.epochs) / 3600,
        "evaluation hours": (time.perf_counter() - start) / 3600,
        **records.about(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    suffix = "" if nll_images == TEST_IMAGES else f"-{nll_images}"
    (RESULTS / f"{name}-{passes}-{seed}{suffix}.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def table() -> str:
    """The runs that have been made, as Markdown, in the order of the rows."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    found.sort(key=lambda result: (list(ROWS).index(result["row"]), -result["passes"], result["seed"]))
    lines = [
        "| row | passes | NLL, nats | published (units) | difference | -ELBO | k-hat > .7 | active units | hours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in found:
        published, nll = result["published"], result["NLL"]
        difference = "" if published is None else f"{nll - published:+.2f}"
        units = "+".join(map(str, result["active units"].values()))
        some = "" if result["NLL images"] == TEST_IMAGES else f" of {result['NLL images']:,} images"
        theirs = (
            ""
            if published is None
            else f"{published:.2f}" + f" ({result['published units']})" * bool(result["published units"])
        )
        lines.append(
            f"| {result['row']} | {result['passes']:,}{'' if result['as published'] else ' of 3,280'} "
            f"| {nll:.2f} ± {result['NLL error']:.2f}{some} | {theirs} | {difference} | {result['-ELBO']:.2f} "
            f"| {result['k-hat above .7']:.0%} | {units} | {result['hours']:.2g} |"
        )
    return "\n".join(lines)


def row_name(name: str) -> str:
    if name not in ROWS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(ROWS)}; got {name!r}")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=row_name, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--passes", type=int, default=FULL, help=f"over the training images, of {FULL:,} as published")
    parser.add_argument("--seed", type=int, default=0, help="of weights, bits and draws")
    parser.add_argument(
        "--nll-images", type=int, default=TEST_IMAGES, help="evenly spaced test images for NLL and k-hat"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs") / "reproduce", help="folder in which a killed run goes on"
    )
    parser.add_argument("--table", action="store_true", help="print the table of all runs")
    arguments = parser.parse_args()
    for option, most in (("passes", FULL), ("nll_images", TEST_IMAGES)):
        if not 1 <= (value := getattr(arguments, option)) <= most:
            parser.error(f"--{option.replace('_', '-')}: expected 1 to {most:,}; got {value:,}")
    for name in arguments.rows:
        result = reproduce(name, arguments.passes, arguments.seed, arguments.nll_images, arguments.runs)
        print(json.dumps(result, indent=2), flush=True)
    if arguments.table or not arguments.rows:
        if not any(RESULTS.glob("*.json")):
            parser.error(f"expected runs in {RESULTS}; got none. Name a row to run: {', '.join(ROWS)}")
        print(table())


if __name__ == "__main__":
    assert math.isclose(stage(FULL - 1), 0.1)
    main()
