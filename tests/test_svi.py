"""SVI takes the steps of stock Pyro, keeps its parameters to itself, validates once, and stops at a NaN."""

import contextlib
import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.contrib.gp
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from oracles import NormalNormal
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae import SVI, VAE, conditionals, data, elbo, likelihoods, nets, priors

ADAM = partial(torch.optim.Adam, lr=0.05)
PYRO_OPTIMIZERS: dict[str, Callable[[], pyro.optim.PyroOptim]] = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05}),  # type: ignore[attr-defined]
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 0.5, "lrd": 0.9}),
    "Adam per parameter": lambda: pyro.optim.Adam(  # type: ignore[attr-defined]
        lambda name: {"lr": 0.1 if "loc" in name else 0.01}
    ),
}
X = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


def normal_normal(*, functions: bool = False) -> NormalNormal:
    return NormalNormal(torch.zeros(3), torch.ones(3), functions=functions)


def small_vae() -> VAE:
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4]), 5),
        conditionals.DiagonalNormal(nets.MLP(5, [4]), 2),
    )


def auto_normal() -> tuple[Callable[..., Any], Callable[..., Any], Tensor]:
    def model(x: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(slope, scale), obs=x)

    return model, AutoNormal(model), torch.tensor([0.5, 1.0, 3.0])


def vae_programs() -> tuple[Callable[..., Any], Callable[..., Any], Tensor]:
    vae = small_vae()
    return vae.model, vae.guide, torch.randn(4, 5)


def function_programs() -> tuple[Callable[..., Any], Callable[..., Any], Tensor]:
    program = normal_normal(functions=True)
    return program.model, program.guide, X


def module_programs() -> tuple[Callable[..., Any], Callable[..., Any], Tensor]:
    program = normal_normal()
    return program.model, program.guide, X


Programs = Callable[[], tuple[Callable[..., Any], Callable[..., Any], Tensor]]
PROGRAMS: dict[str, Programs] = {
    "functions": function_programs,
    "modules": module_programs,
    "AutoNormal": auto_normal,
    "VAE": vae_programs,
}
LOSSES: dict[str, Callable[[], pyro.infer.ELBO]] = {
    "ELBO": elbo.ELBO,
    "Trace_ELBO": pyro.infer.Trace_ELBO,
}


def losses_of(svi: SVI | pyro.infer.SVI, x: Tensor, steps: int = 6) -> list[float]:
    torch.manual_seed(3)
    losses = [svi.step(x) for _ in range(steps)]
    pyro.clear_param_store()  # the parameters of function programs, which another run of them would go on with
    return losses


# The same steps as stock Pyro


def stock_losses(programs: Programs, optimizer: pyro.optim.PyroOptim, **options: Any) -> list[float]:
    torch.manual_seed(2)
    model, guide, x = programs()
    loss = pyro.infer.Trace_ELBO()
    return losses_of(pyro.infer.SVI(model, guide, optimizer, loss, **options), x)


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
@pytest.mark.parametrize("programs", PROGRAMS.values(), ids=list(PROGRAMS))
@pytest.mark.parametrize("optimizer", PYRO_OPTIMIZERS.values(), ids=list(PYRO_OPTIMIZERS))
def test_SVI_pyro_optimizer_takes_the_steps_of_stock_svi(
    optimizer: Callable[[], pyro.optim.PyroOptim], programs: Programs, loss: Callable[[], pyro.infer.ELBO]
) -> None:
    stock = stock_losses(programs, optimizer())
    torch.manual_seed(2)
    model, guide, x = programs()
    ours = losses_of(SVI(model, guide, optimizer(), loss()), x)
    assert ours == pytest.approx(stock, rel=1e-5)
    assert len(set(stock)) == len(stock)


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
@pytest.mark.parametrize("programs", PROGRAMS.values(), ids=list(PROGRAMS))
@pytest.mark.parametrize("fused", [False, True])
def test_SVI_torch_optimizer_takes_the_steps_of_its_pyro_wrapper(
    fused: bool, programs: Programs, loss: Callable[[], pyro.infer.ELBO]
) -> None:
    stock = stock_losses(programs, PYRO_OPTIMIZERS["Adam"]())
    torch.manual_seed(2)
    model, guide, x = programs()
    svi = SVI(model, guide, partial(ADAM, fused=fused), loss())
    assert losses_of(svi, x) == pytest.approx(stock, rel=1e-5)
    assert isinstance(svi.optimizer, torch.optim.Adam)
    assert svi.num_steps == 6


