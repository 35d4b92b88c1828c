"""The command line: each command does what the functions behind it do, and says in one line what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import pyro_vae
from pyro_vae import data, evaluation, priors
from pyro_vae.cli import main
from pyro_vae.cli.calls import made
from pyro_vae.cli.parser import plain
from pyro_vae.cli.sources import codes

SMALL = ["--hidden", "16", "--latent_dim", "2", "--batch_size", "512"]
DIGITS = ["train", "--data", "digits", *SMALL]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in an empty folder: status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status: object = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        assert isinstance(status, int)
        return status, out, err

    return command


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "run"
    assert main([*DIGITS, "--epochs", "2", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 60 rows with words, whole numbers and missing cells."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 60)
    frame = pd.DataFrame({
        "alcohol": 12 + kind + rng.normal(size=60) / 3,
        "acid": np.exp(rng.normal(size=60)),
        "bottles": rng.poisson(3 + 2 * kind),
        "cultivar": np.array(["barbera", "barolo", "grignolino"])[kind],
    })  # fmt: skip
    frame.loc[rng.random(60) < 0.1, "alcohol"] = np.nan
    path = tmp_path_factory.mktemp("tables") / "wine.csv"
    frame.to_csv(path, index=False)
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def equal(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_train_takes_parts_by_name_and_their_options(run: Run, tmp_path: Path) -> None:
    status, _, err = run(
        *DIGITS, "--likelihood", "Binomial", "--prior", "VampPrior", "--prior.num_components", "30",
        "--loss", "IWELBO", "--loss.num_particles", "3", "--loss.gradient", "dreg", "--beta", "1",
        "--optimizer", "SGD", "--optimizer.lr", "1e-4", "--epochs", "1", "--out", "a",
    )  # fmt: skip
    assert status == 2
    assert "expected a loss with a beta" in err  # IWELBO has none
    assert not (tmp_path / "a").exists()
    status, _, err = run(
        *DIGITS, "--likelihood", "Binomial", "--prior", "VampPrior", "--prior.num_components", "30",
        "--loss", "IWELBO", "--loss.num_particles", "3", "--loss.gradient", "dreg",
        "--optimizer", "SGD", "--optimizer.lr", "1e-4", "--epochs", "1", "--out", "a",
    )  # fmt: skip
    assert (status, err) == (0, "")
    vae = pyro_vae.load("a")
    assert type(vae.prior) is priors.VampPrior
    assert vae.prior.pseudo_inputs.shape == (30, 1, 8, 8)
    assert vae.likelihood.total_count == 16  # of the data's 17 levels
    settings = json.loads((tmp_path / "a" / "run.json").read_text())
    assert "IWELBO" in str(settings)
    assert "SGD" in str(settings)
    assert (tmp_path / "a" / "config.yaml").read_text().count("num_particles: 3") == 1


def test_train_says_what_it_found_and_chose(run: Run) -> None:
    _, out, _ = run("train", "--data", "digits", "--steps", "2", "--out", "a")
    assert "1349 x (1, 8, 8), 17 levels" in out
    assert "17 levels, 0 to 16: Binomial(16)" in out
    assert "images of at most 32x32 pixels" in out
    assert "StandardNormal prior, Binomial likelihood, DiagonalNormal posterior" in out


def test_train_from_its_configuration_is_bit_equal(run: Run, tmp_path: Path, digits_run: Path) -> None:
    status, _, _ = run("train", "--config", str(digits_run / "config.yaml"), "--out", "again")
    assert status == 0
    assert equal(tmp_path / "again", digits_run)
    status, _, _ = run("train", "--config", str(digits_run / "config.yaml"), "--out", "other", "--seed", "1")
    assert status == 0
    assert not equal(tmp_path / "other", digits_run)


def test_train_from_an_edited_print_config_is_bit_equal_to_flags(run: Run, tmp_path: Path) -> None:
    flags = ["--prior", "MixtureOfNormals", "--prior.num_components", "4", "--epochs", "1"]
    status, out, _ = run(*DIGITS, "--prior", "MixtureOfNormals", "--prior.num_components", "9", "--print_config")
    assert status == 0
    edited = out.replace("num_components: 9", "num_components: 4").replace("epochs: null", "epochs: 1")
    assert edited != out
    (tmp_path / "edited.yaml").write_text(edited)
    assert run("train", "--config", "edited.yaml", "--out", "a")[0] == 0
    assert run(*DIGITS, *flags, "--out", "b")[0] == 0
    assert equal(tmp_path / "a", tmp_path / "b")


def test_train_leaves_nothing_behind_where_it_fails(run: Run, tmp_path: Path) -> None:
    assert run(*DIGITS, "--likelihood", "Poisson", "--out", "a")[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_train_chooses_a_free_folder_and_keeps_a_run(run: Run, tmp_path: Path) -> None:
    for _ in range(2):
        assert run(*DIGITS, "--steps", "1")[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits", "digits-2"]
    status, _, err = run(*DIGITS, "--steps", "1", "--out", "runs/digits")
    assert status == 2
    assert "pyro-vae resume runs/digits" in err


def test_train_makes_bits_for_a_Bernoulli_and_posteriors_on_the_support_of_priors(run: Run) -> None:
    run(*DIGITS, "--likelihood", "Bernoulli", "--prior", "HypersphericalUniform", "--steps", "2", "--out", "a")
    assert "binarize: dynamic" in Path("a/config.yaml").read_text()
    assert type(pyro_vae.load("a").posterior).__name__ == "VonMisesFisher"


def test_train_writes_no_bar_where_there_is_no_terminal(run: Run) -> None:
    assert run(*DIGITS, "--epochs", "2", "--out", "a")[2] == ""


def test_resume_makes_a_run_longer_as_if_it_had_been_so_at_once(run: Run, tmp_path: Path) -> None:
    assert run(*DIGITS, "--epochs", "1", "--out", "a")[0] == 0
    assert run("resume", "a", "--epochs", "3")[0] == 0
    assert run(*DIGITS, "--epochs", "3", "--out", "b")[0] == 0
    assert equal(tmp_path / "a", tmp_path / "b")
    assert "epochs: 3" in (tmp_path / "a" / "config.yaml").read_text()


def test_train_tracks_epochs_once_and_changes_nothing(run: Run, tmp_path: Path, digits_run: Path) -> None:
    assert run(*DIGITS, "--epochs", "1", "--track", "tensorboard", "--out", "a")[0] == 0
    assert run("resume", "a", "--epochs", "2")[0] == 0
    assert equal(tmp_path / "a", digits_run)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    found.Reload()
    tags = found.Tags()["scalars"]
    (elbo,) = [tag for tag in tags if "validation" in tag and "elbo" in tag]
    assert [each.step for each in found.Scalars(elbo)] == [1, 2]


@pytest.mark.slow
def test_resume_of_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyro_vae"]
    options = [*DIGITS, "--epochs", "60", "--checkpoint_every", "5 steps"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run([*command, *options, "--out", "b"], cwd=tmp_path, env=environment, check=False)
    assert whole.returncode == 0
    with subprocess.Popen([*command, *options, "--out", "a"], cwd=tmp_path, env=environment) as process:
        while not (tmp_path / "a" / "history.jsonl").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "a" / "weights.safetensors").exists()
    went_on = subprocess.run([*command, "resume", "a"], cwd=tmp_path, env=environment, check=False)
    assert went_on.returncode == 0
    assert equal(tmp_path / "a", tmp_path / "b")


def test_evaluate_has_the_figures_of_the_functions(run: Run, digits_run: Path) -> None:
    status, out, _ = run("evaluate", digits_run, "--num_particles", "50", "--max_data", "40")
    assert status == 0
    kept = json.loads((digits_run / "evaluation.json").read_text())
    vae, test = pyro_vae.load(digits_run), data.load("digits").test.take(40)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        terms = evaluation.elbo_terms(vae, test.tensor())
        marginal = evaluation.log_marginal_likelihood(vae, test.tensor(), num_particles=50, progress=False)
    assert kept["-ELBO"]["value"] == pytest.approx(-terms.elbo.mean().item(), rel=1e-6)
    assert kept["-log p(x)"]["value"] == pytest.approx(-marginal.value.mean().item(), rel=1e-6)
    assert f"{-terms.elbo.mean().item():.2f}" in out
    assert "the first 40 of 299 data of the test part, nats per datum, K = 50" in out


def test_evaluate_of_a_table_reads_other_rows_by_its_codes(run: Run, wine: Path, tmp_path: Path) -> None:
    assert run("train", "--data", wine, *SMALL, "--epochs", "2", "--out", "a")[0] == 0
    frame = pd.read_csv(wine)
    rows = frame[frame.cultivar != "barbera"]  # whose codes would be others if they were counted anew
    rows[["cultivar", "bottles", "alcohol", "acid"]].to_csv(tmp_path / "rows.csv", index=False)
    assert run("encode", "a", "--data", "rows.csv", "--out", "z.csv")[0] == 0
    vae = pyro_vae.load("a")
    table = vae.likelihood.table
    x = data.as_dataset(rows, kinds=table).tensor()
    assert np.allclose(pd.read_csv("z.csv")[["z0", "z1"]], vae.encode(x).mean.detach(), atol=1e-6)


def test_encode_writes_latents_and_labels_in_the_order_of_the_data(run: Run, digits_run: Path) -> None:
    assert run("encode", digits_run, "--out", "z.npz")[0] == 0
    assert run("encode", digits_run, "--out", "z.csv")[0] == 0
    test = data.load("digits").test
    expected = pyro_vae.load(digits_run).encode(test.tensor()).mean.detach().numpy()
    with np.load("z.npz") as kept:
        assert np.allclose(kept["latents"], expected, atol=1e-6)
        assert test.labels is not None
        assert (kept["label"] == test.labels.numpy()).all()
        whole = as_file(data.load("digits"))
        assert np.array_equal(whole[kept["row"]], test.tensor().numpy())
    frame = pd.read_csv("z.csv")
    assert list(frame.columns) == ["row", "z0", "z1", "label"]
    assert np.allclose(frame[["z0", "z1"]], expected, atol=1e-6)


def as_file(splits: data.Splits) -> np.ndarray[Any, Any]:
    """The digits in the order in which scikit-learn has them."""
    from sklearn.datasets import load_digits

    assert splits.train.levels == 16
    return load_digits().images[:, None].astype(np.float32) / 16


def test_encode_writes_the_words_and_rows_of_a_file(run: Run, wine: Path) -> None:
    assert run("train", "--data", wine, "--labels", "cultivar", *SMALL, "--epochs", "1", "--out", "a")[0] == 0
    for split in ("train", "validation", "test"):
        assert run("encode", "a", "--split", split, "--out", f"{split}.csv")[0] == 0
    frame = pd.concat([pd.read_csv(f"{split}.csv") for split in ("train", "validation", "test")])
    assert sorted(frame.row) == list(range(60))
    assert list(pd.read_csv(wine).cultivar[frame.row]) == list(frame.label)
    assert run("encode", "a", "--data", wine, "--out", "all.csv")[0] == 0  # whose label is no datum
    whole = pd.read_csv("all.csv").set_index("row")
    assert np.allclose(whole.loc[frame.row, ["z0", "z1"]], frame[["z0", "z1"]], atol=1e-5)


def test_labels_that_are_numbers_are_in_the_order_of_their_size() -> None:
    assert codes("k", np.array([10, 2, 3, 10])).tolist() == [2, 0, 1, 2]
    assert codes("k", np.array(["b", "a", "b"])).tolist() == [1, 0, 1]


def test_data_of_another_file_are_read_by_the_names_of_the_run(run: Run, wine: Path) -> None:
    frame = pd.read_csv(wine)[["alcohol", "acid"]].fillna(12.0)
    frame.to_csv("a.csv", index=False)
    frame[["acid", "alcohol"]].to_csv("b.csv", index=False)
    assert run("train", "--data", "a.csv", "--likelihood", "Normal", *SMALL, "--epochs", "1", "--out", "run")[0] == 0
    for name in "ab":
        assert run("encode", "run", "--data", f"{name}.csv", "--out", f"z{name}.csv")[0] == 0
    assert Path("za.csv").read_text() == Path("zb.csv").read_text()
    frame.iloc[:-5].to_csv("a.csv", index=False)
    status, _, err = run("evaluate", "run")
    assert status == 2
    assert "expected the data that it was trained on" in err


def test_data_of_another_shape_are_refused_by_name(run: Run, digits_run: Path, wine: Path) -> None:
    status, _, err = run("encode", digits_run, "--data", wine)
    assert status == 2
    assert "expected data of the shape (1, 8, 8)" in err


def test_train_says_which_part_alone_has_missing_values(run: Run, wine: Path) -> None:
    frame = pd.read_csv(wine)[["alcohol", "acid"]].fillna(12.0)
    frame.loc[7, "acid"] = np.nan
    frame.to_csv("a.csv", index=False)
    statuses = {}
    for seed in range(12):
        status, _, err = run(
            "train", "--data", "a.csv", *SMALL, "--steps", "1", "--split_seed", str(seed), "--out", f"r{seed}"
        )
        statuses[seed] = status
        if status:
            assert "expected missing values in the training data where the" in err
    assert set(statuses.values()) == {0, 2}


def test_compare_refuses_runs_of_other_data(run: Run, digits_run: Path) -> None:
    assert run(*DIGITS, "--epochs", "1", "--split_seed", "4", "--out", "b")[0] == 0
    status, _, err = run("compare", digits_run, "b")
    assert status == 2
    assert "expected runs with the same test data" in err
    assert run("compare", digits_run, digits_run)[0] == 2


def test_likelihood_option_of_the_default_value_is_taken(run: Run) -> None:
    options = ["--likelihood", "Binomial", "--likelihood.total_count", "255", "--steps", "1", "--out", "a"]
    assert run(*DIGITS, *options)[0] == 0
    assert pyro_vae.load("a").likelihood.total_count == 255  # the data's own are 16


def test_Normal_of_a_table_is_standardized(run: Run, wine: Path) -> None:
    frame = pd.read_csv(wine)[["alcohol", "acid"]].fillna(12.0) * [1, 1000]
    frame.to_csv("a.csv", index=False)
    figures = {}
    for standardize in ("true", "false"):
        options = ["--likelihood", "Normal", "--standardize", standardize, "--epochs", "30", "--out", standardize]
        assert run("train", "--data", "a.csv", *SMALL, *options)[0] == 0
        assert run("evaluate", standardize)[0] == 0
        figures[standardize] = json.loads(Path(standardize, "evaluation.json").read_text())["-ELBO"]["value"]
    assert figures["true"] < 20 < figures["false"]


def test_evaluate_does_not_call_k_hat_good_where_it_is_not_known(run: Run, digits_run: Path) -> None:
    status, out, _ = run("evaluate", digits_run, "--num_particles", "1", "--max_data", "10")
    assert status == 0
    assert "not known" in out
    kept = json.loads((digits_run / "evaluation.json").read_text())
    assert kept["part"] == "test"
    assert kept["num_data"] == 10


def test_sample_of_images_is_a_picture_and_by_seed(run: Run, digits_run: Path) -> None:
    assert run("sample", digits_run, "--num", "6", "--out", "x.png")[0] == 0
    with Image.open("x.png") as picture:
        assert min(picture.size) > 100
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert (
            run("sample", digits_run, "--mean", "false", "--num", "6", "--seed", seed, "--out", f"{name}.npz")[0] == 0
        )
    a, b, c = (np.load(f"{name}.npz")["x"] for name in "abc")
    assert a.shape == (6, 1, 8, 8)
    assert (a == b).all()
    assert (a != c).any()
    assert set(np.unique(a * 16)) <= set(range(17))


def test_sample_of_a_table_has_its_columns_and_words(run: Run, wine: Path) -> None:
    status, out, _ = run("train", "--data", wine, *SMALL, "--epochs", "2", "--out", "a")
    assert status == 0
    assert "bottles   count" in out
    assert "within MissingAtRandom" in out
    assert run("sample", "a", "--num", "50", "--out", "rows.csv")[0] == 0
    rows = pd.read_csv("rows.csv")
    assert list(rows.columns) == ["alcohol", "acid", "bottles", "cultivar"]
    assert set(rows.cultivar) <= {"barbera", "barolo", "grignolino"}
    assert (rows.acid > 0).all()
    assert rows.bottles.dtype == np.int64


def test_reconstruct_is_of_the_test_data(run: Run, digits_run: Path) -> None:
    assert run("reconstruct", digits_run, "--num", "5", "--out", "x.npz")[0] == 0
    with np.load("x.npz") as kept:
        assert np.array_equal(kept["originals"], data.load("digits").test.tensor()[:5].numpy())
        torch.manual_seed(0)
        expected = pyro_vae.load(digits_run).reconstruct(torch.from_numpy(kept["originals"]))
        assert np.allclose(kept["x"], expected.detach(), atol=1e-6)


def test_compare_of_runs_ranks_them_and_of_one_its_estimators(run: Run, digits_run: Path) -> None:
    assert run(*DIGITS, "--epochs", "2", "--seed", "3", "--out", "b")[0] == 0
    status, out, _ = run("compare", digits_run, "b", "--num_particles", "20", "--max_data", "30")
    assert status == 0
    assert "log p(x)" in out
    assert "N = 30 test data" in out
    status, out, _ = run(
        "compare",
        digits_run,
        "--estimators",
        "ELBO",
        "IWELBO(4, gradient='dreg')",
        "--draws",
        "100",
        "--max_data",
        "10",
    )
    assert status == 0
    assert "IWELBO dreg, K=4" in out


def test_info_says_what_a_folder_holds(run: Run, digits_run: Path) -> None:
    status, out, _ = run("info", digits_run)
    assert status == 0
    assert "latent_dim: 2" in out
    assert "2 epochs, the last:" in out
    assert "finished" in out


def test_list_names_every_part_with_its_line(run: Run) -> None:
    _, out, _ = run("list")
    for kind in ("likelihoods", "priors", "conditionals"):
        module = getattr(pyro_vae, kind)
        for name in module.__all__:
            if name not in ("Likelihood", "Prior", "Conditional", "MissingAtRandom", "Standardized", "Censored",
                            "Dequantized", "Mixed"):  # fmt: skip
                assert f"  {name} " in out, name
    assert "The average of the posteriors of K learned pseudo-inputs" in out
    assert "IWELBO" not in run("list", "priors")[1]


def test_data_of_cells_of_a_table_in_parquet_and_of_a_folder(run: Run, wine: Path, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    counts = np.random.default_rng(0).poisson(2.0, (40, 12)).astype(np.float32)
    obs = pd.DataFrame({"kind": ["B", "T"] * 20}, index=[f"c{i}" for i in range(40)])
    anndata.AnnData(counts, obs=obs).write_h5ad(tmp_path / "cells.h5ad")
    status, out, _ = run("train", "--data", "cells.h5ad", "--labels", "kind", *SMALL, "--steps", "2", "--out", "cells")
    assert status == 0
    assert "counts, of variance" in out
    assert "labels of 2 classes" in out
    status, _, err = run(
        "train", "--data", "cells.h5ad", "--likelihood", "NegativeBinomial", "--likelihood.library_size", "true",
        *SMALL, "--steps", "2", "--out", "shares",
    )  # fmt: skip
    assert (status, err) == (0, "")
    for command in ("evaluate", "sample", "reconstruct", "encode"):
        assert run(command, "shares")[0] == 0, command
    pd.read_csv(wine).to_parquet(tmp_path / "wine.parquet")
    status, out, _ = run(
        "train", "--data", "wine.parquet", "--columns", "alcohol,bottles", "--labels", "cultivar", *SMALL,
        "--steps", "2", "--out", "wine",
    )  # fmt: skip
    assert status == 0
    assert "labels of 3 classes" in out
    assert "acid" not in out
    for i in range(12):
        Image.new("RGB", (16, 16), (20 * i, 255 - 20 * i, 7)).save(tmp_path / f"{i}.png")
    status, out, _ = run("train", "--data", ".", "--network", "mlp", *SMALL, "--steps", "2", "--out", "pictures/run")
    assert status == 0
    assert "256 levels k / 255: DiscretizedLogistic" in out


ERRORS = [
    ("", "expected a command"),
    ("trian", "Did you mean train"),
    ("train", "expected --data"),
    ("train --data digit", "Did you mean 'digits'"),
    ("train --data digits --likelihood Bernuli", "Did you mean Bernoulli"),
    ("train --data digits --prior VampPriro", "Did you mean VampPrior"),
    ("train --data digits --posterior Diagonal", "Did you mean DiagonalNormal"),
    ("train --data digits --loss IWAE", "Did you mean IWELBO"),
    ("train --data digits --optimizer Adm", "Did you mean Adam"),
    ("train --data digits --network convnet", "Did you mean conv"),
    ("train --data digits --precision float33", "Did you mean float32"),
    ("train --data digits --loss IWELBO --loss.num_particle 5", "Did you mean --loss.num_particles"),
    ("train --data digits --loss IWELBO --loss.num_particles five", "--loss.num_particles: expected a whole number"),
    ("train --data digits --loss IWELBO --loss.gradient drep", "Did you mean dreg"),
    ("train --data digits --loss MIWELBO", "expected --loss.num_bounds; got none"),
    ("train --data digits --prior.clamp true", "no options of StandardNormal"),
    ("train --data digits --optimizer.rl 0.1", "Did you mean --optimizer.lr"),
    ("train --data digits --epoch 5", "Did you mean --epochs"),
    ("train --data digits --epochs 3.5", "--epochs: expected a whole number or null; got '3.5'"),
    ("train --data digits --epochs -1", "expected epochs at least 1"),
    ("train --data digits --keep_best maybe", "expected true or false"),
    ("train --data digits --hidden a,b", "expected whole numbers, 200,200"),
    ("train --data digits --seed -3", "expected seed at least 0"),
    ("train --data digits --validation 5000", "from 1 to 1497"),
    ("train --data digits --columns a", "to choose columns of"),
    ("train --data digits --likelihood MissingAtRandom", "which changes another one"),
    ("train --data digits --likelihood Poisson", "expected counts 0, 1, 2"),
    ("train --data digits --prior Bernoulli", "gradient='score'"),
    ("train --data digits --beta linaer(0,1,epochs=3)", "Did you mean linear"),
    ("train --data digits --beta linear(0,1)", "'epochs'"),
    ("train --data digits --device nowhere", "expected a device of this machine"),
    ("train --data nothere.csv", "expected a file or folder; got none"),
    ("train --data bad.csv", "expected a table of comma-separated values"),
    ("train --data bad.npy", "neither an array nor an archive"),
    ("train --data bad.h5ad", "expected an AnnData file"),
    ("train --data bad.parquet", "expected a parquet file"),
    ("train --data good.csv --columns a,class --labels class --likelihood Poissn", "Did you mean Poisson"),
    ("train --data good.csv --columns a,bb", "Did you mean bbb"),
    ("train --data good.csv --labels klass", "Did you mean class"),
    ("train --config bad.yaml", "Did you mean --epochs"),
    ("train --config broken.yaml", "parsing"),
    ("train --config none.yaml", "which does not exist"),
    ("evaluate nofolder", "expected a folder that pyro-vae train made"),
    ("resume nofolder", "expected a folder that pyro-vae train made"),
    ("encode", "expected FOLDER"),
    ("list prior", "Did you mean priors"),
    ("info nofolder", "nofolder"),
]


@pytest.mark.parametrize(("line", "expected"), ERRORS, ids=[line or "none" for line, _ in ERRORS])
def test_error_is_one_line_with_status_2(run: Run, tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "bad.csv").write_text("a,b\n1\n2,3,4\n")
    (tmp_path / "good.csv").write_text("a,bbb,class\n" + "1,2.5,x\n3,4.5,y\n" * 10)
    for suffix in ("npy", "h5ad", "parquet"):
        (tmp_path / f"bad.{suffix}").write_bytes(b"nothing of the kind")
    (tmp_path / "bad.yaml").write_text("data: digits\nepoch: 3\n")
    (tmp_path / "broken.yaml").write_text("data: [digits\n")
    before = sorted(tmp_path.iterdir())
    status, _, err = run(*line.split())
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("pyro-vae")
    assert expected in err
    assert sorted(tmp_path.iterdir()) == before


def test_error_of_an_option_of_a_run_is_one_line(run: Run, digits_run: Path) -> None:
    for options, expected in (
        (["sample", digits_run, "--nmu", "3"], "Did you mean --num"),
        (["sample", digits_run, "--num", "many"], "expected a whole number"),
        (["sample", digits_run, "--out", "x.jpg"], "expected a .png or .npz file"),
        (["encode", digits_run, "--out", "z.txt"], "expected a .csv or .npz file"),
        (["compare", digits_run, "--estimators", "IWEBLO(3)"], "Did you mean IWELBO"),
        (["compare", digits_run, "--estimators", "IWELBO(open('x'))"], "numbers and words alone"),
        (["evaluate", digits_run, "--split", "tset"], "Did you mean test"),
        (["evaluate", digits_run, "--num_particles", "0"], "at least 1"),
    ):
        status, _, err = run(*options)
        assert (status, err.count("\n")) == (2, 1), options
        assert expected in err


def test_help_has_groups_defaults_and_no_markup(run: Run) -> None:
    status, out, _ = run("train", "--help")
    assert status == 0
    for word in ("data:", "prior:", "training:", "(default: 128)", "VampPrior", "--prior.help"):
        assert word in out
    for mark in (":class:", "``", "Union[", "known subclasses"):
        assert mark not in out
    assert "--prior.num_components" in run("train", "--prior.help", "VampPrior")[1]


def test_dashes_are_taken_for_underscores(run: Run) -> None:
    assert run(*DIGITS, "--batch-size", "600", "--steps=1", "--out", "a")[0] == 0
    assert "batch_size: 600" in Path("a/config.yaml").read_text()


def test_made_runs_no_code() -> None:
    for text in ("__import__('os')", "IWELBO(__import__('os').system('x'))", "a.b()", "IWELBO(*[1])", "(lambda: 1)()"):
        with pytest.raises(ValueError, match="expected"):
            made("test", text, {"IWELBO": object})


def test_plain_takes_the_markup_off() -> None:
    assert plain('see :class:`~pyro_vae.svi.SVI`, ``"auto"``, :func:`load <pyro_vae.load>`') == 'see SVI, "auto", load'


def test_module_runs_as_a_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pyro_vae", "--version"], capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == f"pyro_vae {pyro_vae.__version__}"
