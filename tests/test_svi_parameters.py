"""What an SVI trains: nothing is left out without a word, and nothing else is moved."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from pyro_vae import SVI, VAE, conditionals, elbo, fit, likelihoods, nets, priors
from pyro_vae.compilation import graph

ADAM = partial(torch.optim.Adam, lr=0.1)
OPTIM: Any = pyro.optim  # which makes its classes when it is imported


def small_vae() -> VAE:
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4]), 5),
        conditionals.DiagonalNormal(nets.MLP(5, [4]), 2),
    )


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}


class Program(nn.Module):
    """A program of modules that are registered with Pyro in part: as many write them first."""

    latents = ("z",)
    observed = ("x",)

    def __init__(self, *registered: str) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 2), nn.Linear(2, 5)
        self.registered = registered

    def model(self, x: Tensor) -> None:
        if "decoder" in self.registered:
            pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        if "encoder" in self.registered:
            pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


# Modules that Pyro does not know


@pytest.mark.parametrize("loss", [elbo.ELBO, Trace_ELBO])
@pytest.mark.parametrize(
    ("registered", "lost"),
    [
        ((), "4 that no step would move: encoder.weight, encoder.bias, decoder.weight, decoder.bias"),
        (("decoder",), "2 that no step would move: encoder.weight, encoder.bias"),
    ],
)
def test_SVI_unregistered_modules_are_named_before_the_first_step(
    registered: tuple[str, ...], lost: str, loss: Callable[[], pyro.infer.ELBO]
) -> None:
    program = Program(*registered)
    before = snapshot(program)
    with pytest.raises(ValueError, match=lost):
        SVI(program.model, program.guide, ADAM, loss()).step(torch.ones(4, 5))
    with pytest.raises(ValueError, match=lost):
        fit(program, torch.ones(4, 5), epochs=1, loss=loss(), progress=False)
    assert moved(program, before) == set()
    assert all(parameter.grad is None for parameter in program.parameters())


@pytest.mark.parametrize("compile", [False, True])
def test_SVI_registered_and_frozen_modules_are_trained_and_left(compile: bool) -> None:
    program = Program("encoder", "decoder")
    program.encoder.requires_grad_(False).eval()
    before = snapshot(program)
    svi = SVI(program.model, program.guide, ADAM, elbo.ELBO(), compile=compile)
    for _ in range(4):
        svi.step(torch.ones(4, 5))
    assert moved(program, before) == {"decoder.weight", "decoder.bias"}


def test_SVI_modules_that_take_no_part_are_no_error() -> None:
    teacher = nn.Linear(5, 5)

    def model(x: Tensor) -> None:
        with torch.no_grad():
            x = teacher(x)
        slope = pyro.param("slope", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(slope * x, 1.0).to_event(1), obs=x)

    svi = SVI(model, lambda x: None, ADAM, elbo.ELBO())
    teacher.weight.grad = torch.ones_like(teacher.weight)  # of another loss
    svi.step(torch.ones(4, 5))
    assert teacher.weight.grad is not None
    assert torch.equal(teacher.weight.grad, torch.ones(5, 5))


# Optimizers


def test_SVI_optimizer_that_is_none_or_lacks_parameters_is_refused() -> None:
    vae, x = small_vae(), torch.randn(4, 5)
    with pytest.raises(TypeError, match=r"expected optimizer to make a .*; got NoneType"):
        SVI(vae.model, vae.guide, lambda parameters: None, elbo.ELBO()).step(x)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match=r"expected optimizer to make a .*; got NoneType"):
        fit(vae, x, optimizer=lambda parameters: None, epochs=1, progress=False)  # type: ignore[arg-type, return-value]
    with pytest.raises(
        ValueError, match=r"expected an optimizer of all parameters that it is given; got one without .*bias"
    ):
        SVI(vae.model, vae.guide, lambda p: torch.optim.Adam([w for w in p if w.dim() > 1]), elbo.ELBO()).step(x)


def test_SVI_optim_is_another_name_of_optimizer() -> None:
    vae, x = small_vae(), torch.randn(4, 5)
    SVI(vae.model, vae.guide, optim=OPTIM.Adam({"lr": 0.1}), loss=elbo.ELBO()).step(x)
    with pytest.raises(TypeError, match="SVI: expected one optimizer; got both optimizer and optim"):
        SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), optim=ADAM)
    with pytest.raises(TypeError, match="SVI: expected one optimizer; got none"):
        SVI(vae.model, vae.guide, loss=elbo.ELBO())


OPTIMIZERS: dict[str, Callable[[], pyro.optim.PyroOptim]] = {
    "Adam": lambda: OPTIM.Adam({"lr": 0.1}),
    "SGD": lambda: OPTIM.SGD({"lr": 0.01}),
    "SGD with momentum": lambda: OPTIM.SGD({"lr": 0.01, "momentum": 0.9}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.9}),
    "ExponentialLR": lambda: OPTIM.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
    ),
}


def two_models_of_one_module(make: Any, optimizer: Any) -> list[float]:
    """Losses of steps in turns, as in Pyro's semi-supervised example with an auxiliary loss."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    net = nn.Linear(3, 3)

    def program(sign: float) -> Callable[[Tensor], None]:
        def model(x: Tensor) -> None:
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=sign * x + 1)

        return model

    steps = [make(program(sign), lambda x: None, optimizer, loss=Trace_ELBO()) for sign in (1.0, -2.0)]
    return [svi.step(torch.ones(4, 3)) for _ in range(5) for svi in steps]


