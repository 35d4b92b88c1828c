"""Bits-back coding: what comes back, how long it is, and what is refused."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import members
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import pyro_vae
from pyro_vae import VAE, HierarchicalVAE, coding, conditionals, data, fit, likelihoods, nets, priors
from pyro_vae.coding.coder import _Coder
from pyro_vae.coding.container import Container
from pyro_vae.coding.frozen import fingerprint, frozen
from pyro_vae.coding.grid import Grid
from pyro_vae.coding.masses import code_of
from pyro_vae.coding.moves import Moves
from pyro_vae.coding.stack import Exhausted, Stack, random_words
from pyro_vae.likelihoods.mixed import MakePart

pytest.importorskip("constriction")

REFUSED = {
    "ContinuousBernoulli": "a density has no bits",
    "Beta": "a density has no bits",
    "LogitNormal": "a density has no bits",
    "Normal": "a density has no bits",
    "LogNormal": "a density has no bits",
    "SigmaNormal": "a density has no bits",
    "Laplace": "a density has no bits",
    "Huber": "a density has no bits",
    "StudentT": "a density has no bits",
    "Standardized": "a density has no bits",
    "Mixed": "got Normal, which gives values no masses",
    "Tabular": "got Standardized, which gives values no masses",
    "MissingAtRandom": "in whose data values are missing. Compress complete data",
    "Dequantized": "which draws its log-probability at random. Use DiscretizedLogistic",
    "Multinomial": "which takes contexts",
    "Censored": "which takes contexts",
}


def refusal(name: str) -> str | None:
    """Why the likelihood of a member is refused."""
    if name.endswith(("library size", "given a label")):
        return "which takes contexts"
    return REFUSED.get(name.split(",")[0].split(" ")[0])


def counted_columns() -> likelihoods.Likelihood:
    parts: list[tuple[int | slice | list[int], MakePart]] = [
        (1, partial(likelihoods.Categorical, 3)),
        (slice(0, 3, 2), likelihoods.Poisson),
        ([5, 4, 3], likelihoods.OneHotCategorical),
        (6, partial(likelihoods.Ordinal, 4)),
    ]
    return likelihoods.Mixed(nets.MLP(2, [5]), parts=parts)


MASSES: dict[str, Callable[[], likelihoods.Likelihood]] = {
    **{name: make for name, make in members.LIKELIHOODS.items() if refusal(name) is None},
    "Mixed, of masses": counted_columns,
    "OneHotCategorical, several": lambda: likelihoods.OneHotCategorical(nets.MLP(2, [5]), (2, 3)),
    "Bernoulli, convolutional": lambda: likelihoods.Bernoulli(nets.ConvDecoder(2, (1, 4, 4), [5]), (1, 4, 4)),
}


def vae_of(likelihood: likelihoods.Likelihood) -> VAE:
    encoder = nets.MLP(likelihood.event_shape, [5])
    return VAE(priors.StandardNormal(2), likelihood, conditionals.DiagonalNormal(encoder, 2))


@torch.no_grad()
def drawn(vae: VAE | HierarchicalVAE, size: int) -> Tensor:
    """Data that the program makes, as levels that division makes."""
    x = vae.sample(size)
    return code_of(vae.likelihood, 10**4, x.dtype).exact(x)


def binary(size: int = 4) -> VAE:
    return vae_of(likelihoods.Bernoulli(nets.MLP(2, [5]), size))


def bits_of(content: bytes) -> int:
    """Of the data alone: without header and what was there to begin with."""
    found = Container.unpacked(content)
    return 32 * (len(found.words) - found.initial)


def test_refusal_is_of_likelihoods_that_there_are() -> None:
    assert {name for name in REFUSED if not any(m.startswith(name) for m in members.LIKELIHOODS)} == set()
    assert len(MASSES) >= 15


@pytest.mark.parametrize("name", MASSES)
def test_compress_comes_back_in_order_and_is_as_long_as_the_masses_say(name: str) -> None:
    vae = vae_of(MASSES[name]())
    with torch.no_grad():
        for parameter in vae.guide.parameters():  # q(z|x) = p(z)
            parameter.zero_()
        for parameter in vae.likelihood.body.parameters():  # p(x|z) = p(x)
            parameter.zero_()
    x = drawn(vae, 400)
    assert not torch.equal(x, x.flip(0))
    content = coding.compress(vae, x)
    again = coding.decompress(vae, content)
    assert again.dtype == x.dtype
    assert torch.equal(again, x)
    with torch.no_grad():
        expected = -vae.decode(torch.zeros(400, 2)).log_prob(x).sum().item() / math.log(2)
    # A word that is not full, and the share of counts above the largest, which no symbol needs.
    assert bits_of(content) == pytest.approx(expected, rel=2e-3, abs=40)


@pytest.mark.parametrize("name", [name for name in members.LIKELIHOODS if refusal(name)])
def test_compress_refuses_likelihoods_without_masses_by_name(name: str) -> None:
    likelihood = members.LIKELIHOODS[name]()
    with pytest.raises(TypeError, match=f"coding: expected a likelihood with a .* {refusal(name)}"):
        code_of(likelihood, 0, torch.float32)


def test_compress_refuses_a_density_of_fitting_data() -> None:
    vae = vae_of(likelihoods.Normal(nets.MLP(2, [5]), 3))
    with pytest.raises(TypeError, match=r"got Normal, which gives values no masses of their own\. Use Bernoulli"):
        coding.compress(vae, torch.zeros(5, 3))


def test_compress_of_known_bits_is_their_entropy_code() -> None:
    vae = vae_of(likelihoods.Bernoulli(nets.MLP(2, [5]), 50, data_mean=torch.tensor(0.3)))
    with torch.no_grad():
        for parameter in (*vae.guide.parameters(), *vae.likelihood.body.parameters()):
            parameter.zero_()
        vae.likelihood.head.layer.weight.zero_()
    x = torch.zeros(500, 50).bernoulli(0.3)
    ones, zeros = x.sum().item(), (1 - x).sum().item()
    expected = -ones * math.log2(0.3) - zeros * math.log2(0.7)
    assert bits_of(coding.compress(vae, x)) == pytest.approx(expected, abs=40)


@torch.no_grad()
def exact_terms(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over q(z|x) of -log2 of the weight p(x, z) / q(z|x), (N,), by sums over a fine grid of z."""
    q = vae.encode(x)
    loc, scale = q.mean, q.variance.sqrt()
    steps = torch.linspace(-9, 9, 4001, dtype=x.dtype)
    z = loc + scale * steps[:, None, None]
    weight = torch.softmax(-(steps**2) / 2, 0)[:, None]
    length = -(vae.decode(z).log_prob(x) + vae.prior().log_prob(z) - q.log_prob(z)) / math.log(2)
    mean = (weight * length).sum(0)
    return mean, (weight * (length - mean) ** 2).sum(0)


