"""Saving and loading weights: safetensors files, which hold tensors and text and can run no code.

A checkpoint is a module's ``state_dict``, not Pyro's param store: a store loaded before ``pyro.module`` is called
leaves the module with its old weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pyro_vae import checks

_METADATA, _CHECKSUM = "pyro_vae", "sha256"
_ABANDONED = 3600.0  # seconds after which an unfinished file is that of a saver that was killed


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
    # Cloned, because modules may share tensors, as an encoder and a decoder with one body do, and files may not.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }
    texts = {_METADATA: json.dumps(metadata or {})}
    texts[_CHECKSUM] = _checksum(tensors, texts[_METADATA])
    _write(target, safetensors.torch.save(tensors, texts))


def _write(target: Path, content: bytes) -> None:
    """Replaces a file by one that is whole on the disk."""
    for left in target.parent.glob(f".{target.name}.*"):
        if left.is_file() and time.time() - left.stat().st_mtime > _ABANDONED:
            left.unlink(missing_ok=True)
    # A name of its own for each saver, also of two threads; written by open, whose mode of files is the user's.
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _checksum(tensors: dict[str, Tensor], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
        ValueError: the file is damaged or no checkpoint, or its tensors are not the module's: other names, shapes or
            types.
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
            texts = file.metadata() or {}
            metadata = json.loads(texts[_METADATA])
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        # Files of version 0.1 have no checksum.
        if _CHECKSUM in texts and texts[_CHECKSUM] != _checksum(saved, texts[_METADATA]):
            raise ValueError("another checksum than its own")
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"Checkpoint: expected a file written by pyro_vae.checkpoint.save at {os.fspath(path)!r}; got {error}. "
            "It may be damaged, or written by another program: save it again."
        ) from error
    own = {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in saved.items()}
    differing = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
    if differing:
        raise ValueError(
            f"Checkpoint: expected the tensors of this {type(module).__name__}; got others: {', '.join(differing[:5])}"
            f"{', ...' if len(differing) > 5 else ''}. Build the module with the settings it was saved with."
        )
    with torch.no_grad():
        module.load_state_dict(saved)
    return metadata
