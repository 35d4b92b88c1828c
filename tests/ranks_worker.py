"""What each rank of ``tests/test_distributed.py`` runs: ``torchrun ... tests/ranks_worker.py JOB FOLDER``."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pyro.distributions
import pyro.infer
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import IterableDataset

from pyro_vae import (
    SVI,
    VAE,
    checkpoint,
    conditionals,
    data,
    distributed,
    elbo,
    evaluation,
    fit,
    likelihoods,
    nets,
    priors,
    save,
)
from pyro_vae.training.figures import figures as training_figures

N, D, L = 22, 6, 3
GRAPH = "pyro_vae.compilation.graph.compile_graph"
SEEN: list[int] = []  # data by number
ESTIMATORS: dict[str, Any] = {
    "ELBO": lambda: elbo.ELBO(2),
    "ELBO analytic": lambda: elbo.ELBO(analytic_kl=True),
    "ELBO free bits": lambda: elbo.ELBO(analytic_kl=True, free_bits=0.5),
    "IWELBO": lambda: elbo.IWELBO(5),
    "IWELBO stl": lambda: elbo.IWELBO(5, "stl"),
    "IWELBO dreg": lambda: elbo.IWELBO(5, "dreg"),
    "MIWELBO": lambda: elbo.MIWELBO(2, num_bounds=3),
    "PIWELBO": lambda: elbo.PIWELBO(2, num_bounds=3),
    "RenyiELBO": lambda: elbo.RenyiELBO(4, alpha=0.5),
    "ThermodynamicELBO": lambda: elbo.ThermodynamicELBO(4, "covariance", partitions=3),
    "VIMCO": lambda: elbo.IWELBO(5, "vimco"),
    "OVIS": lambda: elbo.IWELBO(5, "ovis"),
    "score": lambda: elbo.ELBO(3, elbo.Score()),
    "score running mean": lambda: elbo.ELBO(3, elbo.Score(baseline="running_mean")),
    "score leave one out": lambda: elbo.ELBO(3, elbo.Score(baseline="leave_one_out")),
    "score learned baseline": lambda: elbo.ELBO(3, elbo.Score(baseline=Baseline())),
    "wake-sleep": lambda: elbo.ReweightedWakeSleep(4),
}


class Baseline(torch.nn.Module):
    """A number for each datum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, 0]


class SameDraws(TorchDispatchMode):
    """Random numbers that belong to the rows of the whole batch, whoever draws them."""

    def __init__(self, rows: Tensor, step: int) -> None:
        super().__init__()
        self.rows, self.step = rows, step

    def __enter__(self) -> Any:
        torch.manual_seed(self.step)  # so that a dry run, which puts the generator back, is not counted
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name not in ("aten::normal_", "aten::normal.Tensor_Tensor", "aten::bernoulli", "aten::rand"):
            assert not name.startswith(("aten::normal", "aten::bernoulli", "aten::rand", "aten::exponential")), name
            return func(*args, **(kwargs or {}))
        shape = list(args[0] if name == "aten::rand" else args[0].shape)
        dim = len(shape) - 2
        assert shape[dim] == len(self.rows), (name, shape)
        shape[dim] = N
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        table = torch.randn if name.startswith("aten::normal") else torch.rand
        drawn = table(shape, generator=generator, dtype=torch.float64).index_select(dim, self.rows)
        if name == "aten::normal_":
            return args[0].copy_(drawn)  # of mean 0 and deviation 1
        if name.startswith("aten::normal"):
            return args[0] + args[1] * drawn.to(args[0])
        return drawn.float() if name == "aten::rand" else (drawn < args[0]).to(args[0])


def vae(prior: str, dtype: torch.dtype, seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    x = data_of(torch.float32)
    made = VAE(
        prior=priors.VampPrior(x[:4], clamp=False) if prior == "vamp" else priors.StandardNormal(L),
        likelihood=(likelihoods.SigmaNormal if prior == "sigma" else likelihoods.Normal)(nets.MLP(L, [8]), D),
        posterior=conditionals.DiagonalNormal(nets.MLP(D, [8]), L),
    )
    if prior == "sigma":
        made.calibrate(x)
    return made.to(dtype)


def data_of(dtype: torch.dtype) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(7)).to(dtype)


