"""Saving and loading weights: safetensors files, which hold tensors and text and can run no code.

A checkpoint is a module's ``state_dict``, not Pyro's param store: a store loaded before ``pyro.module`` is called
leaves the module with its old weights.
"""

from __future__ import annotations

import json
import os
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from pyro_vae import checks

_METADATA = "pyro_vae"


@partial(checks.arguments, "checkpoint.save")
def save(path: str | os.PathLike[str], module: nn.Module, metadata: dict[str, Any] | None = None) -> None:
    """Writes a module's weights and some metadata to one file, whole or not at all.

    Args:
        path: the file to write; an existing one is replaced once the new one is complete.
        module: a VAE, or any module.
        metadata: what JSON can hold: settings, figures.

    Raises:
        OSError: the file cannot be written.
        TypeError: metadata that JSON cannot hold.

    Example:
        >>> import tempfile
        >>> first, second = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/linear.safetensors", first, {"epochs": 3})
        ...     load(f"{folder}/linear.safetensors", second)
        {'epochs': 3}
        >>> bool(torch.equal(first.weight, second.weight))
        True
    """
    checks.instance("Checkpoint", "module", module, nn.Module, "Pass a VAE, or any module.")
    if metadata is not None:
        checks.instance("Checkpoint", "metadata", metadata, dict, "Give a dictionary that JSON can hold, or none.")
    target = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    # A name of its own for each saver, also of two threads; written by open, whose mode of files is the user's.
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(safetensors.torch.save(tensors, {_METADATA: json.dumps(metadata or {})}))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


@partial(checks.arguments, "checkpoint.load")
def load(path: str | os.PathLike[str], module: nn.Module) -> dict[str, Any]:
    """Reads weights into a module of the same structure, on whatever device it is.

    Args:
        path: a file that :func:`save` wrote.
        module: a module built as the saved one was; unchanged if there is an error.

    Returns:
        The metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no checkpoint, or its tensors are not the module's.
    """
    checks.instance("Checkpoint", "module", module, nn.Module, "Build it as the saved one was.")
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        raise ValueError(
            f"Checkpoint: expected a module with values; got {type(module).__name__} on the meta device, which holds "
            "none. Use module.to_empty(device='cpu') first."
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"Checkpoint: expected a file at {os.fspath(path)!r}; got none. Check the path.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[_METADATA])
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"Checkpoint: expected a file written by pyro_vae.checkpoint.save at {os.fspath(path)!r}; got {error}. "
            "It may be damaged, or written by another program: save it again."
        ) from error
    own = {name: tensor.shape for name, tensor in module.state_dict().items()}
    differing = sorted(
        name
        for name in own.keys() | saved.keys()
        if name not in own or name not in saved or own[name] != saved[name].shape
    )
    if differing:
        raise ValueError(
            f"Checkpoint: expected the tensors of this {type(module).__name__}; got others: {', '.join(differing[:5])}"
            f"{', ...' if len(differing) > 5 else ''}. Build the module with the settings it was saved with."
        )
    with torch.no_grad():
        module.load_state_dict(saved)
    return metadata
