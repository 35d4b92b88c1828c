"""What the length of compressed data consists of, beside what the ELBO says."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.coding.container import Container
from pyro_vae.coding.frozen import check_program, digest_of
from pyro_vae.evaluation import bits_per_dim, elbo_terms
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.results import Estimate, Result, plain, table
from pyro_vae.models import Program

_AT_ONCE = 1000  # data


@dataclass(frozen=True)
class CodeLength(Result):
    """The length of compressed data, and what it should be.

    ``total_bits`` is ``initial_bits`` + ``header_bits`` + about ``neg_elbo.value`` times ``num_elements``. What is left
    over :mod:`pyro_vae.coding` explains.

    Attributes:
        total_bits: of the file.
        initial_bits: random ones that had to be there before the first datum, in the file too. Where there is something
            else to send they carry it, and cost nothing.
        header_bits: of the file's other contents: sizes, grids, digests.
        num_elements: of all data.
        neg_elbo: -ELBO / log 2 of the program's evaluation, in bits/dim, which are bits per element of x, like its
            two terms.
        of_x_given_z: the reconstruction term, the length of x given z.
        of_z: the KL, the price of z.
    """

    total_bits: int
    initial_bits: int
    header_bits: int
    num_elements: int
    neg_elbo: Estimate
    of_x_given_z: Estimate
    of_z: Estimate

    @property
    def bits_per_dim(self) -> float:
        """Of the whole file."""
        return self.total_bits / self.num_elements

    @property
    def net_bits_per_dim(self) -> float:
        """Without the bits to begin with."""
        return (self.total_bits - self.initial_bits) / self.num_elements

    @property
    def ratio(self) -> float:
        """The whole file over what the ELBO says."""
        return self.bits_per_dim / self.neg_elbo.value

    @property
    def net_ratio(self) -> float:
        """The same without the bits to begin with."""
        return self.net_bits_per_dim / self.neg_elbo.value

    def to_json(self) -> str:
        names = ("bits_per_dim", "net_bits_per_dim", "ratio", "net_ratio")
        return json.dumps(json.loads(super().to_json()) | {name: plain(getattr(self, name)) for name in names})

    def __str__(self) -> str:
        rows = [
            ("file", self.bits_per_dim),
            ("  of it to begin with", self.initial_bits / self.num_elements),
            ("  of it header", self.header_bits / self.num_elements),
            ("-ELBO / log 2", self.neg_elbo.value),
            ("  x given z", self.of_x_given_z.value),
            ("  price of z", self.of_z.value),
        ]
        lengths = table(
            ["", "bits/dim", "bytes"],
            [[name, f"{bits:.4f}", f"{bits * self.num_elements / 8:,.0f}"] for name, bits in rows],
        )
        return f"{lengths}\nfile / ELBO: {self.ratio:.4f}, without the bits to begin with {self.net_ratio:.4f}"


@in_evaluation_mode
def code_length(program: Program, x: Tensor, content: bytes, num_particles: int = 1) -> CodeLength:
    """The length of what :func:`~pyro_vae.coding.compress` made of data, and -ELBO of the same data.

    Args:
        program: the one that they were compressed with.
        x: the data, (N, \\*event_shape), or a Dataset.
        content: what ``compress(program, x)`` returned.
        num_particles: draws of the latents per datum, for -ELBO.

    Raises:
        ValueError: a file of other data than x or of another program, or a damaged one.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE, coding, conditionals, likelihoods, nets, priors
        >>> vae = VAE(
        ...     priors.StandardNormal(1),
        ...     likelihoods.Bernoulli(nets.MLP(1, [8]), 100),
        ...     conditionals.DiagonalNormal(nets.MLP(100, [8]), 1),
        ... )
        >>> x = torch.ones(80, 100)
        >>> length = code_length(vae, x, coding.compress(vae, x))
        >>> length.initial_bits < length.total_bits, 0.9 < length.net_ratio < 1.1
        (True, True)
    """
    found = Container.unpacked(content)
    check_program("coding.code_length", program, found.program)
    if found.data != digest_of(x.detach().cpu() + 0.0):
        raise ValueError(
            f"coding.code_length: expected x the data that were compressed; got others, {tuple(x.shape)}. Give the x "
            "that compress was given."
        )
    checks.whole("coding.code_length", "num_particles", num_particles)
    terms = [elbo_terms(program, rows, num_particles=num_particles) for rows in x.split(_AT_ONCE)]
    dims = x[0].numel()

    def bits(nats: Tensor) -> Estimate:
        return Estimate.of(bits_per_dim(nats, (dims,)), num_particles, "bits/dim")

    likelihood = torch.cat([each.expected_log_likelihood for each in terms])
    kl = torch.cat([each.kl for each in terms])
    words = 32 * len(found.words)
    return CodeLength(
        total_bits=8 * len(content),
        initial_bits=32 * found.initial,
        header_bits=8 * len(content) - words,
        num_elements=x.numel(),
        neg_elbo=bits(kl - likelihood),
        of_x_given_z=bits(-likelihood),
        of_z=bits(kl),
    )
