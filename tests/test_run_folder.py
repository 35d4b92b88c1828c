"""Folders of runs and programs: what is in them, what is refused, and what a fault of the disk leaves."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import members
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn

import pyro_vae
from pyro_vae import (
    VAE,
    ConditionalVAE,
    checkpoint,
    conditionals,
    data,
    elbo,
    evaluation,
    fit,
    likelihoods,
    nets,
    priors,
    schedules,
)
from pyro_vae.checkpoint.folder import RunFolder
from pyro_vae.training.saving import Every


def bits(n: int = 100) -> Tensor:
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def vae(hidden: int = 8, **parts: Any) -> VAE:
    torch.manual_seed(0)
    standard: dict[str, Any] = {
        "prior": priors.StandardNormal(2),
        "likelihood": likelihoods.Bernoulli(nets.MLP(2, [hidden]), 6),
        "posterior": conditionals.DiagonalNormal(nets.MLP(6, [hidden]), 2),
    }
    return VAE(**{**standard, **parts})


def train(folder: Path | None, program: VAE | None = None, **options: Any) -> VAE:
    program = vae() if program is None else program
    x = options.pop("x", bits())
    given = {"epochs": 3, "batch_size": 20, "seed": 1, "progress": False, "checkpoint_every": "3 steps", **options}
    fit(program, x, folder=folder, **given)
    return program


def weights(program: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in program.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class Stopped(Exception):
    """In place of a process that dies."""


def stop_at(step: int) -> Callable[[int, float], None]:
    def on_step(taken: int, _: float) -> None:
        if taken == step:
            raise Stopped

    return on_step


def broken_off(folder: Path, step: int = 7, **options: Any) -> None:
    with pytest.raises(Stopped):
        train(folder, on_step=stop_at(step), **options)


# What is there


def test_fit_keeps_a_run_that_people_and_programs_can_read(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"
    program = train(folder, validation=bits(30), keep_best=True)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", "README.md", "best.safetensors", "checkpoints", "history.jsonl", "program.json", "run.json",
        "weights.safetensors",
    ]  # fmt: skip
    assert [path.suffix for path in (folder / "checkpoints").iterdir()] == [".safetensors"]
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert settings["batch_size"] == 20
    assert settings["train"]["shape"] == [100, 6]
    card = (folder / "README.md").read_text()
    assert "- data: array, 100 x (6,)" in card
    assert f"| validation_elbo | {rows[-1]['validation_elbo']:.6g} | nats per datum |" in card
    assert "pyro_vae.load(" in card
    assert equal(weights(pyro_vae.load(folder)), weights(program))


def test_fit_follows_the_umask(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        train(tmp_path / "x")
    finally:
        os.umask(former)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "x").rglob("*") if path.is_file()}
    assert {mode for name, mode in modes.items() if name != ".lock"} == {0o640}


@pytest.mark.parametrize(
    ("every", "steps"), [("3 steps", [0, 3, 6, 9, 10]), ("1 epoch", [0, 5, 10]), ("1 hour", [0, 10])]
)
def test_checkpoint_every_says_when(every: str, steps: list[int], tmp_path: Path) -> None:
    train(tmp_path, epochs=2, checkpoint_every=every, keep_last=100)
    assert [int(path.stem.split("-")[1]) for path in sorted((tmp_path / "checkpoints").iterdir())] == steps


@pytest.mark.parametrize("wrong", ["often", "0 steps", "1.5 epochs", "-1 minutes", "", "1 step ", 3, None, "nan steps"])
def test_checkpoint_every_takes_numbers_and_units(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected checkpoint_every 'auto' or such as '100 steps'"):
        Every.of(wrong)
    assert Every.of("90 seconds") == Every.of("1.5 minutes")


@pytest.mark.parametrize(("seconds", "steps"), [(0.1, [0, 2, 4, 5]), (2.0, [0, 4, 5])])
def test_checkpoint_every_is_rarer_where_checkpoints_of_auto_are_slow(
    seconds: float, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes fifty seconds here, and a checkpoint some seconds, of which a hundred times as much is to pass."""
    clock = [0.0]
    write = RunFolder.write_checkpoint

    def slow(self: RunFolder, *args: Any) -> None:
        write(self, *args)
        clock[0] += seconds

    monkeypatch.setattr("pyro_vae.training.saving.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(RunFolder, "write_checkpoint", slow)

    def on_step(step: int, _: float) -> None:
        clock[0] += 50.0

    train(tmp_path, epochs=1, checkpoint_every="auto", keep_last=100, on_step=on_step)
    assert [int(path.stem.split("-")[1]) for path in sorted((tmp_path / "checkpoints").iterdir())] == steps


def test_resume_takes_other_remedies_for_steps_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, on_step=stop_at(8))
    with pytest.warns(UserWarning, match=r"goes on with max_grad_norm None, now 1.0; nonfinite 'raise', now 'skip'"):
        train(tmp_path, resume=True, max_grad_norm=1.0, nonfinite="skip")


def test_resume_with_weights_of_which_none_fit_leaves_the_folder_alone(tmp_path: Path) -> None:
    kept = train(tmp_path / "x")
    with pytest.raises(ValueError, match="expected weights of which some fit; got none"):
        train(tmp_path / "x", OwnProgram(6), resume="weights")  # type: ignore[arg-type]
    assert equal(weights(pyro_vae.load(tmp_path / "x")), weights(kept))


