r"""Processes that train one program together, each on a part of every batch: data parallelism.

A bound of this package is a sum over the data, so that its gradient over a batch is the sum of those over its parts,
whatever the estimator: R ranks each take 1/R of a batch, their gradients are summed, and every rank takes the same
step. What is drawn differs from rank to rank, and all else is the same to the last bit.

    torchrun --nproc-per-node=2 examples/mnist_svi.py

References:
    Li et al., "PyTorch distributed: experiences on accelerating data parallel training", 2020,
    https://arxiv.org/abs/2006.15704
"""

from __future__ import annotations

import atexit
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks", "ranks"]


class Ranks:
    """The processes of ``torch.distributed``'s default group, as one of them sees them.

    Attributes:
        rank: this one's number.
        size: how many there are.
        asked: whether this one wants to end; asked at every sum.
        ending: whether any of them did at the last.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.asked: Callable[[], bool] = lambda: False
        self.ending = False

    def share(self, rows: Tensor) -> Tensor:
        """This rank's part of the rows of a batch, none where there are fewer than ranks."""
        return rows.tensor_split(self.size)[self.rank]

    def seed(self, *of: int, everywhere: bool = False) -> None:
        """Seeds torch's global generators from numbers, and from the rank, so that each draws numbers of its own.

        Nothing of former draws enters, so that a run that goes on draws what it would have drawn.

        Args:
            of: what the seed is made of.
            everywhere: the same on all ranks.
        """
        sequence = np.random.SeedSequence([*of, *((self.size, self.size) if everywhere else (self.rank, self.size))])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def sum_step(self, loss: float, parameters: Sequence[Tensor], buffers: Sequence[Tensor], share: float) -> float:
        """Sums losses and gradients over the ranks, and averages buffers, in one go for each type of number.

        Args:
            loss: of this rank's data.
            parameters: the same ones in the same order on every rank; one without a gradient on all keeps none.
            buffers: running averages, which become their mean over the data.
            share: this rank's share of the data, which buffers are weighted by.

        Returns:
            The loss of all.
        """
        flags = torch.tensor([loss, float(self.asked())], dtype=torch.float64)
        dist.all_reduce(flags)
        loss, self.ending = float(flags[0]), bool(flags[1] > 0)
        if not math.isfinite(loss):  # which is nobody's step
            return loss
        # What is summed for each tensor, and whether this rank has it: the sum of no gradients is none.
        summed = [(p, torch.zeros_like(p) if p.grad is None else p.grad, p.grad is not None) for p in parameters]
        averaged = [(buffer, buffer * share, True) for buffer in buffers]
        for alike in _alike([*summed, *averaged]):
            values = [value.detach().reshape(-1) for _, value, _ in alike]
            flat = torch.cat([*values, values[0].new_tensor([float(has) for *_, has in alike])])
            dist.all_reduce(flat)
            *sums, anywhere = flat.split([len(value) for value in values] + [len(alike)])
            for (tensor, *_), total, some in zip(alike, sums, anywhere.tolist(), strict=True):
                if any(tensor is buffer for buffer in buffers):
                    tensor.copy_(total.view_as(tensor))
                else:
                    tensor.grad = total.view_as(tensor).clone() if some else None
        return loss

    def mean(self, values: Mapping[str, float], count: int) -> dict[str, float]:
        """Means over the data of all ranks, of means over each rank's own.

        Args:
            values: by name, the same names on all ranks.
            count: this rank's number of data; 0 for one that has none, whose values do not count.
        """
        sums = torch.tensor(
            [count, *(value * count if count else 0.0 for value in values.values())], dtype=torch.float64
        )
        dist.all_reduce(sums)
        return {name: float(total / sums[0]) for name, total in zip(values, sums[1:], strict=True)}

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first rank makes, on every rank.

        Raises:
            RuntimeError: the first rank failed; its own error there.
        """
        sent: list[Any] = [None, None]
        error: Exception | None = None
        if self.rank == 0:
            try:
                sent[0] = make()
            except Exception as failure:  # noqa: BLE001 - which the others are to hear of, and do not wait for
                error, sent[1] = failure, f"{type(failure).__name__}: {failure}"
        dist.broadcast_object_list(sent)
        if error is not None:
            raise error
        if sent[1] is not None:
            raise RuntimeError(f"rank 0 failed: {sent[1]}")
        return sent[0]

    def check_same(self, what: str, values: Mapping[str, str | int]) -> None:
        """Raises on every rank where their values by name are not the same.

        Raises:
            ValueError: naming a rank and what differs.
        """
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, dict(values))
        for rank, other in enumerate(every):
            wrong = [name for name in every[0].keys() | other.keys() if every[0].get(name) != other.get(name)]
            if wrong:
                raise ValueError(
                    f"fit: expected the same {what} on all ranks; got another on rank {rank} than on rank 0: "
                    f"{', '.join(sorted(wrong)[:5])}. Make data, program, settings and callbacks alike on every rank."
                )

    def check_equal(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises for tensors that are not the same on all ranks, to the last bit; see :meth:`check_same`."""
        bytes_ = {name: t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for name, t in tensors.items()}
        self.check_same(
            "parameters and buffers", {name: zlib.crc32(each.numpy().tobytes()) for name, each in bytes_.items()}
        )


def ranks() -> Ranks | None:
    """The processes that ``torchrun`` has started, or that have joined ``torch.distributed``; None of a single one.

    Joins them where none has: by gloo between CPUs, by NCCL between GPUs.
    """
    if not dist.is_available():
        return None
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched():
            return None
        _join()
        atexit.register(_leave)
    return Ranks() if dist.get_world_size() > 1 else None


def _join() -> None:
    """Joins the group of ``torchrun``'s processes.

    Their store outlives them, and addresses of processes that have died would be dialed for ever: every attempt has
    names of its own in it.
    """
    from torch.distributed.distributed_c10d import PrefixStore  # which a torch without torch.distributed lacks
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(iter(rendezvous("env://")))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    own = PrefixStore(f"pyro_vae/{attempt}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=size)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _alike(entries: Sequence[tuple[Tensor, Tensor, bool]]) -> list[list[tuple[Tensor, Tensor, bool]]]:
    """Tensors by their type of number and device, in order."""
    groups: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, Tensor, bool]]] = {}
    for entry in entries:
        groups.setdefault((entry[0].dtype, entry[0].device), []).append(entry)
    return list(groups.values())