@pytest.mark.usefixtures("global_store")
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_SVI_shared_optimizer_takes_the_steps_of_stock_svi(name: str) -> None:
    stock = two_models_of_one_module(pyro.infer.SVI, OPTIMIZERS[name]())
    assert two_models_of_one_module(SVI, OPTIMIZERS[name]()) == pytest.approx(stock, rel=1e-6)


@pytest.mark.usefixtures("global_store")
def test_SVI_optimizer_that_comes_to_be_shared_keeps_its_state_and_settings() -> None:
    def losses(make: Any) -> list[float]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        net, optimizer = nn.Linear(3, 3), OPTIM.Adam({"lr": 0.1})

        def model(x: Tensor) -> None:
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x + 1)

        first = make(model, lambda x: None, optimizer, loss=Trace_ELBO())
        result = [first.step(torch.ones(4, 3)) for _ in range(5)]
        second = make(model, lambda x: None, optimizer, loss=Trace_ELBO())
        return result + [svi.step(torch.ones(4, 3)) for _ in range(3) for svi in (first, second)]

    assert losses(SVI) == pytest.approx(losses(pyro.infer.SVI), rel=1e-5)


# Parameters that take no part in a step


def steps_in_turns(make: Any, optimizer: Any, options: dict[str, Any]) -> list[float]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    nets_ = [nn.Linear(3, 3), nn.Linear(3, 3)]

    def model(x: Tensor, turn: int) -> None:
        for i, net in enumerate(nets_):
            pyro.module(f"net{i}", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(nets_[turn](x), 1.0).to_event(1), obs=x + 1)

    svi = make(model, lambda x, turn: None, optimizer, loss=Trace_ELBO(), **options)
    return [svi.step(torch.ones(4, 3), step // 2 % 2) for step in range(12)]


@pytest.mark.usefixtures("global_store")
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_SVI_parameter_without_part_in_a_step_moves_as_in_pyro(name: str, compile: bool) -> None:
    stock = steps_in_turns(pyro.infer.SVI, OPTIMIZERS[name](), {})
    ours = steps_in_turns(SVI, OPTIMIZERS[name](), {"compile": compile})
    assert ours == pytest.approx(stock, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_SVI_parameter_without_part_in_a_step_is_left_by_a_torch_optimizer() -> None:
    by_torch = steps_in_turns(SVI, ADAM, {"compile": False})
    by_pyro = steps_in_turns(SVI, OPTIMIZERS["Adam"](), {"compile": False})
    # the first network rests in steps 2 and 3, in which momentum moves it on
    assert by_torch[:4] == pytest.approx(by_pyro[:4], rel=1e-5)
    assert by_torch[4] != pytest.approx(by_pyro[4], rel=1e-3)


# Pyro's store: function programs


def slope_model(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(slope, 1.0), obs=x)


@pytest.mark.parametrize("loss", [elbo.ELBO, Trace_ELBO])
def test_SVI_second_svi_evaluates_what_the_first_has_trained(loss: Callable[[], pyro.infer.ELBO]) -> None:
    x = torch.full((5,), 3.0)
    trained = SVI(slope_model, lambda x: None, ADAM, loss())
    for _ in range(200):
        trained.step(x)
    assert pyro.param("slope").item() == pytest.approx(3, abs=0.05)
    check = SVI(slope_model, lambda x: None, ADAM, loss())
    assert check.evaluate_loss(x) == pytest.approx(trained.evaluate_loss(x))
    assert pyro.infer.SVI(slope_model, lambda x: None, OPTIM.SGD({"lr": 0.1}), Trace_ELBO()).evaluate_loss(
        x
    ) == pytest.approx(trained.evaluate_loss(x))


@pytest.mark.parametrize("compile", [False, True])
def test_SVI_store_that_the_user_changes_is_followed(compile: bool) -> None:
    x = torch.full((5,), 3.0)
    svi = SVI(slope_model, lambda x: None, ADAM, elbo.ELBO(), compile=compile)
    first = [svi.step(x) for _ in range(5)]
    with torch.no_grad():  # as Pyro's example of sparse gammas clips its parameters
        pyro.param("slope").copy_(torch.tensor(-1.0))
    at_minus_one = -dist.Normal(-1.0, 1.0).log_prob(x).sum().item()
    assert svi.step(x) == pytest.approx(at_minus_one)
    pyro.get_param_store()["slope"] = torch.tensor(-1.0)
    assert svi.step(x) == pytest.approx(at_minus_one)
    assert svi.step(x) < at_minus_one
    pyro.clear_param_store()
    assert [svi.step(x) for _ in range(5)] == pytest.approx(first, rel=1e-5)


@pytest.mark.usefixtures("global_store")
def test_SVI_modules_of_one_name_stay_apart() -> None:
    # In Pyro's store both would have the entry "net$$$weight", and the second would stay untrained.
    for make in (pyro.infer.SVI, SVI, SVI):
        net = nn.Linear(1, 1)

        def model(x: Tensor, net: nn.Module = net) -> None:
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x + 1)

        before = snapshot(net)
        make(partial(model, net=net), lambda x: None, OPTIM.SGD({"lr": 0.1}), loss=Trace_ELBO()).step(torch.ones(4, 1))
        assert moved(net, before) == {"weight", "bias"}


# What changes under a step


@pytest.mark.parametrize("compile", [False, True])
def test_SVI_replaced_parameter_is_trained(compile: bool) -> None:
    vae, x = small_vae(), torch.randn(4, 5)
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=compile)
    for _ in range(4):
        svi.step(x)
    layer = next(module for module in vae.likelihood.modules() if isinstance(module, nn.Linear))
    layer.bias = nn.Parameter(torch.full_like(layer.bias, 0.5))
    torch.manual_seed(1)
    expected = SVI(vae.model, vae.guide, ADAM, elbo.ELBO()).evaluate_loss(x)
    for step in range(4):
        torch.manual_seed(1)
        loss = svi.step(x)
        assert step > 0 or loss == pytest.approx(expected, rel=1e-5)
    assert not torch.equal(layer.bias, torch.full_like(layer.bias, 0.5))


@pytest.mark.parametrize("compile", [False, True])
def test_SVI_replaced_module_is_trained(compile: bool) -> None:
    vae, x = small_vae(), torch.randn(4, 5)
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=compile)
    for _ in range(4):
        svi.step(x)
    former = vae.likelihood
    vae.model.likelihood = likelihoods.Normal(nets.MLP(2, [4]), 5)
    before, untouched = snapshot(vae.likelihood), snapshot(former)
    for _ in range(3):
        svi.step(x)
    assert moved(vae.likelihood, before) == set(before)
    assert moved(former, untouched) == set()