def gradients(
    name: str,
    prior: str,
    dtype: torch.dtype,
    ranks: distributed.Ranks | None,
    rows: Tensor,
    *,
    compile: bool | None = None,
) -> list[Tensor]:
    """The gradients of some steps, one after the other: three with the draws of rows, or five with those of ranks."""
    program, x = vae(prior, dtype), data_of(dtype)
    torch.manual_seed(1)
    loss = ESTIMATORS[name]()
    for module in getattr(loss.gradient, "modules", list)():
        module.to(dtype)
    svi = SVI(program.model, program.guide, partial(torch.optim.SGD, lr=1e-3), loss, ranks=ranks, compile=bool(compile))
    svi.initialize(x[rows])
    found: list[Tensor] = []
    assert isinstance(svi.optimizer, torch.optim.Optimizer)
    svi.optimizer.register_step_pre_hook(
        lambda optimizer, *_: found.extend(
            p.grad.clone() if p.grad is not None else torch.zeros_like(p)
            for group in optimizer.param_groups for p in group["params"]
        )
    )  # fmt: skip
    for step in range(3 if compile is None else 5):
        if ranks is not None:
            ranks.seed(step)
        with SameDraws(rows, step) if compile is None else contextlib.nullcontext():
            svi.advance_in_parts([(x[rows],)])
    assert svi.compiler.num_graphs == bool(compile)
    return found


def job_gradients(ranks: distributed.Ranks, folder: Path) -> None:
    """The largest differences to one process's gradients, over their largest size."""
    found = {}
    chosen = os.environ.get("ESTIMATORS", ",".join(ESTIMATORS)).split(",")
    every = torch.arange(N)
    for prior in ("normal", "vamp", "sigma"):
        for name in chosen if prior == "normal" else ["ELBO"]:
            for dtype in (torch.float32, torch.float64):
                alone = gradients(name, prior, dtype, None, every)
                together = gradients(name, prior, dtype, ranks, ranks.share(every))
                found[f"{name}, {prior}, {dtype}"] = difference(alone, together)
            # The graph as it was recorded, since compiling all would take minutes, unless asked for.
            with contextlib.nullcontext() if os.environ.get("INDUCTOR") else mock.patch(GRAPH, lambda graph, _: graph):
                given = name, prior, torch.float64, ranks, ranks.share(every)
                eager, recorded = (gradients(*given, compile=compile) for compile in (False, True))
            found[f"{name}, {prior}, compiled, float64"] = difference(eager, recorded)
    if ranks.rank == 0:
        (folder / "gradients.json").write_text(json.dumps(found))


def difference(some: list[Tensor], others: list[Tensor]) -> float:
    """The largest one, over the largest size."""
    assert len(some) == len(others)
    worst = max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))
    return worst / max(float(each.abs().max()) for each in some)


def trained(folder: Path | None, ranks: distributed.Ranks, **options: Any) -> tuple[VAE, Any]:
    torch.manual_seed(100 + ranks.rank)  # which weights of the ranks would differ by
    train, validation, _ = data.load("digits", binarize="dynamic")
    program = VAE(
        prior=priors.StandardNormal(4),
        likelihood=likelihoods.Bernoulli(nets.MLP(4, [16]), (1, 8, 8)),
        posterior=conditionals.DiagonalNormal(nets.MLP((1, 8, 8), [16]), 4),
    )
    given: dict[str, Any] = {"epochs": 3, "seed": 3, "folder": folder, "progress": False, **options}
    history = fit(program, train, validation, **given)
    return program, history