def test_compress_is_as_long_as_the_exact_elbo_says() -> None:
    vae = VAE(
        priors.StandardNormal(1),
        likelihoods.Bernoulli(nets.MLP(1, [5]), 3),
        conditionals.DiagonalNormal(nets.MLP(3, [5]), 1),
    ).double()
    with torch.no_grad():
        for parameter in vae.parameters():  # so that z and x tell of each other, well off the posterior
            parameter.mul_(3)
    x = vae.sample(20_000)
    content = coding.compress(vae, x)
    assert torch.equal(coding.decompress(vae, content), x)
    states, which = x.unique(dim=0, return_inverse=True)
    mean, variance = (each[which] for each in exact_terms(vae, states))
    standard_error = variance.sum().sqrt().item()
    assert standard_error < 0.01 * mean.sum()
    assert bits_of(content) == pytest.approx(mean.sum().item(), abs=40 + 4 * standard_error)
    length = coding.code_length(vae, x, content)
    assert length.neg_elbo.value == pytest.approx(mean.mean().item() / 3, abs=4 * standard_error / len(x) / 3 + 1e-6)
    assert length.of_x_given_z.value + length.of_z.value == pytest.approx(length.neg_elbo.value)
    assert length.total_bits == 8 * len(content) == bits_of(content) + length.initial_bits + length.header_bits
    assert length.ratio == pytest.approx(length.total_bits / (x.numel() * length.neg_elbo.value))
    assert length.net_bits_per_dim == pytest.approx((bits_of(content) + length.header_bits) / x.numel())


