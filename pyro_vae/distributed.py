r"""Processes that train one program together, each on a part of every batch: data parallelism.

A bound of this package is a sum over the data, so that its gradient over a batch is the sum of those over its parts,
whatever the estimator: R ranks each take 1/R of a batch, their gradients are summed, and every rank takes the same
step. What is drawn differs from rank to rank, and all else is the same to the last bit.

    torchrun --nproc-per-node=2 examples/mnist_svi.py

Networks that do not fit one device are split over the ranks by FSDP2, which gathers a network's weights while it runs.
``SVI`` takes its steps with them as with whole ones; heads and priors may stay whole::

    found = distributed.ranks()
    for body in (vae.likelihood.body, vae.posterior.body):
        torch.distributed.fsdp.fully_shard(body, mesh=init_device_mesh("cuda", (found.size,)))
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=1e-3), elbo.ELBO(), ranks=found, compile=False)
    loss = svi.step(found.share(batch))

    whole = {name: distributed.whole(tensor) for name, tensor in vae.state_dict().items()}  # for another VAE

Every rank takes every step, with data of its own, since a network runs on all ranks or on none. Optimizers that are
not fused take whole and sharded parameters together. Compiled steps, ``fit`` with its checkpoints, ``save`` and shared
evaluation are for whole networks, and refuse others.

References:
    Li et al., "PyTorch distributed: experiences on accelerating data parallel training", 2020,
    https://arxiv.org/abs/2006.15704
    Zhao et al., "PyTorch FSDP: experiences on scaling fully sharded data parallel", 2023,
    https://arxiv.org/abs/2304.11277
"""

from __future__ import annotations

import atexit
import math
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyro_vae.internals import forward_hooks

__all__ = ["Ranks", "check_whole", "is_sharded", "ranks", "settle_shards", "whole"]

_KINDS = (ValueError, TypeError, NotImplementedError, FloatingPointError, MemoryError, OSError)  # that callers catch


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

    def sum_step(
        self, loss: float, parameters: Sequence[Tensor], buffers: Sequence[Tensor]
    ) -> tuple[float, list[Tensor]]:
        """Sums losses and gradients over the ranks, and collects buffers, in one go for each type of number.

        Args:
            loss: of this rank's data.
            parameters: the same ones in the same order on every rank; one without a gradient on all keeps none. Those
                that are sharded have the sum already.
            buffers: of this rank, as many of the same shapes on every rank.

        Returns:
            The loss of all, and for each buffer those of all ranks, (ranks, ...).

        Raises:
            ValueError: on all ranks, where one has other parameters.
        """
        layout = (sum(p.numel() for p in parameters) + len(parameters)) % 65_521  # whose squares add up exactly
        flags = torch.tensor([loss, float(self.asked()), layout, layout**2], dtype=torch.float64)
        dist.all_reduce(flags)
        loss, self.ending = float(flags[0]), bool(flags[1] > 0)
        collected = [buffer.new_zeros(self.size, *buffer.shape) for buffer in buffers]
        if not math.isfinite(loss):  # which is nobody's step
            return loss, collected
        if flags[2] ** 2 != self.size * flags[3]:  # sums of other sizes would end the process
            raise ValueError(
                f"SVI: expected the same parameters on all ranks; got {len(parameters)} on rank {self.rank}, and other "
                "ones on another. Declare all of them in every step, whatever the data."
            )
        # What is summed for each tensor, and whether this rank has it: the sum of no gradients is none.
        summed = [
            (p, torch.zeros_like(p) if p.grad is None else p.grad, p.grad is not None)
            for p in parameters
            if not is_sharded(p)
        ]
        for rows, buffer in zip(collected, buffers, strict=True):
            rows[self.rank] = buffer
        for alike in _alike([*summed, *((rows, rows, True) for rows in collected)]):
            values = [value.detach().reshape(-1) for _, value, _ in alike]
            flat = torch.cat([*values, values[0].new_tensor([float(has) for *_, has in alike])])
            dist.all_reduce(flat)
            *sums, anywhere = flat.split([len(value) for value in values] + [len(alike)])
            for (tensor, *_), total, some in zip(alike, sums, anywhere.tolist(), strict=True):
                if any(tensor is rows for rows in collected):
                    tensor.copy_(total.view_as(tensor))
                else:
                    tensor.grad = total.view_as(tensor).clone() if some else None
        return loss, collected

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
            Exception: the first rank failed; its error, of the same kind as in :meth:`from_each`.
        """
        sent: list[Any] = [None, None]
        error: Exception | None = None
        if self.rank == 0:
            try:
                sent[0] = make()
            except Exception as failure:  # noqa: BLE001 - which the others are to hear of, and do not wait for
                error, sent[1] = failure, _words(failure)
        dist.broadcast_object_list(sent)
        if error is not None:
            raise error
        if sent[1] is not None:
            raise _again(sent[1], 0)
        return sent[0]

    def from_each(self, make: Callable[[], Any]) -> list[Any]:
        """What each rank makes, in order, on every rank.

        Raises:
            Exception: one of them failed; the error of the first that did, on all, of the same kind where the kind is
                one of Python's usual ones.
        """
        made, error = None, None
        try:
            made = make()
        except Exception as failure:  # noqa: BLE001 - which the others are to hear of, and do not wait for
            error = failure
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, (made, None if error is None else _words(error)))
        for rank, (_, failed) in enumerate(every):
            if failed is not None:
                if error is not None and rank == self.rank:
                    raise error
                raise _again(failed, rank) from error
        return [each for each, _ in every]

    def check_same(self, what: str, values: Mapping[str, str | int], subject: str = "fit") -> None:
        """Raises on every rank where their values by name are not the same.

        Args:
            what: the values are of, for messages.
            values: by name.
            subject: who asks, for messages.

        Raises:
            ValueError: naming a rank and what differs.
        """
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, dict(values))
        for rank, other in enumerate(every):
            wrong = [name for name in every[0].keys() | other.keys() if every[0].get(name) != other.get(name)]
            if wrong:
                raise ValueError(
                    f"{subject}: expected the same {what} on all ranks; got another on rank {rank} than on rank 0: "
                    f"{', '.join(sorted(wrong)[:5])}. Make data, program, settings and callbacks alike on every rank."
                )

    def check_equal(
        self, tensors: Mapping[str, Tensor], what: str = "parameters and buffers", subject: str = "fit"
    ) -> None:
        """Raises for tensors that are not the same on all ranks, to the last bit; see :meth:`check_same`."""
        bytes_ = {name: t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for name, t in tensors.items()}
        self.check_same(what, {name: zlib.crc32(each.numpy().data) for name, each in bytes_.items()}, subject)


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


def is_sharded(tensor: Tensor) -> bool:
    """Whether ranks have parts of a tensor each, as ``fully_shard`` leaves parameters."""
    module = sys.modules.get("torch.distributed.tensor")  # without which there are none
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Any) -> Tensor:
    """A tensor with the parts of all ranks, which all are to call for; one that is not sharded as it is."""
    result: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return result


def check_whole(subject: str, module: nn.Module) -> None:
    """Raises for a module with parameters that are sharded."""
    sharded = [name for name, parameter in module.named_parameters() if is_sharded(parameter)]
    if sharded:
        raise ValueError(
            f"{subject}: expected parameters that are whole on every rank; got {len(sharded)} that fully_shard has "
            f"split, {sharded[0]} among them. Copy distributed.whole of each into a program that is not sharded; only "
            "steps of SVI(..., ranks=distributed.ranks()) take them as they are."
        )


def settle_shards(roots: Iterable[nn.Module]) -> None:
    """Lets the networks that ``fully_shard`` has split hold their shards alone, and sum gradients over the ranks.

    After a run without gradients they may hold all weights, other tensors than those that an optimizer has; and by
    themselves they average gradients. From then on they refuse to return anything but tensors.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # without which there are none
    if fsdp is None:
        return
    for part in (part for root in roots for part in root.modules() if isinstance(part, fsdp.FSDPModule)):
        part.reshard()
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        if not any(_check_output in hooks for hooks in forward_hooks(part).values()):
            part.register_forward_hook(_check_output)


