"""The folder of a run, opened: its options, data and trained program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from pyro_vae import data, load
from pyro_vae.checkpoint.folder import RunFolder
from pyro_vae.cli import programs, sources
from pyro_vae.cli.train import arguments, options_of
from pyro_vae.training.identity import fingerprint


@dataclass
class OpenedRun:
    """A run of ``pyro-vae train``.

    Attributes:
        folder: where it is.
        options: that it was made with.
        program: with its last weights, in evaluation mode.
    """

    folder: Path
    options: Namespace
    program: Any

    @cached_property
    def splits(self) -> data.Splits:
        """The data that it was made with, read again.

        Raises:
            ValueError: they have changed, so that another split would mix data that were trained on with others.
        """
        found = sources.read(**{name: self.options[name] for name in arguments(sources.read)})
        found = programs.with_contexts(self.options, found)
        kept = RunFolder(self.folder).settings()["settings"]["train"]
        if kept["sha256"] != fingerprint(found.train)["sha256"]:
            raise ValueError(
                f"{self.folder}: expected the data that it was trained on in {self.options.data}; got others. Put them "
                "back, or name the data to look at with --data."
            )
        return found

    def dataset(self, source: str | None, split: str = "test") -> data.Dataset:
        """A part of the run's data, or all of another source, read in the columns and codes of the run's."""
        if source is None:
            return getattr(self.splits, split)
        train = self.splits.train
        table = getattr(self.program.likelihood, "table", None) or train.table
        columns = list(train.columns) if table is None and train.columns else None
        found = sources.selected(source, columns, None, table)
        if isinstance(found, str):
            found = sources.part(found, split, self.options)
        if found.event_shape != train.event_shape:
            names = f", columns {', '.join(train.columns[:5])}" if train.columns else ""
            raise ValueError(
                f"{source}: expected data of the shape {tuple(train.event_shape)}{names}, as {self.folder} has; got "
                f"{tuple(found.event_shape)}. Name data of the same columns or pixels."
            )
        return programs.with_context(self.options, found)

    def contexts(self, num: int) -> tuple[Tensor, ...]:
        """What the likelihood takes beside z, that of the first test data, again and again."""
        test = self.splits.test
        return test.batch(torch.arange(num) % len(test), torch.Generator().manual_seed(0))[1:] if test.context else ()


def opened(folder: str) -> OpenedRun:
    """The run of a folder.

    Raises:
        FileNotFoundError: there is none, or one not made by ``train``.
    """
    options = options_of(folder)
    return OpenedRun(Path(folder), options, load(folder))