@pytest.mark.usefixtures("global_store")
def test_SVI_loss_in_two_parts_is_their_sum() -> None:
    def loss() -> pyro.infer.ELBO:
        return pyro.infer.ReweightedWakeSleep(num_particles=3, vectorize_particles=True, max_plate_nesting=1)

    program = normal_normal(functions=True)
    stock = pyro.infer.SVI(program.model, program.guide, PYRO_OPTIMIZERS["Adam"](), loss())
    svi = SVI(program.model, program.guide, ADAM, loss())
    torch.manual_seed(3)
    parts: Any = [stock.step(X) for _ in range(4)] + [stock.evaluate_loss(X)]
    pyro.clear_param_store()
    torch.manual_seed(3)
    sums = [svi.step(X) for _ in range(4)] + [svi.evaluate_loss(X)]
    assert sums == pytest.approx([first + second for first, second in parts], rel=1e-5)


def test_SVI_evaluate_loss_takes_no_step() -> None:
    svi = SVI(*function_programs()[:2], ADAM, elbo.ELBO())
    svi.step(X)
    before = {name: p.detach().clone() for name, p in svi.named_parameters().items()}
    torch.manual_seed(3)
    value = svi.evaluate_loss(X)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in svi.named_parameters().items())
    assert svi.num_steps == 1
    torch.manual_seed(3)
    assert svi.step(X) == pytest.approx(value)


@pytest.mark.parametrize("first", ["evaluate_loss", "initialize", "step"])
def test_SVI_training_is_the_same_whatever_is_called_first(first: str) -> None:
    svi, reference = (SVI(*function_programs()[:2], ADAM, elbo.ELBO()) for _ in range(2))
    losses = losses_of(reference, X)
    if first == "step":
        torch.manual_seed(3)
        assert [svi.step(X), *(svi.step(X) for _ in range(5))] == losses
    else:
        getattr(svi, first)(X)
        assert losses_of(svi, X) == losses


# The param store


# What ``pyro.param`` statements make; all else belongs to modules.
STATEMENTS = {"functions": ["loc", "log_scale"], "modules": [], "AutoNormal": ["scale"], "VAE": []}


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_SVI_global_store_has_parameters_of_statements_alone(
    name: str, loss: Callable[[], pyro.infer.ELBO], isolated: bool
) -> None:
    model, guide, x = PROGRAMS[name]()
    svi = SVI(model, guide, ADAM, loss(), isolated=isolated)
    for call in (svi.initialize, svi.step, svi.evaluate_loss, svi.step):
        call(x)
        assert sorted(pyro.get_param_store()) == ([] if isolated else STATEMENTS[name])
    assert len(svi.named_parameters()) > 0
    with svi.scope():
        inside = dict(pyro.get_param_store().named_parameters())
    assert {name: id(p) for name, p in inside.items()} == {n: id(p) for n, p in svi.named_parameters().items()}


@pytest.mark.usefixtures("global_store")
def test_SVI_global_store_keeps_what_it_had_where_parameters_are_isolated() -> None:
    own = pyro.param("loc", torch.tensor([5.0]))
    svi = SVI(*function_programs()[:2], ADAM, elbo.ELBO(), isolated=True)
    svi.step(X)
    assert list(pyro.get_param_store()) == ["loc"]
    assert pyro.param("loc") is own
    with svi.scope():
        assert pyro.param("loc").shape == (3,)
        assert sorted(pyro.get_param_store()) == ["loc", "log_scale"]
    assert own.tolist() == [5.0]


def test_SVI_isolated_objects_keep_the_parameters_of_one_program_apart() -> None:
    program = normal_normal(functions=True)
    first, second = (SVI(program.model, program.guide, ADAM, elbo.ELBO(), isolated=True) for _ in range(2))
    losses_of(first, X)
    before = first.named_parameters()["loc"].detach().clone()
    losses_of(second, -X)
    assert torch.equal(first.named_parameters()["loc"], before)
    assert not torch.equal(second.named_parameters()["loc"], before)


