"""A run kept in a folder, and gone on with: when checkpoints are due, and all that they hold."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import random
import re
import time
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyro_vae import checks
from pyro_vae.checkpoint.folder import RunFolder
from pyro_vae.checkpoint.programs import a_path, set_settings, settings_of, tensors_of
from pyro_vae.checkpoint.tree import pack, unpack
from pyro_vae.data import Dataset
from pyro_vae.svi.state import restore, state_of
from pyro_vae.training.history import Row
from pyro_vae.training.run import EpochSoFar, Run

Resume = Literal["weights"] | bool

_UNITS = {"step": 1.0, "epoch": 1.0, "second": 1.0, "minute": 60.0, "hour": 3600.0}
_MAY_DIFFER = {"epochs", "steps", "threads", "python"}
"""What a run that goes on may have otherwise: its length, and what only bears on the last bits of its numbers."""


@dataclass(frozen=True)
class Every:
    """How often: after so many steps or epochs, or so many seconds."""

    number: float
    unit: str

    @classmethod
    def of(cls, text: object) -> Every:
        """Of words such as "100 steps", "5 minutes", "1 epoch".

        Raises:
            ValueError: others.
        """
        found = (
            re.fullmatch(r"(\d+(?:\.\d+)?) (step|epoch|second|minute|hour)s?", text) if isinstance(text, str) else None
        )
        number = float(found[1]) if found else 0.0
        if found is None or not number or (found[2] in ("step", "epoch") and number != int(number)):
            raise ValueError(
                f"fit: expected checkpoint_every such as '100 steps', '5 minutes' or '1 epoch'; got {text!r:.60}. Give a "
                "number above 0 and one of these units."
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
    """

    folder: RunFolder
    resume: Resume
    every: Every
    keep_last: int
    keep_best: bool
    at: dict[str, float] = field(default_factory=dict)

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
        if not (isinstance(resume, bool) or resume == "weights"):
            raise ValueError(f"fit: expected resume True, False or 'weights'; got {resume!r:.60}. Use one of these.")
        every = Every.of(checkpoint_every)
        checks.whole("fit", "keep_last", keep_last)
        checks.flag("fit", "keep_best", keep_best)
        if folder is None:
            if resume or keep_best:
                raise ValueError(
                    f"fit: expected a folder for resume={resume!r} and keep_best={keep_best}; got none. Give "
                    "folder='runs/mine', for example."
                )
            return None
        return cls(RunFolder(a_path("fit", folder)), resume, every, keep_last, keep_best)

    def begin(self, run: Run, settings: Mapping[str, Any]) -> None:
        """Begins a run in the folder, or gives a run the state that the folder holds.

        Raises:
            ValueError: the folder holds a run, and none was to be gone on with; or another one than this.
        """
        if self.keep_best:
            run.on_best = lambda: self.folder.write_best(run.program)
        started = self.folder.has_run
        if started and not self.resume:
            raise ValueError(
                f"fit: expected a folder without a run; got {os.fspath(self.folder.path)!r}, which has one. Go on with "
                "it by resume=True, or give another folder."
            )
        identity = {"settings": settings, "versions": _versions(run)}
        if started and self.resume is True:
            self._go_on(run, identity)
            return
        weights = self._weights() if started else None
        if weights is not None:
            run.history.settings["resumed"] = _take(run.program, weights)
        self.folder.begin(run.program, identity)
        self.write(run)

    def due(self, run: Run, *, epoch_over: bool = False) -> bool:
        """Whether a checkpoint is to be written after this step."""
        unit = self.every.unit
        if unit == "epoch" and not epoch_over:
            return False
        return _position(run)[unit] - self.at[unit] >= self.every.number

    def write(self, run: Run) -> None:
        """Writes a checkpoint."""
        tensors: dict[str, Tensor] = {}
        packed = pack(_state(run), tensors)
        # Under their own names, from which pyro_vae.load takes the program's while a run is under way.
        names = {path.removeprefix("svi.parameters."): path for path in tensors if path.startswith("svi.parameters.")}
        settings = settings_of(run.program) if isinstance(run.program, nn.Module) else {}
        content = {name: tensors[path] for name, path in names.items()}
        content |= {path: tensor for path, tensor in tensors.items() if path not in names.values()}
        self.folder.write_checkpoint(
            run.svi.num_steps, content, {"state": packed, "settings": settings}, self.keep_last
        )
        self.at = _position(run)

    def see(self, run: Run, row: Row) -> None:
        """Adds an epoch to the history, and writes a checkpoint where one is due."""
        self.folder.append_row(row)
        if self.due(run, epoch_over=True):
            self.write(run)

    def finish(self, run: Run) -> None:
        """Writes the weights that training leaves, and the card."""
        history = run.history
        about = {
            "data": f"{run.train.name}, {len(run.train)} x {tuple(run.train.event_shape)}",
            "steps": f"{run.svi.num_steps} of {run.budget.num_steps}, {history.stopped}",
            **{name: history.settings[name] for name in ("loss", "batch_size", "binarization", "seed")},
            "versions": ", ".join(f"{name} {value}" for name, value in _versions(run).items()),
        }
        best = history.best_epoch
        last = dict(history.epochs[best - 1] if best is not None else (history.epochs or [{}])[-1])
        about["figures of epoch"] = int(last.pop("epoch", 0))
        self.folder.write_final(run.program, last, about)

    def _go_on(self, run: Run, identity: Mapping[str, Any]) -> None:
        former = self.folder.settings()
        _check_same(former, _as_json(identity))
        tensors, metadata = self.folder.read_checkpoint()
        tensors |= {f"svi.parameters.{name}": tensor for name, tensor in tensors.items()}
        if isinstance(run.program, nn.Module):
            set_settings(run.program, metadata["settings"])
        _restore(run, unpack(metadata["state"], tensors))
        self.folder.write_history(run.history.epochs)
        self.at = _position(run)

    def _weights(self) -> dict[str, Tensor]:
        self.folder.settings()
        return self.folder.read_checkpoint()[0]