def test_keep_last_keeps_the_newest(tmp_path: Path) -> None:
    train(tmp_path, epochs=2, keep_last=2)
    assert [int(path.stem.split("-")[1]) for path in sorted((tmp_path / "checkpoints").iterdir())] == [9, 10]


def test_keep_best_keeps_the_weights_of_the_best_epoch(tmp_path: Path) -> None:
    seen: list[tuple[float, dict[str, Tensor]]] = []
    program = vae()
    train(
        tmp_path,
        program,
        validation=1 - bits(30),  # learning the data is forgetting these
        epochs=6,
        optimizer=partial(torch.optim.Adam, lr=0.05),
        keep_best=True,
        on_epoch=lambda row: seen.append((row["validation_elbo"], weights(program))),
    )
    best = max(seen, key=lambda pair: pair[0])[1]
    assert not equal(best, weights(program))
    assert equal(weights(pyro_vae.load(tmp_path, weights="best")), best)
    assert equal(weights(pyro_vae.load(tmp_path)), weights(program))


def test_load_reads_the_last_checkpoint_of_a_run_under_way(tmp_path: Path) -> None:
    seen: dict[int, dict[str, Tensor]] = {}
    program = vae()

    def on_step(step: int, _: float) -> None:
        seen[step] = weights(program)
        if step == 8:
            raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path, program, on_step=on_step)
    assert equal(weights(pyro_vae.load(tmp_path)), seen[6])


# Going on


def test_resume_goes_on_beyond_the_end(tmp_path: Path) -> None:
    train(tmp_path, epochs=2)
    assert equal(weights(train(tmp_path, epochs=5, resume=True)), weights(train(None, epochs=5)))


def test_resume_of_a_finished_run_gives_its_weights_and_history(tmp_path: Path) -> None:
    first = train(tmp_path, ema_decay=0.9)
    program = vae()
    history = fit(
        program, bits(), epochs=3, batch_size=20, seed=1, progress=False, folder=tmp_path, resume=True, ema_decay=0.9
    )
    assert len(history) == 3
    assert equal(weights(program), weights(first))


def test_resume_does_not_prolong_a_run_that_ended_amid_an_epoch(tmp_path: Path) -> None:
    train(tmp_path, epochs=None, steps=7)
    with pytest.raises(ValueError, match=r"expected a run that ended with a whole epoch.* 2 steps into an epoch of 5"):
        train(tmp_path, epochs=None, steps=20, resume=True)


