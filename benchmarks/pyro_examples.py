"""Pyro's own examples with our SVI in the place of Pyro's, on small random data: for ``pyro_suite.py --examples``.

The programs are imported from a checkout, each with the optimizer and the loss that its ``main`` makes. Losses of stock
SVI and of ours must agree at equal seeds, eager and compiled; then they take turns in short blocks, and the ratios are
of medians. A step that cannot be compiled says why.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import pyro.infer
import pyro.optim
import torch
from torch import Tensor

from pyro_vae import SVI

ABSENT = ["visdom", "wget"]  # what examples import to draw or to download
STEPS, ROUNDS, BLOCK = 10, 7, 5
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Job:
    """What an example's ``main`` gives to SVI, and the arguments of a step."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: Any
    optimizer: Any
    args: tuple[Any, ...]


def adam(lr: float) -> Any:
    return pyro.optim.Adam({"lr": lr})  # type: ignore[attr-defined]


def pixels(*shape: int) -> Tensor:
    return torch.rand(*shape).bernoulli()


def vae(module: Any) -> Job:
    program = module.VAE()
    return Job(program.model, program.guide, pyro.infer.Trace_ELBO(), adam(1e-3), (pixels(64, 1, 28, 28),))


def ss_vae(module: Any, *, labeled: bool) -> Job:
    program = module.SSVAE(z_dim=20, hidden_layers=[100], config_enum="parallel")
    guide = pyro.infer.config_enumerate(program.guide, "parallel", expand=True)
    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    labels = torch.eye(10)[torch.arange(64) % 10]
    return Job(program.model, guide, loss, adam(4e-4), (pixels(64, 784), labels)[: 2 if labeled else 1])


def cvae(module: Any) -> Job:
    program = module.CVAE(50, 100, 100, importlib.import_module("baseline").BaselineNet(100, 100))
    for parameter in program.baseline_net.parameters():
        parameter.requires_grad_(False)  # as the example says of it: it is not changed
    whole = pixels(32, 28, 28)
    masked = whole.clone()
    masked[:, 14:] = -1.0
    targets = torch.where(masked == -1.0, whole, -1.0)
    return Job(program.model, program.guide, pyro.infer.Trace_ELBO(), adam(1e-3), (masked, targets))


def dmm(module: Any) -> Job:
    program = module.DMM(rnn_dim=60, z_dim=20, emission_dim=30, transition_dim=30)
    lengths = torch.arange(8, 0, -1).repeat_interleave(2)
    sequences = pixels(16, 8, 88)
    batch = module.poly.get_mini_batch(torch.arange(16), sequences, lengths)
    optimizer = pyro.optim.ClippedAdam({"lr": 3e-4, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996})
    return Job(program.model, program.guide, pyro.infer.Trace_ELBO(), optimizer, (*batch, 0.5))


def air(module: Any) -> Job:
    program = module.AIR(num_steps=2, x_size=50, window_size=28, z_what_size=20, rnn_hidden_size=64)
    optimizer = pyro.optim.Adam(  # type: ignore[attr-defined]
        lambda name: {"lr": 1e-1 if "bl_" in name else 1e-4}
    )
    return Job(program.model, program.guide, pyro.infer.TraceGraph_ELBO(), optimizer, (torch.rand(32, 50, 50), 16))


def lda(module: Any) -> Job:
    args = Namespace(num_words=64, num_topics=4, num_docs=50, num_words_per_doc=16, layer_sizes="20-20")
    data = module.model(args=args)[2]
    guide = partial(module.parametrized_guide, module.make_predictor(args))
    loss, optimizer = pyro.infer.TraceEnum_ELBO(max_plate_nesting=2), pyro.optim.ClippedAdam({"lr": 0.01})
    return Job(partial(lda_model, module), partial(lda_guide, guide), loss, optimizer, (data, args, 16))


def lda_model(module: Any, data: Tensor, args: Namespace, batch_size: int) -> Any:
    """The model as the example's ``svi.step(data, args=args, batch_size=batch_size)`` calls it."""
    return module.model(data, args=args, batch_size=batch_size)


def lda_guide(guide: Callable[..., Any], data: Tensor, args: Namespace, batch_size: int) -> Any:
    return guide(data, args=args, batch_size=batch_size)


def sparse_gamma(module: Any) -> Job:
    program = module.SparseGammaDEF()
    program.image_size = 256
    loss, optimizer = pyro.infer.TraceMeanField_ELBO(), pyro.optim.AdagradRMSProp({"eta": 0.2, "t": 0.05})
    data = torch.poisson(5 * torch.rand(20, program.image_size))
    return Job(program.model, module.MyEasyGuide(program.model), loss, optimizer, (data,))


