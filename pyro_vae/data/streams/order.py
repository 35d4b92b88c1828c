r"""A permutation of any number of data that is computed place by place, so that it takes no memory and starts anywhere.

A Feistel network on pairs :math:`(l, r) \in \mathbb{Z}_a \times \mathbb{Z}_b` with :math:`ab \ge N`: each round adds
to one half a keyed hash of the other, which can be taken away again, so that a round, and all of them together, are a
bijection on :math:`0, \dots, ab - 1`,

.. math:: (l, r) \mapsto (l + h_k(r) \bmod a,\; r), \qquad (l, r) \mapsto (l,\; r + h_{k+1}(l) \bmod b).

A place at N or beyond is sent through it again until it falls below N, which leaves a bijection on the N data ("cycle
walking"). The hash is the finalizer of SplitMix64.

References:
    Ciphers with arbitrary finite domains, Black and Rogaway, 2002, https://doi.org/10.1007/3-540-45760-7_9
    Fast splittable pseudorandom number generators, Steele, Lea and Flood, 2014, https://doi.org/10.1145/2660193.2660195
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.int64]

_ROUNDS = 6  # pairs of them; with four, the orders of five data are not equally frequent


class Permutation:
    """A permutation of N data by a seed.

    Args:
        n: number of data.
        seed: what it follows from; None for the data in their order.

    Example:
        >>> Permutation(10, seed=0)(np.arange(10)).tolist()
        [0, 7, 4, 3, 9, 6, 2, 8, 5, 1]
        >>> Permutation(10**12, seed=0)(np.array([0, 1])).tolist()
        [55447891484, 328624183986]
    """

    def __init__(self, n: int, seed: int | None) -> None:
        self._n = n
        self._a = math.isqrt(max(n - 1, 0)) + 1
        self._b = -(-n // self._a)
        words = 0 if seed is None else 2 * _ROUNDS
        self._keys = list(np.random.SeedSequence(seed or 0).generate_state(words, np.uint64)) if words else []

    def __call__(self, places: Index) -> Index:
        """The data at some places, int64 (B,)."""
        if not self._keys:
            return places
        found = self._once(places.astype(np.uint64))
        while len(beyond := (found >= self._n).nonzero()[0]):
            found[beyond] = self._once(found[beyond])
        return found.astype(np.int64)

    def _once(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        a, b = np.uint64(self._a), np.uint64(self._b)
        left, right = x % a, x // a
        for i in range(0, len(self._keys), 2):
            left = (left + _hash(right ^ self._keys[i]) % a) % a
            right = (right + _hash(left ^ self._keys[i + 1]) % b) % b
        return right * a + left


def _hash(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # modulo 2^64
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