@pytest.mark.parametrize("compile", [False, True])
def test_SVI_module_that_a_function_names_may_be_bound_anew(compile: bool) -> None:
    net = nn.Linear(1, 1)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x + 1)

    svi = SVI(model, lambda x: None, ADAM, elbo.ELBO(), compile=compile)
    for _ in range(4):
        svi.step(torch.ones(4, 1))
    net = nn.Linear(1, 1)
    before = snapshot(net)
    svi.step(torch.ones(4, 1))
    assert moved(net, before) == {"weight", "bias"}


def test_SVI_vamp_prior_follows_a_replaced_posterior() -> None:
    vae = VAE(
        priors.VampPrior(torch.rand(3, 5)),
        likelihoods.Normal(nets.MLP(2, [4]), 5),
        conditionals.DiagonalNormal(nets.MLP(5, [4]), 2),
    )
    new = conditionals.DiagonalNormal(nets.MLP(5, [4]), 2)
    vae.guide.posterior = new
    z = torch.randn(6, 2)
    inputs = vae.prior.get_parameter("pseudo_inputs").clamp(0, 1)
    expected = torch.stack([new(x).log_prob(z) for x in inputs]).logsumexp(0)
    torch.testing.assert_close(vae.prior().log_prob(z), expected - torch.tensor(3.0).log())


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_SVI_step_needs_no_mode_of_gradients(mode: Callable[[], Any], compile: bool) -> None:
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=compile)
    before = snapshot(vae)
    with mode():
        x = torch.randn(4, 5)  # in inference mode, a tensor that autograd does not take
        for _ in range(4):
            svi.step(x)
    assert moved(vae, before) == set(before)
    with mode():
        fit(vae, x, epochs=1, progress=False)


