"""``pyro-vae info`` and ``list``: what a folder holds, and what can be chosen."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Literal

from pyro_vae import conditionals, elbo, likelihoods, load, priors
from pyro_vae.checkpoint.programs import RUN, WEIGHTS, checkpoints
from pyro_vae.cli.parser import is_option, plain, subclasses
from pyro_vae.cli.programs import described
from pyro_vae.cli.train import CONFIG
from pyro_vae.training import History
from pyro_vae.training.kept import kept_history

KINDS: dict[str, type] = {
    "likelihoods": likelihoods.Likelihood,
    "priors": priors.Prior,
    "conditionals": conditionals.Conditional,
    "estimators": elbo.Estimator,
}


def info(folder: str) -> None:
    """Prints what a run's folder holds: the program, its options, how far it came, its last figures.

    Args:
        folder: the run's, or that of a saved program.
    """
    path = Path(folder)
    program = load(folder)
    print(described(program))
    if (path / CONFIG).is_file():
        print(f"\n{CONFIG}:\n{(path / CONFIG).read_text().rstrip()}")
    history = kept_history(path) if (path / RUN).is_file() and checkpoints(path) else History()
    if len(history):
        print(f"\n{len(history)} epochs, the last:\n{History(epochs=history.epochs[-1:])}")
        print(*history.telling()[:2], sep="\n")
    state = "finished" if (path / WEIGHTS).is_file() else f"to go on with: pyro-vae resume {folder}"
    print(f"\n{state}; files: {', '.join(sorted(each.name for each in path.iterdir() if each.name[0] != '.'))}")


def list_parts(kind: Literal["all", "likelihoods", "priors", "conditionals", "estimators"] = "all") -> None:
    """Prints the names that options take, each with its one line.

    Args:
        kind: which of them.
    """
    for name, base in KINDS.items():
        if kind in ("all", name):
            print(f"{name}:" if kind == "all" else "", end="\n" if kind == "all" else "")
            for part in subclasses(base):
                if is_option(part):
                    print(f"  {part.__name__:32} {_first_line(part)}")


def _first_line(part: type) -> str:
    return plain(inspect.getdoc(part) or "").partition("\n")[0]
