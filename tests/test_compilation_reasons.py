"""Programs whose arguments say what counts: masks and lengths have a graph, sizes and branches have a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import SVI, compilation, elbo

X = torch.randn(6, generator=torch.Generator().manual_seed(0)).double()
MASKS = [torch.arange(6) < k for k in (3, 3, 3, 5, 2, 6, 1)]
Program = Callable[..., Any]
masked: Any = poutine.mask


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs run as they were recorded, and an empty param store."""
    monkeypatch.setattr(compilation.graph, "compile_graph", lambda graph, inputs: graph)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def programs(observe: Program) -> tuple[Program, Program]:
    """A model of one latent with observations, and its guide."""

    def model(x: Tensor, m: Tensor) -> None:
        observe(pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0)), x, m)

    def guide(x: Tensor, m: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.tensor(0.3).double())
        pyro.sample("z", dist.Normal(loc, 0.7))

    return model, guide


def train(observe: Program, kind: Callable[..., Any], loss: Callable[[], Any]) -> tuple[Any, list[float]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = kind(*programs(observe), pyro.optim.SGD({"lr": 1e-3}), loss())  # type: ignore[attr-defined]
    return svi, [svi.step(X, m) for m in MASKS]


def by_handler(z: Tensor, x: Tensor, m: Tensor) -> None:
    with pyro.plate("data", len(x)), masked(mask=m):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def by_distribution(z: Tensor, x: Tensor, m: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).mask(m.double()), obs=x)


def by_scale(z: Tensor, x: Tensor, m: Tensor) -> None:
    with pyro.plate("data", len(x)), poutine.scale(scale=m.double().mean()):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def by_length(z: Tensor, x: Tensor, m: Tensor) -> None:
    with pyro.plate("data", len(x)), masked(mask=torch.arange(len(x)) < m.sum()):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def by_step(z: Tensor, x: Tensor, m: Tensor) -> None:
    """A chain of as many steps as the longest, of which each is masked."""
    length = m.sum()
    for t in pyro.markov(range(len(x))):
        with masked(mask=t < length):
            pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[t])


def reversed_by_length(z: Tensor, x: Tensor, m: Tensor) -> None:
    """The first elements in reverse order, by indices in place of slices."""
    length, t = m.sum(), torch.arange(len(x))
    y = x[torch.where(t < length, length - 1 - t, t)]
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z * y.cumsum(0), 1.0), obs=y)


def written(z: Tensor, x: Tensor, m: Tensor) -> None:
    y = x.clone()
    y[m] = 0.5
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=y)


@pytest.mark.parametrize("loss", [pyro.infer.Trace_ELBO, pyro.infer.TraceGraph_ELBO, elbo.ELBO])
@pytest.mark.parametrize(
    "observe", [by_handler, by_distribution, by_scale, by_length, by_step, reversed_by_length, written]
)
def test_masks_and_lengths_that_are_tensors_are_inputs(observe: Program, loss: Any) -> None:
    _, expected = train(observe, pyro.infer.SVI, loss)
    svi, losses = train(observe, partial(SVI, compile=True), loss)
    assert svi.compiler.num_graphs == 1
    assert losses == pytest.approx(expected, rel=1e-10)


def selected(z: Tensor, x: Tensor, m: Tensor) -> None:
    with pyro.plate("data", len(y := x[m])):
        pyro.sample("x", dist.Normal(z, 1.0), obs=y)


def masked_select(z: Tensor, x: Tensor, m: Tensor) -> None:
    pyro.factor("x", -(z - x.masked_select(m)).pow(2).sum())


def nonzero(z: Tensor, x: Tensor, m: Tensor) -> None:
    pyro.factor("x", -(z - x[m.nonzero()[:, 0]]).pow(2).sum())


def repeated(z: Tensor, x: Tensor, m: Tensor) -> None:
    pyro.factor("x", -(z - x.repeat_interleave(m.long())).pow(2).sum())


def sliced(z: Tensor, x: Tensor, m: Tensor) -> None:
    pyro.factor("x", -(z - x[: m.sum()]).pow(2).sum())


def counted(z: Tensor, x: Tensor, m: Tensor) -> None:
    for t in range(int(m.sum())):
        pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[t])


def subsampled(z: Tensor, x: Tensor, m: Tensor) -> None:
    for i in map(int, pyro.plate("data", len(x), 2)):
        pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])


def branching(z: Tensor, x: Tensor, m: Tensor) -> None:
    if m[-1]:
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def packed(z: Tensor, x: Tensor, m: Tensor) -> None:
    lengths = m.sum().reshape(1)
    torch.manual_seed(0)
    sequence = nn.utils.rnn.pack_padded_sequence(x.reshape(-1, 1, 1), lengths)
    pyro.factor("x", -(z - nn.GRU(1, 1).double().requires_grad_(False)(sequence)[1]).pow(2).sum())


def listed(z: Tensor, x: Tensor, m: Tensor) -> None:
    pyro.sample("x", dist.Normal(z * sum(m.tolist()), 1.0), obs=x[0])


def in_numpy(z: Tensor, x: Tensor, m: Tensor) -> None:
    pyro.sample("x", dist.Normal(z * float(np.asarray(m).sum()), 1.0), obs=x[0])


def split(z: Tensor, x: Tensor, m: Tensor) -> None:
    pyro.factor("x", -(z - torch.tensor_split(x, m.sum().reshape(1))[0].sum()).pow(2))


def equal(z: Tensor, x: Tensor, m: Tensor) -> None:
    pyro.sample("x", dist.Normal(z, 1.0 if torch.equal(m, MASKS[0]) else 2.0), obs=x[0])


