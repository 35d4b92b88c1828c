"""Training a program on a data set: epochs, schedules, early stopping, and a record of what happened."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.infer
import pyro.optim
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from pyro_vae.compilation import AUTO_STEPS, Compile, Precision
from pyro_vae.data import Dataset, as_dataset
from pyro_vae.elbo import ELBO
from pyro_vae.elbo.structure import UndrawnLatentError
from pyro_vae.elbo.tracing import inspect, trace_programs
from pyro_vae.program import Program
from pyro_vae.svi import SVI, OptimizerFactory

Row = dict[str, float]

ADAM: OptimizerFactory = partial(torch.optim.Adam, lr=1e-3, fused=True)
"""The default optimiser."""

# Training figures are estimated on at most this many data: enough for a curve, and a small part of an epoch's time.
_TRAIN_FIGURES = 5_000
_EVALUATION_BATCH = 1_000


@dataclass
class History:
    """What a training run did, epoch by epoch.

    Attributes:
        settings: how the run was made: data, binarisation, loss, epochs, batch size, seed.
        epochs: a row per epoch. ``loss`` is the objective as optimised, per datum, averaged over the epoch's steps;
            ``train_*`` and ``valid_*`` are ``elbo``, ``expected_log_likelihood`` and ``kl`` at the end of the epoch, in
            nats per datum at beta = 1; ``seconds`` is the time of the epoch's steps; ``lr`` and ``beta`` their last
            values.
        stopped: why it ended: ``"completed"``, ``"early stopping"`` or ``"interrupted"``.
        best_epoch: the epoch whose weights were restored, where early stopping was asked for.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    epochs: list[Row] = field(default_factory=list)
    stopped: str = "completed"
    best_epoch: int | None = None

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, column: str) -> list[float]:
        """A column, one value per epoch: ``history["valid_elbo"]``."""
        return [row[column] for row in self.epochs]

    def columns(self) -> dict[str, list[float]]:
        """All columns, as ``pandas.DataFrame`` takes them."""
        return {name: self[name] for name in (self.epochs[0] if self.epochs else ())}

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        """An aligned table with a line per epoch."""
        columns = {name: [f"{v:.4g}" for v in values] for name, values in self.columns().items()}
        widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
        lines = ["  ".join(name.rjust(widths[name]) for name in columns)]
        lines += ["  ".join(cells[i].rjust(widths[n]) for n, cells in columns.items()) for i in range(len(self))]
        return "\n".join(lines)


