"""Trackers log what fit says, each epoch once, in files that others read; a run does not know that they are there."""

from __future__ import annotations

import gc
import json
import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, init_to_sample
from torch import Tensor, nn

from pyro_vae import VAE, conditionals, fit, likelihoods, nets, priors, trackers
from pyro_vae.training import History, Row

X = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0)).round()
FIGURES = {"epoch", "loss", "seconds", "lr", "beta", "train/elbo", "train/expected_log_likelihood", "train/kl"}


class Dropping(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.ReLU(), nn.Dropout(0.5))


def small_vae(likelihood: type = likelihoods.Bernoulli) -> VAE:
    torch.manual_seed(0)
    body = nets.MLP((1, 6, 6), [8], activation=Dropping)
    return VAE(
        priors.StandardNormal(2),
        likelihood(nets.MLP(2, [8]), (1, 6, 6)),
        conditionals.DiagonalNormal(body, 2),
    )


def trained(vae: VAE, on_epoch: Any = None, x: Tensor = X, epochs: int = 3, **options: Any) -> History:
    return fit(vae, x, epochs=epochs, batch_size=6, seed=1, progress=False, on_epoch=on_epoch, **options)


def logged(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    return found.Reload()


def scalars(folder: Path, tag: str) -> Any:
    return [(event.step, event.value) for event in logged(folder).Scalars(tag)]


def lines(path: Path) -> list[Row]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


# The run


@pytest.mark.parametrize("likelihood", [likelihoods.Bernoulli, likelihoods.Normal])
def test_trackers_leave_a_run_as_it_is_to_the_last_bit(likelihood: type, tmp_path: Path) -> None:
    plain, tracked = small_vae(likelihood), small_vae(likelihood)
    modes: list[bool] = []
    history = trained(plain)
    tracker = trackers.all_of(
        trackers.jsonl(tmp_path / "log.jsonl"), trackers.tensorboard(tmp_path / "tb", tracked, X[:4])
    )
    again = trained(tracked, tracker, on_step=lambda *_: modes.append(tracked.training))
    assert all(modes)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), tracked.parameters(), strict=True))
    for row, other in zip(history.epochs, again.epochs, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}


