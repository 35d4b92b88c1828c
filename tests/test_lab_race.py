"""The lab's race: equal starts, equal batches, equal lengths, and what the curves say."""

from __future__ import annotations

import json
import math
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from oracles import LinearVAE, SimpleProgram
from torch import Tensor, nn

from pyro_vae import VAE, conditionals, likelihoods, nets, priors
from pyro_vae.elbo import ELBO, IWELBO, Score
from pyro_vae.lab import Race, race

ADAM = partial(torch.optim.Adam, lr=1e-2)


def program() -> VAE:
    torch.manual_seed(1)
    return VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), event_shape=6),
        posterior=conditionals.DiagonalNormal(nets.MLP(6, [8]), 2),
    )


def reals() -> VAE:
    return VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(nets.MLP(2, [8]), event_shape=6),
        posterior=conditionals.DiagonalNormal(nets.MLP(6, [8]), 2),
    )


MEASURES = (
    "race: expected figures of one measure; got probabilities of whole numbers of 'bits' and densities of 'reals'"
)


def bits(n: int) -> Tensor:
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(n)) < 0.4).float()


def run(estimators: Any, **options: Any) -> Race:
    settings: dict[str, Any] = {"optimizer": ADAM, "steps": 6, "num_points": 2, "batch_size": 16, "num_particles": 5}
    settings |= {"progress": False} | options
    return race(settings.pop("program", None) or program(), bits(40), bits(20), estimators, **settings)


def values(found: Race, name: str) -> list[tuple[float, float]]:
    return [(point.negative_elbo.value, point.nll.value) for point in found.curves[name]]


def test_race_all_start_from_the_same_weights_and_take_as_many_steps() -> None:
    found = run({"ELBO": ELBO(), "IWAE": IWELBO(3), "Pyro": pyro.infer.Trace_ELBO()})
    assert {name: [point.step for point in points] for name, points in found.curves.items()} == {
        name: [0, 3, 6] for name in ("ELBO", "IWAE", "Pyro")
    }
    assert values(found, "ELBO")[0] == values(found, "IWAE")[0] == values(found, "Pyro")[0]
    # The same estimator under two names draws the same, on the same batches.
    ours, pyros, iwae = (torch.tensor(values(found, name)) for name in ("ELBO", "Pyro", "IWAE"))
    assert torch.allclose(ours, pyros, rtol=1e-5)
    assert not torch.allclose(ours[1], iwae[1], rtol=1e-4)
    assert [point.seconds > 0 for point in found.curves["ELBO"]] == [False, True, True]


def test_race_seed_gives_the_same_race_again() -> None:
    found = [values(run([ELBO()], seed=seed), "ELBO pathwise, K=1") for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_race_nothing_is_left_behind() -> None:
    vae, baseline = program(), nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    vae.eval()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    start = [parameter.clone() for parameter in baseline.parameters()]
    running = Score("running_mean")
    generator = torch.get_rng_state()
    run([ELBO(gradient=running), ELBO(gradient=Score(baseline))], program=vae)
    assert torch.equal(torch.get_rng_state(), generator)
    assert len(pyro.get_param_store()) == 0
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert not vae.training
    assert running._running is None
    assert all(torch.equal(a, b) for a, b in zip(start, baseline.parameters(), strict=True))


def test_race_parameters_that_are_drawn_at_the_start_are_the_same_for_all() -> None:
    def model(x: Tensor) -> None:
        weight = pyro.param("weight", lambda: torch.randn(2, 6))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ weight).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        weight = pyro.param("encoder", lambda: torch.randn(6, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 1.0).to_event(1))

    found = run({"ELBO": ELBO(), "IWAE": IWELBO(3)}, program=SimpleProgram(model, guide))
    assert values(found, "ELBO")[0] == values(found, "IWAE")[0]
    assert values(found, "ELBO")[2] != values(found, "ELBO")[0]


class Watched(nets.MLP):
    """A body that tells its mode; the list is of the class, which a copy shares."""

    modes: ClassVar[list[bool]] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        self.modes.append(self.training)
        return super().forward(*inputs)


