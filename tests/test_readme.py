"""The README's code runs as it is written, on a small stand-in for MNIST."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import pyro_vae
from pyro_vae import VAE, cli, data, elbo

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
_, USE, REPLACEMENTS, TABLES, EXPLAIN, KEEP, TOOLS, SKLEARN, MEASURE, COMPARE, RANK, SPEED = re.findall(
    r"```python\n(.*?)```", README, re.DOTALL
)
DIGITS = ["train", "--data", "digits", "--likelihood", "Binomial", "--epochs", "2"]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the README's code leaves behind, after it ran on random images of MNIST's shape."""
    images = torch.randint(256, (600, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    load = data.load

    def small(name: str, **options: Any) -> data.Splits:
        assert name == "mnist"
        return load(images, **options)

    monkeypatch.setattr(data, "load", small)
    names: dict[str, Any] = {}
    exec(USE.replace("epochs=20", "epochs=1"), names)
    return names


def test_README_code_of_use_it_runs(names: dict[str, Any]) -> None:
    assert len(names["history"]) == 1
    assert names["vae"].sample(2).shape == (2, 1, 28, 28)


def test_README_parts_are_replaced_by_one_line_each(names: dict[str, Any]) -> None:
    vae = names["vae"]
    parts = {"prior": vae.prior, "likelihood": vae.likelihood, "posterior": vae.posterior}
    for line in REPLACEMENTS.strip().splitlines():
        part, _, expression = line.partition("=")
        value = eval(expression, names)
        if part == "loss":
            assert isinstance(value, elbo.Estimator)
        else:
            assert part in parts
            assert VAE(**{**parts, part: value}).sample(1).shape == (1, 1, 28, 28)


@pytest.mark.slow
def test_README_commands_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```bash\n(pyro-vae train.*?)```", README, re.DOTALL)
    lines = block.replace("\\\n", " ").replace("--epochs 50", "--epochs 2").replace("--epochs 100", "--epochs 3")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*DIGITS, "--out", "runs/b"]) == 0
    for line in lines.splitlines():
        command = shlex.split(line, comments=True)
        assert command[0] == "pyro-vae"
        assert cli.main(command[1:]) == 0, line
        assert capsys.readouterr().out
    assert {"samples.png", "report.html", "evaluation.json"} <= {path.name for path in Path("runs/a").iterdir()}


@pytest.mark.slow
def test_README_code_of_other_tools_runs(
    names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec('fit(vae, train, epochs=1, folder="runs/mnist", progress=False)', names)
    exec(TOOLS.replace("epochs=20", "epochs=1").replace('method="tsne"', 'method="pca"'), names)
    assert {"log.jsonl", "tb", "model"} <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "runs" / "mnist" / "report.html").is_file()


@pytest.mark.slow
def test_README_code_of_scikit_learn_runs() -> None:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = (GridSearchCV, LogisticRegression, StandardScaler, make_pipeline)
    names: dict[str, Any] = {each.__name__: each for each in parts}
    names["X"], names["y"] = load_iris(return_X_y=True)
    exec(SKLEARN, names)
    assert names["search"].best_score_ > 0.8


def test_README_code_of_tables_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = (f"{1.5 + i % 7 / 20},{i % 4},{'blue' if i % 3 else 'brown'},{i % 3}" for i in range(60))
    lines = ["height,children,eyes,stage", *rows]
    Path("people.csv").write_text("\n".join(lines), encoding="utf-8")
    names: dict[str, Any] = {"data": data, **{name: getattr(pyro_vae, name) for name in pyro_vae.__all__}}
    exec(TABLES.replace("epochs=100", "epochs=1"), names)
    frame = names["train"].table.frame(names["vae"].sample(5))
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        "height": "float64",
        "children": "int64",
        "eyes": str(pd.Series(["blue"]).dtype),  # object before pandas 3
        "stage": "int64",
    }


def test_README_code_of_explain_runs(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXPLAIN, names)
    printed = capsys.readouterr().out
    assert "19.8" in printed
    assert "6.26" in printed


def test_README_code_of_keep_and_share_runs(
    names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vae = names["vae"]
    exec(KEEP.replace("epochs=20", "epochs=1"), names)
    assert names["vae"] is not vae
    assert {path.name for path in (tmp_path / "mnist").iterdir()} == {
        "program.json",
        "weights.safetensors",
        "README.md",
    }


def test_README_code_of_speed_runs(names: dict[str, Any]) -> None:
    exec(SPEED, names)
    assert names["svi"].step(names["x"]) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log_marginal_likelihood")  # of a guide that is not trained
def test_README_code_of_compare_estimators_runs(names: dict[str, Any]) -> None:
    small = COMPARE.replace("x, estimators, draws=200", "x[:2], estimators, draws=100, reference_draws=100")
    exec(small.replace("steps=1000", "steps=5, num_particles=5"), names)
    assert {row.estimator for row in names["found"].rows} == set(names["race"].curves)
    assert len(names["race"].curves) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log_marginal_likelihood")
def test_README_code_of_ranking_runs(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec("from pyro_vae import lab", names)
    exec(RANK.replace("steps=1000, num_seeds=5", "steps=5, num_seeds=2, num_particles=2"), names)
    assert "wide" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log_marginal_likelihood")
def test_README_code_of_measuring_runs(names: dict[str, Any]) -> None:
    exec(MEASURE.replace("=5000", "=50").replace("=500", "=2"), names)
    assert names["result"].value.shape == (100,)