def test_resume_refuses_fewer_steps_than_were_taken(tmp_path: Path) -> None:
    train(tmp_path, epochs=3)
    with pytest.raises(ValueError, match="at least the 15 steps that were taken; got 10"):
        train(tmp_path, epochs=2, resume=True)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"x": bits() * 0}, "train.sha256"),
    "fewer data": ({"x": bits(80)}, "train.shape"),
    "validation": ({"validation": bits(10)}, "validation"),
    "model": ({"program": lambda: vae(9)}, "program.modules"),
    "part": ({"program": lambda: vae(prior=priors.Laplace(2))}, "program"),
    "setting of a part": (
        {"program": lambda: vae(likelihood=likelihoods.Bernoulli(nets.MLP(2, [8], activation=nn.ReLU), 6))},
        "program",
    ),
    "seed": ({"seed": 2}, "seed 1, now 2"),
    "loss": ({"loss": elbo.IWELBO(3)}, "loss.class 'ELBO', now 'IWELBO'"),
    "setting of the loss": ({"loss": elbo.ELBO(2)}, "loss._num_particles 1, now 2"),
    "gradient": ({"loss": elbo.ELBO(gradient="stl")}, "loss.gradient.class 'Pathwise', now 'STL'"),
    "learning rate": ({"optimizer": partial(torch.optim.Adam, lr=0.5)}, "optimizer.lr 0.001, now 0.5"),
    "weight decay": ({"optimizer": partial(torch.optim.Adam, weight_decay=0.1)}, "optimizer.weight_decay 0, now 0.1"),
    "optimizer": ({"optimizer": partial(torch.optim.SGD, lr=0.1)}, "optimizer"),
    "batch size": ({"batch_size": 25}, "batch_size 20, now 25"),
    "beta": ({"beta": 0.5}, "beta None, now 0.5"),
    "schedule of beta": ({"beta": schedules.linear(0.0, 1.0, epochs=2)}, "beta"),
    "patience": ({"patience": 3, "validation": bits(10)}, "patience None, now 3"),
    "average": ({"ema_decay": 0.9}, "ema_decay None, now 0.9"),
    "precision": ({"precision": "bfloat16"}, "precision"),
    "compilation": ({"compile": True}, "compile 'auto', now True"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_resume_refuses_another_run_and_says_what_differs(name: str, tmp_path: Path) -> None:
    options, words = dict(OTHERS[name][0]), OTHERS[name][1]
    broken_off(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    program = options.pop("program", vae)()
    untouched = weights(program)
    with pytest.raises(ValueError, match="expected the run that the folder holds; got another one") as caught:
        train(tmp_path, program, resume=True, **options)
    assert words in str(caught.value)
    assert "resume='weights'" in str(caught.value)
    assert equal(weights(program), untouched)
    assert {path: path.read_bytes() for path in before} == before


def test_resume_tells_schedules_of_functions_apart(tmp_path: Path) -> None:
    broken_off(tmp_path, beta=lambda epoch: min(1.0, epoch / 2))
    with pytest.raises(ValueError, match=r"beta\.code"):
        train(tmp_path, resume=True, beta=lambda epoch: min(1.0, epoch / 3))
    train(tmp_path, resume=True, beta=lambda epoch: min(1.0, epoch / 2))


def test_resume_refuses_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(tmp_path)
    monkeypatch.setattr("pyro_vae.training.identity.__version__", "9.9")
    with pytest.raises(ValueError, match=r"pyro_vae '.*', now '9\.9'"):
        train(tmp_path, resume=True)


def test_resume_warns_of_another_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(tmp_path)
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    with pytest.warns(UserWarning, match="goes on with 77: sums are rounded otherwise"):
        train(tmp_path, resume=True)


def test_resume_weights_takes_what_fits_in_words(tmp_path: Path) -> None:
    first = train(tmp_path)
    program, history = vae(), None
    history = fit(program, bits(), steps=1, progress=False, folder=tmp_path, resume="weights", seed=5, batch_size=50)
    assert history.settings["resumed"] == "took 10 of 10 tensors"
    other = vae(likelihood=likelihoods.Bernoulli(nets.MLP(2, [9]), 6))
    with pytest.warns(UserWarning, match="took 7 of 10 tensors, and not program.model.likelihood.body.layers.0.bias"):
        fit(other, bits(), steps=1, progress=False, folder=tmp_path, resume="weights")
    assert first is not None


def test_fit_does_not_overwrite_a_folder_with_a_run(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder without a run.*resume=True"):
        train(tmp_path)


def test_resume_in_a_folder_without_a_run_begins_one(tmp_path: Path) -> None:
    assert equal(weights(train(tmp_path / "new", resume=True)), weights(train(None)))


@pytest.mark.parametrize("options", [{"resume": True}, {"resume": "weights"}, {"keep_best": True}])
def test_resume_without_a_folder_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected a folder for (resume|keep_best)="):
        train(None, **options)


def test_fit_locks_its_folder(tmp_path: Path) -> None:
    def second(step: int, _: float) -> None:
        if step == 4:
            with (
                torch.random.fork_rng(),
                pytest.raises(BlockingIOError, match="expected a folder that no other run writes to"),
            ):
                train(tmp_path, resume=True)

    assert equal(weights(train(tmp_path, on_step=second)), weights(train(None)))


def test_resume_keeps_settings_that_callbacks_change(tmp_path: Path) -> None:
    """Numbers of a module and of the loss, buffers, and what is frozen."""

    def make() -> VAE:
        torch.manual_seed(0)
        return vae(
            prior=priors.RelaxedBernoulli(3),
            likelihood=likelihoods.Bernoulli(nets.MLP(3, [8]), 6),
            posterior=conditionals.RelaxedBernoulli(nets.MLP(6, [8]), 3),
        )

    def run(folder: Path | None, last: int, **options: Any) -> VAE:
        program, loss = make(), elbo.ELBO()

        def on_step(step: int, _: float) -> None:
            if step == 4:
                loss.num_particles = 3
                temperature: Any = program.posterior.temperature
                temperature.fill_(0.4)
                layers: Any = program.likelihood.body.layers
                layers[0].weight.requires_grad_(False)
            if step == last:
                raise Stopped

        try:
            train(folder, program, loss=loss, on_step=on_step, **options)
        except Stopped:
            assert last
        return program

    run(tmp_path, 8)
    assert equal(weights(run(tmp_path, 0, resume=True)), weights(run(None, 0)))


# Signals


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_run_folder as t

def on_step(step, loss):
    if step == 3:
        print("ready", flush=True)
        while {wait}:
            pass

print(t.fit(t.vae(), t.bits(), epochs=200_000, batch_size=20, seed=1, progress=False, folder={folder!r},
            checkpoint_every="1 hour", on_step=on_step).stopped)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "words"), [(signal.SIGINT, 0, "interrupted"), (signal.SIGTERM, -15, "")])
def test_fit_ends_with_a_checkpoint_on_a_signal(number: int, status: int, words: str, tmp_path: Path) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent), wait=False, folder=str(tmp_path / "x"))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed.strip()) == (status, words)
    steps = [int(path.stem.split("-")[1]) for path in (tmp_path / "x" / "checkpoints").iterdir()]
    assert len(steps) == 1
    assert steps[0] > 3
    assert (tmp_path / "x" / "weights.safetensors").is_file()


def test_interruption_ends_at_the_next_step_and_the_run_goes_on(tmp_path: Path) -> None:
    def on_step(step: int, _: float) -> None:
        if step == 8:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    train(tmp_path, on_step=on_step)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [int(path.stem.split("-")[1]) for path in (tmp_path / "checkpoints").iterdir()] == [8]
    assert equal(weights(train(tmp_path, resume=True)), weights(train(None)))


def test_interruption_is_at_once_when_it_comes_twice(tmp_path: Path) -> None:
    def on_step(step: int, _: float) -> None:
        if step == 8:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it went on")

    train(tmp_path, on_step=on_step)
    assert [int(path.stem.split("-")[1]) for path in (tmp_path / "checkpoints").iterdir()] == [6]


def test_interruption_leaves_handlers_of_the_user(tmp_path: Path) -> None:
    received: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        train(tmp_path, on_step=lambda step, _: signal.raise_signal(signal.SIGTERM) if step == 4 else None)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert received == [signal.SIGTERM]


# Faults of the disk


