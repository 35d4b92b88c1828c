"""Training on streams: as on arrays, each datum once an epoch, and on from where a run was interrupted."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from pyro_vae import VAE, conditionals, data, elbo, fit, likelihoods, nets, priors
from pyro_vae.checkpoint import Recorded, tree
from pyro_vae.data.streams.order import Permutation
from pyro_vae.training import saving

N, D, BATCH = 47, 4, 6
STEPS = 8  # of an epoch


def numbered(n: int = N) -> np.ndarray[Any, Any]:
    """Reals (n, D), of which the first is the datum's number."""
    x = np.random.default_rng(0).normal(size=(n, D)).astype(np.float32)
    x[:, 0] = np.arange(n)
    return x


def shards(folder: Path) -> data.Stream:
    folder.mkdir(exist_ok=True)
    for name, part in zip("ab", np.split(numbered(), [20]), strict=True):
        np.save(folder / f"{name}.npy", part)
    return data.stream(folder / "*.npy", rank=0, world_size=1)


def sequence(folder: Path) -> data.Stream:
    """A loader that draws an order of its own."""
    x = torch.from_numpy(numbered())
    sampler = WeightedRandomSampler([1.0] * N, N, replacement=False)
    loader = DataLoader(TensorDataset(x), 5, sampler=sampler)
    return data.stream(loader, length=N, rank=0, world_size=1)


