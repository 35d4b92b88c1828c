"""``fit`` reports true figures, is reproducible, refuses bad input before the first step, and can be interrupted."""

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from oracles import LinearVAE, SimpleProgram
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from pyro_vae import VAE, conditionals, data, elbo, evaluation, fit, likelihoods, nets, priors, schedules
from pyro_vae.data import Dataset
from pyro_vae.training import History
from pyro_vae.training.figures import figures, seeded

SGD = partial(torch.optim.SGD, lr=0.01)
STILL = partial(torch.optim.SGD, lr=0.0)


def small_vae(likelihood: str = "Bernoulli", seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    body = nets.MLP(2, [4])
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(body, 5) if likelihood == "Bernoulli" else likelihoods.Normal(body, 5, scale=1.0),
        conditionals.DiagonalNormal(nets.MLP(5, [4]), 2),
    )


def bits(num_data: int = 10, seed: int = 0) -> Tensor:
    return torch.rand(num_data, 5, generator=torch.Generator().manual_seed(seed)).round()


def grays(num_data: int = 10) -> Dataset:
    x = torch.rand(num_data, 5, generator=torch.Generator().manual_seed(0))
    return Dataset("grays", x, binarization="dynamic")


def weights(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


class Watched(elbo.ELBO):
    """Notes beta and the number of data of each step; a shallow copy writes into the same lists."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.betas: list[float] = []
        self.sizes: list[int] = []

    def loss_and_grads(self, model: Any, guide: Any, x: Tensor, *args: Any) -> float:
        self.betas.append(self.beta)
        self.sizes.append(len(x))
        return super().loss_and_grads(model, guide, x, *args)


# Reproducibility


@pytest.mark.parametrize("loss", [elbo.ELBO(num_particles=2), pyro.infer.Trace_ELBO()], ids=["ELBO", "Trace_ELBO"])
@pytest.mark.parametrize("train", [bits(), grays()], ids=["bits", "dynamic"])
def test_fit_one_seed_gives_the_same_weights_and_history(train: Tensor | Dataset, loss: pyro.infer.ELBO) -> None:
    results = []
    for global_seed in (1, 2):
        vae = small_vae()
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        history = fit(vae, train, bits(6), loss=loss, epochs=3, batch_size=4, seed=5, progress=False)
        assert torch.equal(torch.get_rng_state(), state)
        figures = [{name: value for name, value in row.items() if name != "seconds"} for row in history.epochs]
        results.append((weights(vae), figures))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    other = small_vae()
    fit(other, train, bits(6), loss=loss, epochs=3, batch_size=4, seed=6, progress=False)
    assert not same(results[0][0], weights(other))


def test_fit_without_a_seed_the_global_generator_decides() -> None:
    results = []
    for global_seed in (1, 1, 2):
        vae = small_vae()
        torch.manual_seed(global_seed)
        fit(vae, grays(), epochs=2, batch_size=4, progress=False)
        results.append(weights(vae))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_fit_order_of_the_data_changes_from_epoch_to_epoch() -> None:
    seen: list[Tensor] = []

    class Watching(VAE):
        def __init__(self, vae: VAE) -> None:
            super().__init__(vae.prior, vae.likelihood, vae.posterior)
            self.guide.register_forward_pre_hook(lambda module, args: seen.append(args[0]) if module.training else None)

    x = torch.arange(40.0).reshape(8, 5)
    vae = Watching(small_vae("Normal"))
    fit(vae, x, optimizer=STILL, epochs=2, batch_size=3, seed=0, progress=False)
    steps = seen[-6:]  # before them, the run that finds the parameters
    assert [len(batch) for batch in steps] == [3, 3, 2, 3, 3, 2]
    first, second = torch.cat(steps[:3])[:, 0], torch.cat(steps[3:])[:, 0]
    assert sorted(first.tolist()) == sorted(second.tolist()) == x[:, 0].tolist()
    assert not torch.equal(first, second)
    assert not torch.equal(first, x[:, 0])


# What is reported


def test_fit_figures_are_those_of_the_model_whatever_the_loss() -> None:
    oracle = LinearVAE.random(orthogonal=True)
    vae, train, validation = oracle.vae(diagonal=True).float(), oracle.draw(50, seed=1), oracle.draw(1030, seed=2)
    exact = {
        name: oracle.log_marginal_likelihood(x).mean().item()
        for name, x in (("train", train), ("validation", validation))
    }
    for loss in (elbo.ELBO(beta=3.0), pyro.infer.Trace_ELBO(), pyro.infer.RenyiELBO(num_particles=2)):
        history = fit(
            vae, train, validation, loss=loss, optimizer=STILL, epochs=2, batch_size=16, seed=0, progress=False
        )
        for name, x in (("train", train), ("validation", validation)):
            assert history[f"{name}_elbo"] == pytest.approx([exact[name]] * 2, abs=1e-4)
            difference = np.subtract(history[f"{name}_expected_log_likelihood"], history[f"{name}_kl"])
            assert difference == pytest.approx(history[f"{name}_elbo"], abs=1e-6)
            # log q - log p of one draw has variance tr((I - S)^2) / 2 + m'S m about KL, for q = Normal(m, S), p(z).
            loc, covariance = oracle.posterior(x)
            spread = ((torch.eye(2) - covariance) ** 2).sum() / 2 + torch.einsum("ni,ij,nj->n", loc, covariance, loc)
            standard_error = spread.mean().div(len(x)).sqrt().item()
            truth = oracle.posterior_kl(x).mean().item()
            assert history[f"{name}_kl"] == pytest.approx([truth] * 2, abs=5 * standard_error)
        if not isinstance(loss, elbo.ELBO):
            assert history["loss"] == pytest.approx([-exact["train"]] * 2, abs=1e-4)


def test_fit_loss_is_the_mean_over_all_data_with_a_smaller_last_batch() -> None:
    loss, steps = Watched(), []
    history = fit(
        small_vae(),
        bits(10),
        loss=loss,
        epochs=2,
        batch_size=4,
        seed=0,
        progress=False,
        on_step=lambda step, value: steps.append((step, value)),
    )
    assert loss.sizes == [4, 4, 2] * 2
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]
    values = np.array([value for _, value in steps]).reshape(2, 3)
    assert history["loss"] == pytest.approx(values @ np.array([4, 4, 2]) / 10)


def test_History_columns() -> None:
    rows: list[dict[str, float]] = []
    history = fit(small_vae(), bits(), bits(4), epochs=2, batch_size=4, seed=3, progress=False, on_epoch=rows.append)
    figures = ["elbo", "expected_log_likelihood", "kl"]
    names = ["epoch", "loss", "seconds", "lr", "beta"]
    names += [f"{prefix}_{figure}" for prefix in ("train", "validation") for figure in figures]
    assert list(history.columns()) == names
    assert rows == history.epochs
    assert len(history) == 2
    assert history["epoch"] == [1, 2]
    assert history["lr"] == [1e-3] * 2
    assert history["beta"] == [1.0] * 2
    assert all(seconds > 0 for seconds in history["seconds"])
    assert history.columns()["loss"] == history["loss"]
    assert history.stopped == "completed"
    assert history.best_epoch is None
    expected = {"data": "array", "num_train": 10, "num_validation": 4, "loss": "ELBO", "epochs": 2, "batch_size": 4}
    assert expected | {"steps": None, "seed": 3, "beta": None, "binarization": "none"} == history.settings
    lines = str(history).splitlines()
    assert [word for word in lines[0].split() if word.isalpha()] == ["train", "validation"]
    assert " ".join(lines[3].split()) == "epoch loss seconds lr beta elbo likelihood kl elbo likelihood kl"
    assert len(lines) == 6
    assert [float(cell) for cell in lines[5].split()] == pytest.approx(list(rows[1].values()), rel=1e-3)
    assert json.loads(history.to_json()) == {
        "settings": history.settings,
        "epochs": history.epochs,
        "stopped": "completed",
        "best_epoch": None,
    }
    assert History().columns() == {}
    assert str(History()) == ""


def test_History_fits_into_100_columns_of_text() -> None:
    figures = {"elbo": -123456.7, "expected_log_likelihood": -123456.7, "kl": 12345.6}
    row = {"epoch": 1000, "loss": 123456.7} | {
        f"{p}_{n}": v for p in ("train", "validation") for n, v in figures.items()
    }
    text = str(History(epochs=[row | {"seconds": 1234.5, "lr": 0.00015, "beta": 0.9999}]))
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[-1].split()[:3] == ["1000", "123457", "-123457"]


def test_History_has_columns_of_validation_and_beta_where_there_are_such() -> None:
    history = fit(small_vae(), bits(), loss=pyro.infer.Trace_ELBO(), epochs=1, progress=False)
    assert not any(name.startswith("validation") or name == "beta" for name in history.columns())
    assert "lr" in history.columns()
    optimizer = pyro.optim.PyroOptim(torch.optim.Adam, lambda _: {"lr": 0.01})
    assert "lr" not in fit(small_vae(), bits(), optimizer=optimizer, epochs=1, progress=False).columns()


def test_fit_bar_is_shown_when_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    fit(small_vae(), bits(), epochs=2, progress=False)
    assert capfd.readouterr() == ("", "")
    fit(small_vae(), bits(), epochs=2)
    out, err = capfd.readouterr()
    assert out == ""
    assert "2/2" in err
    assert "train -ELBO " in err
    assert err.splitlines()[-1].startswith("completed after 2 epochs")


def test_History_telling_is_of_new_data_the_latents_and_the_end() -> None:
    rows = [
        {"epoch": e, "train_elbo": t, "train_kl": 5.0, "validation_elbo": v, "validation_kl": 4.0}
        for e, (t, v) in enumerate([(-9.0, -9.5), (-5.0, -6.0), (-4.0, -7.0)], 1)
    ]
    history = History(epochs=rows)
    assert history.telling() == [
        "-ELBO 4.00 nats of training data, 7.00 of validation data, 3.00 more",
        "KL 4.00 nats: the latents tell that much about a datum, at most",
        "completed after 3 epochs; the ELBO was best after 2: use patience",
    ]
    history.best_epoch, history.stopped = 2, "early stopping"
    assert history.telling()[0] == "-ELBO 5.00 nats of training data, 6.00 of validation data, 1.00 more"
    assert history.telling()[2] == "early stopping after 3 epochs; the ELBO was best after 2"
    assert History(epochs=[{"epoch": 1, "loss": 3.0}]).telling() == History().telling() == []


# What is optimized


@pytest.mark.parametrize(
    "loss",
    [
        elbo.ELBO(num_particles=3),
        elbo.ELBO(analytic_kl=True),
        pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True),
        pyro.infer.TraceMeanField_ELBO(),
        pyro.infer.TraceGraph_ELBO(),
        pyro.infer.RenyiELBO(num_particles=2),
        pyro.infer.ReweightedWakeSleep(num_particles=2),
    ],
    ids=lambda loss: type(loss).__name__,
)
@pytest.mark.parametrize("optimizer", [None, pyro.optim.ClippedAdam({"lr": 0.02})], ids=["torch", "pyro"])
def test_fit_any_loss_trains_every_parameter(loss: pyro.infer.ELBO, optimizer: Any) -> None:
    vae = small_vae()
    before = weights(vae)
    history = fit(
        vae,
        bits(),
        loss=loss,
        epochs=2,
        batch_size=4,
        seed=0,
        progress=False,
        **({"optimizer": optimizer} if optimizer else {}),
    )
    assert [name for name, value in weights(vae).items() if torch.equal(value, before[name])] == []
    assert np.isfinite(list(history.columns().values())).all()


@pytest.mark.slow
def test_fit_training_reaches_the_maximum_of_the_likelihood() -> None:
    x = LinearVAE.random(orthogonal=True).draw(400)
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, []), 5, scale="learned"),
        conditionals.DiagonalNormal(nets.MLP(5, []), 2),
    )
    history = fit(
        vae,
        x,
        optimizer=partial(torch.optim.Adam, lr=0.05),
        scheduler=partial(StepLR, step_size=200, gamma=0.2),
        epochs=600,
        batch_size=100,
        seed=0,
        progress=False,
    )
    best = LinearVAE.maximum_log_likelihood(x, 2) / len(x)
    # The ELBO is below the maximum in expectation; at the optimum its draws have no variance at all.
    assert history["train_elbo"][0] < best - 1
    assert history["train_elbo"][-1] == pytest.approx(best, abs=0.01)


@pytest.mark.slow
def test_fit_one_epoch_on_mnist(mnist: Path) -> None:
    train, validation, _ = data.load("mnist", root=mnist, binarize="dynamic")
    image = train.event_shape
    vae = VAE(
        priors.StandardNormal(10),
        likelihoods.Bernoulli(nets.MLP(10, [100]), image, data_mean=train.mean()),
        conditionals.DiagonalNormal(nets.MLP(image, [100]), 10),
    )
    history = fit(vae, train.take(20_000), validation.take(1000), epochs=1, batch_size=100, seed=0, progress=False)
    # Below: the mean image alone, without latents, has -206.8 nats of binarized MNIST.
    assert -185 < history["validation_elbo"][0] < -100


def test_fit_beta_follows_a_schedule_step_by_step() -> None:
    loss, beta = Watched(beta=0.7), schedules.linear(0.0, 4.0, epochs=2.5)
    history = fit(small_vae(), bits(10), loss=loss, epochs=4, batch_size=4, beta=beta, seed=0, progress=False)
    assert loss.betas == pytest.approx([4 * min(1, step / 7.5) for step in range(12)])
    assert history["beta"] == pytest.approx([4 * 2 / 7.5, 4 * 5 / 7.5, 4.0, 4.0])
    assert history.settings["beta"] == "linear(start=0.0, end=4.0, epochs=2.5)"
    assert loss.beta == 0.7
    fit(small_vae(), bits(10), loss=loss, epochs=1, batch_size=5, beta=3.0, progress=False)
    assert loss.betas[-2:] == [3.0, 3.0]
    assert loss.beta == 0.7


def test_fit_what_callbacks_set_on_the_loss_takes_effect_and_is_undone() -> None:
    loss = Watched(beta=1.0)

    def on_step(step: int, value: float) -> None:
        loss.beta = 1.0 + step
        if step == 3:
            loss.num_particles = 2
        if step == 5:
            raise KeyboardInterrupt

    fit(small_vae(), bits(10), loss=loss, epochs=4, batch_size=4, progress=False, compile=False, on_step=on_step)
    assert loss.betas == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert (loss.beta, loss.num_particles) == (1.0, 1)


@pytest.mark.parametrize("value", [-1.0, math.nan, None, "1"])
def test_fit_schedule_that_makes_no_beta_is_an_error_at_once(value: Any) -> None:
    loss = Watched(beta=1.0)
    with pytest.raises((TypeError, ValueError), match=r"fit: expected beta at epoch 0\.5"):
        fit(
            small_vae(),
            bits(10),
            loss=loss,
            epochs=2,
            batch_size=5,
            beta=lambda epoch: 1.0 if epoch < 0.5 else value,
            progress=False,
        )
    assert loss.betas == [1.0]
    assert loss.beta == 1.0


def test_fit_run_of_steps_ends_within_an_epoch() -> None:
    vae, taken = small_vae(), []
    history = fit(
        vae, bits(10), steps=8, batch_size=4, progress=False, on_step=lambda step, _: taken.append(step), seed=0
    )
    assert taken == list(range(1, 9))
    assert history["epoch"] == [1, 2, 3]
    assert (history.settings["epochs"], history.settings["steps"]) == (None, 8)
    by_epochs = small_vae()
    fit(by_epochs, bits(10), epochs=2, batch_size=4, progress=False, seed=0)
    by_steps = small_vae()
    fit(by_steps, bits(10), steps=6, batch_size=4, progress=False, seed=0)
    assert same(weights(by_epochs), weights(by_steps))


def test_fit_last_batch_of_one_is_refused_for_batch_normalization() -> None:
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4]), 5, scale=1.0),
        conditionals.DiagonalNormal(Normalized(5, 4), 2),
    )
    x, sizes = torch.randn(257, 5), []
    with pytest.raises(ValueError, match=r"fit: expected batches of at least 2 data .*drop_last=True"):
        fit(vae, x, epochs=1, progress=False)
    vae.guide.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])) if module.training else None)
    fit(vae, x, epochs=1, drop_last=True, progress=False, compile=False)
    assert 1 not in sizes
    with pytest.raises(ValueError, match="fit: expected at least batch_size=300 data with drop_last=True; got 257"):
        fit(vae, x, epochs=1, batch_size=300, drop_last=True, progress=False)


def test_fit_impossible_bound_ends_training() -> None:
    class Doubled(likelihoods.Bernoulli):
        def distribution(self, *, logits: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
            return Generous(logits=logits).to_event(1)

    class Generous(dist.Bernoulli):  # type: ignore[misc]
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) + 2

    vae = VAE(priors.StandardNormal(2), Doubled(nets.MLP(2, [4]), 5), conditionals.DiagonalNormal(nets.MLP(5, [4]), 2))
    with pytest.raises(ValueError, match=r"fit, train data: expected a bound on log p\(x\) of at most 0.*Site 'x'"):
        fit(vae, bits(200), epochs=1, progress=False)


def test_fit_without_warmup_beta_stays() -> None:
    loss = Watched(beta=0.5)
    fit(small_vae(), bits(10), loss=loss, epochs=1, batch_size=4, progress=False)
    assert loss.betas == [0.5] * 3


def test_fit_scheduler_is_stepped_after_each_epoch() -> None:
    history = fit(
        small_vae(),
        bits(10),
        optimizer=partial(torch.optim.Adam, lr=0.1),
        scheduler=partial(StepLR, step_size=2, gamma=0.5),
        epochs=5,
        batch_size=4,
        progress=False,
    )
    assert history["lr"] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


def opposed() -> tuple[Tensor, Tensor]:
    """Training and validation data that pull apart: what is learned makes the validation ELBO worse."""
    return torch.full((8, 5), 2.0), torch.full((8, 5), -2.0)


def test_fit_plateau_schedule_watches_the_validation_elbo() -> None:
    train, validation = opposed()
    history = fit(
        small_vae("Normal"),
        train,
        validation,
        optimizer=SGD,
        scheduler=partial(ReduceLROnPlateau, factor=0.5, patience=0),
        epochs=4,
        seed=0,
        progress=False,
    )
    assert history["validation_elbo"] == sorted(history["validation_elbo"], reverse=True)
    assert history["lr"] == pytest.approx([0.01, 0.01, 0.005, 0.0025])
    history = fit(
        small_vae("Normal"),
        train,
        optimizer=SGD,
        scheduler=partial(ReduceLROnPlateau, factor=0.5, patience=0),
        epochs=4,
        seed=0,
        progress=False,
    )
    assert history["lr"] == [0.01] * 4  # without validation data the training ELBO, which rises


def test_fit_gradients_are_clipped() -> None:
    x = 100 * torch.randn(8, 5)
    moves = []
    for limit in (None, 1.0):
        vae = small_vae("Normal")
        before = nn.utils.parameters_to_vector(vae.parameters()).detach()
        fit(vae, x, optimizer=partial(torch.optim.SGD, lr=1e-6), epochs=1, max_grad_norm=limit, seed=0, progress=False)
        moves.append((nn.utils.parameters_to_vector(vae.parameters()) - before).norm().item())
    assert moves[0] > 1e-5
    assert moves[1] == pytest.approx(1e-6, rel=0.1)  # of one step, in float32


# Early stopping


class Normalized(nets.Body):
    """A body with buffers that training changes."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__([inputs], features)
        self.layers = nn.Sequential(nn.Linear(inputs, features), nn.BatchNorm1d(features), nn.Tanh())

    def features(self, *inputs: Tensor) -> Tensor:
        return self.layers(inputs[0])


@pytest.mark.parametrize("patience", [1, 2])
@pytest.mark.parametrize("warmup", [0, 3])
def test_fit_early_stopping_restores_the_best_weights_and_buffers(patience: int, warmup: int) -> None:
    train, validation = opposed()
    train = train + 0.1 * torch.randn(train.shape)
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4]), 5, scale=1.0),
        conditionals.DiagonalNormal(Normalized(5, 4), 2),
    )
    saved: list[dict[str, Tensor]] = []
    history = fit(
        vae,
        train,
        validation,
        optimizer=SGD,
        epochs=20,
        patience=patience,
        beta=schedules.linear(0.0, 1.0, epochs=warmup) if warmup else None,
        seed=0,
        progress=False,
        on_epoch=lambda row: saved.append(weights(vae)),
    )
    best = max(1, warmup)
    assert history.stopped == "early stopping"
    assert history.best_epoch == best
    assert len(history) == best + patience
    assert same(weights(vae), saved[best - 1])
    assert not same(weights(vae), saved[-1])
    assert "guide.posterior.body.layers.1.running_mean" in saved[0]