class Disk:
    """Counts what is asked of the disk, and fails at one of these."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int | None, error: int) -> None:
        self.calls = 0

        def faulty(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                self.calls += 1
                if self.calls == fails_at:
                    raise OSError(error, os.strerror(error))
                return function(*args, **kwargs)

            return call

        for owner, name in ((os, "fsync"), (Path, "open"), (Path, "replace")):
            monkeypatch.setattr(owner, name, faulty(getattr(owner, name)))


def calls_of_a_run() -> int:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        disk = Disk(patch, None, errno.ENOSPC)
        train(Path(folder, "x"), epochs=1)
    return disk.calls


@pytest.mark.parametrize(
    "error", [pytest.param(errno.ENOSPC, marks=pytest.mark.slow), errno.EROFS, errno.EIO, errno.EACCES]
)
def test_checkpoint_before_a_fault_of_any_write_is_whole(error: int, tmp_path: Path) -> None:
    undisturbed = weights(train(None, epochs=1))
    total = calls_of_a_run()
    assert total > 20
    failures = range(1, total + 1) if error == errno.ENOSPC else range(1, total + 1, 7)
    for fails_at in failures:
        folder = tmp_path / f"{fails_at}"
        program = vae()
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, fails_at, error)
            with pytest.raises(OSError, match=r"fit: expected to write .*; got .*resume=True") as caught:
                train(folder, program, epochs=1)
        assert caught.value.errno == error
        assert all(bool(tensor.isfinite().all()) for tensor in program.state_dict().values())
        assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
        assert equal(weights(train(folder, epochs=1, resume=True)), undisturbed), fails_at


@pytest.mark.slow
def test_resume_after_a_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE in place of a disk that is full: no file can grow beyond it."""
    train(tmp_path, epochs=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(OSError, match=r"expected to write a checkpoint .* File too large"):
            train(tmp_path, epochs=3, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    assert equal(weights(train(tmp_path, resume=True)), weights(train(None)))


def test_checkpoints_deleted_underneath_are_written_again(tmp_path: Path) -> None:
    def on_step(step: int, _: float) -> None:
        if step == 4:
            for path in (tmp_path / "checkpoints").iterdir():
                path.unlink()
            (tmp_path / "checkpoints").rmdir()
            (tmp_path / "history.jsonl").unlink()

    program = train(tmp_path, on_step=on_step)
    assert equal(weights(program), weights(train(None)))
    assert equal(weights(pyro_vae.load(tmp_path)), weights(program))


def test_resume_passes_over_a_damaged_checkpoint_in_words(tmp_path: Path) -> None:
    broken_off(tmp_path, 13, keep_last=3)
    newest = max((tmp_path / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="since a later checkpoint is damaged"):
        program = train(tmp_path, resume=True, keep_last=3)
    assert equal(weights(program), weights(train(None)))
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="expected a checkpoint that is whole"):
        train(tmp_path, resume=True)


# Programs


@pytest.mark.parametrize("name", members.PROGRAMS)
def test_save_and_load_give_every_program_back(name: str, tmp_path: Path) -> None:
    program, arguments = members.PROGRAMS[name]()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.01)
    pyro_vae.save(tmp_path, program, {"test_elbo": -1.5})
    loaded = pyro_vae.load(tmp_path)
    assert type(loaded) is type(program)
    assert not loaded.training
    program.eval()
    for one, other in zip(*(_terms(each, arguments) for each in (program, loaded)), strict=True):
        assert torch.equal(one, other)
    assert "| test_elbo | -1.5 | nats per datum |" in (tmp_path / "README.md").read_text()


def _terms(program: Any, arguments: Any) -> list[Tensor]:
    torch.manual_seed(1)
    terms = evaluation.elbo_terms(program, *arguments)
    return [terms.elbo, terms.kl]


def _every_member() -> dict[str, tuple[Any, tuple[Tensor, ...]]]:
    """Programs that contain each member of the contract table, and arguments of theirs."""
    programs: dict[str, tuple[Any, tuple[Tensor, ...]]] = {name: make() for name, make in members.PROGRAMS.items()}
    image = (1, 2, 2)
    x = (torch.arange(28) % 5 < 2).float().reshape(7, *image)
    for name, make_likelihood in members.LIKELIHOODS.items():
        likelihood = make_likelihood()
        bodies = [torch.eye(2)[torch.arange(7) % 2] for _ in likelihood.body.input_shapes[1:]]
        context = (*bodies, *(torch.full((7,), 9.0) for _ in likelihood.contexts))
        given = likelihood(torch.zeros(7, 2), *context).sample().contiguous()
        shapes = [tuple(each.shape[1:]) for each in bodies]
        body = nets.MLP(tuple(likelihood.event_shape), [5], context_shapes=shapes)
        posterior = conditionals.DiagonalNormal(body, 2)
        kind = ConditionalVAE if bodies else VAE
        programs[f"likelihood {name}"] = kind(priors.StandardNormal(2), likelihood, posterior), (given, *context)
    for name, make_prior in members.PRIORS.items():
        prior = make_prior()
        fitting = next(c() for c in members.CONDITIONALS.values() if repr(c().support) == repr(prior.support))
        programs[f"prior {name}"] = VAE(prior, likelihoods.Bernoulli(nets.MLP(2, [5]), image), fitting), (x,)
    for name, make_conditional in members.CONDITIONALS.items():
        conditional = make_conditional()
        prior = next(p() for p in members.PRIORS.values() if repr(p().support) == repr(conditional.support))
        bernoulli = likelihoods.Bernoulli(nets.MLP(2, [5]), image)
        programs[f"conditional {name}"] = VAE(prior, bernoulli, conditional), (x,)
    shared = nets.MLP(4, [4])
    programs["one body for both"] = (
        VAE(priors.StandardNormal(4), likelihoods.Bernoulli(shared, 4), conditionals.DiagonalNormal(shared, 4)),
        (x.flatten(1),),
    )
    return programs


FRESH = """
import sys, torch, safetensors.torch
from pathlib import Path
import pyro_vae
from pyro_vae import evaluation

for folder in sorted(Path(sys.argv[1]).iterdir()):
    saved = {n: t.clone() for n, t in safetensors.torch.load_file(folder / "expected.tensors").items()}  # aligned
    program = pyro_vae.load(folder)
    torch.manual_seed(1)
    terms = evaluation.elbo_terms(program, *(saved[f"argument {i}"] for i in range(len(saved) - 2)))
    assert torch.equal(terms.elbo, saved["elbo"]), folder
    assert torch.equal(terms.kl, saved["kl"]), folder
    print(folder.name)
"""


@pytest.mark.slow
def test_save_and_load_give_every_member_back_in_a_fresh_process(tmp_path: Path) -> None:
    programs = _every_member()
    assert len(programs) > 70
    for i, (program, arguments) in enumerate(programs.values()):
        program.eval()
        with torch.no_grad():
            for parameter in program.parameters():
                parameter.add_(0.01)
        pyro_vae.save(tmp_path / f"{i:03d}", program)
        elbo_, kl = _terms(program, arguments)
        given = {f"argument {k}": argument for k, argument in enumerate(arguments)}
        safetensors.torch.save_file({**given, "elbo": elbo_, "kl": kl}, tmp_path / f"{i:03d}" / "expected.tensors")
    printed = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert printed.stderr == "" or "Error" not in printed.stderr, printed.stderr
    assert len(printed.stdout.split()) == len(programs)


class Squared(nets.Body):
    """A body of a user's: with a function and a class among its arguments."""

    def __init__(self, size: int, *widths: int, activation: Callable[[], nn.Module], scale: Callable[[Tensor], Tensor]):
        super().__init__([torch.Size([size])], widths[-1])
        self.layers = nn.Sequential(nn.Linear(size, widths[0]), activation(), nn.Linear(widths[0], widths[-1]))
        self.scale = scale

    def features(self, *inputs: Tensor) -> Tensor:
        return self.layers(self.scale(inputs[0]))


def halved(x: Tensor) -> Tensor:
    return x / 2


def own_program() -> VAE:
    body = Squared(6, 5, 4, activation=partial(nn.LeakyReLU, 0.1), scale=halved)
    return vae(posterior=conditionals.DiagonalNormal(body, 2))


def test_load_takes_classes_of_the_user(tmp_path: Path) -> None:
    program = own_program()
    pyro_vae.save(tmp_path, program)
    with pytest.raises(ValueError, match=r"got 'Squared', 'halved'.*classes=\[Squared, halved\]"):
        pyro_vae.load(tmp_path)
    loaded = pyro_vae.load(tmp_path, classes=[Squared, halved])
    x = bits(5)
    assert torch.equal(loaded.encode(x).mean, program.encode(x).mean)
    with pytest.raises(TypeError, match="expected classes of classes and functions; got int"):
        pyro_vae.load(tmp_path, classes=[3])


def test_load_refuses_a_class_whose_arguments_are_others(tmp_path: Path) -> None:
    pyro_vae.save(tmp_path, own_program())

    class Other(nets.Body):
        def __init__(self, size: int, depth: int) -> None:
            super().__init__([torch.Size([size])], 4)

    Other.__qualname__ = "Squared"
    with pytest.raises(
        ValueError, match=r"expected the arguments of Other\(size.*depth.*; got activation.* and depth too few"
    ):
        pyro_vae.load(tmp_path, classes=[Other, halved])


def _replace_posterior(program: VAE) -> None:
    program.guide.posterior = conditionals.DiagonalNormal(nets.MLP(6, [9]), 2)


def _replace_layers(program: VAE) -> None:
    program.likelihood.body.layers = nn.Sequential(nn.Linear(2, 8), nn.ReLU())


def _add_parameter(program: VAE) -> None:
    program.likelihood.register_parameter("extra", nn.Parameter(torch.zeros(3)))


def _replace_setting(program: Any) -> None:
    program.guide.missing = "no"


@pytest.mark.parametrize("change", [_replace_posterior, _replace_layers, _add_parameter, _replace_setting])
def test_save_refuses_a_program_that_would_be_loaded_as_another(change: Callable[[VAE], None], tmp_path: Path) -> None:
    program = vae()
    change(program)
    with pytest.raises(ValueError, match="expected VAE as it was built; got one changed at"):
        pyro_vae.save(tmp_path / "x", program)
    assert not (tmp_path / "x").exists()
    with pytest.warns(UserWarning, match=r"pyro_vae\.load cannot give"):
        train(tmp_path / "y", program, epochs=1)
    with pytest.raises(ValueError, match="expected a program that can be built again"):
        pyro_vae.load(tmp_path / "y")


def test_save_keeps_the_numbers_that_modules_hold(tmp_path: Path) -> None:
    program = vae(likelihood=likelihoods.Normal(nets.MLP(2, [8]), 6, scale=0.5))
    setting = next(name for name, held in vars(program.likelihood).items() if isinstance(held, float))
    setattr(program.likelihood, setting, 0.25)
    pyro_vae.save(tmp_path, program)
    assert getattr(pyro_vae.load(tmp_path).likelihood, setting) == 0.25


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_save_keeps_the_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    program = vae().to(dtype)
    pyro_vae.save(tmp_path, program)
    assert equal(weights(pyro_vae.load(tmp_path)), weights(program))


class Plain(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size)


class OwnProgram(checkpoint.Recorded, nn.Module):
    """A program of a user's, which is no VAE of ours."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, size)
        self.encoder = nn.Linear(size, 2)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def test_recorded_program_of_the_user_is_kept_and_goes_on(tmp_path: Path) -> None:
    def make() -> OwnProgram:
        torch.manual_seed(0)
        return OwnProgram(6)

    given: dict[str, Any] = {"epochs": 3, "batch_size": 20, "seed": 1, "progress": False}
    undisturbed = make()
    fit(undisturbed, bits(), **given)
    with pytest.raises(Stopped):
        fit(make(), bits(), folder=tmp_path, checkpoint_every="3 steps", on_step=stop_at(8), **given)
    program = make()
    fit(program, bits(), folder=tmp_path, checkpoint_every="3 steps", resume=True, **given)
    assert equal(weights(program), weights(undisturbed))
    assert equal(weights(pyro_vae.load(tmp_path, classes=[OwnProgram])), weights(undisturbed))


def test_save_names_what_cannot_be_built_again(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match=r"expected modules that record the arguments .*; got Plain\. Derive a class of yours from"
    ):
        pyro_vae.save(tmp_path, Plain(3))
    lambda_ = vae(posterior=conditionals.DiagonalNormal(nets.MLP(6, [8], transform=lambda x: x + 1), 2))
    with pytest.raises(TypeError, match="expected functions and classes with names of their own"):
        pyro_vae.save(tmp_path, lambda_)


def test_load_without_a_program_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a file at"):
        pyro_vae.load(tmp_path)
    pyro_vae.save(tmp_path, vae())
    with pytest.raises(FileNotFoundError, match=r"expected the best weights in .*keep_best=True"):
        pyro_vae.load(tmp_path, weights="best")
    (tmp_path / "program.json").write_text((tmp_path / "program.json").read_text().replace("[8]", "[9]"))
    content = (tmp_path / "program.json").read_text()
    (tmp_path / "program.json").write_text(content.replace('"latent_dim": 2', '"latent_dim": 3', 1))
    with pytest.raises(ValueError, match="another checksum than its own"):
        pyro_vae.load(tmp_path)


# Numbers that are not finite


class Spoiled(nets.Body):
    """A body whose gradient is NaN in one step, though its values are finite."""

    def __init__(self, at: int) -> None:
        super().__init__([torch.Size([6])], 8)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        self.at, self.calls = at, 0

    def features(self, *inputs: Tensor) -> Tensor:
        h = self.layers(inputs[0])
        if self.training:
            self.calls += 1
            if self.calls == self.at:  # the square root's derivative at 0 is infinite, and 0 times it is NaN
                h = h + torch.sqrt(h * 0)
        return h


def test_fit_keeps_the_weights_before_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    program = vae(posterior=conditionals.DiagonalNormal(Spoiled(8), 2))
    seen: dict[int, dict[str, Tensor]] = {}
    with pytest.raises(FloatingPointError, match=r"expected finite gradients at step 6; got .*body\.layers"):
        train(None, program, on_step=lambda step, _: seen.update({step: weights(program)}))
    assert equal(weights(program), seen[6])


def test_fit_skips_steps_that_are_not_finite_and_counts_them() -> None:
    program = vae(posterior=conditionals.DiagonalNormal(Spoiled(8), 2))
    torch.manual_seed(0)
    x = data.as_dataset(bits())
    history = fit(program, x, epochs=3, batch_size=20, seed=1, progress=False, nonfinite="skip")
    assert history["skipped"] == [0.0, 1.0, 0.0]
    assert all(bool(tensor.isfinite().all()) for tensor in program.state_dict().values())


class Broken(nets.Body):
    def __init__(self) -> None:
        super().__init__([torch.Size([6])], 8)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))

    def features(self, *inputs: Tensor) -> Tensor:
        return self.layers(inputs[0]) * (torch.nan if self.training else 1.0)


def test_fit_does_not_skip_for_ever() -> None:
    program = vae(posterior=conditionals.DiagonalNormal(Broken(), 2))
    with pyro.validation_enabled(False), pytest.raises(FloatingPointError, match="expected a finite loss"):
        train(None, program, nonfinite="skip")
    assert all(bool(tensor.isfinite().all()) for tensor in program.state_dict().values())


def test_fit_names_the_data_that_are_not_finite() -> None:
    x = torch.randn(100, 6)
    x[37, 2] = 1e30
    program = vae(likelihood=likelihoods.Normal(nets.MLP(2, [8]), 6, scale=1.0))
    with pytest.raises(FloatingPointError, match="'x' of the model at data 37"):
        train(None, program, x=x)


def test_save_leaves_the_folder_of_a_run_alone(tmp_path: Path) -> None:
    program = train(tmp_path, epochs=1)
    with pytest.raises(ValueError, match="expected a folder without a run"):
        pyro_vae.save(tmp_path, program)


def test_fit_writes_a_card_before_it_ends(tmp_path: Path) -> None:
    broken_off(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "- steps: 0 of 15, under way, or interrupted" in card
    assert "of StandardNormal, Bernoulli, DiagonalNormal, with" in card


# What callbacks set, and what programs hold beside their weights


class Holding(nets.Body):
    """A body with a number that is None at first, a tuple, a list, a plain tensor, and a buffer no state_dict has."""

    hidden: Tensor

    def __init__(self, widths: Sequence[int] = (8,)) -> None:
        super().__init__([torch.Size([6])], 8)
        self.layer = nn.Linear(6, 8)
        self.gain: float | None = None
        self.pair, self.seen = (1.0, 2.0), [1.0]
        self.plain = torch.randn(8)
        self.register_buffer("hidden", torch.randn(8), persistent=False)
        self.activation = torch.tanh
        self.widths = widths

    def features(self, *inputs: Tensor) -> Tensor:
        scale = (1.0 if self.gain is None else self.gain) * self.pair[0] * self.seen[-1] * self.plain * self.hidden
        return self.activation(self.layer(inputs[0])) * scale


def holding() -> VAE:
    torch.manual_seed(0)
    return vae(posterior=conditionals.DiagonalNormal(Holding(), 2))


def _set_gain(body: Any) -> None:
    body.gain = 0.5


def _set_pair(body: Any) -> None:
    body.pair = (0.5, 1)


def _append(body: Any) -> None:
    body.seen.append(0.25)


def _set_plain(body: Any) -> None:
    body.plain = body.plain * 0.5


def _set_hidden(body: Any) -> None:
    body.hidden.mul_(0.5)


@pytest.mark.parametrize("change", [_set_gain, _set_pair, _append, _set_plain, _set_hidden])
def test_resume_keeps_attributes_that_callbacks_change(change: Callable[[Any], None], tmp_path: Path) -> None:
    def run(folder: Path | None, **options: Any) -> VAE:
        program = holding()

        def on_epoch(row: dict[str, float]) -> None:
            if row["epoch"] == 1:
                change(program.posterior.body)

        return train(folder, program, on_epoch=on_epoch, **options)

    undisturbed = run(None)
    with pytest.raises(Stopped):
        run(tmp_path, on_step=stop_at(8))
    resumed = run(tmp_path, resume=True)
    assert equal(weights(resumed), weights(undisturbed))
    assert not equal(weights(resumed), weights(train(None, holding())))
    x = bits(5)
    loaded = pyro_vae.load(tmp_path, classes=[Holding])
    assert torch.equal(loaded.encode(x).mean, undisturbed.encode(x).mean)


class Counting(elbo.ELBO):
    """A loss that keeps a list, on which its next step hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [1]

    def loss_and_grads(self, *args: Any, **kwargs: Any) -> float:
        self.calls.append(1)
        self.beta = 1 / len(self.calls)
        return super().loss_and_grads(*args, **kwargs)


def test_resume_keeps_what_a_loss_holds(tmp_path: Path) -> None:
    broken_off(tmp_path, 8, loss=Counting())
    assert equal(weights(train(tmp_path, resume=True, loss=Counting())), weights(train(None, loss=Counting())))


def test_resume_refuses_a_gradient_that_a_callback_put_in_place(tmp_path: Path) -> None:
    loss = elbo.ELBO()

    def on_step(step: int, _: float) -> None:
        if step == 2:
            loss.gradient = elbo.Score()
        if step == 8:
            raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path, loss=loss, on_step=on_step)
    with pytest.raises(ValueError, match=r"expected a loss made of ELBO, Score, .*; got one of ELBO, Pathwise"):
        train(tmp_path, resume=True, loss=elbo.ELBO())