def test_SVI_constrained_parameters_are_optimized_unconstrained() -> None:
    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = PyroParam(torch.full((3,), 0.3, dtype=torch.float64), constraints.positive)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, self.get_scale()))

        def get_scale(self) -> Tensor:
            assert isinstance(self.scale, Tensor)
            return self.scale

    guide = Guide()
    svi = SVI(normal_normal().model, guide, partial(torch.optim.Adam, lr=0.1), elbo.ELBO(num_particles=20))
    for _ in range(100):
        svi.step(X)
    # The optimum is .5^.5 in every place. Near it, the gradient's standard deviation for log scale is (2 / 20)^.5 at
    # curvature 2; Adam of rate .1 then moves about sd / curvature * (rate / 2)^.5 = .035 in log scale: five times that.
    (unconstrained,) = svi.named_parameters().values()
    assert (unconstrained - 0.5 * torch.tensor(0.5).log()).abs().max() < 0.18
    torch.testing.assert_close(guide.get_scale(), unconstrained.exp())


@pytest.mark.parametrize("programs", PROGRAMS.values(), ids=list(PROGRAMS))
def test_SVI_step_runs_each_program_once(programs: Programs) -> None:
    model, guide, x = programs()
    runs: list[str] = []

    def counting(x: Tensor) -> None:
        runs.append("model")
        model(x)

    class CountingModule(PyroModule):
        def __init__(self) -> None:
            super().__init__("counting")
            self.inner = model

        def forward(self, x: Tensor) -> None:
            counting(x)

    svi = SVI(CountingModule() if isinstance(model, nn.Module) else counting, guide, ADAM, elbo.ELBO(num_particles=3))
    for _ in range(3):  # the structure of the program is learned in the first steps
        svi.step(x)
    runs.clear()
    svi.step(x)
    svi.step(x)
    assert runs == ["model", "model"]


# Parameters that come later, or twice, or never


def test_SVI_parameters_that_appear_later_join() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        shift = pyro.param("shift", torch.tensor(0.5)) if len(x) > 1 else torch.tensor(0.0)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    for optimizer in (ADAM, PYRO_OPTIMIZERS["Adam"]()):
        svi = SVI(model, guide, optimizer, elbo.ELBO())
        svi.step(torch.ones(1))
        assert list(svi.named_parameters()) == ["loc"]
        svi.step(torch.ones(2))
        assert sorted(svi.named_parameters()) == ["loc", "shift"]
        assert svi.named_parameters()["shift"].item() != 0.5
        moved = svi.named_parameters()["loc"].item()
        svi.step(torch.ones(1))
        assert svi.named_parameters()["loc"].item() != moved


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_SVI_parameters_that_the_user_gave_the_optimizer_are_not_added_again() -> None:
    vae, x = small_vae(), torch.randn(4, 5)
    frozen = next(iter(vae.guide.parameters())).requires_grad_(False)
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO())
    svi.step(x)
    before = frozen.clone()
    assert isinstance(svi.optimizer, torch.optim.Optimizer)
    svi.optimizer.add_param_group({"params": [frozen.requires_grad_(True)], "lr": 0.5})
    svi.step(x)
    assert len(svi.optimizer.param_groups) == 2
    assert not torch.equal(frozen, before)


def test_SVI_parameters_of_modules_that_appear_later_join() -> None:
    program = normal_normal()

    class Model(PyroModule):
        shift: Tensor

        def forward(self, x: Tensor) -> None:
            program.model(x - self.shift if hasattr(self, "shift") else x)

    model = Model("model")
    svi = SVI(model, program.guide, ADAM, elbo.ELBO())
    losses_of(svi, X, 3)
    model.shift = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    losses_of(svi, X, 3)
    assert "model.shift" in svi.named_parameters()
    assert model.shift.item() != 0.5


@pytest.mark.filterwarnings("ignore:.* was not registered in the param store because requires_grad=False")
def test_SVI_frozen_parameters_stay() -> None:
    vae = small_vae()
    vae.likelihood.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    losses_of(SVI(vae.model, vae.guide, ADAM, elbo.ELBO()), torch.randn(4, 5))
    still = {name for name, p in vae.named_parameters() if torch.equal(p, before[name])}
    assert still == {name for name in before if name.startswith("model.likelihood")}


def test_SVI_parameters_that_pyro_would_copy_are_refused() -> None:
    vae = small_vae()
    layer = vae.likelihood.head.layer
    layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)
    message = (
        "SVI: expected contiguous parameters; got likelihood.head.layer.weight of strides (1, 5). Pyro's param store "
        "would train a copy: use parameter.data = parameter.data.contiguous()."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        SVI(vae.model, vae.guide, ADAM, elbo.ELBO())
    layer.weight.data = layer.weight.data.contiguous()
    before = layer.weight.detach().clone()
    SVI(vae.model, vae.guide, ADAM, elbo.ELBO()).step(torch.randn(4, 5))
    assert not torch.equal(layer.weight, before)


class SharedNet(PyroModule):
    """Model or guide with a network that both hold: z and x are shifted by one offset."""

    def __init__(self, name: str, net: nn.Linear) -> None:
        super().__init__(name)
        self.net = net


class SharedModel(SharedNet):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x), 1]).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


