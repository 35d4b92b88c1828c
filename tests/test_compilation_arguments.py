"""Tensors are inputs wherever a step's arguments hold them; numbers are constants; arrays are refused."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from pyro.nn import PyroModule
from scipy import sparse
from torch import Tensor, nn

from pyro_vae import SVI, compilation, elbo
from pyro_vae.compilation.arguments import array_in, kind_of, tensors_in


@dataclass
class Batch:
    x: Tensor
    name: str = "batch"


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Graphs run as they were recorded, except in slow tests, and an empty param store."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(compilation.graph, "compile_graph", lambda graph, inputs: graph)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def test_the_kind_of_an_argument_is_all_but_the_values_of_its_tensors() -> None:
    x, y = torch.zeros(3), torch.ones(3)
    assert list(tensors_in([x, {"a": [y, (x, 2)]}, Batch(y), None, "word"])) == [x, y, x, y]
    for one, other in (([x], [y]), ((x, 1), (y, 1)), ({"a": x}, {"a": y}), (Batch(x), Batch(y)), (2.0, 2.0)):
        assert kind_of(one) == kind_of(other)
        assert hash(kind_of(one)) == hash(kind_of(other))
    for first, second in (
        ([x], (x,)),
        ([x], [x, x]),
        ({"a": x}, {"b": x}),
        ((x, 1), (x, 2)),
        (1, True),
        (1, 1.0),
        ([x], [x.double()]),
        ([x], [torch.zeros(4)]),
        (Namespace(a=1), Namespace(a=1)),  # it may hold what does not show
    ):
        assert kind_of(first) != kind_of(second)
    options = Namespace(a=1)
    before = kind_of(options)
    assert kind_of(options) == before
    options.a = 2
    assert kind_of(options) != before


def test_arrays_are_found() -> None:
    assert array_in([torch.zeros(2), np.float32(1.0), 2, {"a": [np.zeros(2)]}]) == "ndarray"
    assert array_in([(sparse.csr_matrix(np.eye(2)),)]) == "csr_matrix"
    assert array_in([torch.zeros(2), np.float32(1.0), None, "word", [Batch(torch.zeros(1))]]) == ""


WRAPPED: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Any]]] = {
    "list": (lambda x: [x], lambda batch: batch[0]),
    "dictionary": (lambda x: {"x": {"y": x}}, lambda batch: batch["x"]["y"]),
    "data class": (Batch, lambda batch: batch.x),
    "array": (lambda x: x.numpy(), torch.as_tensor),
}


def batch_of(seed: int) -> Tensor:
    """Data that print alike: zeros at both ends of many numbers."""
    x = torch.zeros(2000).double()
    x[10:-10] = torch.randn(1980, generator=torch.Generator().manual_seed(seed))
    return x


def programs(unwrap: Callable[[Any], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def model(batch: Any, scale: float = 1.0) -> None:
        x = unwrap(batch)
        z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(batch: Any, scale: float = 1.0) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", lambda: torch.tensor(0.0).double()), 1.0))

    return model, guide


def train(wrapped: str, kind: Callable[..., Any]) -> tuple[Any, list[float]]:
    wrap, unwrap = WRAPPED[wrapped]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = kind(*programs(unwrap), pyro.optim.SGD({"lr": 1e-5}), pyro.infer.Trace_ELBO())  # type: ignore[attr-defined]
    return svi, [svi.step(wrap(batch_of(max(step - 3, 0)))) for step in range(8)]


@pytest.mark.parametrize("wrapped", ["list", "dictionary", "data class"])
def test_tensors_in_containers_are_inputs(wrapped: str) -> None:
    """They were constants, by how they print."""
    _, expected = train(wrapped, pyro.infer.SVI)
    svi, losses = train(wrapped, partial(SVI, compile=True))
    assert svi.compiler.num_graphs == 1
    assert losses == pytest.approx(expected, rel=1e-10)


def test_an_array_has_no_graph() -> None:
    with pytest.raises(RuntimeError, match="a step is called with a ndarray, whose values would stay as they are"):
        train("array", partial(SVI, compile=True))


def test_a_list_that_changes_in_place_is_followed() -> None:
    svi = SVI(*programs(lambda batch: batch[0]), partial(torch.optim.SGD, lr=1e-5), elbo.ELBO(), compile=True)
    batch = [torch.zeros(5).double()]
    for _ in range(5):
        svi.step(batch)
    assert svi.compiler.num_graphs == 1
    batch[0] = torch.zeros(7).double()
    for _ in range(3):
        svi.step(batch)
    assert svi.compiler.num_graphs == 2


def test_a_number_that_changes_at_every_step_is_named_by_its_place() -> None:
    svi = SVI(*programs(lambda batch: batch), partial(torch.optim.SGD, lr=1e-5), elbo.ELBO(), compile=True)
    for step in range(5):
        svi.step(torch.zeros(5).double(), 1.0 + step / 8)
    with pytest.raises(RuntimeError, match=r"because these change: argument 2: 1\.5, then 1\.625"):
        svi.step(torch.zeros(5).double(), 1.625)


class DeepMarkov(PyroModule):
    """Sequences of different lengths, padded: the guide reads them backwards, each from its own end."""

    def __init__(self) -> None:
        super().__init__()
        self.transition, self.emission = nn.Linear(2, 4), nn.Linear(2, 3)

    def forward(self, batch: dict[str, Tensor], temperature: Tensor) -> None:
        x, mask = batch["x"], batch["mask"]
        z = x.new_zeros(len(x), 2)
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc, scale = self.transition(z).chunk(2, -1)
                with poutine.scale(scale=temperature):
                    prior = dist.Normal(loc, scale.exp()).mask(mask[:, t : t + 1])
                    z = pyro.sample(f"z{t}", prior.to_event(1))
                seen = dist.Bernoulli(logits=self.emission(z)).mask(mask[:, t : t + 1]).to_event(1)
                pyro.sample(f"x{t}", seen, obs=x[:, t])


class Backwards(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(6, 4)

    def forward(self, batch: dict[str, Tensor], temperature: Tensor) -> None:
        x, lengths, mask = batch["x"], batch["lengths"], batch["mask"]
        t = torch.arange(x.shape[1])
        backwards = torch.where(t < lengths[:, None], lengths[:, None] - 1 - t, t)[..., None]
        h, _ = self.rnn(x.gather(1, backwards.expand_as(x)))
        h = h.gather(1, backwards.expand_as(h))
        z = x.new_zeros(len(x), 2)
        with pyro.plate("sequences", len(x)):
            for step in pyro.markov(range(x.shape[1])):
                loc, scale = self.head(torch.cat([z, h[:, step]], -1)).chunk(2, -1)
                with poutine.scale(scale=temperature):
                    posterior = dist.Normal(loc, scale.exp()).mask(mask[:, step : step + 1])
                    z = pyro.sample(f"z{step}", posterior.to_event(1))


def deep_markov_losses(kind: Callable[..., Any]) -> tuple[Any, list[float]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = DeepMarkov().double(), Backwards().double()
    svi = kind(model, guide, pyro.optim.SGD({"lr": 1e-3}), pyro.infer.Trace_ELBO())  # type: ignore[attr-defined]
    losses = []
    for step in range(7):
        lengths = torch.randint(1, 5, (6,), generator=torch.Generator().manual_seed(max(step - 3, 0)))
        mask = torch.arange(4) < lengths[:, None]
        x = torch.rand(6, 4, 3).bernoulli().double() * mask[..., None]
        temperature = torch.tensor((step + 1) / 7).double()
        losses.append(svi.step({"x": x, "lengths": lengths, "mask": mask}, temperature))
    return svi, losses


@pytest.mark.parametrize("mode", ["recorded", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_deep_markov_model_of_masks_and_lengths_is_compiled(mode: str) -> None:
    _, expected = deep_markov_losses(pyro.infer.SVI)
    svi, losses = deep_markov_losses(partial(SVI, compile=True))
    assert svi.compiler.num_graphs == 1
    assert losses == pytest.approx(expected, rel=1e-10)