def test_trackers_leave_the_mode_and_the_random_numbers_as_they_were(tmp_path: Path) -> None:
    vae = small_vae().train()
    vae.likelihood.eval()
    modes = [module.training for module in vae.modules()]
    state = torch.get_rng_state()
    trackers.tensorboard(tmp_path, vae, X[:4])({"epoch": 1})
    assert [module.training for module in vae.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_trackers_do_not_make_a_lazy_guide_before_training(tmp_path: Path) -> None:
    """Else it would be made with other random numbers than in a run without trackers."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).to_event(1), obs=x)

    x, found = torch.arange(5.0)[:, None], []
    for tracked in (False, True):
        program = SimpleNamespace(model=model, guide=AutoNormal(model, init_loc_fn=init_to_sample))
        tracker = trackers.tensorboard(tmp_path / "tb", program, x) if tracked else None
        fit(program, x, batch_size=5, epochs=2, seed=0, progress=False, on_epoch=tracker)
        found.append(dict(program.guide.named_parameters()))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert len(logged(tmp_path / "tb").Histograms("latents/z")) == 2


# JSON lines


def test_jsonl_has_the_history(tmp_path: Path) -> None:
    history = trained(small_vae(), trackers.jsonl(tmp_path / "new" / "log.jsonl"))
    assert lines(tmp_path / "new" / "log.jsonl") == history.epochs


def test_jsonl_is_strict_json(tmp_path: Path) -> None:
    tracker = trackers.jsonl(tmp_path / "log.jsonl")
    tracker({"epoch": 1, "loss": math.nan, "a": math.inf, "b": -math.inf, "c": torch.tensor(2.0)})  # type: ignore[dict-item]
    (row,) = lines(tmp_path / "log.jsonl")
    assert row == {"epoch": 1, "loss": "NaN", "a": "Infinity", "b": "-Infinity", "c": 2.0}
    assert math.isnan(float(row["loss"]))
    assert float(row["b"]) == -math.inf


def test_jsonl_refuses_what_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"jsonl: expected the figures .*; got list as 'ranks'\. Give a number"):
        trackers.jsonl(tmp_path / "log.jsonl")({"epoch": 1, "ranks": [1, 2]})  # type: ignore[dict-item]
    assert not (tmp_path / "log.jsonl").exists()


def test_jsonl_refuses_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"epoch": 1}\n')
    with pytest.raises(FileExistsError, match=r"expected no log at .*log.jsonl'; got one .*\. Go on with it by resume"):
        trackers.jsonl(path)
    path.write_text("dear diary\n\n")
    with pytest.raises(ValueError, match=r"expected lines of epochs in .*; got 'dear diary'\. Give another file"):
        trackers.jsonl(path, resume=True)({"epoch": 1})
    assert path.read_text() == "dear diary\n\n"


def test_jsonl_refuses_a_second_run(tmp_path: Path) -> None:
    tracker = trackers.jsonl(tmp_path / "log.jsonl")
    trained(small_vae(), tracker)
    with pytest.raises(ValueError, match=r"expected an epoch after 3; got 1 again\. Make a tracker for each run"):
        trained(small_vae(), tracker)


def test_jsonl_resume_replaces_epochs_and_a_line_that_was_broken_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"epoch": 1, "loss": 1.0}\n{"epoch": 2, "loss": 2.0}\n{"epoch": 3, "lo')
    tracker = trackers.jsonl(path, resume=True)
    tracker({"epoch": 2, "loss": 5.0})
    tracker({"epoch": 3, "loss": 6.0})
    assert [row["loss"] for row in lines(path)] == [1.0, 5.0, 6.0]
    tracker({"epoch": 3, "loss": 7.0})  # of a run that went on in the same process
    assert [row["loss"] for row in lines(path)] == [1.0, 5.0, 7.0]


class _CrashError(RuntimeError):
    pass


def crashing(at: int) -> Callable[[int, float], None]:
    def on_step(step: int, _: float) -> None:
        if step == at:
            raise _CrashError

    return on_step


def test_trackers_of_a_run_that_crashed_and_goes_on_have_each_epoch_once(tmp_path: Path) -> None:
    whole = trained(small_vae(), epochs=5)
    options: dict[str, Any] = {"folder": tmp_path / "run", "resume": True, "checkpoint_every": "3 epochs", "epochs": 5}

    def both(vae: VAE) -> Callable[[Row], None]:
        return trackers.all_of(
            trackers.jsonl(tmp_path / "log.jsonl", resume=True),
            trackers.tensorboard(tmp_path / "tb", vae, X[:4], resume=True),
        )

    vae = small_vae()
    with pytest.raises(_CrashError):
        trained(vae, both(vae), on_step=crashing(10), **options)  # in the fifth epoch; the checkpoint is of the third
    assert [row["epoch"] for row in lines(tmp_path / "log.jsonl")] == [1, 2, 3, 4]
    assert [step for step, _ in scalars(tmp_path / "tb", "loss")] == [1, 2, 3, 4]
    vae = small_vae()
    trained(vae, both(vae), **options)
    assert [row["loss"] for row in lines(tmp_path / "log.jsonl")] == whole["loss"]
    assert scalars(tmp_path / "tb", "loss") == list(zip(range(1, 6), map(pytest.approx, whole["loss"]), strict=True))
    assert [event.step for event in logged(tmp_path / "tb").Images("samples")] == [1, 2, 3, 4, 5]


# TensorBoard


def test_tensorboard_files_have_figures_pictures_and_histograms(tmp_path: Path) -> None:
    vae = small_vae()
    history = trained(vae, trackers.tensorboard(tmp_path, vae, X[:3]))
    found = logged(tmp_path)
    assert set(found.Tags()["scalars"]) == FIGURES
    for tag, column in (("loss", "loss"), ("train/elbo", "train_elbo"), ("train/kl", "train_kl")):
        assert scalars(tmp_path, tag) == [(i + 1, pytest.approx(v)) for i, v in enumerate(history[column])]
    assert set(found.Tags()["images"]) == {"originals", "reconstructions", "samples"}
    assert len(found.Histograms("latents/z")) == 3
    (weights,) = (h for h in found.Histograms("parameters/model.likelihood.head.layer.weight") if h.step == 3)
    parameter = vae.likelihood.head.layer.weight.detach()
    assert weights.histogram_value.num == parameter.numel()
    assert weights.histogram_value.sum == pytest.approx(float(parameter.sum()), rel=1e-4)


def test_tensorboard_pictures_are_the_images(tmp_path: Path) -> None:
    from io import BytesIO

    import numpy as np
    from PIL import Image

    vae = small_vae(likelihoods.Normal)
    x = 4 * X[:2] - 1  # from -1, black, to 3, white
    trackers.tensorboard(tmp_path, vae, x)({"epoch": 1})
    (event,) = logged(tmp_path).Images("originals")
    pixels = np.asarray(Image.open(BytesIO(event.encoded_image_string)))
    assert pixels.shape == (6 + 4, 2 * 8 + 2, 3)  # a border of two pixels around each
    assert (pixels[2:8, 2:8, 0] == 255 * X[0, 0].numpy()).all()
    assert (pixels[2:8, 10:16, 0] == 255 * X[1, 0].numpy()).all()
    (event,) = logged(tmp_path).Images("reconstructions")
    pixels = np.asarray(Image.open(BytesIO(event.encoded_image_string)))
    vae.eval()
    with torch.no_grad():  # up to the spread of q(z|x), which an untrained network hardly sees
        near = vae.decode(vae.encode(x).mean).mean[0, 0]
    assert np.abs(pixels[2:8, 2:8, 0] / 255 - (near.numpy() + 1) / 4).max() < 0.5


def test_tensorboard_of_a_table_and_of_no_program_has_no_pictures(tmp_path: Path) -> None:
    x = torch.rand(6, 3)
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4]), 3),
        conditionals.DiagonalNormal(nets.MLP(3, [4]), 2),
    )
    trackers.tensorboard(tmp_path / "table", vae, x)({"epoch": 1})
    trackers.tensorboard(tmp_path / "none")({"epoch": 1})
    assert logged(tmp_path / "table").Tags()["images"] == []
    assert "latents/z" in logged(tmp_path / "table").Tags()["histograms"]
    assert logged(tmp_path / "none").Tags()["histograms"] == []


def test_tensorboard_draws_where_a_likelihood_has_no_mean(tmp_path: Path) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Cauchy(z[:, None, None, None], torch.ones(1, 6, 6)).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    trackers.tensorboard(tmp_path, SimpleNamespace(model=model, guide=guide), X[:4])({"epoch": 1})
    assert set(logged(tmp_path).Tags()["images"]) == {"originals", "reconstructions", "samples"}


def test_tensorboard_refuses_a_folder_that_is_in_use(tmp_path: Path) -> None:
    trackers.tensorboard(tmp_path)({"epoch": 1})
    with pytest.raises(FileExistsError, match=r"tensorboard: expected no log at .*; got one of an earlier run"):
        trackers.tensorboard(tmp_path)


def test_tensorboard_closes_its_files_with_the_tracker(tmp_path: Path) -> None:
    before = threading.active_count()
    tracker = trackers.tensorboard(tmp_path)
    tracker({"epoch": 1})
    assert threading.active_count() > before
    del tracker
    gc.collect()
    assert threading.active_count() == before


def test_tensorboard_refuses_data_that_the_program_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Bernoulli likelihood: expected binary values"):
        trackers.tensorboard(tmp_path, small_vae(), X + 0.5)
    with pytest.raises(TypeError, match=r"expected batch to be a Tensor; got ndarray\. Give some data as a tensor"):
        trackers.tensorboard(tmp_path, small_vae(), X.numpy())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a program with model and guide; got Tensor"):
        trackers.tensorboard(tmp_path, X)  # type: ignore[arg-type]


def test_tensorboard_missing_is_an_error_that_names_the_extra(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"expected tensorboard to be .*; .*pip install 'pyro-vae\[tracking\]'"):
        trackers.tensorboard(tmp_path)


# MLflow and Weights & Biases, of which these are stubs with the documented calls


class StubMLflow(ModuleType):
    """``active_run``, ``start_run``, ``get_run``, ``log_metrics`` and ``log_image`` of ``mlflow``."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.metrics: dict[str, list[tuple[int, float]]] = {}
        self.images: list[tuple[str, int, Any]] = []
        self.run: Any = None

    def active_run(self) -> Any:
        return self.run

    def start_run(self) -> Any:
        self.run = SimpleNamespace(info=SimpleNamespace(run_id="abc"))
        return self.run

    def get_run(self, run_id: str) -> Any:
        assert run_id == "abc"
        latest = {name: max(values)[1] for name, values in self.metrics.items()}
        return SimpleNamespace(info=self.run.info, data=SimpleNamespace(metrics=latest))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        for name, value in metrics.items():
            assert type(value) is float
            self.metrics.setdefault(name, []).append((step, value))

    def log_image(
        self, image: Any, artifact_file: None = None, key: str | None = None, step: int | None = None
    ) -> None:
        assert key is not None
        assert step is not None
        assert (image.dtype, image.ndim, image.shape[-1]) == ("uint8", 3, 3)
        self.images.append((key, step, image))


def test_mlflow_has_figures_and_pictures_of_each_epoch_once(monkeypatch: Any) -> None:
    library = StubMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", library)
    vae = small_vae()
    history = trained(vae, trackers.mlflow(vae, X[:4]), epochs=2)
    assert set(library.metrics) == FIGURES
    assert library.metrics["train/elbo"] == list(zip([1, 2], history["train_elbo"], strict=True))
    assert {key for key, _, _ in library.images} == {"originals", "reconstructions", "samples"}
    with pytest.raises(FileExistsError, match=r"trackers.mlflow: expected no log at 'abc'; got one of an earlier run"):
        trackers.mlflow()({"epoch": 1, "loss": 0.0})
    tracker = trackers.mlflow(resume=True)
    for epoch in (2, 3):
        tracker({"epoch": epoch, "loss": 0.0})
    assert [step for step, _ in library.metrics["loss"]] == [1, 2, 3]


class StubRun:
    """``log``, ``summary``, ``define_metric`` and ``id`` of a run of Weights & Biases."""

    id = "xyz"

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.axes: list[tuple[str, str]] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        assert step_metric is not None
        self.axes.append((name, step_metric))

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        self.rows.append(data)
        self.summary |= data


def test_wandb_has_figures_pictures_and_histograms_of_each_epoch_once(monkeypatch: Any) -> None:
    library = ModuleType("wandb")
    vars(library).update(Image=lambda data: ("image", data.shape), Histogram=lambda values: ("histogram", len(values)))
    monkeypatch.setitem(sys.modules, "wandb", library)
    run, vae = StubRun(), small_vae()
    history = trained(vae, trackers.wandb(run, vae, X[:4]), epochs=2)
    assert run.axes == [("*", "epoch")]
    assert [row["train/kl"] for row in run.rows] == history["train_kl"]
    assert run.rows[0]["samples"] == ("image", (10, 34, 3))
    assert run.rows[0]["latents/z"] == ("histogram", 8)
    with pytest.raises(FileExistsError, match=r"trackers.wandb: expected no log at 'xyz'"):
        trackers.wandb(run)({"epoch": 1, "loss": 0.0})
    tracker = trackers.wandb(run, resume=True)
    for epoch in (2, 3):
        tracker({"epoch": epoch, "loss": 0.0})
    assert [row["epoch"] for row in run.rows] == [1, 2, 3]
    with pytest.raises(TypeError, match=r"trackers.wandb: expected a run; got str\. Give wandb\.init"):
        trackers.wandb("project")


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_mlflow_and_wandb_missing_are_errors_that_name_the_command(name: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"trackers.{name}: expected {name} to be installed; .*pip install {name}"):
        trackers.mlflow() if name == "mlflow" else trackers.wandb(StubRun())


def test_all_of_refuses_what_is_no_callback() -> None:
    with pytest.raises(TypeError, match=r"trackers.all_of: expected callbacks; got str\. Give functions"):
        trackers.all_of(print, "log.jsonl")  # type: ignore[arg-type]