class SharedGuide(SharedNet):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), 1.0).to_event(1))


@pytest.mark.parametrize("optimizer", [ADAM, PYRO_OPTIMIZERS["Adam"]()], ids=["torch", "pyro"])
def test_SVI_shared_parameter_is_moved_once(optimizer: Any) -> None:
    net = nn.Linear(1, 1)
    before = [p.detach().clone() for p in net.parameters()]
    svi = SVI(SharedModel("model", net), SharedGuide("guide", net), optimizer, elbo.ELBO())
    svi.step(torch.tensor([[1.0], [2.0]]))
    assert len(svi.named_parameters()) == 4
    # Adam's first step has the size of the learning rate, whatever the gradient.
    for parameter, old in zip(net.parameters(), before, strict=True):
        assert (parameter - old).abs().item() == pytest.approx(0.05, rel=1e-4)


# Clipping


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("max_grad_norm", [None, 0.25, 1e6])
def test_SVI_gradient_of_all_parameters_together_is_clipped(shared: bool, max_grad_norm: float | None) -> None:
    net = nn.Linear(1, 1)
    other = net if shared else nn.Linear(1, 1)
    other.load_state_dict(net.state_dict())
    model, guide, x = SharedModel("model", other), SharedGuide("guide", net), torch.tensor([[1.0], [20.0]])
    parameters = list(dict.fromkeys([*model.parameters(), *guide.parameters()]))
    before = nn.utils.parameters_to_vector(parameters).detach()
    torch.manual_seed(3)
    with pyro.get_param_store().scope():
        elbo.ELBO().loss_and_grads(model, guide, x)
    gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(3)
    SVI(model, guide, partial(torch.optim.SGD, lr=0.1), elbo.ELBO(), max_grad_norm=max_grad_norm).step(x)
    norm = gradient.norm().item()
    assert norm > 0.25
    factor = min(1.0, 1e9 if max_grad_norm is None else max_grad_norm / norm)
    expected = before - 0.1 * factor * gradient
    torch.testing.assert_close(nn.utils.parameters_to_vector(parameters).detach(), expected)


# Validation

Flags = tuple[bool, bool, bool]


def validation_flags() -> Flags:
    return (
        pyro.infer.util.is_validation_enabled(),
        pyro.poutine.util.is_validation_enabled(),
        bool(torch.distributions.Distribution._validate_args),
    )


def watched_svi(loss: pyro.infer.ELBO) -> tuple[SVI, list[Flags]]:
    program, seen = normal_normal(functions=True), []

    def guide(x: Tensor, flag: bool = False) -> None:
        seen.append(validation_flags())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0, dtype=x.dtype)), 1.0))

    def model(x: Tensor, flag: bool = False) -> None:
        program.model(x)

    return SVI(model, guide, ADAM, loss), seen


ON, OFF = (True, True, True), (False, False, False)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_SVI_first_step_of_every_shape_is_validated_and_no_other(loss: Callable[[], pyro.infer.ELBO]) -> None:
    svi, seen = watched_svi(loss())
    svi.initialize(X)  # computes no density, so it validates nothing for the first step
    seen.clear()
    for x in (X, X, X[:2], X, X[:2], X.float(), X):
        svi.step(x)
        assert validation_flags() == ON
    assert seen == [ON, OFF, ON, OFF, OFF, ON, OFF]
    svi.step(X, flag=True)
    svi.step(X, flag=False)
    svi.evaluate_loss(X)
    assert seen[7:] == [ON, OFF, OFF]


def test_SVI_evaluate_loss_validates_the_first_call_of_every_shape() -> None:
    svi, seen = watched_svi(elbo.ELBO())
    for call in (svi.evaluate_loss, svi.evaluate_loss, svi.step):
        call(X)
    assert seen == [ON, OFF, OFF]


def test_SVI_validation_that_the_user_switched_off_stays_off() -> None:
    svi, seen = watched_svi(elbo.ELBO())
    with pyro.validation_enabled(False):
        svi.step(X)
        svi.step(X)
        assert validation_flags() == OFF
    assert seen == [OFF, OFF]
    assert validation_flags() == ON