def test_race_program_in_evaluation_mode_is_trained_in_training_mode() -> None:
    vae = VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), event_shape=6),
        posterior=conditionals.DiagonalNormal(Watched(6, [8]), 2),
    )
    vae.eval()
    run([ELBO()], program=vae, steps=2)
    assert sum(Watched.modes) >= 2
    assert not vae.training


class Clock:
    now = 0.0


class Timed(ELBO):
    """Steps of so many seconds by a clock of their own: that of a busy machine says nothing."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def loss_and_grads(self, *args: Any, **kwargs: Any) -> float:
        Clock.now += self.seconds
        return super().loss_and_grads(*args, **kwargs)


def test_race_equal_time_is_that_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.lab.racing.time", SimpleNamespace(perf_counter=lambda: Clock.now))
    found = run({"fast": Timed(1 / 64), "slow": Timed(1 / 16)}, steps=None, seconds=0.5)
    for points in found.curves.values():
        assert [point.seconds for point in points] == [0.0, 0.25, 0.5]
    assert {name: points[-1].step for name, points in found.curves.items()} == {"fast": 32, "slow": 8}
    (left, _) = found.figure().axes
    assert left.get_xlabel() == "seconds"


def unseeded() -> VAE:
    """As ``program``, with weights of the race's seed."""
    return VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), event_shape=6),
        posterior=conditionals.DiagonalNormal(nets.MLP(6, [8]), 2),
    )


def test_race_entries_are_programs_and_estimators_and_each_seed_has_its_weights() -> None:
    generator = torch.get_rng_state()
    entries = {"one": unseeded, "same": unseeded, "tight": unseeded}
    found = run({"one": ELBO(), "same": ELBO(), "tight": IWELBO(3)}, program=entries, num_seeds=2, seed=5)
    assert torch.equal(torch.get_rng_state(), generator)
    assert list(found.curves) == [f"{name}, seed {s}" for name in entries for s in (5, 6)]
    starts = [points[0].nll.value for points in found.curves.values()]
    assert starts == starts[:2] * 3  # two entries of one seed start equal
    assert starts[0] != starts[1]
    assert values(found, "one, seed 6") == values(found, "same, seed 6") != values(found, "tight, seed 6")
    ranked = found.ranking
    assert ranked.num_seeds == 2
    assert ranked.verdict("one", "same").difference == 0
    assert not ranked.verdict("same", "one").better
    last = [found.curves[f"tight, seed {s}"][-1].nll.value for s in (5, 6)]
    assert ranked.by_seed["tight"] == pytest.approx([-value for value in last], rel=1e-5)
    figure = found.figure()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(entries)
    looks = [(line.get_color(), line.get_marker()) for line in figure.axes[0].lines]
    assert looks == [("#0072B2", "o")] * 2 + [("#D55E00", "s")] * 2 + [("#009E73", "^")] * 2  # the seeds of one alike


def test_race_seed_of_several_is_the_race_of_that_seed() -> None:
    several = run(ELBO(), program={"a": unseeded}, num_seeds=2, seed=3)
    single = run(ELBO(), program={"a": unseeded}, seed=4)
    order = torch.tensor(values(several, "a, seed 4")) - torch.tensor(values(single, "a"))
    assert order.abs().max() < 0.5  # but for the draws of evaluation, which are of the first seed
    weights = [run(ELBO(), program={"a": unseeded}, seed=s).curves["a"][0].nll.value for s in (3, 4)]
    assert several.curves["a, seed 3"][0].nll.value == weights[0] != weights[1]