@pytest.mark.parametrize("inference", ["bottom-up", "top-down"])
def test_compress_of_three_layers_comes_back_and_is_as_long_as_the_elbo_says(inference: str) -> None:
    vae, _ = members.PROGRAMS[f"HierarchicalVAE, {inference}"]()
    assert isinstance(vae, HierarchicalVAE)
    vae.double()
    with torch.no_grad():
        for parameter in vae.parameters():  # scales near 1, so that one draw tells much of the ELBO
            parameter.mul_(0.5)
    x = vae.sample(2000)
    content = coding.compress(vae, x)
    assert torch.equal(coding.decompress(vae, content), x)
    length = coding.code_length(vae, x, content, num_particles=10)
    # The coder's one draw of each datum varies as those of a single particle do.
    single = coding.code_length(vae, x, content).neg_elbo.standard_error
    expected = pytest.approx(length.neg_elbo.value * x.numel(), abs=40 + 5 * single * x.numel())
    assert bits_of(content) == expected
    assert 5 * single < 0.1 * length.neg_elbo.value


@pytest.mark.parametrize("inference", ["bottom-up", "top-down"])
def test_Moves_give_every_density_what_the_receiver_has(inference: str) -> None:
    vae, (x,) = members.PROGRAMS[f"HierarchicalVAE, {inference}"]()
    assert isinstance(vae, HierarchicalVAE)
    moves = Moves(vae)
    if inference == "bottom-up":  # Bit-Swap: z1 is coded as soon as z2 is drawn
        assert moves.order == [("q", "z1"), ("p", "x"), ("q", "z2"), ("p", "z1"), ("q", "z3"), ("p", "z2"), ("p", "z3")]
    else:
        assert moves.order[:4] == [("q", "z3"), ("q", "z2"), ("q", "z1"), ("p", "x")]
    known = {"x": x, **vae.guide.infer(x, lambda _, distribution: distribution.sample())}
    values: dict[str, Tensor] = {}
    for move in reversed(moves.order):
        density = moves.density(move, values, len(x))
        torch.testing.assert_close(
            density.log_prob(known[move[1]]), moves.density(move, known, 7).log_prob(known[move[1]])
        )
        if move[0] == "p":
            values[move[1]] = known[move[1]]


def test_compress_needs_few_bits_to_begin_with() -> None:
    vae = binary(100)
    x = drawn(vae, 300)
    content = coding.compress(vae, x)
    initial = Container.unpacked(content).initial
    grid = Container.unpacked(content).grids[0]
    assert initial == 8  # words, for two latents of one datum
    assert 2 * math.log2(2 * grid.window + 1) < 32 * initial
    with pytest.raises(Exhausted):
        Stack(torch.tensor([1, 2]).numpy()).pop_normals(2**15, torch.zeros(4).double(), torch.full((4,), 1e4).double())


def test_Stack_scrambled_draws_what_was_not_pushed_and_comes_back() -> None:
    stack = Stack(random_words(50, 1))
    loc, scale = torch.zeros(100).double(), torch.full((100,), 50.0).double()
    pushed = torch.arange(100)
    stack.push_normals(pushed, 300, loc, scale)
    words = stack.words
    stack.scramble(3, 4)
    drawn = stack.pop_normals(300, loc, scale)
    assert abs(drawn.double().mean()) < 25  # five standard errors, where those pushed have 49.5
    stack.push_normals(drawn, 300, loc, scale)
    stack.scramble(3, 4)
    assert stack.words.tolist() == words.tolist()
    assert torch.equal(stack.pop_normals(300, loc, scale), pushed)
    # A batch's bits are no other's, nor those to begin with.
    seeds = [(0, 0), (0, 1), (1, 0), (0, 0, 1)]
    assert len({random_words(2, *seed).tobytes() for seed in seeds}) == len(seeds)


def test_Stack_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-vae\[coding\]'"):
        coding.compress(binary(), torch.zeros(3, 4))


