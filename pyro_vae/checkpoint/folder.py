"""A run's folder: what it was asked for, its checkpoints, its history, and a lock.

Every file is written under another name, forced to the disk and renamed, so that a reader, or a machine that comes up
again, finds the old one or the new one, and a checkpoint stays until a later one is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor, nn

from pyro_vae.checkpoint import files
from pyro_vae.checkpoint.card import card
from pyro_vae.checkpoint.programs import (
    BEST,
    CARD,
    CHECKPOINTS,
    OF_FOLDER,
    PROGRAM,
    RUN,
    WEIGHTS,
    described,
    write_description,
    write_weights,
)

HISTORY, _LOCK = "history.jsonl", ".lock"


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; made when a run begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = ""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Context manager in which no other run can have the folder.

        Raises:
            BlockingIOError: one has it.
            OSError: the folder cannot be made or written.
        """
        with self.writing("the folder"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_links()
            lock = filelock.FileLock(self.path / _LOCK, timeout=0, mode=0o666 & self.path.stat().st_mode)
            try:
                lock.acquire()
            except filelock.Timeout:
                raise BlockingIOError(
                    f"fit: expected a folder that no other run writes to; got {os.fspath(self.path)!r}, which one has "
                    "locked. Wait for it, or give another folder."
                ) from None
        try:
            for left in self.path.rglob(".*.????????????????????????????????"):  # by a process that was killed
                left.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Context manager in which an error of the disk is told in full."""
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(
                error.errno,
                f"fit: expected to write {what} of {os.fspath(self.path)!r}; got {error.strerror or error}. The "
                "program has the weights of its last step, and files written before are whole: give a folder that can "
                "be written, or mend the disk and go on with resume=True",
            ) from error

    @property
    def has_run(self) -> bool:
        """Whether there is a run, with a checkpoint, to go on with."""
        return (self.path / RUN).is_file() and bool(self._checkpoints(self._record()["run"]))

    @property
    def has_program(self) -> bool:
        """Whether there are weights, of a program that was saved or of a run whose checkpoints are gone."""
        return any((self.path / name).is_file() for name in (WEIGHTS, BEST))

    @property
    def has_best(self) -> bool:
        """Whether the weights of the best epoch are kept."""
        return (self.path / BEST).is_file()

    def weights(self) -> dict[str, Tensor]:
        """Those of the last checkpoint, or of a saved program, by the names that a checkpoint has."""
        if not self.has_run:
            return {f"program.{name}": tensor for name, tensor in files.read(self.path / WEIGHTS)[0].items()}
        self.settings()
        return self.read_checkpoint()[0]

    def check_whole(self, *, resume: object) -> None:
        """Raises for a run of which a part was deleted, where beginning one would remove the rest.

        Raises:
            ValueError: naming what is left and what is gone.
        """
        found = [path.stem for path in (self.path / CHECKPOINTS).glob("*.safetensors")]
        # One of no step is what a beginning leaves that failed.
        left = any(not name.endswith("-000000000") for name in found)
        described = (self.path / RUN).is_file()
        if resume != "weights" and left and not described:
            raise ValueError(
                f"fit: expected {RUN} beside its checkpoints in {os.fspath(self.path)!r}; got none, without which no "
                "run can go on. Put it back, or give another folder."
            )
        if resume is True and described and not found:
            raise ValueError(
                f"fit: expected checkpoints of the run in {os.fspath(self.path)!r}; got none, since they were deleted. "
                f"Put them back, give another folder, or remove {RUN} to begin anew."
            )

    def describe_again(self, program: object) -> None:
        """Writes what the program is built of, where that was deleted."""
        if not (self.path / PROGRAM).is_file():
            with self.writing("the description"):
                self._describe(program, [])

    def begin(
        self, program: object, settings: Mapping[str, Any], write: Callable[[], None], loose: Sequence[str]
    ) -> None:
        """Begins a run: what was there before stays until the new one can be gone on with.

        Args:
            program: what it trains.
            settings: what makes it the one that it is.
            write: writes its first checkpoint.
            loose: names of parameters that no module has, which the weights of a program are without.
        """
        if isinstance(program, nn.Module):
            files.check_storable(program.state_dict())
        self.run = uuid.uuid4().hex[:8]
        write()
        with self.writing("the settings"):
            self._describe(program, loose)
            files.write_json(self.path / RUN, {"run": self.run, **settings})
            self.write_history([])
            self.remove_weights(best=True)

    def remove_weights(self, *, best: bool) -> None:
        """Removes weights that are no longer the last ones, or the best."""
        for stale in (WEIGHTS, BEST) if best else (WEIGHTS,):
            (self.path / stale).unlink(missing_ok=True)

    def settings(self) -> dict[str, Any]:
        """What the run was begun with; it becomes that which is gone on with."""
        record = self._record()
        self.run = record.pop("run")
        return record

    def write_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes everything that changes."""
        with self.writing("a checkpoint"):
            (self.path / CHECKPOINTS).mkdir(exist_ok=True)
            files.write(self.path / CHECKPOINTS / f"{self.run}-{step:09d}.safetensors", tensors, state)

    def keep(self, number: int) -> None:
        """Removes all checkpoints but the last ones."""
        with self.writing("the checkpoints"):
            kept = self._checkpoints(self.run)[:number]
            for former in (self.path / CHECKPOINTS).glob("*.safetensors"):
                if former not in kept:
                    former.unlink(missing_ok=True)

    def read_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The newest one that is whole.

        Raises:
            ValueError: none is.
        """
        problems = []
        for path in self._checkpoints(self.run):
            try:
                found = files.read(path)
            except (ValueError, OSError) as error:
                problems.append(str(error))
                continue
            if problems:
                warnings.warn(
                    f"fit goes on from {path.name}, since a later checkpoint is damaged: {problems[0]}", stacklevel=4
                )
            return found
        raise ValueError(
            f"fit: expected a checkpoint that is whole in {os.fspath(self.path)!r}; got none: {' '.join(problems)} "
            "Begin anew in another folder, from its weights where there are some: pyro_vae.load."
        )

    def write_history(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Begins the file of epochs with those that a checkpoint holds."""
        with self.writing("the history"):
            files.replace(self.path / HISTORY, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def append_row(self, row: Mapping[str, float]) -> None:
        """Adds an epoch to it."""
        with self.writing("the history"), (self.path / HISTORY).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def write_best(self, program: object) -> None:
        """Writes the weights of the best epoch so far."""
        if isinstance(program, nn.Module):
            with self.writing("the best weights"):
                write_weights(self.path / BEST, program)

    def write_final(self, program: object, figures: Mapping[str, float], about: Mapping[str, Any]) -> None:
        """Writes the weights that training leaves, and the card."""
        with self.writing("the weights"):
            if isinstance(program, nn.Module):
                write_weights(self.path / WEIGHTS, program)
        self.write_card(program, figures, about)

    def write_card(self, program: object, figures: Mapping[str, float], about: Mapping[str, Any]) -> None:
        """Writes what a person reads first."""
        with self.writing("the card"):
            files.replace(self.path / CARD, card(program, figures, about).encode())

    def _describe(self, program: object, loose: Sequence[str]) -> None:
        try:
            if loose:
                raise TypeError(
                    f"Checkpoint: expected parameters of modules; got {', '.join(loose[:3])} of pyro.param statements, "
                    "which the weights of a program are without. Make them nn.Parameters of a module, or PyroParams."
                )
            if not isinstance(program, nn.Module):
                raise TypeError(f"a {type(program).__name__}, which is no module.")
            write_description(self.path, *described(program))
        except (TypeError, ValueError) as error:
            warnings.warn(
                f"pyro_vae.load cannot give the program of {os.fspath(self.path)!r} back, though training can go on "
                f"there: {error}",
                stacklevel=5,
            )
            files.write_json(self.path / PROGRAM, {"problem": str(error)})

    def _check_links(self) -> None:
        """Raises for links where files are emptied and removed: whoever made the folder chose what they lead to."""
        files.check_links(self.path, [self.path / name for name in OF_FOLDER if name != CHECKPOINTS])
        for name in {_LOCK, HISTORY, CARD, *OF_FOLDER}:
            path, kind = self.path / name, "a folder" if name == CHECKPOINTS else "a file"
            emptied = name in (_LOCK, CHECKPOINTS)
            if (emptied and path.is_symlink()) or (path.exists() and path.is_dir() != (name == CHECKPOINTS)):
                raise ValueError(
                    f"fit: expected {kind} {name} in {os.fspath(self.path)!r}; got a link, or something else. Copy "
                    "what it leads to, or remove it."
                )

    def _record(self) -> dict[str, Any]:
        record = files.read_json(self.path / RUN)
        if not re.fullmatch("[0-9a-f]{8}", str(record.get("run"))):  # which names of files begin with
            raise ValueError(
                f"fit: expected a run with a name of its own in {os.fspath(self.path)!r}; got "
                f"{record.get('run')!r:.60}. Begin anew in another folder."
            )
        return record

    def _checkpoints(self, run: str) -> list[Path]:
        """Those of a run, the newest first."""
        found = sorted((self.path / CHECKPOINTS).glob(f"{run}-*.safetensors"), reverse=True)
        files.check_links(self.path, found)
        return found