class Mean(Recorded, nn.Module):
    """A program without latents, of which every step is known: x ~ Normal(mean, 1); it notes what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(D))
        self.scale = nn.Parameter(torch.ones(D))
        self.seen: list[int] = []

    def model(self, x: Tensor) -> None:
        pyro.module("mean", self)
        if torch.is_grad_enabled() and self.training:
            self.seen += x[:, 0].long().tolist()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.mean, 30.0 * self.scale.exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))


def train(source: Any, program: Mean | None = None, **options: Any) -> tuple[Mean, Any]:
    program = Mean() if program is None else program
    options = {"epochs": 3, "batch_size": BATCH, "seed": 0, "progress": False, "compile": False, **options}
    return program, fit(program, source, **options)


def vae(shape: Any = D, likelihood: Any = likelihoods.Normal) -> VAE:
    torch.manual_seed(0)
    return VAE(
        priors.StandardNormal(2),
        likelihood(nets.MLP(2, [8]), shape),
        conditionals.DiagonalNormal(nets.MLP(shape, [8]), 2),
    )


@pytest.mark.parametrize("make", [shards, sequence])
def test_fit_goes_through_each_datum_of_a_stream_once_an_epoch(make: Callable[[Path], Any], tmp_path: Path) -> None:
    program, _ = train(make(tmp_path), epochs=2)
    first, second = program.seen[:N], program.seen[N:]
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second
    assert train(make(tmp_path), epochs=2)[0].seen == program.seen
    assert train(make(tmp_path), epochs=2, seed=1)[0].seen != program.seen


def test_fit_of_a_stream_takes_the_steps_of_an_array(tmp_path: Path) -> None:
    """Of whole batches of all data the order is nothing to the loss, which is known without draws."""
    options: dict[str, Any] = {"epochs": 20, "batch_size": N}
    streamed, history = train(shards(tmp_path), **options)
    stored, expected = train(numbered(), **options)
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert history["train_elbo"] == pytest.approx(expected["train_elbo"], rel=1e-6)
    torch.testing.assert_close(streamed.mean, stored.mean, rtol=1e-4, atol=1e-6)
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("make", [shards, sequence])
@pytest.mark.parametrize("stop", [1, 4, 7, 8, 9, 13, 16])
def test_fit_goes_on_amid_an_epoch_of_a_stream_with_the_data_that_are_left(
    make: Callable[[Path], Any], stop: int, tmp_path: Path
) -> None:
    if make is sequence and stop not in (4, 8):
        pytest.skip("two places are enough where each takes processes")

    def on_step(step: int, _: float) -> None:
        if step == stop:
            signal.raise_signal(signal.SIGINT)

    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with pytest.warns(UserWarning, match=f"interrupted after step {stop}"):
            broken, history = train(make(tmp_path / "data"), epochs=2, folder=tmp_path / "run", on_step=on_step)
    finally:
        signal.signal(signal.SIGINT, former)
    assert history.stopped == "interrupted"
    going_on, history = train(make(tmp_path / "data"), epochs=2, folder=tmp_path / "run", resume=True)
    seen = going_on.seen  # a list of a module is kept with the run
    assert seen[: len(broken.seen)] == broken.seen
    assert sorted(seen[:N]) == sorted(seen[N:]) == list(range(N))
    undisturbed, expected = train(make(tmp_path / "data"), epochs=2)
    assert seen == undisturbed.seen
    assert history["loss"] == expected["loss"]
    assert torch.equal(going_on.mean, undisturbed.mean)


def test_fit_knows_a_stream_again(tmp_path: Path) -> None:
    train(shards(tmp_path / "data"), epochs=1, folder=tmp_path / "run")
    shutil.copytree(tmp_path / "data", tmp_path / "moved")  # to another folder, with other times
    again: dict[str, Any] = {"epochs": 2, "folder": tmp_path / "run", "resume": True}
    train(data.stream(tmp_path / "moved" / "*.npy"), **again)
    x = numbered()
    x[3, 2] += 1
    np.save(tmp_path / "moved" / "a.npy", x[:20])
    for other in (data.stream(tmp_path / "moved" / "*.npy"), numbered()):
        with pytest.raises(ValueError, match=r"expected the run that the folder holds; got another one: train\."):
            train(other, **{**again, "epochs": 3})


@pytest.mark.parametrize("position", [12, 24, N + 1])
def test_fit_refuses_a_place_to_which_steps_do_not_lead(position: int, tmp_path: Path) -> None:
    def on_step(step: int, _: float) -> None:
        if step == 4:
            raise RuntimeError("interrupted")

    given: dict[str, Any] = {"folder": tmp_path / "run", "checkpoint_every": "3 steps"}
    with pytest.raises(RuntimeError, match="interrupted"):
        train(shards(tmp_path / "data"), on_step=on_step, **given)
    place, states = {"position": 18}, []

    def other(state: Any, tensors: Any) -> Any:
        states.append(state["so_far"]["place"])
        state["so_far"]["place"] = {**place, "position": position}
        return state

    with pytest.MonkeyPatch.context() as patch:
        unpack = tree.unpack
        patch.setattr(saving, "unpack", lambda packed, tensors: other(unpack(packed, tensors), tensors))
        with pytest.raises(ValueError, match="a place"):
            train(shards(tmp_path / "data"), resume=True, **given)
    assert states[0]["position"] == 18
    train(shards(tmp_path / "data"), resume=True, **given)


@pytest.mark.parametrize("levels", [1, 255])
def test_fit_of_a_stream_draws_bits_and_adds_the_axis_of_a_channel(levels: int, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, levels + 1, (60, 3, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    stream = data.stream(tmp_path / "x.npy", levels=levels, binarize="dynamic")
    history = fit(vae((1, 3, 3), likelihoods.Bernoulli), stream, epochs=2, batch_size=20, seed=0, progress=False)
    assert history.settings["binarization"] == "dynamic"
    assert -9 < history["train_elbo"][0] < -3


def test_fit_of_a_stream_checks_all_data_against_the_likelihood(tmp_path: Path) -> None:
    x = np.ones((6_000, 2), np.float32)
    np.save(tmp_path / "x.npy", x)
    sampled = data.stream(tmp_path / "x.npy").sample
    assert len(sampled) == 5_000
    wrong = (set(range(6_000)) - set(Permutation(6_000, 0)(np.arange(5_000)).tolist())).pop()
    x[wrong, 1] = 0.5
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=rf"Datum {wrong}, row {wrong} of x\.npy: Bernoulli likelihood: expected"):
        fit(vae(2, likelihoods.Bernoulli), data.stream(tmp_path / "x.npy"), epochs=1, batch_size=100, progress=False)
    x[:] = 0.5
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match="fit, training data 'x': Bernoulli likelihood: expected"):
        fit(vae(2, likelihoods.Bernoulli), data.stream(tmp_path / "x.npy"), epochs=1, batch_size=100, progress=False)


def test_fit_looks_at_all_of_a_stream_of_validation_data_on_every_rank(tmp_path: Path) -> None:
    stream = shards(tmp_path)
    other = data.stream(tmp_path / "*.npy", rank=1, world_size=2)
    _, expected = train(stream, validation=numbered())
    for validation in (stream, other):
        _, history = train(stream, validation=validation)
        assert history["validation_elbo"] == expected["validation_elbo"]


def test_fit_names_data_of_a_stream_that_are_not_finite(tmp_path: Path) -> None:
    class Overflows(Mean):
        def model(self, x: Tensor) -> None:
            super().model(torch.where((x[:, :1] == 31) & self.training, x * 1e30, x))

    with pytest.raises(FloatingPointError, match=r"'x' of the model at data 31\b"):
        train(shards(tmp_path), Overflows(), batch_size=5)


def test_fit_of_a_stream_in_parts_takes_the_steps_of_whole_batches(tmp_path: Path) -> None:
    whole, history = train(shards(tmp_path))
    for accumulate in (2, 3):
        parts, other = train(shards(tmp_path), accumulate=accumulate)
        assert sorted(parts.seen) == sorted(whole.seen)
        assert other["loss"] == pytest.approx(history["loss"], rel=1e-5)


@pytest.mark.slow
def test_fit_of_a_stream_compiles(tmp_path: Path) -> None:
    histories = [
        fit(
            vae(),
            shards(tmp_path),
            epochs=3,
            batch_size=BATCH,
            seed=0,
            progress=False,
            compile=compile,
            loss=elbo.ELBO(),
        )
        for compile in (False, True)
    ]
    assert histories[1]["loss"] == pytest.approx(histories[0]["loss"], rel=1e-3)


def test_fit_of_a_stream_conditioned_on_its_labels(tmp_path: Path) -> None:
    class Paired(Mean):
        def model(self, x: Tensor, label: Tensor) -> None:  # type: ignore[override]
            assert torch.equal(x[:, 0].long(), label)
            super().model(x)

        def guide(self, x: Tensor, label: Tensor) -> None:  # type: ignore[override]
            super().guide(x)

    source = TensorDataset(torch.from_numpy(numbered()), torch.arange(N))
    program, _ = train(data.stream(source).conditioned_on("labels"), Paired(), epochs=1)
    assert sorted(program.seen) == list(range(N))


LARGE = """
import json, os, sys
import numpy as np, torch
from pyro_vae import VAE, conditionals, data, fit, likelihoods, nets, priors

rows = 20 * 10**9 // 784
with open(sys.argv[1], "wb") as file:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (rows, 784)})
    file.truncate(file.tell() + rows * 784)
size = os.path.getsize(sys.argv[1])
stream = data.stream(sys.argv[1], levels=255, binarize="dynamic")
vae = VAE(
    priors.StandardNormal(20),
    likelihoods.Bernoulli(nets.MLP(20, [400]), 784),
    conditionals.DiagonalNormal(nets.MLP(784, [400]), 20),
)
history = fit(vae, stream, steps=int(sys.argv[2]), batch_size=128, seed=0, progress=False, compile=False)
# Not ru_maxrss, which begins with what the parent has.
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
print(json.dumps({"size": size, "data": len(stream), "MiB": peak / 1024, "elbo": history["train_elbo"]}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_fit_of_20_gigabytes_stays_below_one_and_a_half_resident(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LARGE, str(tmp_path / "x.npy"), "400"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["size"] > 19.9e9
    assert found["data"] == 20 * 10**9 // 784
    assert found["MiB"] < 1536