def fit(
    program: Program,
    train: Dataset | Tensor | np.ndarray[Any, Any],
    validation: Dataset | Tensor | np.ndarray[Any, Any] | None = None,
    *,
    loss: pyro.infer.ELBO | None = None,
    optimizer: OptimizerFactory | pyro.optim.PyroOptim = ADAM,
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    beta_warmup: float = 0.0,
    patience: int | None = None,
    max_grad_norm: float | None = None,
    ema_decay: float | None = None,
    precision: Precision = "float32",
    compile: Compile = "auto",
    seed: int | None = None,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> History:
    """Maximises a bound on the evidence of the training data.

    Args:
        program: a :class:`~pyro_vae.vae.VAE`, or anything with ``model``, ``guide``, ``latents`` and ``observed``.
        train: training data; a tensor or array (N, ...) stands for a data set without labels.
        validation: data for the figures of each epoch and for early stopping. Give no test data here.
        loss: any ``pyro.infer.ELBO``; ``elbo.ELBO()`` when left out.
        optimizer: parameters -> ``torch.optim.Optimizer``, or a ``pyro.optim`` optimiser; Adam at 1e-3 by default.
        scheduler: optimiser -> learning-rate schedule, for instance ``partial(CosineAnnealingLR, T_max=epochs)``;
            stepped after each epoch, ``ReduceLROnPlateau`` with the validation -ELBO.
        epochs: passes through the training data.
        batch_size: data per step; the last step of an epoch may have fewer.
        beta_warmup: epochs in which beta rises linearly from 0 to the loss's own ``beta``, step by step.
        patience: stop after this many epochs without a better validation ELBO, and restore the best weights; epochs of
            the warm-up do not count. None trains to the end and keeps the last weights.
        max_grad_norm: clip the gradient of all parameters together to this Euclidean norm.
        ema_decay: decay of an exponential moving average of the parameters, see :class:`~pyro_vae.svi.SVI`; figures
            are the average's, and so are the parameters that training leaves.
        precision: of matrix products while training, see :class:`~pyro_vae.svi.SVI`.
        compile: compile the step, see :class:`~pyro_vae.svi.SVI`; ``"auto"`` does so after the first epoch of a
            run that is long enough to pay for it.
        seed: seeds the order of the data and every draw, and leaves the global generators as they were; None draws
            from the global generator.
        progress: show a bar with the figures of the last epoch.
        on_step: called after each step with the number of steps taken and its loss per datum.
        on_epoch: called after each epoch with its row of the history.

    Returns:
        The record of the run. Ctrl-C ends training and returns it, with what was learned so far in place. Modules are
        left in evaluation mode.

    Raises:
        ValueError: data outside the likelihood's support or of a wrong shape, a setting out of range, a warm-up for a
            loss without beta, data and parameters on different devices.
            Always before the first step.
        FloatingPointError: the loss became NaN or infinite; names the step, the sites and the parameters.
    """
    if not isinstance(program, Program):
        raise TypeError(
            f"fit: expected a program with model, guide, latents and observed; got {type(program).__name__}. "
            "Pass a VAE, or an object with these four attributes."
        )
    train = as_dataset(train)
    validation = None if validation is None else as_dataset(validation)
    loss = ELBO() if loss is None else copy.copy(loss)  # a copy, because the warm-up sets its beta
    target_beta: float | None = getattr(loss, "beta", None)
    _check_settings(loss, epochs, batch_size, beta_warmup, patience, validation)
    for name, dataset in (("training", train), ("validation", validation)):
        if dataset is not None:
            _check_data(program, name, dataset)
    svi = SVI(
        program.model,
        program.guide,
        optimizer,
        loss,
        max_grad_norm=max_grad_norm,
        compile=compile,
        prepare=train.gather,
        precision=precision,
        ema_decay=ema_decay,
    )
    data = train.images, *train.context
    # A long run compiles after its first epoch, so that a last smaller batch does not have a graph of its own.
    steps = math.ceil(len(train) / batch_size)
    svi.compiler.auto_steps = min(steps, AUTO_STEPS) if epochs * steps >= 2 * AUTO_STEPS else epochs * steps
    history = History(
        {
            "data": train.name,
            "num_train": len(train),
            "num_validation": 0 if validation is None else len(validation),
            "binarization": train.binarization,
            "loss": type(loss).__name__,
            "epochs": epochs,
            "batch_size": batch_size,
            "beta_warmup": beta_warmup,
            "seed": seed,
        }
    )
    warmup_steps = beta_warmup * math.ceil(len(train) / batch_size)
    best = _Best(epoch=0, elbo=-math.inf, state=[])
    with _seeded(seed, train.device) as generator, tqdm(range(epochs), disable=not progress, unit="epoch") as bar:
        svi.initialize(torch.arange(min(batch_size, len(train)), device=train.device), *data)
        _calibrate(program, train, generator)
        schedule = None if scheduler is None else scheduler(_torch_optimizer(svi))
        try:
            for epoch in bar:
                total: Any = 0.0  # read from the device once per epoch
                start = time.perf_counter()
                _set_training(program, True)
                for index in train.indices(batch_size, shuffle=True, generator=generator):
                    if warmup_steps and target_beta is not None:
                        svi.loss.beta = target_beta * min(1.0, svi.num_steps / warmup_steps)
                    step_loss = svi.advance(index, *data)
                    total += step_loss
                    if on_step is not None:
                        on_step(svi.num_steps, float(step_loss) / len(index))
                total = float(total)
                if not math.isfinite(total):
                    svi.refuse(total, index, *data)
                row = {"epoch": epoch + 1, "loss": total / len(train), "seconds": time.perf_counter() - start}
                if isinstance(svi.optimizer, torch.optim.Optimizer):
                    row["lr"] = float(svi.optimizer.param_groups[0]["lr"])
                if target_beta is not None:
                    row["beta"] = svi.loss.beta
                _set_training(program, False)
                with _averaged(svi):
                    _calibrate(program, train, generator)
                    row |= _figures("train", svi, train.take(min(len(train), _TRAIN_FIGURES)))
                    if validation is not None:
                        row |= _figures("valid", svi, validation)
                    watched = row.get("valid_elbo", row["train_elbo"])
                    if patience is not None and epoch + 1 >= beta_warmup and watched > best.elbo:
                        best = _Best(epoch + 1, watched, _state(svi, program))
                history.epochs.append(row)
                bar.set_postfix({"loss": f"{row['loss']:.2f}", "-elbo": f"{-watched:.2f}"})
                if on_epoch is not None:
                    on_epoch(row)
                if isinstance(schedule, ReduceLROnPlateau):
                    schedule.step(-watched)
                elif schedule is not None:
                    schedule.step()
                if patience is not None and epoch + 1 >= beta_warmup and epoch + 1 - best.epoch >= patience:
                    history.stopped = "early stopping"
                    break
        except KeyboardInterrupt:
            history.stopped = "interrupted"
            _set_training(program, False)
        final = best.state
        if best.epoch:
            history.best_epoch = best.epoch
        elif ema_decay is not None and svi.num_steps:
            with svi.averaged():
                final = _state(svi, program)
        for tensor, value in zip(_tensors(svi, program), final, strict=False):
            tensor.copy_(value)
    return history


def _averaged(svi: SVI) -> AbstractContextManager[None]:
    return contextlib.nullcontext() if svi.ema_decay is None else svi.averaged()


@dataclass(frozen=True)
class _Best:
    """The best epoch so far, its validation ELBO, and a copy of its parameters and buffers."""

    epoch: int
    elbo: float
    state: list[Tensor]


def _calibrate(program: Any, train: Dataset, generator: torch.Generator) -> None:
    """Lets a program set in closed form what no gradient learns."""
    if getattr(program, "calibrated", False):
        program.calibrate(*train.batch(torch.arange(min(len(train), _TRAIN_FIGURES), device=train.device), generator))


def _figures(prefix: str, svi: SVI, dataset: Dataset) -> Row:
    """ELBO, E_q[log p(x|z)] and KL in nats per datum, at beta = 1 and one draw per datum, whatever the loss is."""
    log_likelihood, kl = 0.0, 0.0
    # The same random numbers at every epoch, and none of training's: figures do not change what is learned.
    with _seeded(0, dataset.device) as generator, torch.no_grad(), svi.scope(), pyro.validation_enabled(False):
        for batch in dataset.batches(_EVALUATION_BATCH, generator=generator):
            try:
                traces = trace_programs(svi.model, svi.guide, batch, {})
            except UndrawnLatentError:  # those the model sums over
                structure = inspect(svi.model, svi.guide, batch, {})
                traces = trace_programs(svi.model, svi.guide, batch, {}, structure=structure)
            log_likelihood += sum(float(site["log_prob_sum"]) for _, site in traces.observed())
            kl += sum(
                float(guide_site["log_prob_sum"]) - (0.0 if model_site is None else float(model_site["log_prob_sum"]))
                for _, model_site, guide_site in traces.latents()
            )
    n = len(dataset)
    return {
        f"{prefix}_elbo": (log_likelihood - kl) / n,
        f"{prefix}_expected_log_likelihood": log_likelihood / n,
        f"{prefix}_kl": kl / n,
    }


def _check_settings(
    loss: pyro.infer.ELBO,
    epochs: int,
    batch_size: int,
    beta_warmup: float,
    patience: int | None,
    validation: Dataset | None,
) -> None:
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1), ("patience", patience, 1)):
        if value is not None and value < least:
            raise ValueError(f"fit: expected {name} at least {least}; got {value}. Give a positive number.")
    if beta_warmup < 0:
        raise ValueError(f"fit: expected beta_warmup at least 0 epochs; got {beta_warmup}. Use 0 for no warm-up.")
    if beta_warmup and not hasattr(loss, "beta"):
        raise ValueError(
            f"fit: expected a loss with a beta for beta_warmup={beta_warmup}; got {type(loss).__name__}. "
            "Use pyro_vae.elbo.ELBO, or no warm-up."
        )
    if patience is not None and validation is None:
        raise ValueError(
            "fit: expected validation data for early stopping; got none. Pass validation=..., or no patience."
        )