def test_SVI_error_leaves_validation_and_the_store_as_they_were() -> None:
    def guide(x: Tensor) -> None:
        pyro.param("loc", torch.tensor(0.0))
        if len(x) > 2:
            raise KeyError("no such thing")
        normal_normal(functions=True).guide(x)

    svi = SVI(normal_normal().model, guide, ADAM, elbo.ELBO())
    for _ in range(2):
        with pytest.raises(KeyError):
            svi.step(X)
        assert validation_flags() == ON
        assert list(pyro.get_param_store()) == ["loc"]
    assert svi.num_steps == 0


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_SVI_mistakes_are_found_at_the_first_step() -> None:
    vae, x = small_vae(), torch.randn(4, 5)
    svi = SVI(vae.model, lambda x: None, ADAM, elbo.ELBO())
    svi.initialize(x)
    with pytest.raises(ValueError, match="Guide: expected a site for every latent of the model; got none for"):
        svi.step(x)
    vae = VAE(vae.prior, likelihoods.Bernoulli(nets.MLP(2, []), 5), vae.posterior)
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO())
    svi.initialize(torch.ones(4, 5))
    with pytest.raises(ValueError, match="Bernoulli likelihood: expected binary values"):
        svi.step(x)


# Losses that are no ELBO, and one that has gradients alone


def scaled_programs() -> tuple[Callable[..., Any], Callable[..., Any]]:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("observations", len(x)):  # no plate "data"
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))

    return model, guide


class WithMethods:
    """A loss that is no ELBO and no function."""

    def __init__(self) -> None:
        own = pyro.infer.Trace_ELBO()
        self.loss, self.loss_and_grads = own.loss, own.loss_and_grads


OTHER_LOSSES: dict[str, Callable[[], Any]] = {
    "function": lambda: pyro.infer.Trace_ELBO().differentiable_loss,
    "our function": lambda: elbo.ELBO().differentiable_loss,
    "EnergyDistance": lambda: pyro.infer.EnergyDistance(num_particles=3, prior_scale=0.5),
    "Trace_MMD": lambda: pyro.infer.Trace_MMD(
        pyro.contrib.gp.kernels.RBF(1), num_particles=3, vectorize_particles=True
    ),
    "TraceTailAdaptive_ELBO": lambda: pyro.infer.TraceTailAdaptive_ELBO(num_particles=3, vectorize_particles=True),
}


