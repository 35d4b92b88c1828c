"""Training a program on a data set, epoch by epoch."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pyro.infer
import pyro.optim
import torch
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from pyro_vae.compilation import Compile, Precision
from pyro_vae.data import Dataset, Stream
from pyro_vae.distributed import Ranks, ranks
from pyro_vae.elbo import ELBO
from pyro_vae.models.program import Program
from pyro_vae.schedules import Schedule
from pyro_vae.svi import SVI, OptimizerFactory
from pyro_vae.training.figures import seeded
from pyro_vae.training.history import History, Row
from pyro_vae.training.identity import identity
from pyro_vae.training.interruption import Interrupted, Interruption
from pyro_vae.training.length import Budget, EarlyStopping
from pyro_vae.training.requirements import check_batches, check_program, check_settings, data_for
from pyro_vae.training.run import Run
from pyro_vae.training.saving import Resume, Saving, keeping
from pyro_vae.training.together import begin_together

ADAM: OptimizerFactory = partial(torch.optim.Adam, lr=1e-3, fused=True)
"""The default optimizer."""


def fit(
    program: Program,
    train: Any,
    validation: Any = None,
    *,
    loss: pyro.infer.ELBO | None = None,
    optimizer: OptimizerFactory | pyro.optim.PyroOptim = ADAM,
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    drop_last: bool = False,
    beta: float | Schedule | None = None,
    patience: int | None = None,
    max_grad_norm: float | None = None,
    ema_decay: float | None = None,
    precision: Precision = "float32",
    compile: Compile = "auto",
    accumulate: int | Literal["auto"] = 1,
    nonfinite: Literal["raise", "skip"] = "raise",
    seed: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: Resume = False,
    checkpoint_every: str = "auto",
    keep_last: int = 1,
    keep_best: bool = False,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> History:
    """Maximizes a bound on the evidence of the training data.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        train: training data: a Dataset, what :func:`~pyro_vae.data.as_dataset` makes one of, or a
            :func:`~pyro_vae.data.stream` of data that do not fit into memory.
        validation: data for the figures of each epoch and for early stopping. Give no test data here.
        loss: any ``pyro.infer.ELBO``; ``elbo.ELBO()`` when left out.
        optimizer: parameters -> ``torch.optim.Optimizer``, or a ``pyro.optim`` optimizer; Adam at 1e-3 by default.
        scheduler: optimizer -> learning-rate schedule, for instance ``partial(CosineAnnealingLR, T_max=epochs)``;
            stepped after each epoch, ``ReduceLROnPlateau`` with the validation -ELBO.
        epochs: passes through the training data; 20 when neither these nor steps are given.
        steps: length of the run in steps in place of epochs; the last epoch may be a part of one.
        batch_size: data per step, of all ranks together; the last step of an epoch may have fewer.
        drop_last: leave out that last, smaller batch, as a network with batch normalization may need.
        beta: the loss's ``beta`` while training: a number, or a function of the epoch as a fraction such as those of
            :mod:`pyro_vae.schedules`, asked before each step. The figures of an epoch are of beta = 1 all the same.
        patience: stop after this many epochs without a better validation ELBO, and restore the best weights; epochs
            before beta has come to the value that it ends with do not count. None trains to the end and keeps the last
            weights.
        max_grad_norm: clip the gradient of all parameters together to this Euclidean norm.
        ema_decay: decay of an exponential moving average of the parameters, see :class:`~pyro_vae.svi.SVI`; figures
            are the average's, and so are the parameters that training leaves.
        precision: of matrix products while training, see :class:`~pyro_vae.svi.SVI`.
        compile: compile the step, see :class:`~pyro_vae.svi.SVI`; ``"auto"`` does so after the first epoch of a
            run that is long enough to pay for it.
        accumulate: split each batch into so many parts and add up their gradients, which takes the memory of one part;
            ``"auto"`` halves the parts whenever a step does not fit into memory.
        nonfinite: what becomes of a step whose loss or gradient is NaN or infinite: ``"raise"`` ends the run with the
            weights before it; ``"skip"`` leaves it out, up to ten in a row, and counts it in the history.
        seed: seeds the order of the data and every draw, and leaves the global generators as they were; None draws
            from the global generator.
        folder: where the run is kept: checkpoints with all that it needs to go on, the history, what it was asked for,
            and in the end the weights, from which :func:`pyro_vae.load` gives the program back. None keeps nothing.
        resume: go on with the run in the folder, from its last checkpoint, so that the result is that of a run that was
            never interrupted, to the last bit on a CPU; what callbacks set on modules and losses is kept where it is a
            number, a word, a tensor or a container of these, and objects and new attributes are not. A folder without a
            run begins one. ``"weights"`` begins a run with the weights of the last, or of a saved program, as far as
            they fit, in its place: checkpoints and history are removed. Say True again to go on with that run.
        checkpoint_every: "100 steps", "5 minutes", "1 epoch", for example; "auto" is a minute, or as much longer as
            keeps the checkpoints of a large program under 1% of the time. One is written at the start, at the end and
            on SIGINT or SIGTERM too.
        keep_last: checkpoints to keep.
        keep_best: keep the weights of the epoch with the best ELBO of the validation data, of the training data where
            there are none, in the folder, see
            :func:`pyro_vae.load`; epochs before beta has come to its last value do not count.
        progress: show a bar with the figures of the last epoch, and at the end the lines of :meth:`History.telling`.
        on_step: called after each step with the number of steps taken and its loss per datum.
        on_epoch: called after each epoch with its row of the history. What either sets on the loss or a module takes
            effect with the next step: ``vae.prior.temperature.fill_(0.3)``, ``loss.num_particles = 5``. The loss has
            its own settings again when training ends.

    Returns:
        The record of the run. Ctrl-C ends training at the next step and returns it, with what was learned so far in
        place; a second one interrupts at once. With a folder SIGTERM does so too, and then ends the process. Modules
        are left in evaluation mode.

    Raises:
        ValueError: data outside the likelihood's support or of a wrong shape, a setting out of range, a beta for a
            loss without one, a last batch of one for batch normalization, data and parameters on different devices.
            Always before the first step. A bound that is impossible, see
            :func:`~pyro_vae.traces.possible.check_possible`. A folder with a run, without ``resume``; with it, another
            run than this one, and what differs; no checkpoint that is whole.
        MemoryError: a step does not fit into memory; says which batch size and how many draws do.
        OSError: the folder cannot be written, or another run has it. The program has the weights of its last step.
        FloatingPointError: a loss, gradient or weight became NaN or infinite; names the step, the sites, the data and
            the parameters.

    Example:
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     priors.StandardNormal(1),
        ...     likelihoods.Normal(nets.MLP(1, [8]), 2, scale=1.0),
        ...     conditionals.DiagonalNormal(nets.MLP(2, [8]), 1),
        ... )
        >>> x = torch.full((100, 2), 3.0)
        >>> history = fit(vae, x, epochs=30, optimizer=partial(torch.optim.Adam, lr=0.1), seed=0, progress=False)
        >>> history.stopped, round(history["train_elbo"][-1])  # log p(x|z) is at most -log(2 pi) = -1.84
        ('completed', -2)
    """
    check_program(program)
    train = data_for(program, "training", train)
    validation = None if validation is None else data_for(program, "validation", validation, like=train)
    loss = ELBO() if loss is None else loss
    saving = Saving.of(folder, resume, checkpoint_every, keep_last, keep_best)
    budget = Budget.of(len(train), batch_size, drop_last, epochs, steps)
    check_settings(loss, beta, patience, validation, seed, progress, on_step, on_epoch)
    check_batches(program, len(train), batch_size, drop_last)
    how: dict[str, Any] = {"max_grad_norm": max_grad_norm, "compile": compile, "precision": precision}
    how |= {"ema_decay": ema_decay, "ranks": _ranks(batch_size, train)}
    svi = SVI(program.model, program.guide, optimizer, loss, prepare=train.gather, **how)
    history = History(_settings(train, validation, loss, budget, epochs, steps, beta, seed))
    stopping = None if patience is None else EarlyStopping(patience)
    run = Run(program, svi, train, validation, budget, history, beta, stopping, accumulate, nonfinite)
    _start(run, saving, scheduler, seed, progress, on_step, on_epoch)
    return history


def _ranks(batch_size: int, train: Dataset | Stream) -> Ranks | None:
    """The processes that share every batch.

    Raises:
        ValueError: more than data in a batch, or others than a stream is shared by.
    """
    found = ranks()
    rank, size = (0, 1) if found is None else (found.rank, found.size)
    if isinstance(train, Stream) and (train.rank, train.world_size) != (rank, size):
        raise ValueError(
            f"fit: expected a stream for rank {rank} of the {size} that train; got one of rank={train.rank} and "
            f"world_size={train.world_size}, with which some data would be lost. Train under torchrun and leave both "
            "out, or give rank=0 and world_size=1 to a single process."
        )
    if found is not None and batch_size < found.size:
        raise ValueError(
            f"fit: expected a batch_size of at least the {found.size} ranks, which share it; got {batch_size}. Give "
            "a larger one, or fewer processes."
        )
    return found


def _start(
    run: Run,
    saving: Saving | None,
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None,
    seed: int | None,
    progress: bool,
    on_step: Callable[[int, float], None] | None,
    on_epoch: Callable[[Row], None] | None,
) -> None:
    """Begins a run, or goes on with the one of the folder, and trains to its end."""
    together = run.ranks
    interruption = Interruption(terminate=saving is not None, ranks=together)
    if together is not None and together.rank > 0:
        saving, progress = None, False  # the first rank writes and shows
    with keeping(saving), seeded(seed, run.train.device) as generator, run.loss_as_it_was(), interruption:
        run.start(generator, scheduler)
        if together is not None:
            begin_together(run, saving, together)
        elif saving is not None:
            saving.begin(run, identity(run))
        _train(run, saving, interruption, progress, on_step, on_epoch)


def _train(
    run: Run,
    saving: Saving | None,
    interruption: Interruption,
    progress: bool,
    on_step: Callable[[int, float], None] | None,
    on_epoch: Callable[[Row], None] | None,
) -> None:
    """Epoch by epoch, to the end of the budget, until it stops early, or until Ctrl-C."""

    def after_step(size: int, loss: Any) -> None:
        if on_step is not None:
            on_step(run.svi.num_steps, float(loss) / size)
        if saving is not None and run.steps_left and saving.due(run):
            saving.write(run)
        interruption.check()

    with tqdm(total=run.budget.num_epochs, initial=len(run.history), disable=not progress, unit="epoch") as bar:
        try:
            while not run.is_over:
                row = run.epoch(after_step)
                bar.update()
                bar.set_postfix_str(_figures(row))
                if on_epoch is not None:
                    on_epoch(row)
                    _check_row(row)
                run.finish_epoch(row)
                if saving is not None:
                    saving.see(run, row)
                interruption.check()
        except Interrupted:
            run.history.stopped = "interrupted"
            kept = "" if saving is None else f", kept in {saving.folder.path}: go on with resume=True"
            words = f"interrupted after step {run.svi.num_steps}{kept}"
            if progress:
                bar.write(words)
            else:
                warnings.warn(f"fit: {words}", stacklevel=4)
        except KeyboardInterrupt:  # amid a step, which no checkpoint is to hold
            run.history.stopped, saving = "interrupted", None
        finally:
            run.set_training(False)
        if saving is not None:
            saving.write(run)
        run.settle()
        if saving is not None:
            saving.finish(run)
    if progress:
        print(*run.history.telling(), sep="\n", file=sys.stderr)  # where the bar is


def _figures(row: Row) -> str:
    """The figures of an epoch beside the bar: -ELBO and its two terms, of the validation data where there are some."""
    part = "validation" if "validation_elbo" in row else "train"
    elbo, likelihood, kl = (row[f"{part}_{term}"] for term in ("elbo", "expected_log_likelihood", "kl"))
    return f"loss {row['loss']:.2f}, {part} -ELBO {-elbo:.2f} = {-likelihood:.2f} + KL {kl:.2f}"


def _settings(
    train: Dataset | Stream,
    validation: Dataset | Stream | None,
    loss: pyro.infer.ELBO,
    budget: Budget,
    epochs: int | None,
    steps: int | None,
    beta: float | Schedule | None,
    seed: int | None,
) -> dict[str, Any]:
    """How the run is made, for the record."""
    return {
        "data": train.name,
        "num_train": len(train),
        "num_validation": 0 if validation is None else len(validation),
        "binarization": train.sample.binarization,
        "loss": type(loss).__name__,
        "epochs": epochs if steps is not None else budget.num_epochs,
        "steps": steps,
        "batch_size": budget.batch_size,
        "beta": beta if beta is None or isinstance(beta, int | float) else repr(beta),
        "seed": seed,
    }


def _check_row(row: Row) -> None:
    """Makes numbers of the figures that a callback has added to an epoch's.

    Raises:
        TypeError: one is none.
    """
    for name, value in row.items():
        if not isinstance(value, int | float):
            try:
                row[name] = float(value)
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(
                    f"fit: expected the figures of an epoch to be numbers; got {type(value).__name__} as {name!r}. "
                    "Give a number, or keep it elsewhere."
                ) from None
