"""``pyro-vae evaluate``, ``report`` and ``compare``: what was learned, what is wrong with it, what is better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from pyro_vae import elbo, evaluation, lab
from pyro_vae.checkpoint import files
from pyro_vae.cli.calls import made
from pyro_vae.cli.parser import subclasses
from pyro_vae.cli.runs import opened
from pyro_vae.evaluation.results import plain

Split = Literal["train", "validation", "test"]


def evaluate(
    folder: str,
    data: str | None = None,
    split: Split = "test",
    num_particles: int = 1000,
    max_data: int | None = 1000,
    seed: int = 0,
) -> None:
    """Prints the figures of a trained program in nats per datum, and writes them to evaluation.json of its folder.

    Args:
        folder: the run's.
        data: other data than the run's, all of which are looked at.
        split: which part of the run's data.
        num_particles: K, draws of z per datum for -log p(x).
        max_data: of the data, the first so many; null for all.
        seed: of the draws.
    """
    run = opened(folder)
    chosen = run.dataset(data, split)
    chosen = chosen if max_data is None else chosen.take(max_data)
    x, *context = chosen.batch(torch.arange(len(chosen)), torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        terms = evaluation.elbo_terms(run.program, x, *context)
        marginal = evaluation.log_marginal_likelihood(
            run.program, x, *context, num_particles=num_particles, progress=False
        )
        units = evaluation.active_units(run.program, x, *context)
    of = evaluation.Estimate.of
    figures = {
        "-ELBO": of(-terms.elbo, 1),
        "-E_q[log p(x|z)]": of(-terms.expected_log_likelihood, 1),
        "KL": of(terms.kl, 1),
        "-log p(x)": of(-marginal.value, num_particles),
    }
    unreliable = len(marginal.unreliable) / len(x)
    print(f"{chosen.name}, {len(x):,} data{'' if data else f' of the {split} part'}, nats per datum")
    for name, figure in figures.items():
        print(f"{name:20} {figure.value:10.2f} ± {figure.standard_error:.2f}")
    print(f"{'active units':20} {units.count:7} of {run.program.prior.event_shape.numel()}")
    print(f"{'k-hat above 0.7':20} {unreliable:10.0%} of the data: -log p(x) is that much in doubt")
    kept = {**figures, "active units": units.count, "share of k-hat above 0.7": unreliable}
    files.replace(Path(folder, "evaluation.json"), json.dumps(plain(kept), indent=2).encode())


def report(folder: str, data: str | None = None, split: Split = "test", max_data: int = 1000, seed: int = 0) -> None:
    """Writes report.html, one page with the run's pictures and figures, and prints what is wrong with the program.

    Args:
        folder: the run's.
        data: other data than the run's, all of which are looked at.
        split: which part of the run's data.
        max_data: of the data, the first so many.
        seed: of the draws.
    """
    from pyro_vae import plots  # with matplotlib

    run = opened(folder)
    chosen: Any = run.dataset(data, split).take(max_data)
    found = evaluation.report(run.program, chosen, train=run.splits.train, seed=seed)
    print(*found.telling(), sep="\n")
    print(plots.report(folder, data=chosen, seed=seed))


def compare(
    folders: list[str],
    estimators: list[str] | None = None,
    data: str | None = None,
    split: Split = "test",
    num_particles: int = 1000,
    max_data: int | None = 1000,
    draws: int = 500,
    seed: int = 0,
) -> None:
    """Says which of several runs is the better model; of one run, which ELBO estimator has the better gradient.

    Args:
        folders: of runs; one with --estimators.
        estimators: of the ELBO, written as calls: ELBO "IWELBO(16)" "IWELBO(16, gradient='dreg')".
        data: other data than the first run's.
        split: which part of the first run's data.
        num_particles: K, draws of z per datum for log p(x).
        max_data: of the data, the first so many; of estimators 100 at most; null for all.
        draws: of each estimator's gradient.
        seed: of the draws.
    """
    runs = {folder: opened(folder) for folder in folders}
    first = next(iter(runs.values()))
    chosen = first.dataset(data, split)
    chosen = chosen if max_data is None else chosen.take(max_data)
    if estimators:
        if len(runs) > 1:
            raise ValueError(f"compare: expected one folder with --estimators; got {len(runs)}. Give one at a time.")
        known = {each.__name__: each for each in subclasses(elbo.Estimator)}
        losses = [made("--estimators", text, known) for text in estimators]
        batch = chosen.take(100).batch(torch.arange(min(100, len(chosen))), torch.Generator().manual_seed(seed))
        print(
            lab.compare(first.program.model, first.program.guide, batch, losses, draws=draws, seed=seed, progress=False)
        )
        return
    programs = {name: run.program for name, run in runs.items()}
    print(lab.rank(programs, chosen, num_particles=num_particles, seed=seed, progress=False))
