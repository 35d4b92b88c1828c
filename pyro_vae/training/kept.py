"""What the folder of a run keeps of it, read back."""

from __future__ import annotations

import os
from typing import Any

from pyro_vae.checkpoint import files
from pyro_vae.checkpoint.programs import RUN, WEIGHTS, a_path, checkpoints
from pyro_vae.training.history import History

UNDER_WAY = "under way, or interrupted,"


def kept_history(folder: str | os.PathLike[str]) -> History:
    """The history of a run as of its last checkpoint, with the settings that it was begun with.

    ``stopped`` says so where the run has not come to its end.

    Args:
        folder: of ``fit(..., folder=...)``.

    Raises:
        FileNotFoundError: there is no run, or no checkpoint of it.
        ValueError: a damaged file.
    """
    path = a_path("kept_history", folder)
    record = files.read_json(path / RUN)
    found = checkpoints(path)
    if not found:
        raise FileNotFoundError(
            f"kept_history: expected a checkpoint of the run in {os.fspath(path)!r}; got none. Train in it again."
        )
    _, metadata = files.read(found[0])
    ended = (path / WEIGHTS).is_file()
    try:
        state: dict[str, Any] = metadata["state"]
        history, stopping = state["history"], state["stopping"]
        rows = [{name: float(value) for name, value in row.items()} for row in history["epochs"]]
        best = stopping["epoch"] or None if ended and stopping is not None else None
        settings = {**record["settings"], "versions": record["versions"]}
        settings["loss"] = (settings["loss"] or {}).get("class")
        return History(settings, rows, str(history["stopped"]) if ended else UNDER_WAY, best)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"kept_history: expected the checkpoint of a run at {os.fspath(found[0])!r}; got one without its history "
            f"({type(error).__name__}: {error}). Train in another folder."
        ) from error