@pytest.mark.parametrize("compile", [False, True])
def test_SVI_step_inherits_no_gradient(compile: bool) -> None:
    losses: list[list[float]] = []
    for left in (False, True):
        torch.manual_seed(0)
        vae, x = small_vae(), torch.randn(4, 5)
        svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=compile)
        losses.append([])
        for _ in range(5):
            for parameter in vae.parameters() if left else ():
                parameter.grad = torch.full_like(parameter, 1e3)
            losses[-1].append(svi.step(x))
    assert losses[0] == losses[1]


def test_SVI_loss_without_gradient_is_refused() -> None:
    class Cut(PyroModule):
        def __init__(self) -> None:
            super().__init__("cut")
            self.slope = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.slope.detach(), 1.0), obs=x)

    with pytest.raises(ValueError, match="SVI: expected a loss with a gradient; got one that depends on none of the 1"):
        SVI(Cut(), lambda x: None, ADAM, elbo.ELBO()).step(torch.ones(3))


def test_SVI_two_threads_train_two_programs() -> None:
    x, errors = torch.randn(4, 5), []

    def train() -> None:
        vae = small_vae()
        try:
            svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=False)
            for _ in range(50):
                svi.step(x)
        except Exception as error:  # noqa: BLE001 - a thread's error is its test's
            errors.append(error)

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# Compiled steps and rounding


def test_SVI_gradient_that_is_zero_but_for_rounding_is_no_difference() -> None:
    torch.manual_seed(0)

    class Normalized(nets.Body):
        def __init__(self) -> None:
            super().__init__([5], 16)
            self.layers = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU())

        def forward(self, *inputs: Tensor) -> Tensor:
            return self.layers(inputs[0])

    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4]), 5),
        conditionals.DiagonalNormal(Normalized(), 2),
    )
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=True)
    for _ in range(5):
        svi.step(torch.randn(64, 5))
    assert svi.compiler.num_graphs == 1


def test_SVI_every_pair_of_calls_in_turn_is_one_step_each() -> None:
    # what the first call leaves must not show in the second
    for first, second in itertools.product(("step", "evaluate_loss", "initialize"), repeat=2):
        vae, x = small_vae(), torch.randn(4, 5)
        svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO())
        before = snapshot(vae)
        getattr(svi, first)(x)
        getattr(svi, second)(x)
        assert svi.num_steps == [first, second].count("step")
        assert bool(moved(vae, before)) == (svi.num_steps > 0)


# What a program holds beside its modules