def _check_data(program: Program, name: str, dataset: Dataset) -> None:
    """Refuses data before training: every datum, not only those of the first batch."""
    parameter = next((p for m in _modules(program) for p in m.parameters()), None)
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
    check = getattr(program, "check_data", None)
    if check is None:
        return
    generator = torch.Generator(dataset.device).manual_seed(0)
    for batch in dataset.batches(_EVALUATION_BATCH, generator=generator):
        try:
            check(*batch)
        except (TypeError, ValueError) as error:
            raise type(error)(f"fit, {name} data {dataset.name!r}: {error}") from error


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[torch.Generator]:
    """Seeds the global generators for a while, and yields one of its own for the order and binarisation of the data."""
    generator = torch.Generator(device)
    if seed is None:
        yield generator.manual_seed(int(torch.randint(2**62, ())))
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield generator.manual_seed(seed)


def _modules(program: Program) -> list[nn.Module]:
    return [part for part in (program, program.model, program.guide) if isinstance(part, nn.Module)]


def _set_training(program: Program, training: bool) -> None:
    for module in _modules(program):
        module.train(training)


def _tensors(svi: SVI, program: Program) -> list[Tensor]:
    """Every parameter and buffer that training changes."""
    buffers = [buffer for module in _modules(program) for buffer in module.buffers()]
    return [tensor.detach() for tensor in (*svi.named_parameters().values(), *buffers)]


def _state(svi: SVI, program: Program) -> list[Tensor]:
    return [tensor.clone() for tensor in _tensors(svi, program)]


def _torch_optimizer(svi: SVI) -> torch.optim.Optimizer:
    if not isinstance(svi.optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"fit: expected a torch.optim optimiser for a scheduler; got {type(svi.optimizer).__name__}. "
            "Pass functools.partial(torch.optim.Adam, lr=...), or a pyro.optim scheduler as the optimiser."
        )
    return svi.optimizer