@pytest.mark.parametrize("make", OTHER_LOSSES.values(), ids=list(OTHER_LOSSES))
def test_SVI_losses_of_other_kinds_take_the_steps_of_stock_pyro(make: Callable[[], Any]) -> None:
    losses, parameters = [], []
    for kind in (pyro.infer.SVI, SVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = kind(*scaled_programs(), PYRO_OPTIMIZERS["Adam"](), make())
        losses.append([float(svi.step(X.float())) for _ in range(5)])
        parameters.append({name: float(value.detach()) for name, value in pyro.get_param_store().items()})
    pyro.clear_param_store()  # of the kernel's
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert parameters[1] == pytest.approx(parameters[0], rel=1e-5)


def test_SVI_object_with_the_methods_of_an_elbo_is_a_loss() -> None:
    svi = SVI(*scaled_programs(), ADAM, WithMethods())  # type: ignore[arg-type]
    assert svi.step(X) > 0.0
    assert svi.evaluate_loss(X) > 0.0


def test_SVI_loss_function_without_a_gradient_is_refused() -> None:
    svi = SVI(*scaled_programs(), ADAM, pyro.infer.Trace_ELBO().loss)
    with pytest.raises(TypeError, match="SVI: expected a loss function that returns a tensor; got float, which has no"):
        svi.step(X)


def test_SVI_loss_without_a_value_is_held_to_its_gradients() -> None:
    loss = pyro.infer.TraceTailAdaptive_ELBO(num_particles=3, vectorize_particles=True)
    svi = SVI(*scaled_programs(), ADAM, loss)
    assert svi.step(X) == torch.inf
    with pytest.raises(FloatingPointError, match="SVI: expected a finite loss at step 1; got inf"):
        svi.step(torch.full((3,), torch.inf))


@pytest.mark.parametrize("loss", [pyro.infer.Trace_ELBO, elbo.ELBO])
def test_SVI_loss_and_grads_adds_gradients_and_takes_no_step(loss: Callable[[], Any]) -> None:
    model, guide = scaled_programs()
    svi = SVI(model, guide, ADAM, loss())
    svi.step(X)
    before = {name: p.detach().clone() for name, p in svi.named_parameters().items()}
    torch.manual_seed(0)
    value = svi.loss_and_grads(model, guide, X)
    gradients = {name: p.grad for name, p in pyro.get_param_store().named_parameters()}
    assert all(torch.equal(p, before[name]) for name, p in svi.named_parameters().items())
    pyro.get_param_store().clear()
    with pyro.get_param_store().scope():
        for name, unconstrained in before.items():
            pyro.param(name, torch.exp(unconstrained) if name == "scale" else unconstrained, **_positive(name))
        torch.manual_seed(0)
        assert pyro.infer.Trace_ELBO().loss_and_grads(model, guide, X) == pytest.approx(value)
        for name, p in pyro.get_param_store().named_parameters():
            torch.testing.assert_close(p.grad, gradients[name])


def _positive(name: str) -> dict[str, Any]:
    return {"constraint": constraints.positive} if name == "scale" else {}


# A loss that is not finite


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
@pytest.mark.parametrize("optimizer", [ADAM, PYRO_OPTIMIZERS["Adam"]()], ids=["torch", "pyro"])
@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_SVI_nan_stops_before_the_update_and_says_where_it_is(
    loss: Callable[[], pyro.infer.ELBO], optimizer: Any
) -> None:
    vae, x = small_vae(), torch.randn(4, 5)
    svi = SVI(vae.model, vae.guide, optimizer, loss())
    svi.step(x)
    svi.step(x)
    head = vae.likelihood.head.layer.weight
    with torch.no_grad():
        head[0, 0] = torch.nan
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    with pytest.raises(FloatingPointError) as caught:
        svi.step(x)
    message = str(caught.value)
    assert re.search(r"SVI: expected a finite loss at step 2; got nan\.", message)
    assert "Sites with a log-density that is not finite: 'x' of the model at data 0, 1, 2, 3." in message
    assert "Parameters that are not finite: " in message
    assert message.count("head.layer.weight") == 1
    assert "Lower the learning rate, clip gradients (max_grad_norm)" in message
    assert all(p.grad is None for p in vae.parameters())
    assert all(torch.equal(p.nan_to_num(), before[n].nan_to_num()) for n, p in vae.named_parameters())
    assert svi.num_steps == 2
    with torch.no_grad():
        head[0, 0] = 0.0
    assert svi.step(x) < float("inf")
    assert svi.num_steps == 3


def test_SVI_infinite_loss_names_the_site_of_the_guide() -> None:
    program = normal_normal()
    svi = SVI(program.model, program.guide, ADAM, elbo.ELBO())
    svi.step(X)
    with torch.no_grad():
        svi.named_parameters()["log_scale"][1] = 1000.0
    with pytest.raises(
        FloatingPointError, match="'z' of the guide at data 1, 'z' of the model at data 1, 'x' of the model"
    ):
        svi.step(X)


@pytest.mark.parametrize("functions", [False, True])
def test_SVI_nan_at_the_first_step_can_be_left_behind(functions: bool) -> None:
    program = normal_normal(functions=functions)
    svi = SVI(program.model, program.guide, ADAM, elbo.ELBO())
    with pyro.validation_enabled(False), pytest.raises(FloatingPointError, match="at step 0"):
        svi.step(torch.full_like(X, torch.nan))
    before = {name: p.detach().clone() for name, p in svi.named_parameters().items()}
    svi.step(X)
    assert len(before) == 2
    with svi.scope():
        for name, parameter in pyro.get_param_store().named_parameters():
            assert not torch.equal(parameter, before[name])


@pytest.mark.parametrize("parts", [1, 2])
def test_SVI_nan_at_the_first_step_leaves_no_running_mean(parts: int) -> None:
    program = normal_normal()
    score = elbo.Score("running_mean")
    svi = SVI(program.model, program.guide, ADAM, elbo.ELBO(2, score))
    lost = torch.full_like(X, torch.nan)
    with pyro.validation_enabled(False), pytest.raises(FloatingPointError, match="at step 0"):
        svi.advance_in_parts([(X,), (lost,)][-parts:])
    assert [each.tolist() for each in score.buffers()] == [[0.0, 0.0, 0.0]]
    svi.step(X)
    assert svi.step(X) < float("inf")


def test_SVI_step_that_is_interrupted_leaves_no_gradient() -> None:
    class Interrupted(elbo.ELBO):
        def loss_and_grads(self, *args: Any, **kwargs: Any) -> float:
            loss = super().loss_and_grads(*args, **kwargs)
            if svi.num_steps == 1:
                raise KeyboardInterrupt
            return loss

    program = normal_normal()
    svi = SVI(program.model, program.guide, ADAM, Interrupted())
    svi.step(X)
    before = {name: p.detach().clone() for name, p in svi.named_parameters().items()}
    with pytest.raises(KeyboardInterrupt):
        svi.step(X)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in svi.named_parameters().items())