RATES = torch.optim.lr_scheduler
SCHEDULES: dict[str, tuple[Any, Any]] = {
    "functions": (lambda o: RATES.LambdaLR(o, lambda e: 0.9**e), lambda o: RATES.LambdaLR(o, lambda e: 0.5**e)),
    "parts": (
        lambda o: RATES.SequentialLR(o, [RATES.ConstantLR(o), RATES.ExponentialLR(o, 0.5)], [2]),
        lambda o: RATES.SequentialLR(o, [RATES.ConstantLR(o), RATES.ExponentialLR(o, 0.7)], [2]),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_resume_tells_schedules_of_rates_apart(name: str, tmp_path: Path) -> None:
    one, other = SCHEDULES[name]
    broken_off(tmp_path, scheduler=one)
    with pytest.raises(ValueError, match="got another one: scheduler"):
        train(tmp_path, resume=True, scheduler=other)
    train(tmp_path, resume=True, scheduler=one)


def test_resume_tells_functions_of_other_names_apart(tmp_path: Path) -> None:
    broken_off(tmp_path, beta=lambda epoch: min(1.0, epoch / 2))
    with pytest.raises(ValueError, match=r"beta\.code"):
        train(tmp_path, resume=True, beta=lambda epoch: max(1.0, epoch / 2))


# What is left of former runs


def test_keep_best_goes_on_when_a_run_does(tmp_path: Path) -> None:
    train(tmp_path, epochs=1, validation=bits(30), keep_best=True)
    program = train(tmp_path, resume=True, validation=bits(30))
    assert equal(weights(pyro_vae.load(tmp_path, weights="best")), weights(program))


def test_load_reads_the_last_checkpoint_of_a_run_that_was_prolonged(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)
    with pytest.raises(Stopped):
        train(tmp_path, resume=True, epochs=3, on_step=stop_at(13))
    former = weights(pyro_vae.load(tmp_path))
    assert equal(former, weights(train(None, epochs=None, steps=11)))


def test_fit_leaves_weights_without_checkpoints_alone(tmp_path: Path) -> None:
    program = vae()
    with torch.no_grad():
        program.likelihood.head.set_bias("logits", torch.ones(6))
    pyro_vae.save(tmp_path / "saved", program)
    train(tmp_path / "run", epochs=1)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    for folder, resume in [("saved", False), ("saved", True), ("run", True), ("run", False)]:
        with pytest.raises(ValueError, match="which has weights alone"):
            train(tmp_path / folder, resume=resume)
    assert equal(weights(pyro_vae.load(tmp_path / "saved")), weights(program))
    taken = train(tmp_path / "saved", resume="weights", optimizer=partial(torch.optim.SGD, lr=1e-12))
    assert torch.allclose(taken.likelihood.head.bias("logits"), torch.ones(6))


def test_history_of_a_resumed_run_is_completed(tmp_path: Path) -> None:
    def on_step(step: int, _: float) -> None:
        if step == 8:
            signal.raise_signal(signal.SIGINT)

    given: dict[str, Any] = {"epochs": 3, "batch_size": 20, "seed": 1, "progress": False, "folder": tmp_path}
    assert fit(vae(), bits(), on_step=on_step, **given).stopped == "interrupted"
    assert fit(vae(), bits(), resume=True, **given).stopped == "completed"


def test_history_takes_numbers_of_numpy_and_torch(tmp_path: Path) -> None:
    train(tmp_path, on_epoch=lambda row: row.update(one=np.float32(1.5), two=torch.tensor(2.5)))
    row = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])
    assert (row["one"], row["two"]) == (1.5, 2.5)
    with pytest.raises(TypeError, match="expected the figures of an epoch to be numbers; got list as 'three'"):
        train(None, on_epoch=lambda row: row.update(three=[1]))


