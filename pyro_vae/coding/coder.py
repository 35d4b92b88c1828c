"""From data to bytes and back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.checkpoint.programs import tensors_of
from pyro_vae.coding.container import Container
from pyro_vae.coding.frozen import check_program, digest_of, fingerprint, frozen, on_one_thread
from pyro_vae.coding.grid import Grid, normal_of
from pyro_vae.coding.masses import Code, code_of, largest_count
from pyro_vae.coding.moves import Moves
from pyro_vae.coding.stack import Exhausted, Stack, random_words
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.models import Program

_AT_ONCE, _MASSES_AT_ONCE = 128, 2**22
_GROWTH = 16  # a batch is at most a 16th of the data before it, whose bits its latents are drawn from
_FEWEST_WORDS = 8


@in_evaluation_mode
@torch.no_grad()
def compress(program: Program, x: Tensor) -> bytes:
    """Data as bytes from which :func:`decompress` makes them again, bit for bit and in their order.

    The same data and program make the same bytes. They are decoded once before they are returned.

    Args:
        program: a :class:`~pyro_vae.VAE` or a :class:`~pyro_vae.HierarchicalVAE`, trained, of Normal priors and
            ``DiagonalNormal`` conditionals. Its likelihood is a probability mass: Bernoulli, Binomial, Categorical,
            OneHotCategorical, Ordinal, DiscretizedLogistic, MixtureOfDiscretizedLogistics, a count's, or a Mixed of
            these.
        x: data (N, \\*event_shape), or a Dataset.

    Returns:
        What to write to a file; :func:`code_length` tells what its length consists of.

    Raises:
        ImportError: constriction is not installed: ``pip install 'pyro-vae[coding]'``.
        TypeError: a program, a likelihood or latents of another kind.
        ValueError: data off the support, or off their level by a rounding, which would not come back; a program that
            does not compute the same twice.

    Example:
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     priors.StandardNormal(2),
        ...     likelihoods.Bernoulli(nets.MLP(2, [8]), 16),
        ...     conditionals.DiagonalNormal(nets.MLP(16, [8]), 2),
        ... )
        >>> x = torch.zeros(200, 16).bernoulli(0.5)
        >>> content = compress(vae, x)
        >>> type(content), bool(torch.equal(decompress(vae, content), x))
        (<class 'bytes'>, True)
    """
    moves = Moves(program)
    likelihood = moves.program.likelihood
    likelihood.check_data(x)
    x = x.detach().cpu()
    largest = largest_count(likelihood, x)
    with on_one_thread():
        code = code_of(likelihood, largest, x.dtype)
        exact = code.exact(x)
        if not torch.equal(exact, x):
            raise ValueError(
                f"coding.compress: expected levels as k / (levels - 1) is in {x.dtype}; got data off by up to "
                f"{(exact - x).abs().max():.1g}, which would not come back. Divide the whole "
                "numbers, of pixels (x * 255).round() / 255."
            )
        coder = _Coder(Moves(frozen(program)), code)
        initial, grids, stack = coder.encoded(exact.double())
    ours = fingerprint(moves.program)
    found = Container(len(x), largest, initial, ours, digest_of(exact), grids, stack.words)
    content = found.packed()
    decompress(program, content)
    return content


@partial(checks.arguments, "coding.decompress")
@torch.no_grad()
def decompress(program: Program, content: bytes) -> Tensor:
    """The data that :func:`compress` was given, on the CPU.

    Args:
        program: the one that they were compressed with, with the same weights.
        content: what :func:`compress` returned, all of it.

    Raises:
        ValueError: a damaged file, another program's, or one of a machine, or a version of torch, whose arithmetic is
            not this one's.

    Example:
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors
        >>> def program():
        ...     likelihood = likelihoods.Bernoulli(nets.MLP(2, [8]), 16)
        ...     return VAE(priors.StandardNormal(2), likelihood, conditionals.DiagonalNormal(nets.MLP(16, [8]), 2))
        >>> vae, x = program(), torch.eye(16)
        >>> content = compress(vae, x)
        >>> bool(torch.equal(decompress(vae, content), x))
        True
        >>> decompress(program(), content)  # of other weights  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: coding.decompress: expected the VAE that the data were compressed with; got another one, ...
    """
    moves = Moves(program)
    found = Container.unpacked(content)
    check_program("coding.decompress", program, found.program)
    dtype = next(tensor.dtype for _, tensor in tensors_of(moves.program))
    with on_one_thread():
        code = code_of(moves.program.likelihood, found.largest, dtype)
        x = _Coder(Moves(frozen(program)), code).decoded(found)
    if x is None or digest_of(x := x.to(dtype)) != found.data:
        raise ValueError(
            "coding.decompress: expected arithmetic that is the compressor's to the last bit; got data of another "
            "digest. Decompress where they were compressed, with the versions of torch and constriction of then "
            f"(torch here is {torch.__version__}); networks must not draw at random."
        )
    return x


class _Coder:
    """A program that both sides run in the same way.

    Args:
        moves: of the frozen program.
        code: of its data.
    """

    def __init__(self, moves: Moves, code: Code) -> None:
        self.moves = moves
        self.code = code
        self.at_once = min(_AT_ONCE, max(1, _MASSES_AT_ONCE // code.masses))

    def batches(self, size: int) -> Iterator[slice]:
        """Of so many data. The first are small, so that few bits are needed before there are any."""
        start = 0
        while start < size:
            stop = min(start + min(max(1, start // _GROWTH), self.at_once), size)
            yield slice(start, stop)
            start = stop

    def encoded(self, x: Tensor) -> tuple[int, list[Grid], Stack]:
        """The words that it took to begin with, the grids, and the stack with all data."""
        grids = self.grids(x)
        words = _FEWEST_WORDS
        while True:
            stack = Stack(_initial(words))
            try:
                for rows in self.batches(len(x)):
                    self.encode(stack, grids, x[rows], rows.start)
                return words, list(grids.values()), stack
            except Exhausted:
                words += max(words // 8, _FEWEST_WORDS)

    def encode(self, stack: Stack, grids: dict[str, Grid], x: Tensor, start: int) -> None:
        """Pushes a batch, of which the first datum has this place."""
        values = {"x": x}
        for place, move in enumerate(self.moves.order):
            kind, site = move
            density = self.moves.density(move, values, len(x))
            if site == "x":
                self.code.push(stack, density, x)
                continue
            loc, scale = normal_of(self.moves.part(move), density)
            if kind == "q":
                stack.scramble(start, place)
                values[site] = grids[site].pop_posterior(stack, loc, scale).reshape(density.shape())
            else:
                grids[site].push_prior(stack, values[site].flatten(1), loc, scale)

    def decoded(self, found: Container) -> Tensor | None:
        """The data, or None where the bits to begin with do not come back."""
        stack = Stack(found.words)
        grids = dict(zip(self.moves.program.latents, found.grids, strict=True))
        batches = []
        try:
            for rows in reversed(list(self.batches(found.size))):
                batches.append(self.decode(stack, grids, rows.stop - rows.start, rows.start))
        except Exhausted:
            return None
        return torch.cat(batches[::-1]) if np.array_equal(stack.words, _initial(found.initial)) else None

    def decode(self, stack: Stack, grids: dict[str, Grid], size: int, start: int) -> Tensor:
        """Pops a batch: the moves of :meth:`encode` backwards, each reversed."""
        values: dict[str, Tensor] = {}
        for place, move in reversed(list(enumerate(self.moves.order))):
            kind, site = move
            density = self.moves.density(move, values, size)
            if site == "x":
                values[site] = self.code.pop(stack, density)
                continue
            loc, scale = normal_of(self.moves.part(move), density)
            if kind == "p":
                values[site] = grids[site].pop_prior(stack, loc, scale).reshape(density.shape())
            else:
                grids[site].push_posterior(stack, values[site].flatten(1), loc, scale)
                stack.scramble(start, place)
        return values["x"]

    def grids(self, x: Tensor) -> dict[str, Grid]:
        """Grids that fit the guide's scales, by site, along one draw of the latents."""
        generator = torch.Generator().manual_seed(0)
        found: dict[str, list[tuple[Tensor, Tensor]]] = {site: [] for site in self.moves.program.latents}
        for rows in x.split(self.at_once):
            values = {"x": rows}
            for move in self.moves.order:
                kind, site = move
                if kind == "q":
                    density = self.moves.density(move, values, len(rows))
                    loc, scale = normal_of(self.moves.part(move), density)
                    found[site].append((loc, scale))
                    noise = torch.randn(loc.shape, generator=generator, dtype=loc.dtype)
                    values[site] = (loc + scale * noise).reshape(density.shape())
        return {
            site: Grid.fitting(*(torch.cat(column) for column in zip(*pairs, strict=True)))
            for site, pairs in found.items()
        }


def _initial(words: int) -> np.ndarray:
    """The bits to begin with; the last word is not 0, which a stack would drop."""
    return random_words(words, 0, 0, 1) | np.uint32(1)  # of a seed that no batch has