def test_compress_takes_more_bits_to_begin_with_where_eight_words_are_not_enough() -> None:
    vae = VAE(
        priors.StandardNormal(200),
        likelihoods.Bernoulli(nets.MLP(200, [5]), 4),
        conditionals.DiagonalNormal(nets.MLP(4, [5]), 200),
    )
    x = drawn(vae, 20)
    content = coding.compress(vae, x)
    assert Container.unpacked(content).initial > 8
    assert torch.equal(coding.decompress(vae, content), x)


def test_compress_of_one_datum_and_the_same_bytes_twice() -> None:
    vae = binary()
    x = drawn(vae, 1)
    content = coding.compress(vae, x)
    assert torch.equal(coding.decompress(vae, content), x)
    state = torch.get_rng_state()
    assert coding.compress(vae, x) == content
    assert torch.equal(torch.get_rng_state(), state)


def test_compress_takes_a_set_and_refuses_what_is_none() -> None:
    vae = binary(64)
    _, _, test = data.load(torch.tensor(load_digits().data[:90] > 8).float())
    assert torch.equal(coding.decompress(vae, coding.compress(vae, test)), test.tensor())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="compress: expected data of shape"):
        coding.compress(vae, torch.zeros(0, 64))
    with pytest.raises(ValueError, match="Bernoulli likelihood: expected binary values"):
        coding.compress(vae, torch.full((3, 64), 0.5))
    with pytest.raises(ValueError, match=r"Bernoulli likelihood: expected binary values.* NaN"):
        coding.compress(vae, torch.full((3, 64), math.nan))
    with pytest.raises(TypeError, match=r"expected data of torch\.float32"):
        coding.compress(vae, torch.zeros(3, 64).double())
    with pytest.raises(TypeError, match="expected content"):
        coding.decompress(vae, "path")  # type: ignore[arg-type]


def test_compress_refuses_levels_that_would_not_come_back() -> None:
    vae = vae_of(members.LIKELIHOODS["Categorical, levels"]())
    x = torch.arange(256.0).reshape(64, 1, 2, 2)
    assert not torch.equal(x / 255, x * (1 / 255))
    assert torch.equal(coding.decompress(vae, coding.compress(vae, x / 255)), x / 255)
    with pytest.raises(ValueError, match=r"got data off by up to 6e-08, .* \(x \* 255\)\.round\(\) / 255"):
        coding.compress(vae, x * (1 / 255))
    huge = vae_of(likelihoods.Poisson(nets.MLP(2, [5]), 2))
    with pytest.raises(ValueError, match="expected elements of at most 65536 levels; got 70001 of Poisson"):
        coding.compress(huge, torch.tensor([[0.0, 7e4]]))


@pytest.mark.parametrize("name", [name for name in members.PROGRAMS if not name.startswith(("VAE", "Hier"))])
def test_compress_refuses_other_programs_by_name(name: str) -> None:
    program, (x, *_) = members.PROGRAMS[name]()
    with pytest.raises(TypeError, match=f"expected a VAE or a HierarchicalVAE; got {type(program).__name__}"):
        coding.compress(program, x)


REAL = ("MixtureOfNormals", "VampPrior", "RealNVP", "NeuralSpline", "MaskedAutoregressive", "Laplace")
GUIDES = ("LowRankNormal", "FullRankNormal", "MixtureOfNormals", "InverseAutoregressiveFlow", "RealNVP", "Sylvester")


@pytest.mark.parametrize(("kind", "name"), [*(("prior", n) for n in REAL), *(("posterior", n) for n in GUIDES)])
def test_compress_refuses_latents_that_are_no_independent_Normals_by_name(kind: str, name: str) -> None:
    prior = members.PRIORS[name]() if kind == "prior" else priors.StandardNormal(2)
    posterior = members.CONDITIONALS[name if kind == "posterior" else "DiagonalNormal"]()
    vae = VAE(prior, likelihoods.Bernoulli(nets.MLP(2, [5]), (1, 2, 2)), posterior)
    with pytest.raises(TypeError, match=f"coding: expected latents that are independent Normals; got {name}"):
        coding.compress(vae, torch.ones(3, 1, 2, 2))