def _check_output(module: nn.Module, _: Any, output: Any) -> None:
    """Raises for a network whose gradients FSDP would not see, and so leave out."""
    if not isinstance(output, Tensor | tuple | list | dict):
        kind = type(module).__name__.removeprefix("FSDP")
        raise TypeError(
            f"fully_shard: expected a network that returns tensors; got {kind}, which returns a "
            f"{type(output).__name__}, and whose gradients would be lost. Shard its body: fully_shard(part.body)."
        )


def _join() -> None:
    """Joins the group of ``torchrun``'s processes.

    Their store outlives them, and addresses of processes that have died would be dialed for ever: every attempt has
    names of its own in it.
    """
    # Its functions keep, as their default, the group that there is when it is imported: then _leave could not end the
    # group, and gloo's threads would outlive the interpreter, which at times aborts the process.
    import torch.distributed.nn.functional
    from torch.distributed.distributed_c10d import PrefixStore  # which a torch without torch.distributed lacks
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(iter(rendezvous("env://")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    own = PrefixStore(f"pyro_vae/{_attempt(store, rank, size)}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=size)


def _attempt(store: Any, rank: int, size: int) -> str:
    """A name that the processes which join now have in common, and none that joined before them.

    ``TORCHELASTIC_RESTART_COUNT`` is none: each machine counts the deaths on it alone. So the first rank answers what
    the others ask; what the dead have asked is answered in vain.

    Args:
        store: of all of them.
        rank: of this one.
        size: how many there are.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"pyro_vae/asked/{rank}", own)
        name: str = store.get(f"pyro_vae/answer/{own}").decode()
        store.add(f"pyro_vae/{name}/heard", 1)
        return name
    answered: set[str] = set()
    while store.add(f"pyro_vae/{own}/heard", 0) < size - 1:
        for other in range(1, size):
            asked = store.get(f"pyro_vae/asked/{other}").decode()
            if asked not in answered:
                store.set(f"pyro_vae/answer/{asked}", own)
                answered.add(asked)
        time.sleep(0.01)
    return own


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _words(error: Exception) -> tuple[str, str]:
    """The kind of an error, no name where it is none of Python's usual ones, and what it says."""
    return next((kind.__name__ for kind in _KINDS if isinstance(error, kind)), ""), str(error)


def _again(words: tuple[str, str], rank: int) -> Exception:
    """The error that a rank has raised, on another."""
    kind = next((kind for kind in _KINDS if kind.__name__ == words[0]), RuntimeError)
    return kind(f"{words[1]} (on rank {rank})")


def _alike(entries: Sequence[tuple[Tensor, Tensor, bool]]) -> list[list[tuple[Tensor, Tensor, bool]]]:
    """Tensors by their type of number and device, in order."""
    groups: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, Tensor, bool]]] = {}
    for entry in entries:
        groups.setdefault((entry[0].dtype, entry[0].device), []).append(entry)
    return list(groups.values())
