"""A program as both sides run it, so that they get the same numbers."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.checkpoint.files import bytes_of
from pyro_vae.checkpoint.fingerprints import class_of, others_of
from pyro_vae.checkpoint.programs import attributes_of, tensors_of
from pyro_vae.nets import Head

_PER_UNIT = 2**16  # of the outputs of networks


def fingerprint(program: nn.Module) -> bytes:
    """A digest of eight bytes of the weights, the classes of modules and what these hold."""
    held: dict[str, Any] = {
        "classes": {name: class_of(type(module)) for name, module in program.named_modules()},
        "settings": attributes_of(program, tensors=False),
        "others": others_of(program),
    }
    digest = hashlib.blake2b(json.dumps(held, sort_keys=True, default=repr).encode(), digest_size=8)
    for name, tensor in tensors_of(program):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor.detach().cpu().contiguous()))
    return digest.digest()


def check_program(subject: str, program: Any, digest: bytes) -> None:
    """Raises for another program than the one of a digest."""
    if fingerprint(program) != digest:
        raise ValueError(
            f"{subject}: expected the {type(program).__name__} that the data were compressed with; got another one, or "
            "other weights. Load the program that was kept with the file."
        )


def digest_of(x: Tensor) -> bytes:
    """A digest of eight bytes of data on the CPU."""
    return hashlib.blake2b(bytes_of(x.contiguous()), digest_size=8).digest()


def frozen(program: Any) -> Any:
    """A copy in evaluation mode and double precision on the CPU, whose networks' outputs are rounded.

    Rounding makes outputs equal that differ in their last bits, as those of two machines do, unless one of 2^30 or so
    lies that close to an edge.
    """
    ours = copy.deepcopy(program).cpu().double().eval()
    for module in ours.modules():
        if isinstance(module, Head):
            module.register_forward_hook(_rounded)
    return ours


def _rounded(head: nn.Module, inputs: Any, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: (output * _PER_UNIT).round() / _PER_UNIT for name, output in outputs.items()}


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """Context manager in which torch computes on one thread of the CPU: sums depend on how they are shared out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_num_threads(threads)