def _normal_guide(network: nn.Module) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        pyro.module("network", network)
        out = network(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(out[:, :1], out[:, 1:].exp()).to_event(1))

    return guide


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("loss", [elbo.ELBO(), Trace_ELBO(), pyro.infer.TraceMeanField_ELBO()])
@pytest.mark.parametrize("kind", [nn.Parameter, lambda t: t.requires_grad_()])
def test_SVI_trainable_tensor_outside_of_modules_is_refused(loss: Any, kind: Callable[[Tensor], Tensor]) -> None:
    leaf, x = kind(torch.zeros(4)), torch.randn(50, 4)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + leaf, 1.0).to_event(1), obs=x)

    svi = SVI(model, _normal_guide(nn.Linear(4, 2)), partial(torch.optim.Adam, lr=0.1), loss)
    with pytest.raises(ValueError, match=r"1 that no step would move: a tensor of shape \(4,\)\. .*pyro\.param"):
        svi.step(x)


@pytest.mark.usefixtures("global_store")
def test_SVI_lost_parameters_of_one_name_are_told_apart_by_their_modules() -> None:
    decoder = nn.Linear(1, 4, bias=False)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    guide = _normal_guide(nn.Linear(4, 2, bias=False))
    svi = SVI(model, guide, partial(torch.optim.Adam, lr=0.1), elbo.ELBO())
    with pytest.raises(ValueError, match=r"1 that no step would move: weight of module 1 of 2, a Linear\. Make"):
        svi.step(torch.randn(50, 4))


@pytest.mark.usefixtures("global_store")
def test_SVI_module_that_takes_part_late_is_found() -> None:
    late: list[nn.Module] = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            loc = late[0](z) if late else z.expand(-1, 4)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    svi = SVI(model, _normal_guide(nn.Linear(4, 2)), partial(torch.optim.Adam, lr=0.1), elbo.ELBO(), compile=False)
    x = torch.randn(50, 4)
    for _ in range(3):
        svi.step(x)
    late.append(nn.Linear(1, 4))
    svi.step(x)  # the fourth; what follows a power of two is accounted for
    with pytest.raises(ValueError, match="that no step would move"):
        svi.step(x)


@pytest.mark.usefixtures("global_store")
def test_SVI_data_that_require_gradients_are_no_parameters() -> None:
    vae = small_vae()
    x = torch.ones(5, 5, requires_grad=True)
    assert math.isfinite(SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.1), elbo.ELBO()).step(x))


def test_SVI_frozen_program_is_refused() -> None:
    vae = small_vae().requires_grad_(False)
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.1), elbo.ELBO())
    with pytest.raises(ValueError, match=r"SVI: expected something to train; got \d+ parameters, all of them frozen"):
        svi.step(torch.ones(5, 5))


@pytest.mark.parametrize("compile", [False, True])
def test_SVI_another_model_is_trained(compile: bool) -> None:
    first, second = small_vae(), small_vae()
    svi = SVI(first.model, first.guide, partial(torch.optim.Adam, lr=0.1), elbo.ELBO(), compile=compile)
    x = torch.ones(5, 5)
    for _ in range(3):
        svi.step(x)
    svi.model = second.model
    before = [p.clone() for p in (*first.model.parameters(), *second.model.parameters())]
    for _ in range(2):
        svi.step(x)
    after = [*first.model.parameters(), *second.model.parameters()]
    moved = [not torch.equal(p, q) for p, q in zip(before, after, strict=True)]
    half = len(moved) // 2
    assert not any(moved[:half])
    assert all(moved[half:])


def test_SVI_hooks_and_replaced_forwards_are_seen_by_compiled_steps() -> None:
    def losses(compile: bool) -> list[float]:
        torch.manual_seed(0)
        vae = small_vae()
        svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.1), elbo.ELBO(), compile=compile)
        x = torch.ones(5, 5)
        found = []
        for change in (
            lambda: None,
            lambda: vae.likelihood.body.register_forward_hook(lambda module, given, out: out * 0),
            lambda: vae.likelihood.register_forward_pre_hook(lambda module, given: (given[0] * 100,)),
            lambda: setattr(vae.likelihood.body, "forward", lambda z: z.sum(-1, keepdim=True).expand(*z.shape[:-1], 4)),
        ):
            change()
            torch.manual_seed(0)
            found += [svi.step(x), svi.step(x)]
        return found

    assert losses(True) == pytest.approx(losses(False), rel=1e-5)


