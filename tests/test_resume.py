"""A run that dies and goes on ends as one that was never disturbed, to the last bit."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

import pyro_vae
from pyro_vae import VAE, History, conditionals, data, elbo, fit, likelihoods, nets, priors, schedules

N, D = 300, 6
STEPS_PER_EPOCH = 10


def bits() -> Tensor:
    return (torch.rand(N, D, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def grays() -> data.Dataset:
    """Gray pixels, whose bits each batch draws."""
    levels = (torch.rand(N, 1, 2, 3, generator=torch.Generator().manual_seed(0)) * 255).byte()
    return data.Dataset("grays", levels, levels=255, binarization="dynamic")


def vae(**parts: Any) -> VAE:
    standard: dict[str, Any] = {
        "prior": priors.StandardNormal(2),
        "likelihood": likelihoods.Bernoulli(nets.MLP(2, [8]), D),
        "posterior": conditionals.DiagonalNormal(nets.MLP(D, [8]), 2),
    }
    return VAE(**{**standard, **parts})


def discrete() -> VAE:
    return vae(
        prior=priors.Bernoulli(3),
        likelihood=likelihoods.Bernoulli(nets.MLP(3, [8]), D),
        posterior=conditionals.Bernoulli(nets.MLP(D, [8]), 3),
    )


class Normalized(nets.Body):
    """A body with buffers: running means, and a dropout that draws."""

    def __init__(self) -> None:
        super().__init__([torch.Size([D])], 8)
        self.layers = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))

    def features(self, *inputs: Tensor) -> Tensor:
        return self.layers(inputs[0])


class Baseline(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze(-1)


class Functions:
    """A program of ``pyro.param`` statements, one of which comes up late."""

    def __init__(self) -> None:
        pyro.clear_param_store()

    @staticmethod
    def model(x: Tensor) -> None:
        weight = pyro.param("weight", torch.ones(2, D))
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, scale).to_event(1), obs=x)

    @staticmethod
    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(D, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ loc, 0.5).to_event(1))


class Automatic:
    """A program whose guide Pyro makes in its first run."""

    def __init__(self) -> None:
        self.guide = pyro.infer.autoguide.AutoNormal(self.model)

    @staticmethod
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


class Weighted(nets.Body):
    """A body whose weights are computed from others."""

    def __init__(self) -> None:
        super().__init__([torch.Size([D])], 8)
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(D, 8))

    def features(self, *inputs: Tensor) -> Tensor:
        return self.layer(inputs[0]).tanh()


def _one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=10)


def _sequence(optimizer: torch.optim.Optimizer) -> Any:
    rates = torch.optim.lr_scheduler
    parts = [rates.LinearLR(optimizer, total_iters=2), rates.ExponentialLR(optimizer, gamma=0.5)]
    return rates.SequentialLR(optimizer, parts, milestones=[2])


def _nested(optimizer: torch.optim.Optimizer) -> Any:
    rates = torch.optim.lr_scheduler
    parts = [rates.LinearLR(optimizer, total_iters=2), rates.MultiStepLR(optimizer, [1, 2])]
    return rates.SequentialLR(optimizer, parts, milestones=[2])


def _cycle(optimizer: torch.optim.Optimizer) -> Any:
    cyclic = torch.optim.lr_scheduler.CyclicLR
    return cyclic(optimizer, 1e-3, 1e-1, step_size_up=2, cycle_momentum=False, mode="exp_range", gamma=0.9)


def _by_function(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))


def cosine(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)


def plateau(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)


# A program, its data, and the arguments of fit: functions, so that every process makes its own.
RUNS: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "ELBO with a schedule": (vae, bits, lambda: {"beta": schedules.linear(0.0, 1.0, epochs=4)}),
    "analytic KL, two draws": (vae, bits, lambda: {"loss": elbo.ELBO(2, analytic_kl=True)}),
    "IWELBO, dreg": (vae, bits, lambda: {"loss": elbo.IWELBO(3, "dreg")}),
    "score, running mean": (discrete, bits, lambda: {"loss": elbo.ELBO(2, elbo.Score(baseline="running_mean"))}),
    "score, learned baseline": (discrete, bits, lambda: {"loss": elbo.ELBO(2, elbo.Score(baseline=_baseline()))}),
    "score by site": (discrete, bits, lambda: {"loss": elbo.ELBO(gradient={"z": elbo.Score("running_mean")})}),
    "VIMCO": (discrete, bits, lambda: {"loss": elbo.IWELBO(3, "vimco")}),
    "wake-sleep": (discrete, bits, lambda: {"loss": elbo.ReweightedWakeSleep(3, insomnia=0.5)}),
    "VampPrior": (lambda: vae(prior=priors.VampPrior(bits()[:4])), bits, dict),
    "SigmaNormal": (lambda: vae(likelihood=likelihoods.SigmaNormal(nets.MLP(2, [8]), D)), bits, dict),
    "average of weights": (vae, bits, lambda: {"ema_decay": 0.9}),
    "schedule of learning rates": (vae, bits, lambda: {"scheduler": cosine}),
    "plateau": (vae, bits, lambda: {"scheduler": plateau, "validation": bits()[:50]}),
    "early stopping": (vae, bits, lambda: {"patience": 2, "validation": bits()[:50], "optimizer": _adam(0.3)}),
    "bits of each batch": (lambda: _image_vae(), grays, dict),
    "batch normalization and dropout": (
        lambda: vae(posterior=conditionals.DiagonalNormal(Normalized(), 2)),
        bits,
        lambda: {"drop_last": True},
    ),
    "momentum": (vae, bits, lambda: {"optimizer": partial(torch.optim.SGD, lr=1e-4, momentum=0.9)}),
    "clipped": (vae, bits, lambda: {"max_grad_norm": 0.5}),
    "Pyro's Adam": (vae, bits, lambda: {"optimizer": pyro.optim.Adam({"lr": 1e-2})}),  # type: ignore[attr-defined]
    "Pyro's clipped Adam": (vae, bits, lambda: {"optimizer": pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.99})}),
    "Pyro's ELBO": (vae, bits, lambda: {"loss": pyro.infer.Trace_ELBO()}),
    "functions": (Functions, bits, dict),
    "functions, Pyro's graph": (Functions, bits, lambda: {"loss": pyro.infer.TraceGraph_ELBO()}),
    "steps": (vae, bits, lambda: {"steps": 57, "epochs": None}),
    "no seed": (vae, bits, lambda: {"seed": None}),
    "one cycle of rates": (vae, bits, lambda: {"scheduler": _one_cycle}),
    "schedules in sequence": (vae, bits, lambda: {"scheduler": _sequence}),
    "steps within a sequence": (vae, bits, lambda: {"scheduler": _nested}),
    "a cycle that decays": (vae, bits, lambda: {"scheduler": _cycle}),
    "a schedule by a function": (vae, bits, lambda: {"scheduler": _by_function}),
    "AMSGrad": (vae, bits, lambda: {"optimizer": partial(torch.optim.AdamW, lr=1e-2, amsgrad=True)}),
    "RMSprop": (vae, bits, lambda: {"optimizer": partial(torch.optim.RMSprop, lr=1e-3, momentum=0.5)}),
    "Adagrad": (vae, bits, lambda: {"optimizer": partial(torch.optim.Adagrad, lr=1e-2)}),
    "an automatic guide": (Automatic, bits, lambda: {"loss": pyro.infer.Trace_ELBO()}),
    "normalized weights": (lambda: vae(posterior=conditionals.DiagonalNormal(Weighted(), 2)), bits, dict),
    "bfloat16": (vae, bits, lambda: {"precision": "bfloat16"}),
    "in parts": (vae, bits, lambda: {"accumulate": 3}),
}
QUICK = {"ELBO with a schedule", "score, running mean", "early stopping", "bits of each batch", "functions", "no seed"}
EAGER_ALONE = {"functions, Pyro's graph", "Pyro's clipped Adam"}


def _adam(lr: float) -> Any:
    return partial(torch.optim.Adam, lr=lr)


def _baseline() -> nn.Module:
    torch.manual_seed(3)
    return Baseline()


def _image_vae() -> VAE:
    return vae(
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [8]), (1, 2, 3)),
        posterior=conditionals.DiagonalNormal(nets.MLP((1, 2, 3), [8]), 2),
    )


def run(name: str, **options: Any) -> tuple[Any, History]:
    """A run from the beginning of its script: a new program, and generators that are somewhere else."""
    make, load, arguments = RUNS[name]
    pyro.clear_param_store()
    torch.manual_seed(0)
    program, train = make(), load()
    torch.manual_seed(options.pop("state_of_generators", 7))
    given = {"epochs": 6, "batch_size": 32, "seed": 1, "progress": False, **arguments(), **options}
    return program, fit(program, train, **given)


def outcome(program: Any, history: History) -> tuple[dict[str, Tensor], list[dict[str, float]], str, int | None]:
    store = {name: tensor.detach().clone() for name, tensor in pyro.get_param_store().named_parameters()}
    weights = {name: t.clone() for name, t in program.state_dict().items()} if isinstance(program, nn.Module) else store
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history.epochs]
    return weights, rows, history.stopped, history.best_epoch


def assert_same(one: Any, other: Any) -> None:
    for tensors, others in [(one[0], other[0])]:
        assert tensors.keys() == others.keys()
        assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    assert one[1:] == other[1:]


class Died(Exception):
    """In place of a process that dies."""


def dies_at(step: int) -> Callable[[int, float], None]:
    def on_step(taken: int, _: float) -> None:
        if taken == step:
            raise Died

    return on_step


def cases() -> list[Any]:
    table = []
    for name, compile, every in itertools.product(RUNS, (False, True), ("1 epoch", "7 steps")):
        # Checkpoints between epochs hold what those amid one do: they are tried where the two differ most.
        if (compile and name in EAGER_ALONE) or (every == "1 epoch" and (compile or name not in QUICK)):
            continue
        quick = not compile and every == "7 steps" and name in QUICK
        table.append(pytest.param(name, compile, every, marks=() if quick else pytest.mark.slow))
    return table


@pytest.mark.usefixtures("global_store")
@pytest.mark.filterwarnings("ignore:pyro_vae.load cannot give:UserWarning")
@pytest.mark.parametrize(("name", "compile", "every"), cases())
def test_fit_resumes_to_the_last_bit(name: str, compile: bool, every: str, tmp_path: Path) -> None:
    undisturbed = outcome(*run(name, compile=compile))
    kept = {"folder": tmp_path / "run", "checkpoint_every": every, "compile": compile}
    for step in (23, 34):  # it dies twice, both times amid an epoch
        with pytest.raises(Died):
            run(name, **kept, on_step=dies_at(step), resume=True)
    # Without a seed the state of the generators comes from the checkpoint alone.
    resumed = outcome(*run(name, **kept, resume=True, state_of_generators=99))
    assert_same(resumed, undisturbed)
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in rows] == undisturbed[1]
    if "functions" not in name and name not in (
        "batch normalization and dropout",
        "an automatic guide",
        "normalized weights",
    ):
        loaded = pyro_vae.load(tmp_path / "run").state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in undisturbed[0].items())


@pytest.mark.slow
def test_fit_resumes_after_sigkill_at_random_moments() -> None:
    benchmark = Path(__file__).parents[1] / "benchmarks" / "kill.py"
    done = subprocess.run(
        [sys.executable, str(benchmark), "--runs", "20", "--seed", "1"],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert "20 bit-equal, 0 different" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 17, 24])
def test_fit_resumes_on_either_side_of_compilation(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.training.run.AUTO_STEPS", 10)  # the first epoch is eager, what follows compiled
    undisturbed = outcome(*run("ELBO with a schedule", compile="auto"))
    eager = outcome(*run("ELBO with a schedule", compile=False))
    assert any(not torch.equal(undisturbed[0][name], eager[0][name]) for name in eager[0])
    kept = {"folder": tmp_path / "run", "checkpoint_every": "3 steps", "compile": "auto"}
    with pytest.raises(Died):
        run("ELBO with a schedule", **kept, on_step=dies_at(step))
    assert_same(outcome(*run("ELBO with a schedule", **kept, resume=True)), undisturbed)