def test_fit_patience_that_is_not_exhausted_restores_the_best_weights_too() -> None:
    train, validation = opposed()
    vae, saved = small_vae("Normal"), []
    history = fit(
        vae,
        train,
        validation,
        optimizer=SGD,
        epochs=3,
        patience=10,
        seed=0,
        progress=False,
        on_epoch=lambda row: saved.append(weights(vae)),
    )
    assert (history.stopped, history.best_epoch, len(history)) == ("completed", 1, 3)
    assert same(weights(vae), saved[0])


def test_fit_without_patience_the_last_weights_are_kept() -> None:
    train, validation = opposed()
    vae, saved = small_vae("Normal"), []
    fit(vae, train, validation, epochs=2, seed=0, progress=False, on_epoch=lambda row: saved.append(weights(vae)))
    assert same(weights(vae), saved[-1])


# Interrupted


def interrupt_at(last: int) -> Callable[[int, float], None]:
    def on_step(step: int, value: float) -> None:
        if step == last:
            raise KeyboardInterrupt

    return on_step


def test_fit_ctrl_c_returns_what_was_done_and_leaves_everything_usable() -> None:
    vae = small_vae()
    torch.manual_seed(1)
    state, before = torch.get_rng_state(), weights(vae)
    history = fit(vae, bits(10), bits(4), epochs=9, batch_size=4, seed=0, progress=False, on_step=interrupt_at(8))
    assert history.stopped == "interrupted"
    assert history["epoch"] == [1, 2]
    assert history.best_epoch is None
    assert json.loads(history.to_json())["stopped"] == "interrupted"
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(weights(vae), before)
    assert not any(module.training for module in (*vae.model.modules(), *vae.guide.modules()))
    assert all(p.grad is None for p in vae.parameters())
    assert vae.sample(2).shape == (2, 5)
    before = weights(vae)
    again = fit(vae, bits(10), epochs=1, batch_size=4, seed=0, progress=False)
    assert again.stopped == "completed"
    assert not same(weights(vae), before)


