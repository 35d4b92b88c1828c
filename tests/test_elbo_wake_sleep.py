"""Reweighted wake-sleep: each of its three gradients against enumeration, and against Pyro's own."""

from __future__ import annotations

import re
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from bounds import assert_mean, moments, tuple_gradients
from oracles import NormalNormal, TwoStates
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.elbo import IWELBO, ReweightedWakeSleep

pytestmark = pytest.mark.usefixtures("global_store")

X = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)


class Model(PyroModule):
    """z ~ Bernoulli(sigmoid(theta)), x|z ~ Bernoulli(.9 or .2), for N data, of ``full_size``."""

    def __init__(self, full_size: int | None = None) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))
        self.full_size = full_size

    def plate(self, x: Tensor) -> Any:
        return pyro.plate("data", self.full_size or len(x), subsample_size=len(x))

    def forward(self, x: Tensor) -> None:
        with self.plate(x):
            z = pyro.sample("z", dist.Bernoulli(logits=self.theta.expand(len(x))))
            pyro.sample("x", dist.Bernoulli(torch.where(z > 0, x.new_tensor(0.9), x.new_tensor(0.2))), obs=x)


class Guide(PyroModule):
    """q(z=1|x) = sigmoid(offset + slope x), with an offset and a slope for each datum."""

    def __init__(self, model: Model, num_data: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.full((num_data,), 0.3, dtype=torch.float64))
        self.slope = nn.Parameter(torch.full((num_data,), -0.7, dtype=torch.float64))
        self.model = (model,)

    def forward(self, x: Tensor) -> None:
        with self.model[0].plate(x):
            pyro.sample("z", dist.Bernoulli(logits=self.offset + self.slope * x))


def gradients(loss: Any, x: Tensor, full_size: int | None = None, seed: int = 3) -> tuple[float, dict[str, Tensor]]:
    model = Model(full_size)
    guide = Guide(model, len(x))
    torch.manual_seed(seed)
    value = loss.loss_and_grads(model, guide, x)
    found: dict[str, Any] = {"theta": model.theta.grad, "offset": guide.offset.grad, "slope": guide.slope.grad}
    return value, found


@pytest.mark.parametrize(("num_particles", "mean"), [(2, 0.079268), (3, 0.106885), (5, 0.128404)])
def test_ReweightedWakeSleep_mean_of_wake_phi(num_particles: int, mean: float) -> None:
    found = moments(*tuple_gradients(ReweightedWakeSleep(num_particles)))
    assert found[0] == pytest.approx(mean, abs=1e-6)
    zero = torch.zeros((), dtype=torch.float64)
    exact = TwoStates.moments(num_particles, zero, lambda w, h: (w.softmax(-1) * h).sum(-1))
    assert found == pytest.approx([value.item() for value in exact], abs=1e-10)


def test_ReweightedWakeSleep_models_gradient_and_the_value_are_those_of_the_importance_weighted_bound() -> None:
    ours, bound = (gradients(loss, X) for loss in (ReweightedWakeSleep(4), IWELBO(4, "score")))
    assert ours[0] == pytest.approx(bound[0])
    torch.testing.assert_close(ours[1]["theta"], bound[1]["theta"])
    assert not torch.isclose(ours[1]["offset"], bound[1]["offset"]).any()


def exact_sleep(x: Tensor, theta: float = -0.5, offset: float = 0.3, slope: float = -0.7) -> tuple[float, float]:
    """E[d log q(z|x) / d (offset, slope)] under the model, for one datum."""
    prior = torch.tensor([-theta, theta], dtype=torch.float64).sigmoid()
    totals = [0.0, 0.0]
    for z in (0, 1):
        for value in (0, 1):
            on = (0.2, 0.9)[z]
            probability = prior[z].item() * (on if value else 1 - on)
            score = z - torch.tensor(offset + slope * value).sigmoid().item()
            totals = [totals[0] + probability * score, totals[1] + probability * score * value]
    return totals[0], totals[1]


