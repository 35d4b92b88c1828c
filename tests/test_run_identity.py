"""What makes a run the one that it is: what is told apart on going on, what is kept in place, and what is not lost."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils import parametrizations

import pyro_vae
from pyro_vae import VAE, conditionals, fit, likelihoods, nets, priors
from pyro_vae.checkpoint.fingerprints import class_of, described

SIZE = 6
X = (torch.rand(90, SIZE, generator=torch.Generator().manual_seed(0)) < 0.4).float()


class Body(nets.Body):
    """A body of a user's, which holds something beside its weights."""

    def __init__(self) -> None:
        super().__init__([SIZE], 8)
        self.net = nn.Linear(SIZE, 8)
        self.hold()

    def hold(self) -> None:
        pass

    def features(self, *inputs: Tensor) -> Tensor:
        return torch.relu(self.net(inputs[0]))


def perceptron() -> nets.Body:
    return nets.MLP(SIZE, [8])


def vae(body: Callable[[], nets.Body] = perceptron, **parts: Any) -> VAE:
    torch.manual_seed(0)
    standard: dict[str, Any] = {
        "prior": priors.StandardNormal(2),
        "likelihood": likelihoods.Bernoulli(nets.MLP(2, [8]), SIZE),
        "posterior": conditionals.DiagonalNormal(body(), 2),
    }
    return VAE(**{**standard, **parts})


def train(program: Any, folder: Path | None = None, stop: int = 0, **options: Any) -> Any:
    """Trains a program, up to an interruption after so many steps."""
    given = {"epochs": 4, "batch_size": 10, "seed": 3, "compile": False, "progress": False, **options}
    callback = given.pop("on_step", None)

    def on_step(step: int, loss: float) -> None:
        if callback is not None:
            callback(step, loss)
        if step == stop:
            os.kill(os.getpid(), signal.SIGINT)

    fit(program, X, folder=folder, on_step=on_step, **given)
    return program