def test_fit_ctrl_c_in_the_first_epoch() -> None:
    history = fit(small_vae(), bits(10), epochs=9, batch_size=4, progress=False, on_step=interrupt_at(1))
    assert (history.stopped, len(history), str(history)) == ("interrupted", 0, "")


def test_fit_ctrl_c_keeps_the_promise_of_early_stopping() -> None:
    train, validation = opposed()
    vae, saved = small_vae("Normal"), []
    history = fit(
        vae,
        train,
        validation,
        optimizer=SGD,
        epochs=9,
        patience=9,
        seed=0,
        progress=False,
        on_step=interrupt_at(3),
        on_epoch=lambda row: saved.append(weights(vae)),
    )
    assert (history.stopped, history.best_epoch, len(history)) == ("interrupted", 1, 2)
    assert same(weights(vae), saved[0])


def test_fit_nan_stops_training_and_says_where() -> None:
    vae = small_vae("Normal")
    x, steps = torch.randn(8, 5), []
    state = torch.get_rng_state()
    with pytest.raises(FloatingPointError, match=r"at step \d+; got (nan|inf)\. .*'x' of the model.*Parameters that"):
        fit(
            vae,
            x,
            optimizer=partial(torch.optim.SGD, lr=1e20),
            epochs=9,
            seed=0,
            progress=False,
            on_step=lambda step, value: steps.append(step),
        )
    assert 1 <= len(steps) < 9
    assert torch.equal(torch.get_rng_state(), state)