def job_masked(ranks: distributed.Ranks, folder: Path) -> None:
    """Running means of masked data, of which one rank has one and the other all: of one process, and of ranks."""
    x, counted = torch.linspace(-1, 2, N, dtype=torch.float64)[:, None], torch.arange(N) >= N // 2 - 1

    def model(x: Tensor, counted: Any) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=counted):
            z = pyro.sample("z", pyro.distributions.Bernoulli(logits=torch.zeros_like(x)).to_event(1))
            pyro.sample("x", pyro.distributions.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor, counted: Any) -> None:
        loc = pyro.param("odds", torch.tensor(0.3).double())
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=counted):
            pyro.sample("z", pyro.distributions.Bernoulli(logits=loc.expand_as(x)).to_event(1))

    found = []
    for together in (None, ranks):
        pyro.clear_param_store()
        loss = elbo.ELBO(gradient=elbo.Score("running_mean"))
        svi = SVI(model, guide, partial(torch.optim.SGD, lr=0.1), loss, ranks=together, compile=False)
        own = torch.arange(N) if together is None else ranks.share(torch.arange(N))
        for step in range(3):
            with SameDraws(own, step):
                svi.advance_in_parts([(x[own], counted[own])])
        found.append([*loss.gradient.buffers()[0].tolist(), pyro.param("odds").item()])
    pyro.clear_param_store()
    (folder / f"masked-{ranks.rank}.json").write_text(json.dumps(found))


def job_fit(ranks: distributed.Ranks, folder: Path) -> None:
    """Trains under options, and writes weights and figures of every rank."""
    runs: dict[str, dict[str, Any]] = {
        "eager": {"compile": False},
        "compiled": {"compile": True},
        "parts": {"accumulate": 3, "ema_decay": 0.9, "max_grad_norm": 1.0},
        "early": {"patience": 1, "epochs": 30, "optimizer": partial(torch.optim.Adam, lr=0.1)},
        "small": {"batch_size": 1348},  # whose last batch has one datum
        "long": {"steps": 1000, "epochs": None, "compile": True},
    }
    chosen = os.environ.get("RUNS", ",".join(runs)).split(",")
    for name, options in ((name, runs[name]) for name in chosen):
        program, history = trained(None, ranks, **options)
        weights = torch.cat([each.detach().flatten() for each in program.state_dict().values()])
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history.epochs]
        content = {"weights": weights.tolist(), "rows": rows, "stopped": history.stopped}
        (folder / f"{name}-{ranks.rank}.json").write_text(json.dumps(content))


def enumerated() -> tuple[VAE, Tensor, dict[str, Any]]:
    """A program whose bound is a sum over the values of its latent, so that nothing is drawn; data; how to train it."""
    torch.manual_seed(0)
    program = VAE(
        priors.OneHotCategorical(3),
        likelihoods.Bernoulli(nets.MLP(3, [8]), D),
        conditionals.OneHotCategorical(nets.MLP(D, [8]), 3),
    )
    loss, optimizer = elbo.ELBO(gradient={"z": "enumerate"}), partial(torch.optim.SGD, lr=1e-3)
    how = {"loss": loss, "optimizer": optimizer, "epochs": 3, "batch_size": 10, "seed": 0, "progress": False}
    return program, (data_of(torch.float32) > 0).float(), how


def job_curves(ranks: distributed.Ranks, folder: Path) -> None:
    program, x, how = enumerated()
    history = fit(program, x, **how)
    (folder / f"curves-{ranks.rank}.json").write_text(json.dumps([row["loss"] for row in history.epochs]))


def job_unseeded(ranks: distributed.Ranks, folder: Path) -> None:
    """Weights of a run without a seed, at once and gone on with after an epoch, when other numbers are drawn."""
    found = {}
    for name, lengths in (("whole", (2,)), ("parted", (1, 2))):
        for i, epochs in enumerate(lengths):
            program = vae("normal", torch.float32)
            torch.manual_seed(i)
            how: dict[str, Any] = {"epochs": epochs, "batch_size": 6, "resume": True, "progress": False}
            fit(program, data_of(torch.float32), folder=folder / f"unseeded-{name}", **how)
        found[name] = [each.tolist() for each in program.parameters()]
    (folder / f"unseeded-{ranks.rank}.json").write_text(json.dumps(found))


