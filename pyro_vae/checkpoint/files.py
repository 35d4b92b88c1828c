"""Files of weights: safetensors, which hold tensors and text and can run no code.

A checkpoint is a module's ``state_dict``, not Pyro's param store: a store loaded before ``pyro.module`` is called
leaves the module with its old weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pyro_vae import checks
from pyro_vae.distributed import check_whole
from pyro_vae.internals import storage_key

_METADATA, _CHECKSUM = "pyro_vae", "sha256"
BESIDE = "$beside"
"""The first part of names of tensors that are no weights, of which :func:`load` takes no notice."""
_FORMAT = 1  # of JSON
# A file may come from anyone, and JSON takes up to thirty times its length in memory.
LARGEST_TEXT = 64 * 2**20  # bytes of JSON that is read at all
_MOST_VALUES, _MOST_GROUPS = 4_000_000, 500_000  # in it
_MOST_TENSORS = 100_000
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
    check_whole("Checkpoint", module)
    if metadata is not None:
        checks.instance("Checkpoint", "metadata", metadata, dict, "Give a dictionary that JSON can hold, or none.")
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"Checkpoint: expected the path of a file; got the folder {os.fspath(path)!r}. Name a file in it, or use "
            "pyro_vae.save for a folder that gives the program back."
        )
    write(Path(path), module.state_dict(), metadata or {})


def write(target: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and metadata to one file, with a checksum of both.

    Raises:
        OSError: the file cannot be written.
        TypeError: metadata that JSON cannot hold.
    """
    check_storable(tensors)
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shared = Counter(storage_key(tensor) for tensor in copies.values())
    # Modules may share tensors, as an encoder and a decoder with one body do, and files may not.
    copies = {name: tensor.clone() if shared[storage_key(tensor)] > 1 else tensor for name, tensor in copies.items()}
    texts = {_METADATA: json.dumps(metadata)}
    texts[_CHECKSUM] = _checksum(copies, texts[_METADATA])
    replace(target, safetensors.torch.save(copies, texts))


def check_storable(tensors: Mapping[str, Any]) -> None:
    """Raises for what a file of tensors cannot hold.

    Raises:
        TypeError: no tensor, such as the extra state of a module, or one without values or with a layout of its own.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            got = tensor if not isinstance(tensor, Tensor) else tensor.layout if not tensor.is_meta else "one on meta"
            raise TypeError(
                f"Checkpoint: expected dense tensors with values; got {got!r:.60} as {name!r}. Keep the values in "
                "parameters and buffers, dense and on a device that has memory."
            )


def replace(target: Path, content: bytes) -> None:
    """Replaces a file by one that is whole on the disk.

    Raises:
        OSError: it cannot be written; the former file is as it was.
    """
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
        _sync_folder(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Waits until the names of a folder are on the disk, where the system can tell."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(bytes_of(tensors[name]))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The values of a contiguous tensor on the CPU, of which those of size 1 may have any stride."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data


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

    Example:
        >>> import tempfile
        >>> first, second = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/linear.safetensors", first, {"epochs": 3})
        ...     load(f"{folder}/linear.safetensors", second)
        {'epochs': 3}
        >>> torch.equal(first(torch.ones(2)), second(torch.ones(2)))
        True
    """
    checks.instance("Checkpoint", "module", module, nn.Module, "Build it as the saved one was.")
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        raise ValueError(
            f"Checkpoint: expected a module with values; got {type(module).__name__} on the meta device, which holds "
            "none. Use module.to_empty(device='cpu') first."
        )
    found, metadata = read(Path(path))
    saved = {name: tensor for name, tensor in found.items() if not name.startswith("$")}
    check(Path(path), type(module).__name__, module.state_dict(), saved)
    with torch.no_grad():
        module.load_state_dict(saved)
    return metadata


