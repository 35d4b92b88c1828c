"""Evaluation by several processes: each takes a share of the data, and all have the whole result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

import pyro
import torch
from pyro.poutine.messenger import unwrap
from torch import Tensor, nn

from pyro_vae.distributed import Ranks, check_whole, ranks
from pyro_vae.graphs.recording import random_state
from pyro_vae.internals import tree_map, tree_map_only
from pyro_vae.models import Program
from pyro_vae.traces.modules import roots_of

T = TypeVar("T")

_RANKS: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


@contextlib.contextmanager
def over_ranks() -> Iterator[None]:
    r"""Context manager in which the processes of ``torchrun`` evaluate together, each a share of the data.

    Every process calls the same functions with the same program and the same data, all of them, and gets the whole
    result: a row for each datum, in order, and figures of all. What takes the time is shared: importance sampling
    (:func:`~pyro_vae.evaluation.log_marginal_likelihood`, and all that is made of it), the terms of the ELBO, the means
    of the latents, :func:`~pyro_vae.evaluation.ais` and the distributions of an amortization gap. The rest, such as
    the pairs of an :func:`~pyro_vae.evaluation.elbo_surgery`, each process does as a whole, with the same draws.

    A datum's figure is that of one process but for its draws, which are other ones for another number of processes: so
    two results differ by their standard errors, and not at all where there is no noise. The draws follow from the
    first process's generator, which moves on by one number; those of the others do not change. Where a guide's
    parameters belong to the data, ``batch_size=N`` leaves them together on every process.

    Of a single process, and where no :func:`pyro_vae.distributed.ranks` are, this changes nothing. Only one process
    should write or print what comes of it. An error of one is raised on all, and counts data within its share.

    Raises:
        ValueError: from the functions, on all processes: other data or another program on one of them.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_vae.evaluation import log_marginal_likelihood
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> program, x = SimpleNamespace(model=model, guide=guide), torch.tensor([0.0, 2.0])
        >>> with over_ranks():  # by torchrun --nproc-per-node=2, a datum for each process
        ...     result = log_marginal_likelihood(program, x, num_particles=100, progress=False)
        >>> result.value
        tensor([-1.2655, -2.2655])
    """
    found = ranks()
    if found is None:
        yield
        return
    seed = found.from_first(lambda: int(torch.randint(2**62, ())))
    token = _RANKS.set(found)
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            found.seed(seed, everywhere=True)
            yield
    finally:
        _RANKS.reset(token)


def is_first() -> bool:
    """Whether this process is the one that shows how far it has come."""
    found = _RANKS.get()
    return found is None or found.rank == 0


def by_share(
    subject: str, program: Program, args: tuple[Tensor, ...], work: Callable[..., T], *, whole: bool = False
) -> list[T]:
    """What some work makes of each process's share of the data, in order; within :func:`over_ranks`, else of all data.

    Args:
        subject: who asks, for messages.
        program: what is evaluated.
        args: its arguments, of N rows each.
        work: makes tensors, or containers of these, of arguments.
        whole: each process works on all data.

    Raises:
        ValueError: other data or another program on one process; whatever the work raises on one, on all.
    """
    found = _RANKS.get()
    if found is None or whole:
        return [work(*args)]
    ranks, device = found, args[0].device
    parts = _parts(program)
    for part in parts:
        check_whole(subject, part)
    given = {f"argument {i}": each for i, each in enumerate(args)}
    ranks.check_equal(given | _tensors(parts), "program and data", subject)
    seed = int(torch.randint(2**62, ()))  # the same on all

    def own() -> T | None:
        share = tuple(map(ranks.share, args))
        return tree_map_only(Tensor, Tensor.cpu, work(*share)) if len(share[0]) else None

    token = _RANKS.set(None)  # what the work calls is not shared again
    try:
        with random_state(args):
            ranks.seed(seed)
            every = ranks.from_each(own)
    finally:
        _RANKS.reset(token)
    return [tree_map_only(Tensor, lambda t: t.to(device), each) for each in every if each is not None]


def _parts(program: Program) -> list[nn.Module]:
    """The modules that a program consists of, the outermost ones."""
    programs = unwrap(program.model), unwrap(program.guide)
    named = [part for part in (program, *programs) if isinstance(part, nn.Module)]
    return list(dict.fromkeys([*named, *roots_of(programs)]))


def _tensors(parts: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers by name: those of modules, and those of ``pyro.param`` statements."""
    found: dict[str, Tensor] = {}
    for i, part in enumerate(parts):
        # By number, since two may be of one class.
        prefix, suffix = type(part).__name__, f" of module {i}" if i else ""
        for name, tensor in (*part.named_parameters(), *part.named_buffers()):
            found[f"{prefix}.{name}{suffix}"] = tensor
    store = pyro.get_param_store()
    # Names of modules' parameters have $$$; those of other programs may stay there.
    return found | {f"param {name}": value for name, value in store.items() if "$$$" not in name}


def joined(parts: Sequence[T], dim: int = 0) -> T:
    """The rows of all parts in containers like those of each; of what is no tensor, the first."""
    return tree_map(lambda *each: torch.cat(each, dim) if isinstance(each[0], Tensor) else each[0], *parts)