def _position(run: Run) -> dict[str, float]:
    return {"step": run.svi.num_steps, "epoch": len(run.history), "second": time.monotonic()}


def _state(run: Run) -> dict[str, Any]:
    stopping, so_far = run.stopping, run.so_far
    state = {
        "svi": state_of(run.svi, run.modules()),
        "training": [module.training for part in run.modules().values() for module in part.modules()],
        "scheduler": None if run.scheduler is None else _without_functions(run.scheduler.state_dict()),
        "stopping": None if stopping is None else {k: getattr(stopping, k) for k in ("epoch", "elbo", "state")},
        "best": run.best,
        "so_far": None if so_far is None else vars(so_far),
        "history": {**asdict(run.history), "settings": None},
        "random": _random_state(run),
    }
    return state


def _restore(run: Run, state: dict[str, Any]) -> None:
    if state["svi"]["num_steps"] > run.budget.num_steps:
        raise ValueError(
            f"fit: expected a run of at least the {state['svi']['num_steps']} steps that were taken; got "
            f"{run.budget.num_steps}. Give more epochs or steps."
        )
    partly = state["svi"]["num_steps"] % run.budget.steps_per_epoch
    if state["so_far"] is None and partly and state["svi"]["num_steps"] < run.budget.num_steps:
        raise ValueError(
            f"fit: expected a run that ended with a whole epoch, to go on with; got one that ended {partly} steps into "
            f"an epoch of {run.budget.steps_per_epoch}. Use resume='weights'."
        )
    restore(run.svi, run.modules(), state["svi"])
    for module, training in zip(
        (module for part in run.modules().values() for module in part.modules()), state["training"], strict=True
    ):
        module.training = training
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    if run.stopping is not None:
        device = run.train.device
        state["stopping"]["state"] = [tensor.to(device) for tensor in state["stopping"]["state"]]
        vars(run.stopping).update(state["stopping"])
    run.best = state["best"]
    run.so_far = None if state["so_far"] is None else EpochSoFar(**state["so_far"])
    run.history.epochs = state["history"]["epochs"]
    run.history.stopped = state["history"]["stopped"]
    _set_random_state(run, state["random"])


def _random_state(run: Run) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - callbacks may draw from it
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "order": run.generator.get_state(),
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
    }
    if run.train.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(run.train.device)
    return state