@pytest.mark.parametrize("full_size", [None, 60_000])
def test_ReweightedWakeSleep_mean_of_sleep_phi(full_size: int | None) -> None:
    """Each datum dreams for itself; in a minibatch of 20,000 of 60,000 all is worth three times as much."""
    x = torch.ones(20_000, dtype=torch.float64)
    scale = 1 if full_size is None else 3
    _, found = gradients(ReweightedWakeSleep(2, insomnia=0.0), x, full_size)
    exact = exact_sleep(x)
    assert_mean(-found["offset"], scale * exact[0])
    assert_mean(-found["slope"], scale * exact[1])
    _, bound = gradients(IWELBO(2, "score"), x, full_size)
    torch.testing.assert_close(found["theta"], bound["theta"])


@pytest.mark.parametrize("by_name", [True, False])
def test_ReweightedWakeSleep_insomnia_mixes_wake_and_sleep(by_name: bool) -> None:
    """On the same random numbers; the dreams take the place of an argument by position or by name."""

    def at(insomnia: float) -> Tensor:
        model = Model()
        guide = Guide(model, 3)
        torch.manual_seed(3)
        loss = ReweightedWakeSleep(4, insomnia=insomnia)
        loss.loss_and_grads(model, guide, x=X) if by_name else loss.loss_and_grads(model, guide, X)
        assert isinstance(guide.slope.grad, Tensor)
        return guide.slope.grad

    torch.testing.assert_close(at(0.3), 0.3 * at(1.0) + 0.7 * at(0.0))
    # At x = 0 the slope has no wake gradient; what the sleep one is tells that the guide saw dreams.
    assert at(1.0)[1] == 0
    assert at(0.0)[1] != 0


def test_ReweightedWakeSleep_weights_are_per_datum() -> None:
    """A batch is its data one by one; Pyro's class pools the weights of a batch."""
    program = NormalNormal(torch.zeros(3), torch.ones(3))
    x = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
    torch.manual_seed(5)
    z = torch.randn(4, 3, dtype=torch.float64)
    torch.manual_seed(5)
    loss = ReweightedWakeSleep(4).differentiable_loss(program.model, program.guide, x)
    (found,) = torch.autograd.grad(-loss, program.guide.loc)
    weights = (-((x - z) ** 2) / 2).softmax(0)  # the guide is the prior, so that log w is log p(x|z)
    torch.testing.assert_close(found, (weights * z).sum(0))  # d log q / d loc = z


def test_ReweightedWakeSleep_one_datum_is_that_of_stock_pyro() -> None:
    """Where pooling over the batch changes nothing; Pyro's loss is in two parts, one for each program."""
    x = X[:1]
    stock = pyro.infer.ReweightedWakeSleep(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    model = Model()
    guide = Guide(model, 1)
    torch.manual_seed(3)
    stock.loss_and_grads(model, guide, x)
    _, ours = gradients(ReweightedWakeSleep(4), x)
    torch.testing.assert_close(list(ours.values()), [model.theta.grad, guide.offset.grad, guide.slope.grad])


def test_ReweightedWakeSleep_what_the_guide_cannot_dream_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=2 * x)

    program = NormalNormal(torch.zeros(3), torch.ones(3))
    message = (
        "ReweightedWakeSleep: expected the observed value of site 'x' to be an argument of the guide, so that its "
        "dream can take its place; got another. Pass it as it is, or use insomnia=1."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        ReweightedWakeSleep(2, insomnia=0.5).loss_and_grads(model, program.guide, X)
    assert ReweightedWakeSleep(2).loss_and_grads(model, program.guide, X) > 0


def test_ReweightedWakeSleep_guide_that_draws_what_the_model_does_not_is_refused() -> None:
    """An automatic guide's z is a function of a draw of its own, whose density at a dreamt z is 0."""
    program = NormalNormal(torch.zeros(3), torch.ones(3))
    message = (
        "ReweightedWakeSleep: expected a guide of latents that the model dreams up; got one that also draws "
        "['z_unconstrained']. Use insomnia=1."
    )
    guide = AutoNormal(program.model)
    with pytest.raises(ValueError, match=re.escape(message)):
        ReweightedWakeSleep(2, insomnia=0.5).loss_and_grads(program.model, guide, X)
    assert ReweightedWakeSleep(2).loss_and_grads(program.model, guide, X) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"insomnia": 1.5}, "ReweightedWakeSleep: expected insomnia at least 0 and at most 1; got 1.5."),
        ({"num_particles": 1}, "ReweightedWakeSleep: expected num_particles at least 2; got 1."),
    ],
)
def test_ReweightedWakeSleep_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ReweightedWakeSleep(**options)
