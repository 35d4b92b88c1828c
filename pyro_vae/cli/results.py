"""``pyro-vae evaluate``, ``report`` and ``compare``: what was learned, what is wrong with it, what is better."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch

from pyro_vae import elbo, evaluation, lab
from pyro_vae.checkpoint import files
from pyro_vae.cli.calls import made
from pyro_vae.cli.parser import subclasses
from pyro_vae.cli.runs import opened
from pyro_vae.cli.train import is_other_rank
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

    By torchrun, its processes share the data, and the first writes.

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
    num_all = len(chosen)
    chosen = chosen if max_data is None else chosen.take(max_data)
    x, *context = chosen.batch(torch.arange(len(chosen)), torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=[]), evaluation.over_ranks():
        torch.manual_seed(seed)
        terms = evaluation.elbo_terms(run.program, x, *context)
        marginal = evaluation.log_marginal_likelihood(
            run.program, x, *context, num_particles=num_particles, progress=False
        )
        units = evaluation.active_units(run.program, x, *context) if len(x) > 1 else None
    if is_other_rank():
        return
    estimate = evaluation.Estimate.of
    figures = {
        "-ELBO": estimate(-terms.elbo, 1),
        "-E_q[log p(x|z)]": estimate(-terms.expected_log_likelihood, 1),
        "KL": estimate(terms.kl, 1),
        "-log p(x)": estimate(-marginal.value, num_particles),
    }
    unreliable = len(marginal.unreliable) / len(x) if bool(marginal.pareto_k.isfinite().any()) else math.nan
    of = f"{len(x):,} of {num_all:,} data{'' if data else f' of the {split} part'}"
    print(f"{chosen.name}, the first {of}, nats per datum, K = {num_particles:,}")
    for name, figure in figures.items():
        print(f"{name:20} {figure.value:10.2f} ± {figure.standard_error:.2f}")
    active = math.nan if units is None else units.count
    print(f"{'active units':20} {active:7} of {run.program.prior.event_shape.numel()}")
    doubt = "not known: take more --num_particles" if math.isnan(unreliable) else f"{unreliable:.0%} of the data"
    print(f"{'k-hat above 0.7':20} {doubt:>10}, whose -log p(x) is likely too high")
    kept: dict[str, Any] = {"data": chosen.name, "part": None if data else split, "num_data": len(x), "seed": seed}
    kept |= {**figures, "active units": active, "share of k-hat above 0.7": unreliable}
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
    found: evaluation.Report | None = None
    none = ""
    try:
        with evaluation.over_ranks():
            found = evaluation.report(run.program, chosen, train=run.splits.train, seed=seed)
    except ValueError as error:  # of too few data, for example; the pictures can be drawn all the same
        none = f"no verdicts: {error}"
    if is_other_rank():
        return
    print(*([none] if found is None else found.telling()), sep="\n")
    print(plots.report(folder, chosen, verdicts=found, seed=seed))


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
    if len(set(folders)) < len(folders) or (len(folders) == 1 and not estimators):
        raise ValueError("compare: expected two folders of runs or more, or one with --estimators. Name another one.")
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
    for name, run in runs.items():
        other = run.dataset(data, split).take(len(chosen)).tensor() if data is None else chosen.tensor()
        if not torch.equal(other.nan_to_num(), chosen.tensor().nan_to_num()):
            raise ValueError(
                f"compare: expected runs with the same {split} data, on which they are judged; got other ones of "
                f"{name} than of {folders[0]}. Train them on one set with one --split_seed, or give new --data."
            )
    programs = {name: run.program for name, run in runs.items()}
    print(lab.rank(programs, chosen, num_particles=num_particles, seed=seed, progress=False))