def test_compress_takes_learned_and_shaped_Normals() -> None:
    vae = VAE(
        priors.Normal((1, 2)),
        likelihoods.Bernoulli(nets.MLP((1, 2), [5]), 6),
        conditionals.DiagonalNormal(nets.MLP(6, [5]), (1, 2)),
    )
    with torch.no_grad():
        vae.prior.loc.copy_(torch.tensor([[3.0, -1e3]]))  # type: ignore[operator]
        vae.prior.log_scale.copy_(torch.tensor([[-7.0, 7.0]]))  # type: ignore[operator]
    x = drawn(vae, 100)
    assert torch.equal(coding.decompress(vae, coding.compress(vae, x)), x)


def test_Grid_fits_the_scales_and_comes_back_beyond_its_reach() -> None:
    loc = torch.randn(500, 2).double()
    scale = torch.tensor([0.1, 1.0]).double() * torch.linspace(1, 2, 500).double()[:, None]
    grid = Grid.fitting(loc, scale)
    assert grid.cell.tolist() == [2.0**-5, 2.0**-1]
    assert grid.window == 45  # seven of the largest scales, 0.2 * 32 cells, rounded up
    far = 1e9 * torch.ones(1, 2).double()
    stack = Stack(torch.arange(1, 40).numpy())
    before = stack.words
    for center, width in ((loc[:3], scale[:3]), (far, scale[:1]), (-far, 1e9 * scale[:1]), (far * 0, 1e-9 * scale[:1])):
        z = grid.pop_posterior(stack, center, width)
        grid.push_prior(stack, z, torch.zeros_like(z), torch.ones_like(z))
        assert torch.equal(grid.pop_prior(stack, torch.zeros_like(z), torch.ones_like(z)), z)
        grid.push_posterior(stack, z, center, width)
        assert stack.words.tolist() == before.tolist()


def test_Grid_draws_from_random_bits_as_the_posterior_does() -> None:
    loc, scale = torch.full((40_000, 1), 0.3).double(), torch.full((40_000, 1), 0.2).double()
    grid = Grid.fitting(loc, scale)
    words = torch.randint(1, 2**32, (20_000,), generator=torch.Generator().manual_seed(0))
    z = grid.pop_posterior(Stack(words.numpy()), loc, scale)
    error = 0.2 / 200  # of the mean of 40,000; that of the deviation is smaller by root 2
    assert z.mean().item() == pytest.approx(0.3, abs=5 * error)
    assert z.std().item() == pytest.approx(math.sqrt(0.2**2 + grid.cell.item() ** 2 / 12), abs=5 * error)


def test_Grid_draws_of_sharp_posteriors_are_near_where_others_are_wide() -> None:
    """In the window of the widest, one of 300 draws would be anywhere in thousands of its own scales."""
    scale = torch.ones(40_000, 1).double()
    scale[::200] = 2000.0
    grid = Grid.fitting(torch.zeros_like(scale), scale)
    assert grid.window == 28_001
    words = torch.randint(1, 2**32, (20_000,), generator=torch.Generator().manual_seed(0))
    stack = Stack(words.numpy())
    z = grid.pop_posterior(stack, torch.zeros_like(scale), scale)
    assert (z.abs() <= 2 * 7 * scale).all()
    assert (z[::200].std() / 2000).item() == pytest.approx(1, abs=5 / math.sqrt(400))
    grid.push_posterior(stack, z, torch.zeros_like(scale), scale)
    assert stack.words.tolist() == words.tolist()


def test_compress_refuses_a_guide_that_has_diverged() -> None:
    vae: Any = binary()
    with torch.no_grad():
        vae.posterior.head.layer.bias[0] = torch.inf
    with pytest.raises(ValueError, match=r"coding\.compress: expected a guide with finite loc"):
        coding.compress(vae, torch.zeros(10, *vae.likelihood.event_shape))


