"""A run kept in a folder, and gone on with: when checkpoints are due, and all that they hold."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyro.optim
import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.checkpoint.folder import RunFolder
from pyro_vae.checkpoint.programs import a_path
from pyro_vae.checkpoint.tree import pack, unpack
from pyro_vae.svi.state import names_of
from pyro_vae.training.history import Row
from pyro_vae.training.identity import check_same, versions
from pyro_vae.training.run import Run
from pyro_vae.training.state import restore_run, state_of_run

Resume = Literal["weights"] | bool

_SHARE = 0.01  # of the time of a run that checkpoints may take by default
_UNITS = {"step": 1.0, "epoch": 1.0, "second": 1.0, "minute": 60.0, "hour": 3600.0}


@dataclass(frozen=True)
class Every:
    """How often: after so many steps or epochs, or so many seconds, and at most for a share of the time."""

    number: float
    unit: str
    share: float = 1.0

    @classmethod
    def of(cls, text: object) -> Every:
        """Of words such as "100 steps", "5 minutes", "1 epoch"; "auto" is a minute, or longer for a large program.

        Raises:
            ValueError: others.
        """
        if isinstance(text, str) and text == "auto":
            return cls(60.0, "second", _SHARE)
        found = (
            re.fullmatch(r"(\d+(?:\.\d+)?) (step|epoch|second|minute|hour)s?", text) if isinstance(text, str) else None
        )
        number = float(found[1]) if found else 0.0
        if found is None or not number or (found[2] in ("step", "epoch") and number != int(number)):
            raise ValueError(
                "fit: expected checkpoint_every 'auto' or such as '100 steps', '5 minutes', '1 epoch'; got "
                f"{text!r:.60}. Give a number above 0 and one of these units."
            )
        return cls(number * _UNITS[found[2]], found[2] if found[2] in ("step", "epoch") else "second")


@dataclass
class Saving:
    """Where a run is kept, and how.

    Attributes:
        folder: its files.
        resume: go on with the run that is there; ``"weights"`` takes only its weights.
        every: how often checkpoints are due.
        keep_last: how many of them are kept.
        keep_best: also keep the weights of the best epoch.
        at: the step, the epoch and the time of the last checkpoint.
        seconds: that it took.
    """

    folder: RunFolder
    resume: Resume
    every: Every
    keep_last: int
    keep_best: bool
    at: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        folder: str | os.PathLike[str] | None,
        resume: Resume,
        checkpoint_every: str,
        keep_last: int,
        keep_best: bool,
    ) -> Saving | None:
        """Of the arguments of ``fit``; None without a folder."""
        if not (isinstance(resume, bool) or (isinstance(resume, str) and resume == "weights")):
            raise ValueError(f"fit: expected resume True, False or 'weights'; got {resume!r:.60}. Use one of these.")
        every = Every.of(checkpoint_every)
        checks.whole("fit", "keep_last", keep_last)
        checks.flag("fit", "keep_best", keep_best)
        if folder is None:
            if resume or keep_best:
                wanted = f"resume={resume!r}" if resume else "keep_best=True"
                raise ValueError(
                    f"fit: expected a folder for {wanted}; got none. Give folder='runs/mine', for example."
                )
            return None
        return cls(RunFolder(a_path("fit", folder)), resume, every, keep_last, keep_best)

    def begin(self, run: Run, identity: Mapping[str, Any]) -> None:
        """Begins a run in the folder, or gives a run the state that the folder holds.

        Raises:
            ValueError: the folder holds a run, and none was to be gone on with; or another one than this.
        """
        started, path = self.folder.has_run, os.fspath(self.folder.path)
        if started and not self.resume:
            raise ValueError(
                f"fit: expected a folder without a run; got {path!r}, which has one. Go on with it by resume=True, or "
                "give another folder."
            )
        if not started and self.folder.has_program and self.resume != "weights":
            raise ValueError(
                f"fit: expected a folder without weights, or a run with its checkpoints; got {path!r}, which has "
                "weights alone. Take them by resume='weights', or give another folder."
            )
        self.folder.check_whole(resume=self.resume)
        if self.keep_best or (started and self.resume is True and self.folder.has_best):
            run.on_best = lambda: self.folder.write_best(run.program)  # else the kept ones would no longer be the best
        if started and self.resume is True:
            self._go_on(run, identity)
            return
        if started or self.folder.has_program:
            present = names_of(run.svi, run.modules())
            run.history.settings["resumed"] = _take(present, self.folder.weights())
        late = [name for name in names_of(run.svi, run.modules()) if name.startswith("param.")]
        self.folder.begin(run.program, identity, lambda: self._write(run), [n.removeprefix("param.") for n in late])
        self.folder.keep(self.keep_last)
        self.folder.write_card(run.program, {}, self._about(run, "under way, or interrupted"))

    def due(self, run: Run, *, epoch_over: bool = False) -> bool:
        """Whether a checkpoint is to be written after this step."""
        unit = self.every.unit
        if unit == "epoch" and not epoch_over:
            return False
        interval = self.every.number
        if unit == "second":
            interval = max(interval, self.seconds / self.every.share)
        return _position(run)[unit] - self.at[unit] >= interval

    def write(self, run: Run) -> None:
        """Writes a checkpoint, and removes those that are too many."""
        self._write(run)
        self.folder.keep(self.keep_last)

    def _write(self, run: Run) -> None:
        start = time.monotonic()
        tensors: dict[str, Tensor] = {}
        packed = pack(state_of_run(run), tensors)
        # Under their own names, from which pyro_vae.load takes the program's while a run is under way.
        names = {path.removeprefix("svi.parameters."): path for path in tensors if path.startswith("svi.parameters.")}
        content = {name: tensors[path] for name, path in names.items()}
        content |= {path: tensor for path, tensor in tensors.items() if path not in names.values()}
        self.folder.write_checkpoint(run.svi.num_steps, content, {"state": packed})
        self.at = _position(run)
        self.seconds = self.at["second"] - start

    def see(self, run: Run, row: Row) -> None:
        """Adds an epoch to the history, and writes a checkpoint where one is due."""
        self.folder.append_row(row)
        if self.due(run, epoch_over=True):
            self.write(run)

    def finish(self, run: Run) -> None:
        """Writes the weights that training leaves, and the card."""
        history = run.history
        best = history.best_epoch
        last = dict(history.epochs[best - 1] if best is not None else (history.epochs or [{}])[-1])
        about = self._about(run, history.stopped)
        about["figures of epoch"] = int(last.pop("epoch", 0))
        self.folder.write_final(run.program, last, about)

    def _about(self, run: Run, state: str) -> dict[str, Any]:
        """What the card is to say of a run."""
        history = run.history
        return {
            "data": f"{run.train.name}, {len(run.train)} x {tuple(run.train.event_shape)}",
            "steps": f"{run.svi.num_steps} of {run.budget.num_steps}, {state}",
            "written": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "optimizer": type(run.svi.optimizer).__name__,
            **self._best(run),
            **{
                n: history.settings[n]
                for n in ("loss", "batch_size", "binarization", "seed")
                if history.settings[n] is not None
            },
            "versions": ", ".join(f"{name} {value}" for name, value in versions(run).items()),
        }

    def _best(self, run: Run) -> dict[str, str]:
        """What the card says of the weights of the best epoch, where they are kept."""
        epochs = [int(row["epoch"]) for row in run.history.epochs if run.watched(row) == run.best]
        if not (self.folder.has_best and epochs):
            return {}
        return {"best epoch": f"{epochs[0]}, with an ELBO of {run.best:.6g}; load(..., weights='best') has its weights"}

    def _go_on(self, run: Run, identity: Mapping[str, Any]) -> None:
        former = self.folder.settings()
        optimizer, own = run.svi.optimizer, set(run.svi.parameters.named.values())
        if isinstance(optimizer, pyro.optim.PyroOptim) and not optimizer.optim_objs.keys() <= own:
            raise ValueError(
                "fit: expected a new pyro.optim optimizer to go on with a run; got one that holds the state of "
                "parameters of another program. Make it anew: pyro.optim.Adam({'lr': 1e-3}), for example."
            )
        tensors, metadata = self.folder.read_checkpoint()
        tensors |= {f"svi.parameters.{name}": tensor for name, tensor in tensors.items()}
        with _of_this_form(self.folder.path):
            state = unpack(metadata["state"], tensors)
            kept = dict(state["attributes"])
        check_same(former, identity, kept)
        with _of_this_form(self.folder.path):
            restore_run(run, state)
        self.folder.describe_again(run.program)
        if not run.is_over:  # while the run goes on, load is to read its last checkpoint
            self.folder.remove_weights(best=False)
        self.folder.write_history(run.history.epochs)
        self.folder.write_card(run.program, {}, self._about(run, "under way again, or interrupted"))
        self.at = _position(run)


@contextlib.contextmanager
def _of_this_form(folder: Path) -> Iterator[None]:
    """Context manager in which what a state of another form leads to becomes an error that says so."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if str(error).startswith(("fit: ", "Checkpoint: ")):
            raise
        reason = checks.printable(f"{type(error).__name__}: {error}")
        raise ValueError(
            f"fit: expected a checkpoint of this run in {os.fspath(folder)!r}; got one from which it cannot go on "
            f"({reason}). Begin anew in another folder."
        ) from error


def _position(run: Run) -> dict[str, float]:
    return {"step": run.svi.num_steps, "epoch": len(run.history), "second": time.monotonic()}


def _take(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str:
    """Gives tensors by name what fits of saved ones; what they took, in words."""
    fitting = [n for n, t in own.items() if n in saved and saved[n].shape == t.shape and saved[n].dtype == t.dtype]
    if own and not fitting:
        raise ValueError(
            f"fit, resume='weights': expected weights of which some fit; got none for {', '.join(sorted(own)[:3])}. "
            "Build the program with the settings of the saved one, or give another folder."
        )
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(saved[name])
    left = sorted(own.keys() - set(fitting))
    words = f"took {len(fitting)} of {len(own)} tensors"
    if left:
        words += f", and not {', '.join(left[:5])}"
        words += ", ..." if len(left) > 5 else ""
        warnings.warn(f"fit, resume='weights': {words}, which have other shapes or are new.", stacklevel=5)
    return words


def keeping(saving: Saving | None) -> AbstractContextManager[None]:
    """Context manager in which the folder is this run's."""
    return contextlib.nullcontext() if saving is None else saving.folder.locked()
