"""Evaluation mode of modules, for as long as an evaluation takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from pyro.poutine.messenger import unwrap
from torch import nn

from pyro_vae.elbo.threads import running_programs
from pyro_vae.evaluation.runs import Pair

P = ParamSpec("P")
T = TypeVar("T")


def in_evaluation_mode(function: Callable[P, T]) -> Callable[P, T]:
    """Runs a function of a program, its first argument, with the program's modules as ``eval()`` sets them.

    What training adds, such as dropout or the site ``"classification"`` of SemiSupervisedVAE, is no part of a density.
    Afterwards every module is in the mode that it was in.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        program = cast(Pair, args[0] if args else kwargs["program"])
        parts = [
            part for part in (program, unwrap(program.model), unwrap(program.guide)) if isinstance(part, nn.Module)
        ]
        modes = {module: module.training for part in parts for module in part.modules()}
        with running_programs():
            for part in parts:
                part.eval()
            try:
                return function(*args, **kwargs)
            finally:
                for module, mode in modes.items():
                    module.training = mode

    return run
