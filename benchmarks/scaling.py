"""A model of what a step of several ranks costs: arithmetic alone, fitted to what ``ranks.py`` measures.

A step of P ranks, each with n of the data, of a program with M parameters, whose gradients are G = 4 M bytes, takes

    c (call + M (update + product n) + read n) + copy G + 2 (P - 1)/P G / bandwidth + 4 (P - 1) message

The sum is a ring (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009,
https://doi.org/10.1016/j.jpdc.2008.09.002): in 2 (P - 1) rounds each rank sends 1/P of the gradients to its neighbor;
and there are two, as losses are summed before. It begins when the gradients are complete, so that nothing hides it.
Where ranks share processors, computing takes c = max(1, P / processors) times as long, and reading ahead is work of
theirs too; a sum leaves them time, as it waits for the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

WIRE = 1448 / 1514  # of a full frame of Ethernet what TCP carries


def all_reduce(size: float, ranks: int, per_byte: float, message: float) -> float:
    """Seconds in which a ring sums so many bytes.

    >>> all_reduce(1e6, 4, per_byte=1e-8, message=1e-3)  # 6 rounds of 2.5 ms and a message
    0.021
    """
    return 2 * (ranks - 1) * (size / ranks * per_byte + message)


@dataclass(frozen=True)
class Costs:
    """Seconds of processor time: the constants of the model.

    Attributes:
        call: of a step, whatever its size.
        update: per parameter.
        product: per parameter and datum.
        read: per datum.
        copy: per byte of gradients, into one piece and back.
        message: per message of the ring.
        processors: how many the ranks share in effect, a number and no time: other programs take part of them.
    """

    call: float
    update: float
    product: float
    read: float
    copy: float
    message: float
    processors: float

    def compute(self, parameters: float, data: float) -> float:
        """Seconds of a rank's step without the others."""
        return self.call + parameters * (self.update + self.product * data)

    def communicate(self, size: float, ranks: int, bandwidth: float) -> float:
        """Seconds in which so many bytes of gradients are summed; ``bandwidth`` in bytes per second."""
        if ranks == 1:
            return 0.0
        return self.copy * size + all_reduce(size, ranks, 1 / bandwidth, 2 * self.message)

    def predict(self, setting: Mapping[str, Any]) -> dict[str, float]:
        """Seconds of the parts of a step and of all of it, of a setting of ``ranks.py``."""
        ranks, parameters = setting["ranks"], setting["parameters"]
        data, shared = setting["batch_size"] / ranks, max(1.0, ranks / self.processors)
        bandwidth = setting["megabits"] * 1e6 / 8 * WIRE or math.inf
        processor = self.compute(parameters, data)
        parts = {
            "compute": shared * processor,
            "communication": self.communicate(4 * parameters, ranks, bandwidth),
            "input": shared * self.read * data,
        }
        return parts | {"step": sum(parts.values()), "processor": processor}


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes, which nobody has measured here: every number is an assumption to replace by one's own.

    Attributes:
        flops: floating-point operations a second in a step: 30% of an H100's peak in bfloat16.
        call: seconds of a step whatever its size, in which Python launches it.
        traffic: bytes a second of a GPU's memory.
        node: GPUs of a node.
        inside: bytes a second that a GPU sends to its node: 80% of NVLink's 450 GB/s.
        between: bytes a second that it sends to other nodes, each by a port of its own: 80% of 400 Gbit/s.
        message: seconds of a message between GPUs.
        losses: seconds of a message of the ring of gloo, over TCP, that sums the losses.
    """

    flops: float = 300e12
    call: float = 1e-3
    traffic: float = 3.35e12
    node: int = 8
    inside: float = 360e9
    between: float = 40e9
    message: float = 10e-6
    losses: float = 30e-6

    def compute(self, parameters: float, flops: float) -> float:
        """Seconds of a step of so many operations on one GPU, with Adam, which moves 28 bytes per parameter."""
        return self.call + flops / self.flops + 28 * parameters / self.traffic

    def communicate(self, parameters: float, gpus: int) -> float:
        """Seconds in which gradients are summed: copied, within nodes, and between by the better of ring and tree.

        Args:
            parameters: of 4 bytes each.
            gpus: how many, of full nodes where there is more than one.
        """
        if gpus == 1:
            return 0.0
        size, inside = 4 * parameters, min(gpus, self.node)
        nodes, part = gpus // inside, size / inside
        ring = all_reduce(part, nodes, 1 / self.between, self.message)
        tree = 2 * math.ceil(math.log2(nodes)) * self.message + 2 * part / self.between
        within = all_reduce(size, inside, 1 / self.inside, self.message)
        return 4 * size / self.traffic + within + (min(ring, tree) if nodes > 1 else 0.0)

    def agree(self, gpus: int) -> float:
        """Seconds in which losses are summed."""
        return all_reduce(0, gpus, 0, self.losses)


def is_modeled(row: Mapping[str, Any]) -> bool:
    """Whether a setting of ``ranks.py`` is one that the model is of: one rank, or a network that limits."""
    return row["ranks"] == 1 or row["megabits"] > 0


def is_fitted(row: Mapping[str, Any]) -> bool:
    return is_modeled(row) and not row["held_out"]


def fit(rows: Sequence[Mapping[str, Any]]) -> Costs:
    """The constants by which the parts of a step are nearest to measured ones: by least squares of logarithms.

    No step as a whole enters: that it is the sum of its parts is what is put to the test.
    """

    def errors(logs: np.ndarray[Any, Any]) -> list[float]:
        costs = Costs(*np.exp(logs))
        pairs = [(costs.predict(row), row) for row in rows if is_fitted(row)]
        names = ("processor", "compute", "communication", "input")
        return [math.log(found[name] / row[name]) for found, row in pairs for name in names if row[name]]

    start = Costs(1e-3, 1e-9, 1e-10, 1e-6, 1e-9, 1e-4, 2.0)
    return Costs(*np.exp(least_squares(errors, np.log(astuple(start))).x).tolist())
