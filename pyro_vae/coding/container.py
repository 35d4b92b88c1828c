"""The file of compressed data: what the receiver must know, and the words of the stack."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pyro_vae.coding.grid import Grid

_MAGIC, _VERSION = b"pyrovae", 1
_START = struct.Struct("<7sBI")  # magic, version, checksum of the rest
_HEAD = struct.Struct("<IIH8s8sB")
_GRID = struct.Struct("<III")


@dataclass(frozen=True)
class Container:
    """What a file says.

    Attributes:
        size: number of data.
        largest: of counts without a bound.
        initial: words that the stack held before the first datum.
        program: digest of the program.
        data: digest of the data.
        grids: of every latent.
        words: of the stack, (words,).
    """

    size: int
    largest: int
    initial: int
    program: bytes
    data: bytes
    grids: Sequence[Grid]
    words: np.ndarray

    def packed(self) -> bytes:
        """The file."""
        head = _HEAD.pack(self.size, self.largest, self.initial, self.program, self.data, len(self.grids))
        grids = [
            _GRID.pack(grid.reach, grid.window, len(grid.exponents)) + grid.exponents.numpy().tobytes()
            for grid in self.grids
        ]
        rest = b"".join([head, *grids, self.words.astype("<u4").tobytes()])
        return _START.pack(_MAGIC, _VERSION, zlib.crc32(rest)) + rest

    @classmethod
    def unpacked(cls, content: bytes) -> Container:
        """What :meth:`packed` wrote.

        Raises:
            ValueError: another file, one of a later version, or a damaged one.
        """
        if len(content) < _START.size + _HEAD.size or not content.startswith(_MAGIC):
            raise ValueError(
                f"coding.decompress: expected what coding.compress made; got {len(content)} bytes of something else. "
                "Give the whole file."
            )
        _, version, checksum = _START.unpack_from(content)
        rest = content[_START.size :]
        if version != _VERSION:
            raise ValueError(
                f"coding.decompress: expected a file of format {_VERSION}; got one of format {version}. Decompress it "
                "with the version of pyro_vae that made it."
            )
        if zlib.crc32(rest) != checksum:
            raise ValueError(
                "coding.decompress: expected a file with its own checksum; got a damaged or truncated one of "
                f"{len(content)} bytes. Copy it again."
            )
        size, largest, initial, program, data, sites = _HEAD.unpack_from(rest)
        place, grids = _HEAD.size, []
        for _ in range(sites):
            reach, window, latents = _GRID.unpack_from(rest, place)
            place += _GRID.size
            exponents = np.frombuffer(rest, np.int8, latents, place).copy()
            place += latents
            grids.append(Grid(reach, window, torch.from_numpy(exponents)))
        words = np.frombuffer(rest, "<u4", offset=place)
        return cls(size, largest, initial, program, data, grids, words)