def test_Grid_codes_sharp_and_wide_priors_of_one_dim_at_their_entropy() -> None:
    """A p(z1|z2) may be sharp for one datum and wide for another; in an alphabet of the whole grid it lost .02 bits."""
    grid = Grid(2**17, 2**12, torch.tensor([0], dtype=torch.int8))
    widths = torch.tensor([4.0, 20.0, 300.0, 30_000.0]).double()
    scale = widths.repeat_interleave(20_000)[:, None]
    generator = torch.Generator().manual_seed(0)
    z = (scale * torch.randn(scale.shape, generator=generator, dtype=torch.float64)).round()
    for width in widths:
        here = scale[:, 0] == width
        stack = Stack(torch.arange(1, 9).numpy())
        before = 32 * len(stack.words)
        grid.push_prior(stack, z[here], torch.zeros_like(z[here]), scale[here])
        p = torch.distributions.Normal(torch.zeros(()).double(), width)
        bits = -(p.cdf(z[here] + 0.5) - p.cdf(z[here] - 0.5)).log2().sum().item()
        assert (32 * len(stack.words) - before - bits) / 20_000 == pytest.approx(0, abs=0.002)
        assert torch.equal(grid.pop_prior(stack, torch.zeros_like(z[here]), scale[here]), z[here])


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "another file", "longer"])
def test_decompress_refuses_damaged_files(damage: str) -> None:
    vae = binary()
    content = coding.compress(vae, drawn(vae, 50))
    damaged = {
        "cut": content[:-4],
        "changed": content[:40] + bytes([content[40] ^ 1]) + content[41:],
        "longer": content + b"\0\0\0\0",
        "empty": b"",
        "another file": b"\x89PNG" + content,
    }[damage]
    with pytest.raises(
        ValueError, match=r"coding\.decompress: expected (a file with its own|what coding\.compress made)"
    ):
        coding.decompress(vae, damaged)


def test_decompress_refuses_a_later_format() -> None:
    vae = binary()
    content = coding.compress(vae, drawn(vae, 50))
    with pytest.raises(ValueError, match="expected a file of format 1; got one of format 2"):
        coding.decompress(vae, content[:7] + b"\2" + content[8:])


def test_decompress_refuses_other_weights_and_other_programs() -> None:
    vae = binary()
    content = coding.compress(vae, drawn(vae, 50))
    message = "expected the VAE that the data were compressed with; got another one, or other weights"
    with pytest.raises(ValueError, match=message):
        coding.decompress(binary(), content)
    first = next(vae.guide.parameters())
    with torch.no_grad():
        first.flatten()[0] += 1e-6
    with pytest.raises(ValueError, match=message):
        coding.decompress(vae, content)
    other = vae_of(likelihoods.Bernoulli(nets.MLP(2, [5], activation=nn.ReLU), 4))
    tanh = vae_of(likelihoods.Bernoulli(nets.MLP(2, [5], activation=nn.Tanh), 4))
    tanh.load_state_dict(other.state_dict())
    assert fingerprint(other) != fingerprint(tanh)


def test_compress_is_of_evaluation_mode_and_leaves_modes_as_they_are() -> None:
    class Dropping(nets.MLP):
        def forward(self, *inputs: Tensor) -> Tensor:
            return functional.dropout(super().forward(*inputs), 0.5, self.training)

    vae = vae_of(likelihoods.Bernoulli(Dropping(2, [5]), 4))
    x = drawn(vae, 100)
    trained = coding.compress(vae.train(), x)
    assert vae.likelihood.body.training
    assert coding.compress(vae.eval(), x) == trained
    assert torch.equal(coding.decompress(vae.train(), trained), x)


def test_compress_refuses_a_program_that_does_not_compute_the_same_twice() -> None:
    class Random(nets.MLP):
        def forward(self, *inputs: Tensor) -> Tensor:
            return functional.dropout(super().forward(*inputs), 0.5)

    vae = vae_of(likelihoods.Bernoulli(Random(2, [5]), 40))
    with pytest.raises(ValueError, match="networks must not draw at random"):
        coding.compress(vae, torch.zeros(50, 40).bernoulli(0.5))