def test_fit_modules_train_while_they_are_trained_and_evaluate_afterwards() -> None:
    vae, modes = small_vae(), []
    vae.model.register_forward_pre_hook(lambda module, args: modes.append((module.training, torch.is_grad_enabled())))
    vae.eval()
    fit(vae, bits(4), bits(4), epochs=1, batch_size=2, progress=False, seed=0)
    assert [training for training, grad in modes if grad] == [True, True]
    assert modes[-2:] == [(False, False)] * 2
    assert not any(module.training for module in vae.modules())


# Data


@pytest.mark.parametrize(
    "train",
    [bits(), bits().numpy(), bits().double(), bits().to(torch.uint8), bits().bool().numpy(), data.as_dataset(bits())],
    ids=["tensor", "array", "double", "uint8", "bool array", "Dataset"],
)
def test_fit_plain_tensors_and_arrays_are_data(train: Any) -> None:
    vae, reference = small_vae(), small_vae()
    fit(vae, train, epochs=2, batch_size=4, seed=0, progress=False)
    fit(reference, bits(), epochs=2, batch_size=4, seed=0, progress=False)
    assert same(weights(vae), weights(reference))


def test_fit_batch_size_above_the_number_of_data() -> None:
    loss = Watched()
    fit(small_vae(), bits(3), bits(1), loss=loss, epochs=2, progress=False)
    assert loss.sizes == [3, 3]


