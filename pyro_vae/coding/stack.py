"""The stack of bits: what is pushed last is popped first, and what was never pushed can be popped too.

Shapes: S symbols, K values.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Exhausted(Exception):
    """The stack has no more bits to draw from."""


class Stack:
    """An ANS coder of the library constriction, of 32-bit words and masses of 24 bits.

    Args:
        words: what it holds at first.

    Raises:
        ImportError: constriction is not installed.
        Exhausted: by what pops, of a stack that runs empty in it.
    """

    def __init__(self, words: np.ndarray) -> None:
        try:
            constriction = importlib.import_module("constriction")
        except ImportError as error:
            raise ImportError(
                f"coding: expected constriction to be installed; got {error}. Use pip install 'pyro-vae[coding]'."
            ) from error
        self._models = constriction.stream.model
        self._make = constriction.stream.stack.AnsCoder
        self._coder = self._make(words.astype(np.uint32))

    @property
    def words(self) -> np.ndarray:
        """All that it holds."""
        return np.asarray(self._coder.get_compressed())

    def scramble(self, *seed: int) -> None:
        """Makes its bits random, by exclusive or with those of a seed; a second time with the seed undoes it.

        What is popped then is drawn from its distribution, whatever was pushed before.
        """
        words = self.words
        words[:-1] ^= random_words(len(words) - 1, *seed)  # the last has the highest bit, which tells the length
        self._coder = self._make(words)

    def push_masses(self, symbols: Tensor, masses: Tensor) -> None:
        """Encodes symbols 0, ..., K - 1.

        Args:
            symbols: (S,).
            masses: of each, up to a constant, (S, K).
        """
        self._push(symbols, self._masses_model(), masses.numpy())

    def pop_masses(self, masses: Tensor) -> Tensor:
        """Decodes symbols (S,) of masses (S, K); the inverse of :meth:`push_masses`."""
        return self._pop(self._masses_model(), masses.numpy())

    def push_normals(self, symbols: Tensor, reach: int, loc: Tensor, scale: Tensor) -> None:
        """Encodes whole numbers with the mass of Normal(loc, scale) within 1/2 of each.

        A wide Normal's are encoded in two digits, of which the lower is uniform, in blocks of a 16th of the scale at
        most: among thousands of symbols, that have 2^-24 at least each, one from nowhere near would be drawn too often.

        Args:
            symbols: (S,), within -reach and reach; those that are drawn may be beyond it by less than a block.
            reach: of all.
            loc: (S,).
            scale: (S,).
        """
        for block, here in reversed(_blocks(reach, scale)):
            low, high = symbols[here].remainder(block), symbols[here].div(block, rounding_mode="floor")
            if block > 1:
                self._push(low, self._models.Uniform(block))
            self._push(high, *self._in_blocks(block, reach, loc[here], scale[here]))

    def pop_normals(self, reach: int, loc: Tensor, scale: Tensor) -> Tensor:
        """The inverse of :meth:`push_normals`."""
        symbols = torch.empty(len(loc), dtype=torch.long)
        for block, here in _blocks(reach, scale):
            high = self._pop(*self._in_blocks(block, reach, loc[here], scale[here]))
            low = self._pop(self._models.Uniform(block), len(high)) if block > 1 else 0
            symbols[here] = high * block + low
        return symbols

    def _in_blocks(self, block: int, reach: int, loc: Tensor, scale: Tensor) -> tuple[Any, np.ndarray, np.ndarray]:
        """The model of the blocks that symbols are in."""
        model = self._models.QuantizedGaussian(-reach // block, reach // block)
        return model, ((loc - (block - 1) / 2) / block).numpy(), (scale / block).numpy()

    def _masses_model(self) -> Any:
        return self._models.Categorical(perfect=False)

    def _push(self, symbols: Tensor, model: Any, *parameters: np.ndarray) -> None:
        self._coder.encode_reverse(symbols.numpy().astype(np.int32), model, *parameters)

    def _pop(self, model: Any, *parameters: np.ndarray | int) -> Tensor:
        symbols = self._coder.decode(model, *parameters)
        if self._coder.num_words() < 2:  # which are the coder's own state: from none comes nothing random
            raise Exhausted
        return torch.from_numpy(symbols).long()


def _blocks(reach: int, scale: Tensor) -> list[tuple[int, Tensor]]:
    """Powers of 2, and whose blocks they are, (S,): a 16th to a 32nd of the scale, 1 of narrow ones."""
    exponents = (scale / 16).log2().floor().clamp(0, math.log2(reach) // 1)
    return [(2 ** int(each), exponents == each) for each in exponents.unique().tolist()]


def random_words(size: int, *seed: int) -> np.ndarray:
    """Words of 32 random bits, the same on every machine."""
    return np.random.PCG64(seed).random_raw(size).astype(np.uint32)