class Shifted(nn.Module):
    """A program that adds a number, from outside of its modules, once it is told to."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shifted = False
        self.shift = shift
        self.encoder = nn.Linear(4, 2)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1)).expand(-1, 4)
            loc = z + self.shift if self.shifted else z
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        _normal_guide(self.encoder)(x)


@pytest.mark.parametrize("compile", [False, True])
def test_SVI_tensor_that_another_graph_reads_is_refused(compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "compile_graph", lambda recorded, _: recorded)
    program = Shifted(torch.zeros(4, requires_grad=True))
    svi = SVI(program.model, program.guide, ADAM, elbo.ELBO(), compile=compile, isolated=True)
    x = torch.randn(50, 4)
    for _ in range(4):
        svi.step(x)
    program.shifted = True
    with pytest.raises(ValueError, match=r"1 that no step would move: a tensor of shape \(4,\)"):
        svi.step(x)


def test_SVI_arguments_are_data_wherever_they_are_but_not_what_they_were_computed_from() -> None:
    vae, x, other = small_vae(), torch.ones(5, 5), nn.Linear(5, 5)
    trainable = x.clone().requires_grad_()
    svi = SVI(lambda d: vae.model(d["x"]), lambda d: vae.guide(d["x"]), ADAM, elbo.ELBO())
    assert math.isfinite(svi.step({"x": trainable}))
    assert math.isfinite(
        SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), prepare=lambda rows: (trainable,)).step(torch.arange(3))
    )
    with pytest.raises(ValueError, match="2 that no step would move"):
        SVI(vae.model, vae.guide, ADAM, elbo.ELBO()).step(other(x))


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("loss", [elbo.ELBO, Trace_ELBO])
def test_SVI_program_that_is_frozen_between_steps_is_refused(
    loss: Callable[[], pyro.infer.ELBO], compile: bool
) -> None:
    vae, x = small_vae(), torch.ones(5, 5)
    svi = SVI(vae.model, vae.guide, ADAM, loss(), compile=compile)
    for _ in range(3 - compile):
        svi.step(x)
    vae.requires_grad_(False)
    with pytest.raises(ValueError, match=r"expected something to train; got \d+ parameters, all of them frozen"):
        svi.step(x)
    vae.requires_grad_(True)
    svi.step(x)


def test_SVI_another_loss_is_checked_and_accounted_for() -> None:
    vae, x, factor = small_vae(), torch.ones(5, 5), torch.ones((), requires_grad=True)
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO())
    for _ in range(3):
        svi.step(x)
    svi.loss = lambda *args: factor * elbo.ELBO().differentiable_loss(*args)
    with pytest.raises(ValueError, match=r"1 that no step would move: a tensor of shape \(\)"):
        svi.step(x)
    with pytest.raises(TypeError, match=r"SVI: expected loss a pyro\.infer\.ELBO; got int"):
        svi.loss = 3
    svi.loss = elbo.ELBO()
    svi.step(x)


def without_gradient(module: nn.Module, given: Any, out: Any) -> Any:
    return (given[0] * 0,)


CHANGES: dict[str, Callable[[VAE], Any]] = {
    "a method": lambda vae: setattr(vae.likelihood.body, "features", lambda z: torch.zeros(*z.shape[:-1], 4)),
    "an attribute over that of a class": lambda vae: setattr(vae.likelihood.body, "scale", 3.0),
    "a function": lambda vae: setattr(vae.likelihood.body, "last", torch.sin),
    "numbers": lambda vae: setattr(vae.likelihood.body, "factors", (3.0, 1.0)),
    "a backward hook": lambda vae: vae.likelihood.body.register_full_backward_hook(without_gradient),
}


class Wave(nets.Body):
    """A network with a function, a number of its class and a tuple of numbers."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__([2], 4)
        self.linear = nn.Linear(2, 4)
        self.last = torch.tanh
        self.factors = (1.0, 1.0)

    def features(self, *inputs: Tensor) -> Tensor:
        return self.last(self.linear(inputs[0])) * self.factors[0] * self.scale


def halved(module: nn.Module, given: Any, out: Any) -> Any:
    return out / 2 if isinstance(module, nn.Linear) else None