def check(path: Path, kind: str, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raises for tensors that are not those of a module.

    Args:
        path: where they come from.
        kind: what the module is.
        own: its tensors.
        saved: the others.

    Raises:
        ValueError: other names, shapes or types.
    """
    kinds = [{name: (tensor.shape, tensor.dtype) for name, tensor in each.items()} for each in (own, saved)]
    differing = sorted(name for name in own.keys() | saved.keys() if kinds[0].get(name) != kinds[1].get(name))
    if differing:
        raise ValueError(
            f"Checkpoint: expected the tensors of this {kind}; got others in {os.fspath(path)!r}: "
            f"{checks.printable(', '.join(differing[:5]), 500)}{', ...' if len(differing) > 5 else ''}. Build the "
            "module with the settings it was saved with."
        )


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a file that :func:`write` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no checkpoint.
    """
    if path.is_dir():
        raise IsADirectoryError(
            f"Checkpoint: expected the path of a file; got the folder {os.fspath(path)!r}. Name its "
            "weights.safetensors, or use pyro_vae.load, which gives the program back."
        )
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint: expected a file at {os.fspath(path)!r}; got none. Check the path.")
    try:
        _check_head(path)
        with safetensors.safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            metadata = _parsed(texts[_METADATA])
            if (count := len(file.keys())) > _MOST_TENSORS:
                raise ValueError(f"{count} tensors")
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if not isinstance(metadata, dict):
            raise ValueError("metadata that are no dictionary")
        # Files of version 0.1 have no checksum.
        if _CHECKSUM in texts and texts[_CHECKSUM] != _checksum(saved, texts[_METADATA]):
            raise ValueError("another checksum than its own")
    except (safetensors.SafetensorError, KeyError, ValueError, RecursionError, RuntimeError) as error:
        raise ValueError(
            f"Checkpoint: expected a file written by pyro_vae.checkpoint.save at {os.fspath(path)!r}; got "
            f"{checks.printable(error)}. It may be damaged, or written by another program: save it again."
        ) from error
    return saved, metadata


def check_links(folder: Path, paths: Iterable[Path]) -> None:
    """Raises for links that lead out of a folder: whoever made it chose what they lead to.

    Those of a snapshot in the cache of the Hugging Face hub lead to the blobs beside it.
    """
    top = Path(os.path.realpath(folder))
    tops = [top, top.parents[1] / "blobs"] if top.parent.name == "snapshots" else [top]
    links = [path for path in paths if path.is_symlink()]
    out = [path.name for path in links if not any(Path(os.path.realpath(path)).is_relative_to(each) for each in tops)]
    if out:
        raise ValueError(
            f"Checkpoint: expected files of its own in {os.fspath(folder)!r}; got links that lead out of it, "
            f"{checks.printable(', '.join(sorted(out)))}. Copy what they lead to."
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON that people can read, with a checksum."""
    text = json.dumps({"format": _FORMAT, "sha256": _digest(content), **content}, indent=1)
    replace(path, text.encode())


def read_json(path: Path) -> dict[str, Any]:
    """What :func:`write_json` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, was changed by hand, or is of a later format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint: expected a file at {os.fspath(path)!r}; got none. Check the path.")
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise ValueError(f"{path.stat().st_size} bytes")
        content = _parsed(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or repr(content.pop("format", None)) != str(_FORMAT):
            raise ValueError("another format")
        if content.pop("sha256", None) != _digest(content):
            raise ValueError("another checksum than its own")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"Checkpoint: expected JSON of format {_FORMAT} that pyro_vae wrote at {os.fspath(path)!r}; got "
            f"{checks.printable(error)}. It may be damaged or edited: save it again."
        ) from error
    return content


def _check_head(path: Path) -> None:
    """Raises for a file of weights that says more of itself than is read at all."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > LARGEST_TEXT:
        raise ValueError(f"a header of {size} bytes")


def _parsed(text: str) -> Any:
    """What JSON holds, unless that is far more than it should, or something twice."""
    if text.count(",") > _MOST_VALUES or text.count("[") + text.count("{") > _MOST_GROUPS:
        raise ValueError(f"more than {_MOST_VALUES} values or {_MOST_GROUPS} groups of them")
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("one name twice")
    return found


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