# Before the first step


def test_SVI_initialize_makes_the_optimizer_and_leaves_the_generator() -> None:
    vae, x = small_vae(), torch.randn(4, 5)
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO())
    assert svi.optimizer is None
    assert svi.named_parameters() == {}
    before, state = {n: p.detach().clone() for n, p in vae.named_parameters()}, torch.get_rng_state()
    svi.initialize(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in vae.named_parameters())
    assert isinstance(svi.optimizer, torch.optim.Adam)
    assert {id(p) for g in svi.optimizer.param_groups for p in g["params"]} == {id(p) for p in vae.parameters()}
    svi.optimizer.param_groups[0]["lr"] = 0.0
    svi.step(x)
    assert all(torch.equal(p, before[name]) for name, p in vae.named_parameters())


def test_SVI_programs_without_parameters_have_a_loss_all_the_same() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    svi = SVI(normal_normal().model, guide, ADAM, elbo.ELBO())
    assert svi.step(X) == pytest.approx(-NormalNormal.log_marginal_likelihood(X).sum().item())
    assert svi.optimizer is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"optimizer": torch.optim.Adam([nn.Parameter(torch.zeros(1))])},
            TypeError,
            "SVI: expected optimizer a callable from parameters to a torch.optim.Optimizer, or a pyro.optim optimizer; "
            "got one that is built, Adam. Pass functools.partial(torch.optim.Adam, lr=1e-3), for example.",
        ),
        ({"optimizer": {"lr": 0.1}}, TypeError, "SVI: expected optimizer a callable"),
        (
            {"loss": pyro.infer.Trace_ELBO},
            TypeError,
            "SVI: expected loss a pyro.infer.ELBO; got ABCMeta. Pass pyro_vae.elbo.ELBO() or pyro.infer.Trace_ELBO().",
        ),
        ({"loss": nn.MSELoss()}, TypeError, "SVI: expected loss a pyro.infer.ELBO; got MSELoss."),
        ({"loss": "elbo"}, TypeError, "SVI: expected loss a pyro.infer.ELBO; got str."),
        (
            {"max_grad_norm": 0.0},
            ValueError,
            "SVI: expected max_grad_norm above 0; got 0.",
        ),
        ({"max_grad_norm": -1.0}, ValueError, "SVI: expected max_grad_norm above 0; got -1."),
        ({"max_grad_norm": float("nan")}, ValueError, "SVI: expected max_grad_norm above 0; got nan."),
    ],
)
def test_SVI_what_does_not_fit_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    program = normal_normal()
    with pytest.raises(error, match=re.escape(message)):
        SVI(**{"model": program.model, "guide": program.guide, "optimizer": ADAM, "loss": elbo.ELBO(), **options})


@pytest.mark.cuda
def test_SVI_step_on_cuda() -> None:
    vae, x = small_vae().cuda(), torch.randn(4, 5, device="cuda")
    svi = SVI(vae.model, vae.guide, partial(ADAM, fused=True), elbo.ELBO(num_particles=2), max_grad_norm=1.0)
    state = torch.cuda.get_rng_state()
    svi.initialize(x)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    losses_of(svi, x, 3)
    assert [name for name, p in vae.named_parameters() if torch.equal(p, before[name])] == []
    assert {p.device.type for p in vae.parameters()} == {"cuda"}


# Batches made within the step, precision, averages


def test_SVI_prepare_makes_the_arguments_of_the_programs() -> None:
    images = torch.arange(50, dtype=torch.uint8).reshape(10, 5)
    dataset = data.Dataset("levels", images, levels=49)
    torch.manual_seed(0)
    vae = small_vae()
    other = copy.deepcopy(vae)
    by_index = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), prepare=dataset.gather)
    by_batch = SVI(other.model, other.guide, ADAM, elbo.ELBO())
    for start in (0, 3, 6):
        index = torch.arange(start, start + 4)
        torch.manual_seed(start)
        loss = by_index.step(index, images)
        torch.manual_seed(start)
        assert by_batch.step(*dataset.batch(index)) == loss
    torch.manual_seed(0)
    evaluated = by_index.evaluate_loss(index, images)
    torch.manual_seed(0)
    assert by_batch.evaluate_loss(*dataset.batch(index)) == evaluated