def _set_random_state(run: Run, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    run.generator.set_state(state["order"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    if run.train.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], run.train.device)


def _take(program: Any, saved: Mapping[str, Tensor]) -> str:
    """Gives a program what fits of saved weights; what it took, in words."""
    own = {f"program.{name}": tensor for name, tensor in tensors_of(program)} if isinstance(program, nn.Module) else {}
    fitting = [n for n, t in own.items() if n in saved and saved[n].shape == t.shape and saved[n].dtype == t.dtype]
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(saved[name])
    left = sorted(own.keys() - set(fitting))
    words = f"took {len(fitting)} of {len(own)} tensors"
    if left:
        words += f", and not {', '.join(name.removeprefix('program.') for name in left[:5])}"
        words += ", ..." if len(left) > 5 else ""
        warnings.warn(f"fit, resume='weights': {words}, which have other shapes or are new.", stacklevel=5)
    return words


def fingerprint(dataset: Dataset | None) -> Any:
    """What tells a data set from others: its shape, how it is read, and a checksum of its values."""
    if dataset is None:
        return None
    digest = hashlib.sha256()
    for tensor in (dataset.images, *dataset.context):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {
        "shape": list(dataset.images.shape),
        "levels": dataset.levels,
        "binarization": dataset.binarization,
        "sha256": digest.hexdigest(),
    }


def described(value: Any, depth: int = 4) -> Any:
    """A setting as it is compared: functions by their code, objects by their class and the settings that they hold."""
    if depth == 0:
        return type(value).__qualname__

    def inner(each: Any) -> Any:
        return described(each, depth - 1)

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [inner(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): inner(each) for key, each in value.items()}
    if hasattr(value, "func") and hasattr(value, "keywords"):
        return {"function": inner(value.func), "args": inner(value.args), **inner(value.keywords)}
    if inspect.isclass(value):
        return value.__qualname__
    if inspect.isroutine(value):
        code = getattr(value, "__code__", None)
        if code is None:
            return value.__qualname__
        constants = repr([each for each in code.co_consts if not inspect.iscode(each)])
        cells = [inner(cell.cell_contents) for cell in value.__closure__ or ()]
        return {
            "function": value.__qualname__,
            "code": hashlib.sha256(code.co_code + constants.encode()).hexdigest()[:12],
            "values": [*cells, *inner(value.__defaults__ or ())],
        }
    if isinstance(value, nn.Module):
        return {"module": type(value).__qualname__, "tensors": {n: list(t.shape) for n, t in tensors_of(value)}}
    held = {n: v for n, v in getattr(value, "__dict__", {}).items() if n != "_name" and not isinstance(v, Tensor)}
    simple = {n: inner(v) for n, v in held.items() if not n.startswith("_") or isinstance(v, bool | int | float | str)}
    return {"class": type(value).__qualname__, **simple}


def _without_functions(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without the functions of some, which are its arguments and not its state."""
    return {name: value for name, value in state.items() if not callable(value)}


def _versions(run: Run) -> dict[str, Any]:
    from pyro_vae import __version__

    return {
        "pyro_vae": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "device": run.train.device.type,
        "threads": torch.get_num_threads(),
    }


def _as_json(value: Any) -> Any:
    """A value as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return value


def _check_same(former: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Raises for a run that is another one than the folder's."""
    differing = [
        f"{name.partition('.')[2]} {before!r:.60}, now {now!r:.60}"
        for name, before, now in _differences("", former, present)
        if name.split(".")[1] not in _MAY_DIFFER
    ]
    if differing:
        raise ValueError(
            f"fit: expected the run that the folder holds; got another one: {'; '.join(differing[:5])}. Ask for what it "
            "was begun with, give another folder, or take only its weights with resume='weights'."
        )
    if former["versions"]["threads"] != present["versions"]["threads"]:
        warnings.warn(
            f"fit: the run was begun with {former['versions']['threads']} threads, and goes on with "
            f"{present['versions']['threads']}: sums are rounded otherwise, so that its numbers are not those of an "
            "undisturbed run to the last bit. Use torch.set_num_threads to have the same.",
            stacklevel=6,
        )


def _differences(path: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*before, *now])
        found = (_differences(f"{path}.{n}" if path else n, before.get(n), now.get(n)) for n in names)
        return [each for some in found for each in some]
    same = before == now or (before != before and now != now)  # NaN
    return [] if same else [(path, before, now)]


def keeping(saving: Saving | None) -> AbstractContextManager[None]:
    """Context manager in which the folder is this run's."""
    return contextlib.nullcontext() if saving is None else saving.folder.locked()