def scanvi(module: Any, *, labeled: bool) -> Job:
    program = module.SCANVI(num_genes=50, num_labels=4, l_loc=4.0, l_scale=0.5, scale_factor=1 / (50 * 50))
    guide = pyro.infer.config_enumerate(program.guide, "parallel", expand=True)
    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    labels = torch.eye(4)[torch.arange(50) % 4]
    return Job(
        program.model, guide, loss, adam(5e-3), (torch.poisson(torch.rand(50, 50) * 4), labels)[: 2 if labeled else 1]
    )


def eight_schools(module: Any) -> Job:
    return Job(module.model, module.guide, pyro.infer.Trace_ELBO(), adam(0.01), (module.data,))


EXAMPLES: dict[str, tuple[str, Callable[[Any], Job]]] = {
    "vae": ("vae/vae.py", vae),
    "ss_vae, no labels": ("vae/ss_vae_M2.py", partial(ss_vae, labeled=False)),
    "ss_vae, labels": ("vae/ss_vae_M2.py", partial(ss_vae, labeled=True)),
    "cvae": ("cvae/cvae.py", cvae),
    "dmm": ("dmm.py", dmm),
    "air": ("air/air.py", air),
    "lda": ("lda.py", lda),
    "sparse gamma": ("sparse_gamma_def.py", sparse_gamma),
    "scanvi, no labels": ("scanvi/scanvi.py", partial(scanvi, labeled=False)),
    "scanvi, labels": ("scanvi/scanvi.py", partial(scanvi, labeled=True)),
    "eight schools": ("eight_schools/svi.py", eight_schools),
}


@contextmanager
def module_of(file: Path) -> Iterator[Any]:
    """An example's module, imported as if it were run; what it imports to draw is there in name alone."""
    before, path = set(sys.modules), list(sys.path)
    for name in ABSENT:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = mock.MagicMock(__spec__=None)
    sys.path.insert(0, str(file.parent))
    try:
        yield importlib.import_module(file.stem)
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:  # examples have modules of the same name
            if name in ABSENT or str(file.parent) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


class Contender:
    """An SVI with a program and a param store of its own, from the same seed as every other's."""

    def __init__(self, make: Callable[[Any], Job], module: Any, kind: Callable[..., Any]) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        job = make(module)
        self.args, self.times = job.args, list[float]()
        self.svi = kind(job.model, job.guide, job.optimizer, job.loss)
        self.state: Any = {"params": {}, "constraints": {}}
        pyro.set_rng_seed(1)
        self.losses = self.steps(STEPS)

    def steps(self, number: int) -> list[float]:
        with pyro.get_param_store().scope(self.state) as state:
            start = time.perf_counter()
            losses = [self.svi.step(*self.args) for _ in range(number)]
            self.times.append((time.perf_counter() - start) / number * 1e3)
        self.state = state
        return losses


def difference(losses: list[float], others: list[float]) -> float:
    """The largest relative difference of two runs' losses."""
    return max(abs(a - b) / max(abs(b), 1e-8) for a, b in zip(losses, others, strict=True))


def compare(make: Callable[[Any], Job], module: Any) -> str:
    """A row of the table: differences, times, and why a step is not compiled."""
    kinds: dict[str, Callable[..., Any]] = {
        "stock": pyro.infer.SVI,
        "eager": partial(SVI, compile=False),
        "compiled": partial(SVI, compile=True),
    }
    contenders: dict[str, Contender] = {}
    notes = []
    for name, kind in kinds.items():
        try:
            contenders[name] = Contender(make, module, kind)
        except Exception as error:  # noqa: BLE001 - a program that fails in any way is a result, and is told of
            notes.append(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
    for _ in range(ROUNDS):
        for contender in contenders.values():
            contender.steps(BLOCK)
    row, stock = "", contenders.get("stock")
    for name in kinds:
        if name not in contenders or stock is None:
            row += f"{'—':>10}" * (1 if name == "stock" else 2)
            continue
        milliseconds = statistics.median(contenders[name].times[1:])
        if name == "stock":
            row += f"{milliseconds:10.2f}"
            continue
        gap = difference(contenders[name].losses, stock.losses)
        row += f"{gap:9.0e}{' ' if gap <= TOLERANCE else '!'}{statistics.median(stock.times[1:]) / milliseconds:10.2f}"
    return "  ".join([row, *notes]).rstrip()


def table(checkout: Path, words: str | None) -> None:
    """Prints, by example, milliseconds of stock SVI, and of ours the difference of losses and how many times faster."""
    print(f"{'':20}  ms stock   eager: losses, faster   compiled: losses, faster  ('!': over {TOLERANCE:g} apart)")
    for name, (file, make) in EXAMPLES.items():
        if words is None or words in name:
            with warnings.catch_warnings(), module_of(checkout / "examples" / file) as module:
                warnings.simplefilter("ignore")
                print(f"{name:20}{compare(make, module)}", flush=True)