def test_SVI_averages_are_exponential_and_leave_the_parameters() -> None:
    program = normal_normal()
    svi = SVI(program.model, program.guide, ADAM, elbo.ELBO(), ema_decay=0.8)
    with pytest.raises(ValueError, match=r"SVI\.averaged: expected averages; got none, with ema_decay=0\.8 after 0"):
        svi.averaged().__enter__()
    expected: dict[str, Tensor] = {}
    for _ in range(4):
        svi.step(X)
        for name, parameter in svi.named_parameters().items():
            value = parameter.detach().clone()
            expected[name] = 0.8 * expected[name] + 0.2 * value if name in expected else value
    before = {name: parameter.detach().clone() for name, parameter in svi.named_parameters().items()}
    with svi.averaged():
        for name, parameter in svi.named_parameters().items():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=0.0)
            assert not torch.equal(parameter, before[name])
    for name, parameter in svi.named_parameters().items():
        assert torch.equal(parameter, before[name])


def test_SVI_bfloat16_changes_the_loss_by_its_rounding() -> None:
    torch.manual_seed(0)
    vae, x = small_vae(), torch.randn(200, 5)
    other, losses = copy.deepcopy(vae), {}
    for precision, program in (("float32", vae), ("bfloat16", other)):
        svi = SVI(program.model, program.guide, ADAM, elbo.ELBO(), precision=precision)  # type: ignore[arg-type]
        torch.manual_seed(1)
        losses[precision] = svi.step(x)
        assert all(parameter.dtype == torch.float32 for parameter in program.parameters())
    assert losses["bfloat16"] != losses["float32"]
    # Eight bits of mantissa round by at most 2**-8, a few layers one after the other; errors of data partly cancel.
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=2**-8)


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("tf32", "SVI: expected parameters on a CUDA device for precision 'tf32'; got cpu"),
        ("float16", "SVI: expected precision one of 'float32', 'tf32', 'bfloat16'; got 'float16'"),
    ],
)
def test_SVI_precision_that_is_not_to_be_had_is_refused(precision: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SVI(*normal_normal_programs(), ADAM, elbo.ELBO(), precision=precision).step(X)


def normal_normal_programs() -> tuple[Callable[..., Any], Callable[..., Any]]:
    program = normal_normal()
    return program.model, program.guide


@pytest.mark.cuda
def test_SVI_tf32_is_used_within_the_step_alone() -> None:
    vae = small_vae().cuda()
    before = torch.get_float32_matmul_precision()
    svi = SVI(vae.model, vae.guide, ADAM, elbo.ELBO(), precision="tf32")
    assert svi.step(torch.randn(64, 5, device="cuda"))
    assert torch.get_float32_matmul_precision() == before


# One optimizer in place of Pyro's many


@pytest.mark.usefixtures("global_store")
@pytest.mark.parametrize("programs", PROGRAMS.values(), ids=list(PROGRAMS))
def test_SVI_pyro_optimizer_becomes_one_and_keeps_its_state(programs: Programs) -> None:
    states = []
    for make in (pyro.infer.SVI, SVI):
        torch.manual_seed(2)
        pyro.clear_param_store()
        model, guide, x = programs()
        optimizer = PYRO_OPTIMIZERS["Adam"]()
        svi = make(model, guide, optimizer, pyro.infer.Trace_ELBO())
        torch.manual_seed(3)
        for _ in range(6):
            svi.step(x)
        with svi.scope() if isinstance(svi, SVI) else contextlib.nullcontext():
            # Root names are numbered: no two programs share one.
            states.append({re.sub(r"^(\D+)\d+", r"\1", name): s for name, s in optimizer.get_state().items()})
    assert isinstance(svi, SVI)
    assert isinstance(svi.optimizer, torch.optim.Adam)
    assert len(svi.optimizer.param_groups) == 1
    stock, ours = states
    assert ours.keys() == stock.keys()
    for name, state in stock.items():
        for key, value in state["state"][0].items():
            torch.testing.assert_close(ours[name]["state"][0][key], value, rtol=1e-5, atol=1e-7)
    resumed = PYRO_OPTIMIZERS["Adam"]()
    resumed.set_state({"loc": {}})
    assert SVI(model, guide, resumed, elbo.ELBO()).optimizer is resumed  # it has state of its own to go on from
