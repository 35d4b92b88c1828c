"""Evaluation mode of modules, for as long as an evaluation takes."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import torch
from pyro.poutine.messenger import unwrap
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pyro_vae import checks
from pyro_vae.data import Dataset, as_dataset
from pyro_vae.data.alike import as_taken
from pyro_vae.models import Program
from pyro_vae.tables import check_table
from pyro_vae.traces.threads import running_programs

P = ParamSpec("P")
T = TypeVar("T")


def in_evaluation_mode(function: Callable[P, T]) -> Callable[P, T]:
    """Runs a function of a program, its first argument, with the program's modules as ``eval()`` sets them.

    Its data may be a Dataset, of which all rows are taken, with their contexts, or what is made into one: a set or
    loader of torch, a set of Hugging Face's, AnnData. What training adds, such as dropout or
    the site ``"classification"`` of SemiSupervisedVAE, is no part of a density. Afterwards every module is in
    the mode that it was in.
    """
    signature = inspect.signature(function)
    checked = checks.arguments(function.__name__, function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        given = checks.bound(function.__name__, signature, args, kwargs)
        program = cast(Program, given["program"])
        check_program(function.__name__, program)
        call = signature.bind(*args, **kwargs)
        if is_set(given.get("x")):
            given["x"], *context = rows_of(function.__name__, program, given["x"])
            given["context"] = (*context, *given.get("context", ()))
            call.arguments |= {name: given[name] for name in ("x", "context") if name in signature.parameters}
        if "x" in given:
            check_rows(function.__name__, program, (given["x"], *given.get("context", ())))
        elif not hasattr(given["simulation"], "latents"):
            raise TypeError(
                f"{function.__name__}: expected a Simulation; got {type(given['simulation']).__name__}. Pass "
                "evaluation.simulate(program, x)."
            )
        else:
            check_rows(function.__name__, program, (given["simulation"].x, *given["simulation"].context))
        with evaluation_mode(program):
            return checked(*call.args, **call.kwargs)

    return run


@contextlib.contextmanager
def evaluation_mode(program: Program) -> Iterator[None]:
    """Context manager in which a program's modules are as ``eval()`` sets them; then each is in its own mode again."""
    parts = [part for part in (program, unwrap(program.model), unwrap(program.guide)) if isinstance(part, nn.Module)]
    modes = {module: module.training for part in parts for module in part.modules()}
    with running_programs():
        for part in parts:
            part.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def is_set(x: object) -> bool:
    """Whether x is a set of data that says by itself what its numbers are: ours, one of torch or of other libraries."""
    packages = {kind.__module__.partition(".")[0] for kind in type(x).__mro__}
    return isinstance(x, Dataset | DataLoader | TorchDataset) or bool(packages & {"anndata", "datasets"})


def rows_of(name: str, program: Any, given: Any, seed: int = 0) -> tuple[Tensor, ...]:
    """All data of a set and their contexts; the bits of a dynamic one are drawn once, by a seed.

    Raises:
        ValueError: a table whose columns mean something else than the program's.
    """
    dataset = as_taken(program, as_dataset(given))
    check_table(name, program, dataset)
    generator = torch.Generator(dataset.device).manual_seed(seed)
    return dataset.batch(torch.arange(len(dataset)), generator)


def check_program(name: str, program: Any) -> None:
    """Raises for what has no model and guide."""
    for part in ("model", "guide"):
        if not callable(getattr(program, part, None)):
            raise TypeError(
                f"{name}: expected a program with model and guide; got {type(program).__name__}. Pass a VAE, or an "
                "object with these two attributes."
            )


def check_rows(name: str, program: Any, rows: tuple[Any, ...]) -> None:
    """Raises for data and contexts that are no tensors with a row for each datum, and data of another shape."""
    for value in rows:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name}: expected x a tensor or a Dataset; got {type(value).__name__}. Use data.as_dataset(x), of a "
                "DataFrame data.as_dataset(frame, kinds=train.table), and pass *batch for a batch and its contexts."
            )
        if value.dim() == 0 or len(value) != len(rows[0]) or not len(value):
            raise ValueError(
                f"{name}: expected data of shape (N, ...), N at least 1, and contexts of as many rows; got "
                f"{[tuple(row.shape) for row in rows]}. Give a row for each datum."
            )
    check = getattr(getattr(program, "likelihood", None), "check_shape", None)
    if check is not None:
        if not rows[0].is_floating_point():
            raise TypeError(f"{name}: expected floating point data; got {rows[0].dtype}. Convert them with .float().")
        check(rows[0])
    own = next(program.parameters(), None) if isinstance(program, nn.Module) else None
    if own is not None and rows[0].is_floating_point() and rows[0].dtype != own.dtype:
        raise TypeError(
            f"{name}: expected data of {own.dtype}, like the parameters; got {rows[0].dtype}. Use x.to({own.dtype})."
        )