def test_fit_context_reaches_model_and_guide() -> None:
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4], context_shapes=[3]), 5),
        conditionals.DiagonalNormal(nets.MLP(5, [4]), 2),
    )
    before = weights(vae)
    train = data.as_dataset(torch.randn(10, 5)).conditioned_on(torch.randn(10, 3))
    fit(vae, train, train, epochs=1, batch_size=4, progress=False)
    assert [name for name, value in weights(vae).items() if torch.equal(value, before[name])] == []


# Programs other than a VAE


class LatentRegression:
    """y ~ Normal(w x + z, .5^2) with an offset z of each datum; w is learned, q(z|x, y) is linear in the residual."""

    latents = ("offset",)
    observed = ("y",)

    def __init__(self) -> None:
        self.model, self.guide = self.Model("regression"), self.Guide("offsets")

    class Model(PyroModule):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.slope = nn.Linear(2, 1, bias=False)

        def forward(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                offset = pyro.sample("offset", dist.Normal(torch.zeros(()), 1.0))
                pyro.sample("y", dist.Normal(self.slope(x).squeeze(-1) + offset, 0.5), obs=y)

    class Guide(PyroModule):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.net = nn.Linear(3, 2)

        def forward(self, x: Tensor, y: Tensor) -> None:
            loc, log_scale = self.net(torch.cat([x, y[:, None]], -1)).unbind(-1)
            with pyro.plate("rows", len(x)):
                pyro.sample("offset", dist.Normal(loc, log_scale.exp()))


@pytest.mark.slow
def test_fit_regression_with_latents_is_fitted_to_the_least_squares_solution() -> None:
    x = torch.randn(200, 2)
    y = x @ torch.tensor([1.5, -0.5]) + 1.25**0.5 * torch.randn(200)
    program = LatentRegression()
    history = fit(
        program,
        data.as_dataset(x).conditioned_on(y),
        optimizer=partial(torch.optim.Adam, lr=0.05),
        scheduler=partial(StepLR, step_size=100, gamma=0.2),
        epochs=400,
        batch_size=50,
        seed=0,
        progress=False,
    )
    slope = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    torch.testing.assert_close(program.model.slope.weight[0].detach(), slope, atol=0.01, rtol=0)
    # The guide's family holds the posterior, so the ELBO is the log-likelihood of y ~ Normal(x w, 1.25) at its maximum.
    exact = dist.Normal(x @ slope, 1.25**0.5).log_prob(y).mean().item()
    assert history["train_elbo"][-1] == pytest.approx(exact, abs=0.001)


def test_fit_program_with_an_autoguide() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).expand([2]).to_event(1), obs=x)

    guide = AutoNormal(model)
    program = SimpleProgram(model, guide, latents=("loc",))
    fit(program, torch.randn(6, 2), epochs=2, batch_size=4, seed=0, progress=False)
    assert guide.locs.loc.item() != 0.0
    assert len(pyro.get_param_store()) == 0