READS = r"reads numbers from a tensor, or branches on one, at test_compilation_reasons\.py:\d+"


def test_a_draw_whose_provenance_is_tracked_is_not_read() -> None:
    def model(x: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5).double()))
        pyro.sample("x", dist.Normal(2.0 if k.tolist() else 0.0, 1.0), obs=x[0])

    def guide(x: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(logits=pyro.param("loc", lambda: torch.tensor(0.0).double())))

    svi = SVI(model, guide, partial(torch.optim.SGD, lr=1e-3), pyro.infer.TraceGraph_ELBO(), compile=True)
    svi.step(X)
    with pytest.raises(RuntimeError, match=f"'model' {READS}"):
        svi.step(X)


@pytest.mark.parametrize("loss", [pyro.infer.Trace_ELBO, elbo.ELBO])
@pytest.mark.parametrize(
    ("observe", "match"),
    [
        (selected, r"size depends on values that differ from step to step, by aten\.index\.Tensor: use a mask"),
        (masked_select, r"size depends on values that differ from step to step, by aten\.masked_select\.default"),
        (nonzero, r"size depends on values that differ from step to step, by aten\.nonzero\.default"),
        (repeated, r"size depends on values that differ from step to step, by aten\.repeat_interleave\.Tensor"),
        (sliced, f"'sliced' {READS}.*: pyro.factor"),
        (counted, f"'counted' {READS}.*: for t in range"),
        (subsampled, f"'subsampled' {READS}.*: for i in map"),
        (branching, f"'branching' {READS}.*: if m"),
        (packed, f"'packed' {READS}"),
        (listed, f"'listed' {READS}"),
        (in_numpy, f"'in_numpy' {READS}"),
        (split, f"'split' {READS}"),
        (equal, f"'equal' {READS}"),
    ],
)
def test_what_depends_on_values_is_named_and_eager(observe: Program, match: str, loss: Any) -> None:
    _, expected = train(observe, pyro.infer.SVI, loss)

    def automatic(*args: Any) -> SVI:
        svi = SVI(*args)
        svi.compiler.auto_steps = 0
        return svi

    with pytest.warns(UserWarning, match=match):
        svi, losses = train(observe, automatic, loss)
    assert svi.compiler.num_graphs == 0
    assert losses == pytest.approx(expected, rel=1e-12)
    with pytest.raises(RuntimeError, match=match):
        train(observe, partial(SVI, compile=True), loss)


def constants(z: Tensor, x: Tensor, m: Tensor) -> None:
    scale = sum(torch.arange(3).tolist()) + float(torch.ones(2).numpy().sum())
    pyro.sample("x", dist.Normal(z, scale), obs=x[0])


def sequential(z: Tensor, x: Tensor, m: Tensor) -> None:
    """A plate that is run through, whose indices are a tensor of constants."""
    for i in map(int, pyro.plate("data", len(x))):
        pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])


def single_constants(z: Tensor, x: Tensor, m: Tensor) -> None:
    counts = torch.arange(4)
    scale = counts[2].item() + float(counts[1]) if counts[3] > 2 else 1.0
    pyro.sample("x", dist.Normal(z, scale), obs=x[int(counts[1])])


@pytest.mark.parametrize("observe", [constants, sequential, single_constants])
def test_constants_may_be_read(observe: Program) -> None:
    _, expected = train(observe, pyro.infer.SVI, pyro.infer.Trace_ELBO)
    svi, losses = train(observe, partial(SVI, compile=True), pyro.infer.Trace_ELBO)
    assert svi.compiler.num_graphs == 1
    assert losses == pytest.approx(expected, rel=1e-10)


def test_held_distributions_ask_for_no_support() -> None:
    """A distribution that is made while Pyro validates asks at every value, also in a step that does not."""
    with pyro.validation_enabled(True):
        held = dist.Normal(torch.zeros(()).double(), 1.0).expand([6]).to_event(1)

    def observe(z: Tensor, x: Tensor, m: Tensor) -> None:
        pyro.sample("x", held, obs=x * z)

    _, expected = train(observe, pyro.infer.SVI, pyro.infer.Trace_ELBO)
    svi, losses = train(observe, partial(SVI, compile=True), pyro.infer.Trace_ELBO)
    assert svi.compiler.num_graphs == 1
    assert losses == pytest.approx(expected, rel=1e-10)


def test_a_reader_within_pyro_is_named() -> None:
    """Pyro's losses score sites when the programs have run, so that no line of these is to blame."""

    def observe(z: Tensor, x: Tensor, m: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.NanMaskedNormal(z, 1.0), obs=x)

    with pytest.raises(RuntimeError, match=r"'log_prob' reads numbers .* at nanmasked\.py:\d+, .*: if ok\.all\(\):"):
        train(observe, partial(SVI, compile=True), pyro.infer.Trace_ELBO)


def test_a_mask_that_is_a_buffer_may_select() -> None:
    """As those of coupling flows do: no step changes it."""

    class Half(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.arange(6) % 2 == 0)

        def forward(self, x: Tensor) -> Tensor:
            return x[self.mask]

    half = Half()

    def observe(z: Tensor, x: Tensor, m: Tensor) -> None:
        pyro.module("half", half)
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(z, 1.0), obs=half(x))

    _, expected = train(observe, pyro.infer.SVI, pyro.infer.Trace_ELBO)
    svi, losses = train(observe, partial(SVI, compile=True), pyro.infer.Trace_ELBO)
    assert svi.compiler.num_graphs == 1
    assert losses == pytest.approx(expected, rel=1e-10)
