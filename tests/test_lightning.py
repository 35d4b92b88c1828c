"""SVIModule has the losses and gradients of our SVI, and Lightning's Trainer takes its steps."""

from __future__ import annotations

import copy
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import members
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import SVI, VAE, conditionals, elbo, likelihoods, nets, priors

lightning = pytest.importorskip("lightning")
from pyro_vae.lightning import SVIModule  # noqa: E402 - which asks for lightning

BATCHES = [torch.rand(n, 5, generator=torch.Generator().manual_seed(n)).round() for n in (10, 10, 4)]
ADAM = partial(torch.optim.Adam, lr=0.01)
X = torch.rand(24, 5, generator=torch.Generator().manual_seed(0)).round()


@pytest.fixture(autouse=True)
def _no_advice() -> Iterator[None]:
    """Lightning's own warnings: of workers, of the validation that is left out, of logging intervals."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


def small_vae(likelihood: Callable[..., Any] = likelihoods.Bernoulli) -> VAE:
    torch.manual_seed(0)
    return VAE(
        priors.StandardNormal(2),
        likelihood(nets.MLP(2, [4]), 5),
        conditionals.DiagonalNormal(nets.MLP(5, [4]), 2),
    )


def trainer(**options: Any) -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


def loader(*tensors: Tensor, batch_size: int = 8) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


LOSSES: dict[str, Callable[[], Any]] = {
    "ELBO": elbo.ELBO,
    "ELBO, beta and analytic KL": lambda: elbo.ELBO(beta=0.5, analytic_kl=True),
    "ELBO, score": lambda: elbo.ELBO(num_particles=3, gradient="score"),
    "IWELBO, dreg": lambda: elbo.IWELBO(num_particles=4, gradient="dreg"),
    "ReweightedWakeSleep": lambda: elbo.ReweightedWakeSleep(num_particles=3, insomnia=0.5),
    "Trace_ELBO": lambda: pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
    "TraceMeanField_ELBO": pyro.infer.TraceMeanField_ELBO,
    "TraceEnum_ELBO": lambda: pyro.infer.TraceEnum_ELBO(max_plate_nesting=1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_SVIModule_has_the_loss_and_the_gradients_of_SVI(name: str) -> None:
    vae = small_vae()
    module = SVIModule(copy.deepcopy(vae), LOSSES[name]())
    torch.manual_seed(1)
    svi = SVI(vae.model, vae.guide, ADAM, LOSSES[name](), compile=False)
    wanted = svi.loss_and_grads(vae.model, vae.guide, X)
    torch.manual_seed(1)
    loss = module(X)
    loss.backward()
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    found, expected = gradients(module.program), gradients(vae)  # type: ignore[arg-type]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    assert dict(pyro.get_param_store().named_parameters()) == {}


@pytest.mark.parametrize("name", members.PROGRAMS)
def test_SVIModule_has_the_gradients_of_SVI_for_every_program(name: str) -> None:
    program, args = members.PROGRAMS[name]()
    loss = elbo.ELBO(num_particles=2, gradient="score" if "Semi" in name else "pathwise")
    module = SVIModule(copy.deepcopy(program), loss)
    torch.manual_seed(1)
    wanted = SVI(program.model, program.guide, ADAM, loss, compile=False).loss_and_grads(
        program.model, program.guide, *args
    )
    torch.manual_seed(1)
    value = module(*args)
    value.backward()
    assert value.item() == pytest.approx(wanted, rel=1e-6)
    found = gradients(module.program)  # type: ignore[arg-type]
    for key, gradient in gradients(program).items():
        torch.testing.assert_close(found[key], gradient)


def test_SVIModule_trains_learned_baselines_and_constrained_parameters() -> None:
    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)

        def forward(self, x: Tensor) -> None:
            scale: Any = self.scale
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 5]).to_event(1), obs=x)

    loss = elbo.ELBO(gradient=elbo.Score(baseline=nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))))
    program = SimpleNamespace(model=model, guide=Guide())
    module = SVIModule(program, loss, optimizer=ADAM)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    assert len(before) == 3
    trainer(max_epochs=1).fit(module, loader(X))
    assert all(not torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert (program.guide.scale > 0).all()


@pytest.mark.parametrize("validated", [False, True])
def test_Trainer_takes_the_steps_of_SVI(validated: bool) -> None:
    vae = small_vae()
    module = SVIModule(copy.deepcopy(vae), elbo.IWELBO(num_particles=3), optimizer=ADAM)
    torch.manual_seed(1)
    svi = SVI(vae.model, vae.guide, ADAM, elbo.IWELBO(num_particles=3), compile=False)
    losses = [[svi.step(x) / len(x) for x in BATCHES] for _ in range(3)]
    torch.manual_seed(1)
    own = trainer(max_epochs=3)
    own.fit(module, Repeated(BATCHES), Repeated(BATCHES) if validated else None)
    found = dict(module.named_parameters())
    for name, wanted in vae.named_parameters():
        assert torch.equal(found[f"program.{name}"], wanted)
    mean = sum(len(x) * loss for x, loss in zip(BATCHES, losses[-1], strict=True)) / 24
    assert float(own.callback_metrics["train_loss"]) == pytest.approx(mean, rel=1e-5)
    assert "train_elbo" not in own.callback_metrics
    assert ("val_elbo" in own.callback_metrics) == validated


class Repeated:
    """Batches, in one order and without a draw."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def test_SVIModule_logs_the_elbo_of_validation_data() -> None:
    """With the exact posterior as the guide every draw tells log p(x), of a Normal of variance 2."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    class Posterior(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.slope * x, math.sqrt(0.5)))

    x = torch.linspace(-2, 2, 7)
    own = trainer(max_epochs=1)
    module = SVIModule(SimpleNamespace(model=model, guide=Posterior()), optimizer=partial(torch.optim.SGD, lr=0.0))
    own.fit(module, loader(x, batch_size=3), loader(x, batch_size=3))
    found = {name: float(value) for name, value in own.callback_metrics.items()}
    exact = float(dist.Normal(0.0, math.sqrt(2)).log_prob(x).mean())
    assert found["val_elbo"] == pytest.approx(exact, rel=1e-5)
    assert found["train_elbo"] == pytest.approx(exact, rel=1e-5)
    assert found["train_loss"] == pytest.approx(-exact, rel=1e-5)
    assert found["val_expected_log_likelihood"] - found["val_kl"] == pytest.approx(exact, rel=1e-5)


def test_SVIModule_calibrates_what_no_gradient_learns() -> None:
    vae = small_vae(likelihoods.SigmaNormal)
    before = {name: value.clone() for name, value in vae.named_buffers()}
    module = SVIModule(vae, optimizer=partial(torch.optim.SGD, lr=0.0))
    trainer(max_epochs=1).fit(module, loader(0.1 * X, batch_size=24))
    after = dict(vae.named_buffers())
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed
    with torch.no_grad():
        scale = vae.decode(torch.zeros(1, 2)).base_dist.scale.flatten()[0]
    rough = (0.1 * X - vae.eval().reconstruct(0.1 * X)).square().mean().sqrt()  # at another draw of z
    assert float(scale) == pytest.approx(float(rough), rel=0.05)


def test_SVIModule_takes_contexts_and_schedules() -> None:
    program, (x, context) = members.PROGRAMS["ConditionalVAE"]()
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1)
    module = SVIModule(program, optimizer=ADAM, scheduler=schedule)
    own = trainer(max_epochs=2)
    own.fit(module, loader(x, context))
    assert own.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)


def test_SVIModule_state_holds_each_parameter_once() -> None:
    vae = small_vae()
    module = SVIModule(vae)
    assert list(module.state_dict()) == [f"program.{name}" for name in vae.state_dict()]
    assert len(list(module.parameters())) == len(list(vae.parameters()))


def test_SVIModule_leaves_frozen_parameters() -> None:
    vae = small_vae()
    vae.likelihood.requires_grad_(False)
    before = copy.deepcopy(vae.likelihood.state_dict())
    trainer(max_epochs=1).fit(SVIModule(vae, optimizer=ADAM), loader(X))
    assert all(torch.equal(value, before[name]) for name, value in vae.likelihood.state_dict().items())


def local_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def with_param(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, torch.ones(len(x))))


@pytest.mark.parametrize("guide", [with_param, AutoNormal(local_model)], ids=["pyro.param", "AutoNormal"])
def test_SVIModule_refuses_parameters_that_come_too_late(guide: Any) -> None:
    module = SVIModule(SimpleNamespace(model=local_model, guide=guide), optimizer=_of_any)
    with pytest.raises(
        ValueError, match=r"SVIModule: expected parameters of modules that are there before training; got '"
    ):
        trainer(max_epochs=1).fit(module, DataLoader(torch.randn(4), batch_size=4))  # type: ignore[arg-type]


def _of_any(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters or [torch.zeros(1, requires_grad=True)], lr=0.1)


def test_SVIModule_takes_a_lazy_guide_that_was_run() -> None:
    x, guide = torch.randn(4), AutoNormal(local_model)
    with pyro.get_param_store().scope():
        guide(x)
    before = [p.detach().clone() for p in guide.parameters()]
    own = trainer(max_epochs=1)
    own.fit(SVIModule(SimpleNamespace(model=local_model, guide=guide)), DataLoader(x, batch_size=4))  # type: ignore[arg-type]
    assert before
    assert not any(torch.equal(p, q) for p, q in zip(guide.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss": pyro.infer.TraceGraph_ELBO()},
            "one loss to differentiate; got TraceGraph_ELBO. Use one of pyro_vae.elbo",
        ),
        ({"loss": pyro.infer.RenyiELBO(num_particles=2)}, "one loss to differentiate; got RenyiELBO"),
        (
            {"loss": pyro.infer.ReweightedWakeSleep(num_particles=2)},
            "one loss to differentiate; got ReweightedWakeSleep",
        ),
        ({"loss": pyro.infer.TraceTailAdaptive_ELBO(num_particles=2)}, "differentiate; got TraceTailAdaptive_ELBO"),
        ({"loss": "elbo"}, "expected loss to be a ELBO; got 'elbo'"),
        (
            {"optimizer": pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3})},
            "makes a torch.optim optimizer; got PyroOptim, of Pyro",
        ),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)}, "expected optimizer a callable from parameters"),
        ({"program": nn.Linear(2, 2)}, "expected program to be a Program; got Linear. Give a VAE"),
    ],
)
def test_SVIModule_refuses_what_it_cannot_train(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SVIModule(**{"program": small_vae(), **options})


def test_SVIModule_missing_lightning_is_an_error_that_names_the_extra(monkeypatch: Any) -> None:
    monkeypatch.delitem(sys.modules, "pyro_vae.lightning")
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(ImportError, match=r"expected lightning to be installed; .*pip install 'pyro-vae\[lightning\]'"):
        importlib.import_module("pyro_vae.lightning")