def with_noise(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Makes layers inexact, as those of other machines are."""
    exact = functional.linear

    def linear(*args: Tensor) -> Tensor:
        output = exact(*args)
        return output * (1 + size * torch.randn_like(output))

    monkeypatch.setattr(functional, "linear", linear)


def test_decompress_bears_last_bits_of_networks_and_tells_of_more(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = binary(20)
    x = drawn(vae, 1000)
    content = coding.compress(vae, x)
    with monkeypatch.context() as patch:
        with_noise(patch, 1e-15)
        assert torch.equal(coding.decompress(vae, content), x)
    with_noise(monkeypatch, 1e-3)
    with pytest.raises(ValueError, match="expected arithmetic that is the compressor's to the last bit"):
        coding.decompress(vae, content)


def test_decompress_takes_no_notice_of_the_number_of_threads() -> None:
    vae = binary(20)
    x = drawn(vae, 200)
    content = coding.compress(vae, x)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert coding.compress(vae, x) == content
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_frozen_leaves_the_program_as_it_is() -> None:
    vae = binary()
    before = fingerprint(vae)
    ours = frozen(vae)
    assert next(ours.parameters()).dtype == torch.float64
    assert next(vae.parameters()).dtype == torch.float32
    assert fingerprint(vae) == before
    assert fingerprint(binary()) != before
    x = torch.ones(3, 4).double()
    outputs = ours.posterior(x).base_dist.loc * 2**16
    assert torch.equal(outputs, outputs.round())


def test_batches_cover_the_data_and_grow_slowly() -> None:
    vae = binary()
    coder = _Coder(Moves(vae), code_of(vae.likelihood, 0, torch.float32))
    rows = list(coder.batches(5000))
    assert [row for rows_ in rows for row in range(rows_.start, rows_.stop)] == list(range(5000))
    assert {r.stop - r.start for r in rows[:31]} == {1}
    assert all(16 * (r.stop - r.start) <= max(16, r.start) for r in rows)
    assert max(r.stop - r.start for r in rows) == 128


def test_code_length_refuses_other_data_and_the_elbo_of_another_program() -> None:
    vae = binary()
    x = drawn(vae, 50)
    content = coding.compress(vae, x)
    with pytest.raises(ValueError, match=r"coding\.code_length: expected x the data that were compressed"):
        coding.code_length(vae, 1 - x, content)
    with pytest.raises(ValueError, match=r"coding\.code_length: expected the VAE that the data were compressed with"):
        coding.code_length(binary(), x, content)
    assert "file / ELBO: " in str(coding.code_length(vae, x, content))


def test_Container_comes_back() -> None:
    vae = binary()
    content = coding.compress(vae, drawn(vae, 50))
    found = Container.unpacked(content)
    assert found.packed() == content
    assert struct.unpack_from("<7sBI", content) == (b"pyrovae", 1, zlib.crc32(content[12:]))
    assert found.size == 50
    assert [len(grid.exponents) for grid in found.grids] == [2]


@pytest.mark.slow
def test_decompress_in_another_process_of_a_program_that_was_saved(tmp_path: Path) -> None:
    x = torch.tensor(load_digits().data[:300], dtype=torch.float32)
    vae = vae_of(likelihoods.Categorical(17, nets.MLP(2, [5]), 64))
    fit(vae, data.as_dataset(x), epochs=1, progress=False)
    pyro_vae.save(tmp_path / "vae", vae)
    (tmp_path / "digits").write_bytes(coding.compress(vae, x))
    script = (
        "import sys, torch, pyro_vae; from pathlib import Path; from sklearn.datasets import load_digits\n"
        "folder = Path(sys.argv[1]); vae = pyro_vae.load(folder / 'vae')\n"
        "x = pyro_vae.coding.decompress(vae, (folder / 'digits').read_bytes())\n"
        "assert torch.equal(x, torch.tensor(load_digits().data[:300], dtype=torch.float32))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)


@pytest.mark.slow
def test_compress_of_mnist_is_within_a_hundredth_of_the_elbo(mnist: Path) -> None:
    train, _, test = data.load("mnist", mnist, binarize="dynamic")
    vae = VAE(
        priors.StandardNormal(20),
        likelihoods.Bernoulli(nets.MLP(20, [100]), (1, 28, 28), data_mean=train.mean()),
        conditionals.DiagonalNormal(nets.MLP((1, 28, 28), [100]), 20),
    )
    fit(vae, train.take(20_000), epochs=2, progress=False)
    content = coding.compress(vae, test)  # type: ignore[arg-type]
    assert torch.equal(coding.decompress(vae, content), test.tensor())
    length = coding.code_length(vae, test.tensor(), content, num_particles=5)
    assert 0.99 < length.net_ratio < length.ratio < 1.01
    assert length.initial_bits + length.header_bits < 1e-3 * length.total_bits