class TutorialVAE(nn.Module):
    """Model and guide as methods that register networks, as Pyro's tutorial writes them."""

    latents = ("z",)
    observed = ("x",)

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 5), nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x), 2]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def test_fit_program_whose_methods_register_modules() -> None:
    vae = TutorialVAE()
    before = weights(vae)
    fit(vae, bits(), bits(3), epochs=2, batch_size=4, seed=0, progress=False)
    assert [n for n, value in weights(vae).items() if torch.equal(value, before[n]) and n != "encoder.0.bias"] == []
    assert not any(module.training for module in vae.modules())


def test_fit_parameters_of_functions_are_in_pyros_store() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(loc, pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive))
            )

    fit(SimpleProgram(model, guide), bits(), epochs=1, progress=False)
    assert pyro.param("loc").item() != 0
    assert pyro.param("scale").item() != 1


# Refused


@pytest.fixture
def vae() -> Iterator[VAE]:
    """A VAE that must not be trained."""
    vae = small_vae()
    before = weights(vae)
    yield vae
    assert same(weights(vae), before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"train": torch.rand(10, 5)},
            ValueError,
            r"fit, training data 'array': Bernoulli likelihood: expected binary values, 0 or 1; got values in \[.*\]\. "
            r"Binarize the data \(data\.load\(\.\.\., binarize=\"dynamic\"\)\), or use ContinuousBernoulli",
        ),
        (
            {"validation": torch.cat([bits(1500), torch.full((1, 5), 0.25)])},  # one value in the last batch
            ValueError,
            r"fit, validation data 'array': Bernoulli likelihood: expected binary values, 0 or 1; got values in \[0",
        ),
        ({"train": torch.full((10, 5), torch.nan)}, ValueError, "fit, training data 'array': Bernoulli likelihood: "),
        ({"train": torch.full((10, 5), torch.inf)}, ValueError, "Dataset 'array': expected finite values"),
        (
            {"train": bits()[:, :4]},
            ValueError,
            r"fit, training data 'array': Bernoulli likelihood: expected data of shape \(N, 5\); got \(10, 4\)\.",
        ),
        ({"validation": bits()[:, :4]}, ValueError, r"fit, validation data 'array': .* shape \(N, 5\); got \(10, 4\)"),
        ({"train": torch.zeros(0, 5)}, ValueError, "Dataset 'array': expected shape .* at least one datum"),
        ({"validation": torch.zeros(0, 5)}, ValueError, "Dataset 'array': expected shape .* at least one datum"),
        ({"train": {"x": 1}}, TypeError, "Dataset 'array': expected a Dataset, a tensor, an array"),
        ({"epochs": 0}, ValueError, r"fit: expected epochs at least 1; got 0\. Give a larger number\."),
        ({"epochs": -3}, ValueError, "fit: expected epochs at least 1; got -3"),
        ({"batch_size": 0}, ValueError, "fit: expected batch_size at least 1; got 0"),
        ({"patience": 0, "validation": bits()}, ValueError, "fit: expected patience at least 1; got 0"),
        (
            {"patience": 3},
            ValueError,
            r"fit: expected validation data for early stopping; got none\. Pass validation=\.\.\., or no patience\.",
        ),
        ({"beta": -1.0}, ValueError, "fit: expected beta at least 0; got -1"),
        (
            {"beta": 2.0, "loss": pyro.infer.Trace_ELBO()},
            ValueError,
            r"fit: expected a loss with a beta for beta=2\.0; got Trace_ELBO\. Use pyro_vae\.elbo\.ELBO, or leave",
        ),
        ({"epochs": 1, "steps": 1}, ValueError, "fit: expected either epochs or steps; got 1 and 1"),
        ({"epochs": None, "steps": 2.5}, TypeError, r"fit: expected steps a whole number; got 2\.5"),
        ({"batch_size": True}, TypeError, "fit: expected batch_size a whole number; got True"),
        ({"seed": "a"}, TypeError, "fit: expected seed a whole number; got 'a'"),
        ({"on_step": 3}, TypeError, "fit: expected on_step callable; got int"),
        ({"scheduler": lambda optimizer: None}, TypeError, "fit: expected scheduler to make a learning-rate schedule"),
        ({"loss": pyro.infer.Trace_ELBO}, TypeError, "SVI: expected loss a pyro.infer.ELBO"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)}, TypeError, "SVI: expected optimizer a callable"),
        ({"max_grad_norm": -1.0}, ValueError, "SVI: expected max_grad_norm above 0"),
        (
            {
                "optimizer": pyro.optim.PyroOptim(torch.optim.Adam, lambda _: {"lr": 0.1}),
                "scheduler": partial(StepLR, step_size=1),
            },
            ValueError,
            r"fit: expected a torch\.optim optimizer for a scheduler; got PyroOptim\. Pass functools\.partial",
        ),
        (
            {"train": data.as_dataset(bits()).conditioned_on(torch.zeros(10, 3))},
            TypeError,
            "expected 1 inputs .*; got 2",
        ),
    ],
)
def test_fit_bad_input_is_refused_before_the_first_step(
    vae: VAE, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        fit(**{"program": vae, "train": bits(), "epochs": 1, "seed": 0, "progress": False, **arguments})
    assert torch.equal(torch.get_rng_state(), state)


def test_fit_data_and_parameters_on_different_devices_are_refused() -> None:
    message = (
        "fit: expected training data and parameters on one device; got cpu and meta. "
        'Move one: program.to("cpu"), or data.load(..., device="meta").'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(small_vae().to("meta"), bits(), progress=False)


def test_fit_parameters_of_another_type_than_the_batches_are_refused() -> None:
    message = r"fit: expected parameters of torch\.float32, as batches are; got torch\.float64"
    with pytest.raises(ValueError, match=message):
        fit(small_vae().double(), bits(), progress=False)


def test_fit_figures_of_an_epoch_do_not_change_what_is_learned() -> None:
    with_figures, without = small_vae(), small_vae()
    fit(with_figures, bits(), bits(6), epochs=3, batch_size=4, seed=5, progress=False)
    fit(without, bits(), epochs=3, batch_size=4, seed=5, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(with_figures.parameters(), without.parameters(), strict=True))


def test_fit_what_is_no_program_is_refused() -> None:
    message = "fit: expected a program with model and guide; got Linear. Pass a VAE, or an object"
    with pytest.raises(TypeError, match=re.escape(message)):
        fit(nn.Linear(1, 1), bits())  # type: ignore[arg-type]


@pytest.mark.cuda
def test_fit_on_cuda() -> None:
    results = []
    for _ in range(2):
        vae = small_vae().cuda()
        state = torch.get_rng_state(), torch.cuda.get_rng_state()
        history = fit(vae, grays().to("cuda"), grays().to("cuda"), epochs=1, batch_size=4, seed=0, progress=False)
        assert torch.equal(torch.get_rng_state(), state[0])
        assert torch.equal(torch.cuda.get_rng_state(), state[1])
        assert np.isfinite(list(history.columns().values())).all()
        assert {p.device.type for p in vae.parameters()} == {"cuda"}
        results.append(weights(vae))
    assert same(*results)
    assert not same(results[0], weights(small_vae().cuda()))
    with pytest.raises(
        ValueError, match="fit: expected training data and parameters on one device; got cpu and cuda:0"
    ):
        fit(vae, bits(), progress=False)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_figures_are_the_terms_of_evaluation_whatever_the_scale(scale: float) -> None:
    vae, dataset = small_vae(), data.as_dataset(bits())
    model, guide = poutine.scale(vae.model, scale), poutine.scale(vae.guide, scale)
    with pyro.get_param_store().scope():
        row = figures("train", model, guide, dataset, "data")
        with seeded(0, torch.device("cpu")):
            terms = evaluation.elbo_terms(vae, dataset.tensor())
    for name in ("elbo", "expected_log_likelihood", "kl"):
        assert row[f"train_{name}"] == pytest.approx(getattr(terms, name).mean().item(), rel=1e-6)
