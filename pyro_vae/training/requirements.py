"""What a run asks of its program, data and settings, before the first step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro.infer
import torch
from torch import nn

from pyro_vae import checks
from pyro_vae.data import Dataset, Stream, as_dataset
from pyro_vae.data.alike import as_taken, check_alike
from pyro_vae.distributed import check_whole
from pyro_vae.internals import BatchNorm
from pyro_vae.models.program import Program
from pyro_vae.schedules import Schedule
from pyro_vae.tables import check_table
from pyro_vae.training.figures import EVALUATION_BATCH
from pyro_vae.training.run import modules_of_program


def check_program(program: object) -> None:
    """Raises for what has no model and guide, or is split over ranks."""
    if not isinstance(program, Program):
        raise TypeError(
            f"fit: expected a program with model and guide; got {type(program).__name__}. Pass a VAE, or an object "
            "with these two attributes."
        )
    for part in modules_of_program(program):
        check_whole("fit", part)


def check_settings(
    loss: pyro.infer.ELBO,
    beta: float | Schedule | None,
    patience: int | None,
    validation: Dataset | Stream | None,
    seed: int | None,
    progress: bool,
    on_step: object,
    on_epoch: object,
) -> None:
    """Raises for settings of ``fit`` that are out of range or do not go together."""
    if beta is not None:
        if isinstance(beta, nn.Module | type) or not callable(beta):
            checks.number("fit", "beta", beta, at_least=0)
        else:
            checks.takes("fit", "beta", beta, "the epoch")
        if not hasattr(loss, "beta"):
            raise ValueError(
                f"fit: expected a loss with a beta for beta={beta!r}; got {type(loss).__name__}. "
                "Use pyro_vae.elbo.ELBO, or leave beta out."
            )
    if patience is not None:
        checks.whole("fit", "patience", patience)
        if validation is None:
            raise ValueError(
                "fit: expected validation data for early stopping; got none. Pass validation=..., or no patience."
            )
    if seed is not None:
        checks.whole("fit", "seed", seed, 0)
    checks.flag("fit", "progress", progress)
    for name, callback in (("on_step", on_step), ("on_epoch", on_epoch)):
        if callback is not None and not callable(callback):
            raise TypeError(f"fit: expected {name} callable; got {type(callback).__name__}. Pass a function or None.")


def data_for(program: Program, name: str, given: Any, like: Dataset | Stream | None = None) -> Dataset | Stream:
    """Data that a program can be trained on; gray images get the axis of one channel that it asks for.

    Raises:
        TypeError, ValueError: other data, or validation data that are not like the training data.
    """
    dataset = given if isinstance(given, Stream) else as_dataset(given)
    if like is not None:
        check_alike("fit", like.sample, dataset.sample)
    check_table(f"fit, {name} data", program, dataset.sample)
    dataset = as_taken(program, dataset)
    _check_data(program, name, dataset.sample)
    if isinstance(dataset, Stream):  # figures of validation data are of all of them, on every rank
        rank, world_size = (dataset.rank, dataset.world_size) if like is None else (0, 1)
        return replace(dataset, check=getattr(program, "check_data", None), rank=rank, world_size=world_size)
    return dataset


def check_batches(program: Program, n: int, batch_size: int, drop_last: bool) -> None:
    """Raises for a batch of one datum where batch normalization would have no deviation to divide by."""
    modules = (module for part in modules_of_program(program) for module in part.modules())
    normalized = any(isinstance(module, BatchNorm) for module in modules)
    if normalized and (batch_size == 1 or n == 1 or (n % batch_size == 1 and not drop_last)):
        raise ValueError(
            f"fit: expected batches of at least 2 data for batch normalization; got a last batch of 1, with {n} data "
            f"and batch_size={batch_size}. Use drop_last=True, or another batch_size."
        )


def _check_bits(program: Program, dataset: Dataset) -> None:
    """Raises for bits under a density, which can be made as large as one likes at 0 and 1."""
    likelihood = getattr(program, "likelihood", None)
    support = getattr(likelihood, "support", None)
    if dataset.binarization != "none" and support is not None and not support.is_discrete:
        raise ValueError(
            f"fit: expected gray values for {type(likelihood).__name__}, a density; got {dataset.name!r} made binary, "
            f"binarization={dataset.binarization!r}. Load it with binarize='none', or use likelihoods.Bernoulli."
        )


def _check_data(program: Program, name: str, dataset: Dataset) -> None:
    """Raises for data before training: every datum, not only those of the first batch."""
    parameter = next((p for m in modules_of_program(program) for p in m.parameters()), None)
    if parameter is not None and parameter.device != dataset.device:
        raise ValueError(
            f"fit: expected {name} data and parameters on one device; got {dataset.device} and {parameter.device}. "
            f'Move one: program.to("{dataset.device}"), or data.load(..., device="{parameter.device}").'
        )
    if parameter is not None and parameter.dtype != torch.float32:
        raise ValueError(
            f"fit: expected parameters of torch.float32, as batches are; got {parameter.dtype}. Use program.float(), "
            "or SVI with data of that type."
        )
    _check_bits(program, dataset)
    check = getattr(program, "check_data", None)
    if check is None:
        return
    generator = torch.Generator(dataset.device).manual_seed(0)
    for batch in dataset.batches(EVALUATION_BATCH, generator=generator):
        try:
            check(*batch)
        except (TypeError, ValueError) as error:
            raise type(error)(f"fit, {name} data {dataset.name!r}: {error}") from error
