"""The README's code runs as it is written, on a small stand-in for MNIST."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_vae import VAE, cli, conditionals, data, elbo, likelihoods, priors

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_, USE, REPLACEMENTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
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


def test_README_links_lead_to_files() -> None:
    links = re.findall(r"\]\(((?!https?:)[^)]+)\)", README)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_README_counts_the_parts_that_there_are() -> None:
    for family, base in ((likelihoods, "Likelihood"), (priors, "Prior")):
        name = family.__name__.rpartition(".")[2]
        assert f"{len(set(family.__all__) - {base})} `{name}`" in README
    assert f"{len(set(conditionals.__all__) - {'Conditional'})} guides (`conditionals`)" in README