def weights(program: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in program.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


pytestmark = pytest.mark.filterwarnings("ignore:fit. interrupted", "ignore:pyro_vae.load cannot give")


# Told apart


class Annealing:
    def __init__(self, end: float) -> None:
        self.end = end

    def at(self, epoch: float) -> float:
        return self.end * min(1.0, epoch)


def closing_over(value: Any) -> Callable[[float], float]:
    return lambda epoch: float(value * min(1.0, epoch))


END = 0.1


def global_schedule(epoch: float) -> float:
    return END * epoch


class Holding(Body):
    """Holds something that no file keeps."""

    made: Any = None

    def hold(self) -> None:
        self.made = type(self).made


def holding(made: Any) -> VAE:
    Holding.made = made
    return vae(Holding)


def two_groups(parameters: list[Any], second: float) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": second}]
    return torch.optim.Adam(groups, lr=1e-3)


class PlainProgram:
    """A program that is no module."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def model(self, x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(SIZE))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), self.scale))
            pyro.sample("x", dist.Normal(loc + z[:, None], 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        weight = pyro.param("weight", torch.zeros(SIZE))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 1.0))


def class_with(value: float) -> VAE:
    class Closing(Body):
        def features(self, *inputs: Tensor) -> Tensor:
            return value * super().features(*inputs)

    return vae(Closing)


ANOTHER: dict[str, tuple[Callable[[Any], tuple[Any, dict[str, Any]]], Any, Any]] = {
    "method": (lambda end: (vae(), {"beta": Annealing(end).at}), 0.1, 0.9),
    "closure over a tensor": (lambda end: (vae(), {"beta": closing_over(torch.tensor(end))}), 0.1, 0.9),
    "closure over an array": (lambda end: (vae(), {"beta": closing_over(np.array(end))}), 0.1, 0.9),
    "closure over a number of numpy": (lambda end: (vae(), {"beta": closing_over(np.float32(end))}), 0.1, 0.9),
    "rate of a group": (lambda lr: (vae(), {"optimizer": partial(two_groups, second=lr)}), 1e-3, 1e-1),
    "clipping": (lambda most: (vae(), {"optimizer": Adam({"lr": 1e-2}, {"clip_norm": most})}), 0.01, 100.0),
    "rate beside clipping": (lambda lr: (vae(), {"optimizer": Adam({"lr": lr}, {"clip_norm": 1.0})}), 1e-2, 1e-1),
    "function": (lambda f: (holding(f), {}), torch.relu, torch.tanh),
    "partial": (lambda slope: (holding(partial(leaky_relu, negative_slope=slope)), {}), 0.01, 0.9),
    "distribution": (lambda loc: (holding(dist.Normal(torch.tensor(loc), 1.0)), {}), 0.0, 1.0),
    "array": (lambda seed: (holding(np.random.default_rng(seed).permutation(SIZE)), {}), 0, 1),
    "set": (lambda value: (holding({value, 7}), {}), 1, 2),
    "code of a class": (lambda value: (class_with(value), {}), 1.0, 2.0),
    "program that is no module": (lambda scale: (PlainProgram(scale), {}), 1.0, 9.0),
}  # fmt: skip


@pytest.mark.parametrize("name", ANOTHER)
def test_resume_tells_another_run_apart(name: str, tmp_path: Path) -> None:
    make, first, second = ANOTHER[name]
    program, options = make(first)
    train(program, tmp_path / "x", stop=13, **options)
    pyro.clear_param_store()
    program, options = make(second)
    with pytest.raises(ValueError, match="expected the run that the folder holds; got another one"):
        train(program, tmp_path / "x", resume=True, **options)
    pyro.clear_param_store()
    program, options = make(first)
    train(program, tmp_path / "x", resume=True, **options)


def test_resume_tells_globals_of_a_schedule_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(vae(), tmp_path, stop=13, beta=global_schedule)
    monkeypatch.setattr(f"{__name__}.END", 0.9)
    with pytest.raises(ValueError, match=r"beta\.reads\.END 0\.1, now 0\.9"):
        train(vae(), tmp_path, resume=True, beta=global_schedule)


def test_described_is_the_same_for_values_made_alike() -> None:
    for make in (lambda: closing_over(0.5), lambda: Annealing(0.5).at, lambda: dist.Normal(torch.zeros(2), 1.0)):
        assert described(make()) == described(make())
    assert described(torch.zeros(2)) != described(torch.ones(2))
    assert described({1, 2}) == described({2, 1})
    assert class_of(nn.Linear) == "Linear"
    assert class_of(Body).startswith("Body of code ")


# Kept in place


TEMPERATURE = [1.0]


class SharedList(Body):
    def hold(self) -> None:
        TEMPERATURE[:] = [1.0]
        self.temperature = TEMPERATURE

    def features(self, *inputs: Tensor) -> Tensor:
        return self.temperature[0] * super().features(*inputs)


class View(Body):
    """Reads its own weight by another name."""

    def hold(self) -> None:
        self.first = self.net.weight[:, :3]

    def features(self, *inputs: Tensor) -> Tensor:
        return super().features(*inputs) + self.first.sum(1)


class PlainTensor(Body):
    def hold(self) -> None:
        self.gain = torch.tensor([1.0])

    def features(self, *inputs: Tensor) -> Tensor:
        return self.gain * super().features(*inputs)


class TwoOfOne(PlainTensor):
    """Two modules that hold one plain tensor."""

    def hold(self) -> None:
        super().hold()
        self.other = nn.Linear(1, 1)
        self.other.gain = self.gain

    def features(self, *inputs: Tensor) -> Tensor:
        other: Any = self.other
        return other.gain * Body.features(self, *inputs)


def _cool(program: VAE, step: int) -> None:
    TEMPERATURE[0] = 1 / (1 + step)


def _fill(program: VAE, step: int) -> None:
    body: Any = program.posterior.body
    body.gain.fill_(1 / (1 + step))


@pytest.mark.parametrize(
    ("body", "change"), [(SharedList, _cool), (View, None), (PlainTensor, _fill), (TwoOfOne, _fill)]
)
def test_resume_fills_what_others_hold_in_place(body: type[Body], change: Any, tmp_path: Path) -> None:
    def run(folder: Path | None, stop: int = 0, **options: Any) -> VAE:
        program = vae(body)
        callback = None if change is None else lambda step, _: change(program, step)
        return train(program, folder, stop, on_step=callback, **options)

    undisturbed = weights(run(None))
    run(tmp_path, 13)
    assert equal(weights(run(tmp_path, resume=True)), undisturbed)


class ListsOfKinds(Body):
    def hold(self) -> None:
        self.spec = [("conv", 3), ("fc", 8)]
        self.mixed = [8, "relu", True]


def test_lists_of_several_kinds_are_kept_and_loaded(tmp_path: Path) -> None:
    undisturbed = weights(train(vae(ListsOfKinds)))
    train(vae(ListsOfKinds), tmp_path, stop=13)
    assert equal(weights(train(vae(ListsOfKinds), tmp_path, resume=True)), undisturbed)
    assert pyro_vae.load(tmp_path, classes=[ListsOfKinds]).posterior.body.mixed == [8, "relu", True]


def test_resume_in_the_process_of_a_callback_that_changed_an_attribute(tmp_path: Path) -> None:
    program = holding(1.0)
    body: Any = program.posterior.body

    def change(step: int, _: float) -> None:
        body.made = 1 / (1 + step)

    train(program, tmp_path, stop=13, on_step=change)
    train(program, tmp_path, resume=True, on_step=change)
    body.made = 5.0
    with pytest.raises(ValueError, match=r"made 1\.0, now 5\.0"):
        train(program, tmp_path, resume=True, on_step=change)


def test_resume_refuses_what_changed_and_no_file_can_give_back(tmp_path: Path) -> None:
    program = holding(np.zeros(2))

    def change(step: int, _: float) -> None:
        body: Any = program.posterior.body
        body.made[0] = step

    train(program, tmp_path, stop=13, on_step=change)
    with pytest.raises(ValueError, match=r"posterior\.body\.made, which changed while training"):
        train(holding(np.zeros(2)), tmp_path, resume=True)


class Noisy(Body):
    """Draws from a generator of its own, whose state no checkpoint has."""

    def hold(self) -> None:
        self.generator = type(self).generators()

    generators: Any = None

    def features(self, *inputs: Tensor) -> Tensor:
        held: Any = self.generator
        noise = torch.rand((), generator=held) if isinstance(held, torch.Generator) else torch.tensor(held.random())
        return super().features(*inputs) + noise.float()


@pytest.mark.parametrize(
    "generators", [lambda: torch.Generator().manual_seed(0), lambda: np.random.default_rng(0), lambda: random.Random(0)]
)
def test_resume_refuses_generators_that_no_checkpoint_has(generators: Any, tmp_path: Path) -> None:
    Noisy.generators = staticmethod(generators)
    train(vae(Noisy), tmp_path, stop=13)
    with pytest.raises(ValueError, match=r"body\.generator, which changed while training"):
        train(vae(Noisy), tmp_path, resume=True)


# Saved and loaded


class Spectral(Body):
    def hold(self) -> None:
        parametrizations.spectral_norm(self.net)


class Normed(Body):
    def hold(self) -> None:
        parametrizations.weight_norm(self.net)


class Orthogonal(Body):
    def hold(self) -> None:
        parametrizations.orthogonal(self.net)


@pytest.mark.parametrize("body", [Spectral, Normed, Orthogonal])
def test_save_takes_parametrized_modules(body: type[Body], tmp_path: Path) -> None:
    program = train(vae(body))
    pyro_vae.save(tmp_path, program)
    loaded = pyro_vae.load(tmp_path, classes=[body])
    assert torch.equal(loaded.encode(X).mean, program.eval().encode(X).mean)


@pytest.mark.parametrize("change", ["function", "partial", "hook"])
def test_save_refuses_what_was_changed_after_building(change: str, tmp_path: Path) -> None:
    program = holding(closing_over(1.0) if change == "function" else partial(leaky_relu, negative_slope=0.1))
    body: Any = program.posterior.body
    if change == "hook":
        body.net.register_forward_hook(lambda module, inputs, output: output * 3)
    else:
        body.made = closing_over(2.0) if change == "function" else partial(leaky_relu, negative_slope=0.9)
    with pytest.raises(ValueError, match=r"got one changed at guide\.posterior\.body"):
        pyro_vae.save(tmp_path, program)


def test_load_keeps_parts_of_other_precision(tmp_path: Path) -> None:
    program = vae()
    program.posterior.double()
    pyro_vae.save(tmp_path, program)
    loaded = pyro_vae.load(tmp_path)
    assert loaded.encode(X.double()).mean.dtype == torch.float64
    assert loaded.decode(torch.zeros(1, 2)).mean.dtype == torch.float32
    assert torch.equal(loaded.encode(X.double()).mean, program.encode(X.double()).mean)


class ByNumber(Body):
    def __init__(self, bodies: dict[Any, nets.Body]) -> None:
        super().__init__()
        self.bodies = nn.ModuleDict({str(key).strip("$"): body for key, body in bodies.items()})

    def features(self, *inputs: Tensor) -> Tensor:
        return sum((body(*inputs) for body in self.bodies.values()), torch.zeros(()))


def test_bodies_among_arguments_may_stand_under_numbers(tmp_path: Path) -> None:
    program = vae(lambda: ByNumber({0: nets.MLP(SIZE, [8]), "$1": nets.MLP(SIZE, [8])}))
    pyro_vae.save(tmp_path, program)
    loaded = pyro_vae.load(tmp_path, classes=[ByNumber])
    assert torch.equal(loaded.encode(X).mean, program.encode(X).mean)


class Scaled(likelihoods.Bernoulli):
    """Has a parameter that no module has."""

    def forward(self, *parents: Tensor) -> Any:
        return super().forward(parents[0] * pyro.param("scale", torch.tensor(1.0)), *parents[1:])


@pytest.mark.usefixtures("global_store")
def test_parameters_of_statements_are_told_to_be_lost(tmp_path: Path) -> None:
    program = vae(likelihood=Scaled(nets.MLP(2, [8]), SIZE))
    with pytest.warns(UserWarning, match=r"cannot give the program .* got scale of pyro\.param statements"):
        train(program, tmp_path)
    with pytest.raises(ValueError, match="expected a program that can be built again"):
        pyro_vae.load(tmp_path, classes=[Scaled])


@pytest.mark.usefixtures("global_store")
def test_resume_weights_takes_those_of_programs_that_are_no_modules(tmp_path: Path) -> None:
    train(PlainProgram(1.0), tmp_path)
    trained = pyro.param("weight").detach().clone()
    pyro.clear_param_store()
    train(PlainProgram(1.0), tmp_path, resume="weights", epochs=None, steps=1, optimizer=partial(torch.optim.SGD, lr=0))
    assert torch.equal(pyro.param("weight").detach(), trained)


class Drawing(Body):
    """Draws from NumPy and Python where it is built."""

    def hold(self) -> None:
        self.noise = [*np.random.rand(2).tolist(), random.random()]  # noqa: NPY002


def test_fit_with_a_folder_is_the_run_without_one(tmp_path: Path) -> None:
    def run(folder: Path | None) -> VAE:
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        program = vae(Drawing)

        def change(step: int, _: float) -> None:
            body: Any = program.posterior.body
            with torch.no_grad():
                body.net.bias.add_(np.random.rand() * 1e-3 + random.random() * 1e-3)  # noqa: NPY002

        return train(program, folder, on_step=change)

    assert equal(weights(run(tmp_path)), weights(run(None)))


# Not lost


def test_a_run_of_which_a_part_was_deleted_is_not_begun_anew(tmp_path: Path) -> None:
    train(vae(), tmp_path, stop=13)
    (tmp_path / "weights.safetensors").unlink()  # as if it had been killed
    record = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").unlink()
    for resume in (True, False):
        with pytest.raises(ValueError, match=r"expected run\.json beside its checkpoints"):
            train(vae(), tmp_path, resume=resume)
    (tmp_path / "run.json").write_text(record)
    (tmp_path / "program.json").unlink()
    train(vae(), tmp_path, resume=True)
    assert equal(weights(pyro_vae.load(tmp_path)), weights(train(vae())))


def test_a_run_without_its_checkpoints_is_told(tmp_path: Path) -> None:
    train(vae(), tmp_path, stop=13)
    for path in (tmp_path / "weights.safetensors", *(tmp_path / "checkpoints").iterdir()):
        path.unlink()
    with pytest.raises(ValueError, match=r"expected checkpoints of the run in .*; got none, since they were deleted"):
        train(vae(), tmp_path, resume=True)


def test_a_parameter_that_is_replaced_does_not_end_a_run(tmp_path: Path) -> None:
    program = vae(Body)

    def replace(step: int, _: float) -> None:
        if step == 5:
            body: Any = program.posterior.body
            body.net.weight = nn.Parameter(body.net.weight.detach() * 0.5)

    train(program, tmp_path, on_step=replace, checkpoint_every="2 steps")
    assert equal(weights(pyro_vae.load(tmp_path, classes=[Body])), weights(program))


def test_initialize_leaves_running_means() -> None:
    program = vae(partial(nets.MLP, SIZE, [8], activation=lambda: nn.BatchNorm1d(8)))
    train(program, epochs=None, steps=1)
    assert {int(b) for name, b in program.named_buffers() if name.endswith("num_batches_tracked")} == {1}