def test_folder_stays_where_it_is_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    train(Path("run"), on_epoch=lambda row: monkeypatch.chdir(tmp_path / "elsewhere"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


class Unregistered(Holding):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 8)]


class Extra(Holding):
    def get_extra_state(self) -> Any:
        return {"count": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def _replace_function(program: VAE) -> None:
    body: Any = program.posterior.body
    body.activation = torch.relu


def test_save_refuses_weights_that_no_file_has(tmp_path: Path) -> None:
    unregistered = vae(posterior=conditionals.DiagonalNormal(Unregistered(), 2))
    with pytest.raises(ValueError, match=r"expected every module to be registered; got some in .*layers, a list"):
        pyro_vae.save(tmp_path, unregistered)
    extra = vae(posterior=conditionals.DiagonalNormal(Extra(), 2))
    with pytest.raises(TypeError, match="expected dense tensors with values"):
        pyro_vae.save(tmp_path, extra)
    with pytest.raises(TypeError, match="expected dense tensors with values"):  # before the first step
        train(tmp_path, extra)
    replaced = holding()
    _replace_function(replaced)
    with pytest.raises(ValueError, match=r"got one changed at .*activation"):
        pyro_vae.save(tmp_path, replaced)


class Built(checkpoint.Recorded, nn.Module):
    """A module of a user's that holds what it was given."""

    def __init__(self, activation: Any = None, width: Any = 3, lazy: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(3) if lazy else nn.Linear(2, int(width)), activation or nn.ReLU())
        self.width = width


def test_recorded_arguments_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    for width in (np.int64(3), np.float32(3.0)):
        pyro_vae.save(tmp_path, Built(width=width))
        assert pyro_vae.load(tmp_path, classes=[Built]).width == width


def test_save_says_how_to_pass_activations(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"got a ELU at 'activation'.*Give the class, nn\.ELU, or functools\.partial"):
        pyro_vae.save(tmp_path, Built(nn.ELU(2.0)))


def test_save_refuses_lazy_weights(tmp_path: Path) -> None:
    program = Built(lazy=True)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"got lazy ones, 'net\.0\.weight'.*Use nn\.Linear"):
            pyro_vae.save(tmp_path, program)
        program.net(torch.ones(1, 2))


def test_resume_takes_no_optimizer_of_another_program(tmp_path: Path) -> None:
    optimizer = Adam({"lr": 1e-3})
    with pytest.raises(Stopped):
        train(tmp_path, on_step=stop_at(8), optimizer=optimizer)
    with pytest.raises(ValueError, match=r"expected a new pyro\.optim optimizer .* Make it anew"):
        train(tmp_path, resume=True, optimizer=optimizer)
    resumed = train(tmp_path, resume=True, optimizer=Adam({"lr": 1e-3}))
    assert equal(weights(resumed), weights(train(None, optimizer=Adam({"lr": 1e-3}))))


def test_recorded_arguments_are_those_of_the_call(tmp_path: Path) -> None:
    widths = [8]
    program = vae(posterior=conditionals.DiagonalNormal(Holding(widths), 2))
    widths.append(9)
    program.posterior.body.widths = [8]  # type: ignore[assignment]
    pyro_vae.save(tmp_path, program)
    assert pyro_vae.load(tmp_path, classes=[Holding]).posterior.body.widths == [8]