def job_figures(ranks: distributed.Ranks, folder: Path) -> None:
    """The ELBO of an epoch of the same data on every rank, and that of the data once, by one rank's draws."""
    program, once = vae("normal", torch.float32), data_of(torch.float32)
    still = partial(torch.optim.SGD, lr=0.0)
    history = fit(program, torch.cat([once] * ranks.size), optimizer=still, epochs=1, seed=0, progress=False)
    alone = training_figures("train", program.model, program.guide, data.as_dataset(once), "data")
    content = [history.epochs[0]["train_elbo"], alone["train_elbo"]]
    (folder / f"figures-{ranks.rank}.json").write_text(json.dumps(content))


class Noting(torch.nn.Module):
    """A program without latents of use, that notes which data it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(D))

    def model(self, x: Tensor) -> None:
        pyro.module("mean", self)
        if torch.is_grad_enabled() and self.training:
            SEEN.extend(x[:, 0].long().tolist())
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", pyro.distributions.Normal(self.mean, 30.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(torch.zeros(1), 1.0).to_event(1))


def job_stream(ranks: distributed.Ranks, folder: Path) -> None:
    """Two epochs of a stream that processes read, interrupted after some steps, or going on with them."""
    stop = int(os.environ["STOP"])
    if ranks.rank == 0 and not (folder / "x.npy").exists():
        x = np.zeros((47, D), np.float32)
        x[:, 0] = np.arange(47)
        np.save(folder / "x.npy", x)
    dist.barrier()

    def on_step(step: int, _: float) -> None:
        if step == stop and ranks.rank == 0:
            os.kill(os.getpid(), signal.SIGINT)

    how: dict[str, Any] = {"epochs": 2, "batch_size": 6, "seed": 0, "progress": False, "compile": False}
    stream = data.stream(folder / "x.npy", workers=2)
    with _no_warnings():
        fit(Noting(), stream, folder=folder / "run", resume=True, on_step=on_step, **how)
    (folder / f"seen-{stop}-{ranks.rank}.json").write_text(json.dumps(SEEN))


class Known:
    """z ~ Normal(0, 1), x ~ Normal(z, 1), and a guide; at the posterior, of scale 0.707, every draw tells log p(x)."""

    def __init__(self, scale: float = 0.5**0.5) -> None:
        self.scale = scale

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(x / 2, self.scale))


class Located(torch.nn.Module):
    """A module that a program has methods of."""

    def __init__(self, loc: float) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(float(loc)))

    def draw(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(self.loc.expand(len(x)), 1.0))


def draw_at_param(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", pyro.distributions.Normal(loc.expand(len(x)), 1.0))


def figures(program: VAE, x: Tensor) -> dict[str, Any]:
    """Those of a program at data, by functions that share them."""
    torch.manual_seed(5)
    terms = evaluation.elbo_terms(program, x, analytic_kl=True)
    units = evaluation.active_units(program, x)
    gap = evaluation.amortization_gap(program, x, num_steps=20, progress=False)
    found = {
        "kl": terms.kl,
        "variance": units.variance["z"],
        "means": evaluation.latent_means(program, x, batch_size=3)["z"],
        "optimized": gap.optimized_elbo,
    }
    return {name: tensor.tolist() for name, tensor in found.items()}


def job_evaluated(ranks: distributed.Ranks, folder: Path) -> None:
    """Figures of shares of the data, and what is wrong with one of them."""
    x = torch.linspace(-2, 2, 7)
    program, rows, known = vae("normal", torch.float32), data_of(torch.float32), Known()

    def values(x: Tensor) -> Tensor:
        return evaluation.log_marginal_likelihood(known, x, num_particles=30, progress=False).value

    with evaluation.over_ranks():
        found: dict[str, Any] = figures(program, rows)
        wide = evaluation.log_marginal_likelihood(Known(0.9), x, num_particles=100, progress=False)
        found |= {"wide": wide.value.tolist(), "error": wide.standard_error.tolist()}
        found |= {"known": values(x).tolist(), "one": values(x[:1]).tolist(), "drawn": float(torch.rand(()))}
        found["report"] = str(evaluation.report(known, torch.randn(40), num_particles=50))
        lost = torch.where(torch.arange(7) == 6, torch.nan, x)
        found["nan"] = words_of(lambda: values(lost))
        found["others"] = words_of(lambda: values(x + ranks.rank))
        found["another"] = words_of(lambda: figures(vae("normal", torch.float32, seed=ranks.rank), rows))
        method = Located(ranks.rank).draw
        program_of_methods = SimpleNamespace(model=method, guide=method)
        found["method"] = words_of(lambda: evaluation.latent_means(program_of_methods, x, batch_size=3))
        pyro.param("loc", torch.tensor(float(ranks.rank)))
        stored = SimpleNamespace(model=draw_at_param, guide=draw_at_param)
        found["stored"] = words_of(lambda: evaluation.latent_means(stored, x, batch_size=3))
        pyro.clear_param_store()
    (folder / f"evaluated-{ranks.rank}.json").write_text(json.dumps(found))


def job_resume(ranks: distributed.Ranks, folder: Path) -> None:
    """A run of many steps in a folder, from which it goes on where it was killed."""
    epochs = int(os.environ.get("EPOCHS", "4"))
    how: dict[str, Any] = {"resume": True, "checkpoint_every": "3 steps", "on_step": dying(ranks, folder)}
    program, history = trained(folder / "run", ranks, epochs=epochs, **how)
    if ranks.rank == 0:
        weights = {name: tensor.tolist() for name, tensor in program.state_dict().items()}
        (folder / "end.json").write_text(json.dumps({"weights": weights, "epochs": len(history)}))


def dying(ranks: distributed.Ranks, folder: Path) -> Any:
    """A callback that kills one rank at some steps, each once."""
    deaths = json.loads(os.environ.get("DEATHS", "[]"))

    def die(step: int, loss: float) -> None:
        with contextlib.suppress(FileExistsError):
            if [step, ranks.rank] in deaths:
                (folder / f"died-{step}").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        if ranks.rank == 0:
            with (folder / "steps.txt").open("a") as file:
                file.write(f"{step} {loss!r}\n")

    return die


def job_interrupt(ranks: distributed.Ranks, folder: Path) -> None:
    """One rank alone is interrupted, and all end at the same step."""

    def interrupt(step: int, loss: float) -> None:
        if step == 5 and ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal.SIGINT)

    with _no_warnings():
        _, history = trained(None, ranks, epochs=50, on_step=interrupt)
    (folder / f"interrupt-{ranks.rank}.json").write_text(json.dumps([history.stopped, len(history)]))


def job_nonfinite(ranks: distributed.Ranks, folder: Path) -> None:
    """A loss that is not finite on one rank is an error, or a skipped step, on all."""
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(0))
    x[39] = 1e30  # of the last rank's part of a batch in order; its square overflows
    words = {}
    for how in ("raise", "skip"):
        program = vae("normal", torch.float32)
        try:
            history = fit(program, x, epochs=2, batch_size=40, seed=0, nonfinite=how, progress=False)
            words[how] = str([row["skipped"] for row in history.epochs])
        except FloatingPointError as error:
            words[how] = str(error)
    (folder / f"nonfinite-{ranks.rank}.json").write_text(json.dumps(words))


class Apart(IterableDataset[Tensor]):
    """A sequence whose end, beyond the sample, comes in another order on every rank."""

    def __init__(self, rank: int) -> None:
        self.order = [*range(5_000), *(np.random.default_rng(rank).permutation(100) + 5_000)]

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.full((D,), float(number)) for number in self.order)


def job_refused(ranks: distributed.Ranks, folder: Path) -> None:
    """What cannot be trained by parts, or differs between ranks, is an error that names it."""
    words = {}
    x = data_of(torch.float32)
    (folder / "kept" / "weights.safetensors").parent.mkdir(exist_ok=True)
    (folder / "kept" / "weights.safetensors").touch()
    normalized = VAE(
        prior=priors.StandardNormal(L),
        likelihood=likelihoods.Normal(nets.MLP(L, [8]), D),
        posterior=conditionals.DiagonalNormal(
            nets.MLP(D, [8], activation=lambda: torch.nn.BatchNorm1d(8)),
            L,
        ),
    )
    np.save(folder / f"x-{ranks.rank}.npy", x.numpy())
    stream = data.stream(folder / f"x-{ranks.rank}.npy", rank=ranks.size - 1 - ranks.rank)  # another rank's share

    apart = data.stream(Apart(ranks.rank), length=5_100)

    def by_hand(program: Any, loss: Any) -> None:
        make = partial(torch.optim.SGD, lr=1e-3)
        SVI(program.model, program.guide, make, loss, ranks=ranks, compile=False).step(ranks.share(x))

    def global_latent(x: torch.Tensor) -> None:
        loc = pyro.sample("loc", pyro.distributions.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", pyro.distributions.Normal(loc, 1.0).expand([D]).to_event(1), obs=x)

    def global_guide(x: torch.Tensor) -> None:
        pyro.sample("loc", pyro.distributions.Normal(pyro.param("where", torch.tensor(0.0)), 1.0))

    def grown() -> None:
        torch.manual_seed(0)
        program = vae("normal", torch.float32)
        svi = SVI(program.model, program.guide, partial(torch.optim.SGD, lr=1e-3), elbo.ELBO(), ranks=ranks)
        svi.step(ranks.share(x))
        if ranks.rank == 1:
            program.posterior.register_parameter("more", torch.nn.Parameter(torch.zeros(3)))
        svi.step(ranks.share(x))

    for name, make in {
        "grown": grown,
        "normalization": lambda: fit(normalized, x, epochs=1, progress=False),
        "normalization by hand": lambda: by_hand(normalized, elbo.ELBO()),
        "loss by hand": lambda: by_hand(vae("normal", torch.float32), pyro.infer.RenyiELBO()),
        "outside by hand": lambda: by_hand(SimpleNamespace(model=global_latent, guide=global_guide), elbo.ELBO()),
        "folder": lambda: fit(vae("normal", torch.float32), x, epochs=1, folder=folder / "kept", progress=False),
        "sequence": lambda: fit(Noting(), apart, epochs=1, batch_size=600, progress=False, compile=False),
        "stream": lambda: fit(vae("normal", torch.float32), stream, epochs=1, progress=False),
        "few": lambda: fit(vae("normal", torch.float32), x, epochs=1, batch_size=1, progress=False),
        "data": lambda: fit(vae("normal", torch.float32), x + ranks.rank, epochs=1, seed=0, progress=False),
        "apart": lambda: fit(program := vae("normal", torch.float32), x, epochs=2, seed=0, progress=False,
                             on_step=lambda *_: shifted(program, ranks)),
        "weights": lambda: SVI((program := vae("normal", torch.float32, ranks.rank)).model, program.guide,
                               partial(torch.optim.SGD, lr=1e-3), elbo.ELBO(), ranks=ranks, compile=False).step(x),
    }.items():  # fmt: skip
        words[name] = words_of(make)
    (folder / f"refused-{ranks.rank}.json").write_text(json.dumps(words))


def shifted(program: VAE, ranks: distributed.Ranks) -> None:
    with torch.no_grad():
        next(iter(program.parameters())).add_(1e-3 * ranks.rank)


def job_sharded(ranks: distributed.Ranks, folder: Path) -> None:
    """Trains networks that are split over the ranks, and whole ones; the differences of losses and weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (ranks.size,))
    found: dict[str, Any] = {}
    given = data_of(torch.float64)[ranks.share(torch.arange(N))]

    def sharded(parts: Any = lambda program: (program.likelihood.body, program.posterior.body)) -> VAE:
        program = vae("normal", torch.float64)
        for part in parts(program):
            fully_shard(part, mesh=mesh)
        return program

    def svi_of(program: VAE, loss: Any, **options: Any) -> SVI:
        options = {"ranks": ranks, "compile": False, "max_grad_norm": 5.0, "ema_decay": 0.9, **options}
        return SVI(program.model, program.guide, partial(torch.optim.Adam, lr=1e-2), loss, **options)

    def train(program: VAE, name: str) -> tuple[list[float], Tensor]:
        """Losses of five steps, two of them after a look without gradients; gradients, weights and averages."""
        torch.manual_seed(1)
        svi = svi_of(program, ESTIMATORS[name]())
        seen: list[Tensor] = []
        svi.initialize(given)
        assert isinstance(svi.optimizer, torch.optim.Optimizer)
        svi.optimizer.register_step_pre_hook(
            lambda *_: seen.extend(p.grad.clone() for p in program.parameters() if p.grad is not None)
        )
        losses = []
        for step in range(5):
            if step % 2:
                svi.evaluate_loss(given)
            ranks.seed(step)
            losses.append(svi.step(given))
        with svi.averaged():
            seen += [p.detach().clone() for p in program.parameters()]
        return losses, torch.cat(
            [distributed.whole(each.detach()).flatten() for each in (*seen, *program.parameters())]
        )

    def spoiled(parts: int = 1) -> None:
        svi = svi_of(sharded(), elbo.ELBO())
        svi.step(given)
        first, *others = given.tensor_split(parts)
        lost = first * (1e200 if ranks.rank else 1.0)  # its square overflows
        svi.advance_in_parts([(each,) for each in (lost, *others)])

    for name in ("ELBO", "IWELBO dreg", "VIMCO", "score running mean", "wake-sleep"):
        losses, values = train(vae("normal", torch.float64), name)
        again, others = train(sharded(), name)
        found[name] = [
            max(abs(a - b) for a, b in zip(losses, again, strict=True)),
            float((values - others).abs().max()),
        ]
    held = sharded()
    found["shards"] = {n: [len(p), len(p.to_local())] for n, p in held.named_parameters() if isinstance(p, DTensor)}
    whole_parts = sharded(lambda program: (program.likelihood.head, program.posterior))
    for name, make in {
        "alone": lambda: svi_of(sharded(), elbo.ELBO(), ranks=None).step(given),
        "compiled": lambda: svi_of(sharded(), elbo.ELBO(), compile=True).step(given),
        "fit": lambda: fit(held, given, epochs=1, progress=False),
        "nonfinite": spoiled,
        "nonfinite part": lambda: spoiled(2),
        "distribution": lambda: svi_of(whole_parts, elbo.ELBO()).step(given),
        "evaluated": lambda: _evaluated(held, given),
        "saved": lambda: save(folder / f"saved-{ranks.rank}", held),
        "kept": lambda: checkpoint.save(folder / f"kept-{ranks.rank}.safetensors", held),
    }.items():
        found[name] = words_of(make)
    (folder / f"sharded-{ranks.rank}.json").write_text(json.dumps(found))


def _evaluated(program: VAE, x: Tensor) -> None:
    with evaluation.over_ranks():
        evaluation.elbo_terms(program, x)


def job_joined(ranks: distributed.Ranks, folder: Path) -> None:
    """Sums over the ranks, one of which dies at its first attempt."""
    counted = torch.ones(1)
    dist.all_reduce(counted)
    died = folder / "died"
    if ranks.rank == 1 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    (folder / f"joined-{ranks.rank}.json").write_text(json.dumps(counted.item()))


def words_of(make: Any) -> str:
    """The message of the error that something raises."""
    try:
        make()
    except (RuntimeError, TypeError, ValueError, FloatingPointError) as error:
        return str(error)
    return "nothing"


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def note_threads(folder: Path) -> None:
    """Writes the names of the threads that are left at exit."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    (folder / f"threads-{os.environ['RANK']}.json").write_text(json.dumps(names))


if __name__ == "__main__":
    atexit.register(note_threads, Path(sys.argv[2]))  # before the one that leaves the group, and so run after it
    present = distributed.ranks()
    assert present is not None
    for job in sys.argv[1].split(","):
        globals()[f"job_{job}"](present, Path(sys.argv[2]))
        dist.barrier()