@pytest.mark.slow
def test_race_training_nears_the_maximum_likelihood() -> None:
    """Of a linear VAE, by both estimators: the validation NLL comes near that of the truth."""
    oracle = LinearVAE.random(orthogonal=True)
    train, validation = oracle.draw(2000).float(), oracle.draw(500, seed=1).float()
    truth = -oracle.log_marginal_likelihood(validation.double()).mean().item()
    torch.manual_seed(0)
    vae = VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(nets.MLP(2, []), 5, scale="learned"),
        posterior=conditionals.DiagonalNormal(nets.MLP(5, []), 2),
    )
    found = race(vae, train, validation, [ELBO(), IWELBO(8, "dreg")], optimizer=ADAM, steps=1500, progress=False)
    for points in found.curves.values():
        assert points[0].nll.value > truth + 1
        assert points[-1].nll.value == pytest.approx(truth, abs=0.05)
        assert points[-1].negative_elbo.value >= points[-1].nll.value - 0.05


def test_Race_table_figure_and_file() -> None:
    found = run([ELBO(), IWELBO(3)])
    names = ["ELBO pathwise, K=1", "IWELBO pathwise, K=3"]
    header, first, second, note, *rest = str(found).splitlines()
    assert header.split()[:4] == ["entry", "steps", "seconds", "-ELBO"]
    assert rest == ["", *str(found.ranking).splitlines()]
    assert repr(found) == str(found)
    assert [first.startswith(names[0]), second.startswith(names[1])] == [True, True]
    assert note == "in nats per datum, N = 20 validation data, NLL with K = 5"
    decoded = json.loads(found.to_json())
    assert [point["nll"]["value"] for point in decoded["curves"][names[0]]] == [v for _, v in values(found, names[0])]
    assert decoded[f"NLL, {names[1]}"]["value"] == values(found, names[1])[-1][1]
    left, right = found.figure().axes
    assert [left.get_title(), right.get_title()] == ["-ELBO", "-log p(x), importance-weighted, K = 5"]
    assert [line.get_label() for line in left.lines] == names
    assert torch.as_tensor(right.lines[1].get_xdata()).tolist() == [0, 3, 6]
    assert torch.as_tensor(right.lines[1].get_ydata()).tolist() == [v for _, v in values(found, names[1])]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": None}, ValueError, "race: expected either steps or seconds; got None and None"),
        ({"seconds": 1.0}, ValueError, "race: expected either steps or seconds; got 6 and 1.0"),
        ({"steps": 0}, ValueError, "race: expected a positive length .*; got length 0 and num_points 2"),
        ({"steps": 1}, ValueError, "from 1 to steps points; got length 1 and num_points 2"),
        ({"num_points": 0}, ValueError, "got length 6 and num_points 0"),
        ({"batch_size": 0}, ValueError, "expected batch_size at least 1; got 0"),
        ({"num_particles": 0}, ValueError, "expected num_particles at least 1; got 0"),
        ({"estimators": []}, ValueError, "race: expected at least one estimator"),
        ({"num_seeds": 0}, ValueError, "race: expected num_seeds at least 1; got 0"),
        ({"num_seeds": 2}, ValueError, "expected a function that makes the program, .* got VAE with given ones"),
        ({"program": nn.Linear}, TypeError, "missing 2 required positional arguments"),
        ({"program": lambda: 3}, TypeError, "race: expected a program with model, guide and latents; got int"),
        ({"program": {"a": 3}, "estimators": ELBO()}, TypeError, "race: expected a program .*; got int"),
        ({"program": {"a": program}}, ValueError, r"expected a program for each of \['ELBO.*'\]; got \['a'\]"),
        ({"program": {"bits": program, "reals": reals}, "estimators": ELBO()}, ValueError, MEASURES),
        ({"estimators": ["elbo"]}, TypeError, "race: expected estimators of class pyro.infer.ELBO; got 'elbo'"),
        ({"optimizer": partial(torch.optim.SGD, lr=math.inf)}, FloatingPointError, "expected a finite loss"),
    ],
)
def test_race_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(**{"estimators": [ELBO()], **options})


@pytest.mark.cuda
def test_race_on_a_gpu() -> None:
    found = race(program().cuda(), bits(40).cuda(), bits(20).cuda(), [ELBO()], optimizer=ADAM, steps=5, progress=False)
    assert len(found.curves["ELBO pathwise, K=1"]) == 6