@pytest.mark.parametrize("what", [*CHANGES, "a hook of all modules"])
def test_SVI_what_changes_beside_forward_is_seen_by_compiled_steps(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "compile_graph", lambda recorded, _: recorded)

    def losses(compile: bool) -> list[float]:
        torch.manual_seed(0)
        posterior = conditionals.DiagonalNormal(nets.MLP(5, [4]), 2)
        vae, x = VAE(priors.StandardNormal(2), likelihoods.Normal(Wave(), 5), posterior), torch.ones(5, 5)
        svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), compile=compile)
        before = [svi.step(x) for _ in range(4)]
        hook = CHANGES[what](vae) if what in CHANGES else register_module_forward_hook(halved)
        try:
            return before + [svi.step(x) for _ in range(4)]
        finally:
            if hook is not None:
                hook.remove()

    assert losses(True) == pytest.approx(losses(False), rel=1e-5)


def held(svi: SVI) -> torch.optim.Optimizer:
    assert isinstance(svi.optimizer, torch.optim.Optimizer)
    return svi.optimizer


def flat(state: Any, name: Any = "") -> list[tuple[Any, Tensor]]:
    """Tensors of nested dictionaries, with the names that these give them."""
    if isinstance(state, dict):
        return [entry for key, value in state.items() for entry in flat(value, key)]
    return [(name, state)] if isinstance(state, Tensor) else []


DOUBLE: dict[str, Callable[[], Any]] = {
    "Adam": lambda: ADAM,
    "fused Adam": lambda: partial(torch.optim.Adam, lr=0.1, fused=True),
    "SGD with momentum": lambda: partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "one of pyro.optim": lambda: OPTIM.Adam({"lr": 0.1}),
    "many of pyro.optim": lambda: OPTIM.Adam(lambda name: {"lr": 0.1}),
    "a schedule of pyro.optim": OPTIMIZERS["ExponentialLR"],
}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", DOUBLE)
def test_SVI_program_that_becomes_double_is_trained_as_before(
    name: str, compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On arguments that stay as they are, so that nothing else tells of it."""
    monkeypatch.setattr(graph, "compile_graph", lambda recorded, _: recorded)
    data = torch.linspace(-1, 1, 25).view(5, 5)

    vae = small_vae()

    def prepare(rows: Tensor) -> tuple[Tensor]:
        return (data[rows].to(next(vae.parameters()).dtype),)

    svi = SVI(vae.model, vae.guide, DOUBLE[name](), elbo.ELBO(), compile=compile, prepare=prepare, ema_decay=0.9)
    for _ in range(5):
        svi.step(torch.arange(5))
    vae.double()
    before = snapshot(vae)
    for _ in range(4):
        assert math.isfinite(svi.step(torch.arange(5)))
    assert moved(vae, before) == set(before)
    with svi.averaged():
        assert math.isfinite(svi.evaluate_loss(torch.arange(5)))
    states = svi.optimizer.get_state() if isinstance(svi.optimizer, pyro.optim.PyroOptim) else held(svi).state_dict()
    assert {tensor.dtype for key, tensor in flat(states) if key != "step"} == {torch.float64}


@pytest.mark.parametrize("compile", [False, True])
def test_SVI_program_that_becomes_double_goes_on(compile: bool) -> None:
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), elbo.ELBO(), compile=compile)
    x = torch.ones(5, 5)
    for _ in range(3):
        svi.step(x)
    vae.double()
    assert all(math.isfinite(svi.step(x.double())) for _ in range(3))
    assert isinstance(svi.optimizer, torch.optim.Optimizer)
    assert {s["exp_avg"].dtype for s in svi.optimizer.state.values()} == {torch.float64}


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_SVI_optimizers_that_cannot_take_such_a_step_are_refused(optimizer: Any) -> None:
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, optimizer, elbo.ELBO())
    with pytest.raises(TypeError, match="SVI: expected an optimizer that takes one step by dense gradients; got"):
        svi.step(torch.ones(5, 5))
    with pytest.raises(TypeError, match=r"got SparseAdam\. Use torch\.optim\.Adam"):
        SVI(vae.model, vae.guide, OPTIM.SparseAdam(lambda name: {"lr": 0.1}), elbo.ELBO())


def test_SVI_errors_of_programs_are_one_line() -> None:
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), elbo.ELBO())
    with pytest.raises(ValueError, match="expected x, context and size to agree") as caught:
        svi.step(torch.ones(5, 5), torch.ones(3))
    assert "\n" not in str(caught.value)
