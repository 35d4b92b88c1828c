"""A run of training: all that changes from step to step, and how."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_vae import checks
from pyro_vae.compilation import AUTO_STEPS
from pyro_vae.data import Dataset, Stream
from pyro_vae.data.dataset import Place
from pyro_vae.distributed import Ranks
from pyro_vae.elbo.gradients import Gradient
from pyro_vae.internals import is_out_of_memory
from pyro_vae.models.program import Program
from pyro_vae.schedules import Schedule
from pyro_vae.svi import SVI
from pyro_vae.svi.state import names_of
from pyro_vae.traces.modules import roots_of
from pyro_vae.training.figures import figures
from pyro_vae.training.history import History, Row
from pyro_vae.training.length import Budget, EarlyStopping
from pyro_vae.training.memory import check_parts, what_fits

# Training figures are estimated on at most this many data: enough for a curve, and a small part of an epoch's time.
_TRAIN_FIGURES = 5_000
_STEPS_BETWEEN_CHECKS = 1_000  # of the weights of all ranks
_MOST_SKIPPED = 10  # steps in a row, when something in them is not finite


@dataclass
class EpochSoFar:
    """An epoch that is under way.

    Attributes:
        order: state of the generator before it drew the order of the data.
        steps: taken in it.
        seen: data of these steps.
        total: the sum of their losses.
        seconds: that they took.
        skipped: steps left out because something in them was not finite.
        place: where the data of these steps end, as their feed says it.
    """

    order: Tensor
    steps: int = 0
    seen: int = 0
    total: Any = 0.0
    seconds: float = 0.0
    skipped: int = 0
    place: Place | None = None


class Run:
    """One run of :func:`~pyro_vae.training.fit`.

    Args:
        program: what is trained.
        svi: takes the steps.
        train: training data.
        validation: data for figures and early stopping.
        budget: its length.
        history: the record to write.
        beta: of the loss: a number, a function of the epoch as a fraction, or None for the loss's own.
        stopping: when it ends early; None for never.
        accumulate: parts of a batch whose gradients are added up; ``"auto"`` for as few as fit into memory.
        nonfinite: ``"raise"`` or ``"skip"`` a step in which something is not finite.
    """

    def __init__(
        self,
        program: Program,
        svi: SVI,
        train: Dataset | Stream,
        validation: Dataset | Stream | None,
        budget: Budget,
        history: History,
        beta: float | Schedule | None,
        stopping: EarlyStopping | None,
        accumulate: int | Literal["auto"],
        nonfinite: str,
    ) -> None:
        self.program, self.svi = program, svi
        self.train, self.validation = train, validation
        self.budget, self.history = budget, history
        self.stopping = stopping
        self.nonfinite = checks.choice("fit", "nonfinite", nonfinite, ["raise", "skip"])
        if not (isinstance(accumulate, str) and accumulate == "auto"):
            checks.whole("fit", "accumulate", accumulate)
        self.accumulate: int | Literal["auto"] = accumulate
        self.parts = 1 if accumulate == "auto" else accumulate
        self.scheduler: LRScheduler | None = None
        self.so_far: EpochSoFar | None = None
        self.best = -math.inf  # of the epochs, as early stopping looks at them
        self.generator = torch.Generator(train.device)
        self.beta = beta
        self.in_a_row = 0  # steps that were left out since the last that was not
        self.on_best: Callable[[], None] = lambda: None
        self.ranks, self.seed = svi.ranks, 0  # the seed of what ranks draw
        self._plate = getattr(svi.loss, "plate", "data")
        # A long run compiles after its first epoch, so that a last smaller batch does not have a graph of its own.
        long = budget.num_steps >= 2 * AUTO_STEPS
        self._auto_steps = min(budget.steps_per_epoch, AUTO_STEPS) if long else budget.num_steps

    def start(
        self, generator: torch.Generator, scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None
    ) -> None:
        """Makes parameters, optimizer and learning-rate schedule; draws order and bits of the data from a generator."""
        self.generator = generator
        if self.ranks is not None:
            self.seed = self.ranks.from_first(lambda: generator.initial_seed())
            generator.manual_seed(self.seed)
        first = torch.arange(min(self.budget.batch_size, len(self.train.sample)), device=self.train.device)
        self.svi.initialize(first, *self.train.held)
        check_parts(self.svi, self.accumulate, first, self.train.held)
        if self.ranks is not None:
            check_parts(self.svi, self.ranks.size, first, self.train.held, f"{self.ranks.size} ranks")
        self._calibrate()
        if scheduler is not None:
            self.scheduler = _scheduler(scheduler, self.svi)

    def epoch(self, after_step: Callable[[int, float], None]) -> Row:
        """Takes the steps of an epoch, or what is left of them; its row of the history."""
        svi = self.svi
        given: tuple[Tensor, ...] | None = None
        self.set_training(True)
        so_far, batches = self._batches()
        self.so_far = so_far
        start = time.perf_counter() - so_far.seconds
        for _, (place, given) in zip(range(self.budget.num_steps - svi.num_steps), batches, strict=False):
            self._set_beta()
            size = place["position"] - (so_far.place or {"position": 0})["position"]  # of all ranks
            step_loss = self._step(so_far, size, given)
            so_far.steps += 1
            so_far.place = place
            so_far.seconds = time.perf_counter() - start
            after_step(size, step_loss)
        total = float(so_far.total)
        if not math.isfinite(total):
            svi.refuse(total, *(given or ()))
        loss = total / so_far.seen if so_far.seen else math.nan
        row = {"epoch": len(self.history) + 1, "loss": loss, "seconds": so_far.seconds}
        if self.nonfinite == "skip":
            row["skipped"] = so_far.skipped
        if isinstance(svi.optimizer, torch.optim.Optimizer):
            row["lr"] = float(svi.optimizer.param_groups[0]["lr"])
        if hasattr(svi.loss, "beta"):
            row["beta"] = svi.loss.beta
        self.set_training(False)
        self.check_ranks()
        row |= self._look(row, given)
        self.history.epochs.append(row)
        self.so_far = None
        return row

    def _step(self, so_far: EpochSoFar, size: int, given: tuple[Tensor, ...]) -> Any:
        """Takes a step, or leaves it out where something in it is not finite and that is asked for; its loss."""
        taken = self.svi.num_steps
        try:
            loss: Any = self._advance(*given)
            if self.nonfinite == "skip" and isinstance(loss, Tensor) and not bool(loss.isfinite()):  # of a CUDA graph
                raise FloatingPointError(f"fit: expected finite losses; got {float(loss)}.")
        except FloatingPointError as error:
            so_far.skipped += 1
            self.in_a_row += 1
            if self.nonfinite == "raise":
                raise
            if self.in_a_row > _MOST_SKIPPED:
                what = str(error).partition(". ")[0].partition(": ")[2]
                raise FloatingPointError(
                    f"fit: expected a finite step after {_MOST_SKIPPED} in a row that were left out; got another: "
                    f"{what}. Lower the learning rate, clip gradients (max_grad_norm), or bound what runs away."
                ) from error
            self.svi.num_steps = taken + 1  # a step of a CUDA graph has been counted
            return math.nan
        self.in_a_row = 0
        so_far.total += loss  # read from the device once per epoch
        so_far.seen += size
        return loss

    def _advance(self, index: Tensor, *data: Tensor) -> Any:
        """A step of the SVI, in so many parts as memory asks for."""
        while True:
            self.svi.compiler.auto_steps = self._auto_steps * self.parts  # each part is one to the compiler
            try:
                if self.ranks is not None:
                    return self._advance_together(self.ranks, index, *data)
                if self.parts == 1:
                    return self.svi.advance(index, *data)
                parts = index.tensor_split(min(self.parts, len(index)))
                return self.svi.advance_in_parts([(part, *data) for part in parts])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                words = str(error).strip().split("\n")[0].rstrip(".")
            # Past the handler, because the error holds all tensors of the step that has failed.
            gc.collect()
            if self.accumulate != "auto" or self.parts >= len(index):
                raise MemoryError(
                    f"fit: expected a step of {len(index)} data to fit into memory; got an error: {words}. "
                    f"{what_fits(self.svi, index, data)}"
                )
            self.parts = min(2 * self.parts, len(index))

    def _advance_together(self, ranks: Ranks, index: Tensor, *data: Tensor) -> float:
        """A step of all ranks, by this one's part of the batch, which is what a stream gives it."""
        ranks.seed(self.seed, self.svi.num_steps)
        own = index if isinstance(self.train, Stream) else ranks.share(index)
        parts = own.tensor_split(min(self.parts, len(own))) if len(own) else ()
        loss = self.svi.advance_in_parts([(part, *data) for part in parts])
        if self.svi.num_steps % _STEPS_BETWEEN_CHECKS == 0:
            self.check_ranks()
        return loss

    def check_ranks(self) -> None:
        """Raises where ranks have come apart, in what they learned or what they read."""
        if self.ranks is not None:
            # A sequence that draws its order anew on every rank would leave data out.
            self.ranks.check_same("data of an epoch", (self.so_far and self.so_far.place) or {})
            self.ranks.check_equal(names_of(self.svi, self.modules()))

    def _batches(self) -> tuple[EpochSoFar, Iterator[tuple[Place, tuple[Tensor, ...]]]]:
        """An epoch and the arguments of its steps; of one that is under way, of those that are left."""
        so_far, present = self.so_far, self.generator.get_state()
        if so_far is not None:
            self.generator.set_state(so_far.order)
        batches = self.train.feed(
            self.budget.batch_size,
            shuffle=True,
            generator=self.generator,
            drop_last=self.budget.drop_last,
            place=None if so_far is None else so_far.place,
        )
        if so_far is None:
            return EpochSoFar(present), batches
        self.generator.set_state(present)
        return so_far, batches

    def _look(self, row: Row, given: tuple[Tensor, ...] | None) -> Row:
        """The figures at the end of an epoch, which early stopping looks at."""
        with self._averaged():
            self._calibrate()
            found = self._figures()
            if given is not None and any(math.isnan(value) for value in found.values()):
                self.svi.refuse(math.nan, *given)
            if self._settled(row):
                watched = self.watched(found)
                if self.stopping is not None:
                    self.stopping.see(int(row["epoch"]), watched, self.tensors())
                if watched > self.best:
                    self.best = watched
                    self.on_best()
        return found

    def modules(self) -> dict[str, nn.Module]:
        """Every module that training changes, by names that are the same in another process."""
        parts = {"program": self.program, "model": self.program.model, "guide": self.program.guide}
        roots = roots_of((self.program.model, self.program.guide))
        gradient = getattr(self.svi.loss, "gradient", None)
        learned = gradient.modules() if isinstance(gradient, Gradient) else []
        found = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        found |= {f"module{i}": root for i, root in enumerate(roots)}
        return found | {f"baseline{i}": module for i, module in enumerate(learned)}

    @property
    def steps_left(self) -> int:
        """Steps of the epoch that is under way which are yet to be taken."""
        taken = 0 if self.so_far is None else self.so_far.steps
        return min(self.budget.steps_per_epoch - taken, self.budget.num_steps - self.svi.num_steps)

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left."""
        stopped = self.history.stopped == "early stopping"
        return stopped or (self.so_far is None and self.svi.num_steps >= self.budget.num_steps)

    def finish_epoch(self, row: Row) -> None:
        """Steps the learning-rate schedule, and stops early where it is time."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(-self.watched(row))
        elif self.scheduler is not None:
            self.scheduler.step()
        if self.stopping is not None and self._settled(row) and self.stopping.ends(int(row["epoch"])):
            self.history.stopped = "early stopping"

    def settle(self) -> None:
        """Leaves the parameters that training ends with: the best ones, the averages, or the last."""
        final: list[Tensor] = []
        if self.stopping is not None and self.stopping.epoch:
            self.history.best_epoch, final = self.stopping.epoch, self.stopping.state
        elif self.svi.ema_decay is not None and self.svi.num_steps:
            with self.svi.averaged():
                final = [tensor.clone() for tensor in self.tensors()]
        for tensor, value in zip(self.tensors(), final, strict=False):
            tensor.copy_(value)

    @staticmethod
    def watched(row: Row) -> float:
        """The ELBO that early stopping and learning-rate schedules look at."""
        return row.get("validation_elbo", row["train_elbo"])

    def set_training(self, training: bool) -> None:
        """Puts the program's modules into a mode."""
        for module in modules_of_program(self.program):
            module.train(training)

    @contextlib.contextmanager
    def loss_as_it_was(self) -> Iterator[None]:
        """Context manager that undoes what schedules and callbacks set on the loss."""
        loss, before = self.svi.loss, dict(vars(self.svi.loss))
        try:
            yield
        finally:
            vars(loss).update(before)  # past its checks, which settings that depend on each other may fail one by one

    def _set_beta(self) -> None:
        if self.beta is not None:
            epoch = self.svi.num_steps / self.budget.steps_per_epoch
            self.svi.loss.beta = self._beta_at(epoch) if callable(self.beta) else float(self.beta)

    def _beta_at(self, epoch: float) -> float:
        assert callable(self.beta)
        return checks.number("fit", f"beta at epoch {epoch:g}", self.beta(epoch), at_least=0)

    def _settled(self, row: Row) -> bool:
        """Whether beta has come to the value that it ends with."""
        if not callable(self.beta):
            return True
        return self._beta_at(row["epoch"]) == self._beta_at(self.budget.num_steps / self.budget.steps_per_epoch)

    def _averaged(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self.svi.ema_decay is None else self.svi.averaged()

    def _calibrate(self) -> None:
        """Lets a program set in closed form what no gradient learns."""
        program: Any = self.program
        if getattr(program, "calibrated", False):
            if self.ranks is not None:
                self.ranks.seed(self.seed, self.svi.num_steps, everywhere=True)
            sample = self.train.sample
            some = torch.arange(min(len(sample), _TRAIN_FIGURES), device=sample.device)
            program.calibrate(*sample.batch(some, self.generator))

    def _figures(self) -> Row:
        train = self.train.sample
        sets = {"train": train.take(min(len(train), _TRAIN_FIGURES)), "validation": self.validation}
        row: Row = {}
        with self.svi.scope():
            for prefix, dataset in sets.items():
                if dataset is not None:
                    row |= self._figures_of(prefix, dataset)
        return row

    def _figures_of(self, prefix: str, dataset: Dataset | Stream) -> Row:
        """Those of a set, of which each rank takes a part, and of a stream, which each reads as a whole."""
        if self.ranks is None or isinstance(dataset, Stream):
            return figures(prefix, self.svi.model, self.svi.guide, dataset, self._plate)
        own = self.ranks.share(torch.arange(len(dataset), device=dataset.device))
        found = dict.fromkeys((f"{prefix}_{term}" for term in ("elbo", "expected_log_likelihood", "kl")), 0.0)
        if len(own):
            # Draws of its own: the same ones for the data of all ranks would not average out.
            found = figures(prefix, self.svi.model, self.svi.guide, dataset.subset(own), self._plate, self.ranks.rank)
        return self.ranks.mean(found, len(own))

    def tensors(self) -> list[Tensor]:
        """Every parameter and buffer that training changes."""
        buffers = [buffer for module in modules_of_program(self.program) for buffer in module.buffers()]
        return [tensor.detach() for tensor in (*self.svi.named_parameters().values(), *buffers)]


def modules_of_program(program: Program) -> list[nn.Module]:
    """The modules that a program, its model and its guide are."""
    return [part for part in (program, program.model, program.guide) if isinstance(part, nn.Module)]


def _scheduler(make: Callable[[torch.optim.Optimizer], LRScheduler], svi: SVI) -> LRScheduler:
    if not isinstance(svi.optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"fit: expected a torch.optim optimizer for a scheduler; got {type(svi.optimizer).__name__}. "
            "Pass functools.partial(torch.optim.Adam, lr=...), or a pyro.optim scheduler as the optimizer."
        )
    scheduler = make(svi.optimizer) if callable(make) else None
    if not isinstance(scheduler, LRScheduler | ReduceLROnPlateau):
        raise TypeError(
            f"fit: expected scheduler to make a learning-rate schedule; got {type(scheduler).__name__}. "
            "Pass functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=20), for example."
        )
    return scheduler
