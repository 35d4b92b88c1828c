"""Benchmarks that keep their rows as JSON, from which pages show tables: compressed lengths, and proposals."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_vae import VAE, conditionals, likelihoods, nets, priors

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("records")


def test_records_keep_other_rows_and_refuse_those_of_other_settings(records: Any, tmp_path: Path) -> None:
    path = tmp_path / "results" / "some.json"
    records.keep(None, "a", {"model": "1", "bits": 2.0})
    assert records.read(path) == {}
    for row, bits in (("a", 2.0), ("b", 3.0), ("a", 4.0)):
        records.keep(path, row, {"model": "1", "bits": bits}, ("model",))
    found = records.read(path)
    assert {row: its["bits"] for row, its in found.items()} == {"a": 4.0, "b": 3.0}
    assert found["a"].keys() == {"model", "bits", "date", "version", "torch", "machine"}
    with pytest.raises(SystemExit, match=r"some\.json: expected rows of model 2; got \{'b': '1'\}"):
        records.keep(path, "a", {"model": "2", "bits": 1.0}, ("model",))
    assert records.read(path) == found
    assert records.markdown(["x", "y"], [["1", "2"]]) == "| x | y |\n| --- | --- |\n| 1 | 2 |"


def test_coding_lengths_that_were_measured_are_within_a_hundredth_of_the_elbo(records: Any) -> None:
    coding: Any = importlib.import_module("coding")
    found = records.read(coding.RESULTS)
    assert list(coding.ROWS) == sorted(found, key=list(coding.ROWS).index)
    for row, its in found.items():
        assert 0.99 < its["ratio"] < 1.01, row
        assert its["bits/dim"] == pytest.approx(8 * its["bytes"] / its["images"] / its["pixels"])
        assert its["ratio"] == pytest.approx(its["bits/dim"] / its["-ELBO"])
        assert its["bytes"] < min(its["others, bytes"].values())
    lines = coding.table().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:9]] == [f"| {row}" for row in coding.ROWS]
    assert [line.partition(",")[0] for line in lines[-2:]] == ["| mnist", "| digits"]


@pytest.mark.slow
def test_coding_writes_what_it_prints(
    records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    coding: Any = importlib.import_module("coding")
    path = tmp_path / "coding.json"
    monkeypatch.setattr(sys, "argv", ["coding.py", "--rows", "digits-binomial", "--epochs", "1", "--json", str(path)])
    coding.main()
    its = records.read(path)["digits-binomial"]
    assert (its["epochs"], its["images"], its["round trip"]) == (20, 898, "bit for bit")
    said = capsys.readouterr().out
    assert f"{its['bytes']:,} bytes, of which to begin with {its['bytes to begin with']:,}" in said
    assert f"| digits-binomial | 20 | {its['bytes']:,} | {its['bits/dim']:.4f} |" in coding.table(path)


def test_proposals_that_were_measured_are_of_one_model_and_images(records: Any) -> None:
    proposals: Any = importlib.import_module("proposals")
    found = records.read(proposals.RESULTS)
    assert found.keys() == {*proposals.PROPOSALS, *proposals.CHAINS}
    assert len({(its["model"], its["images"], its["seed"]) for its in found.values()}) == 1
    lines = proposals.table().splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [f"| {row}" for row in (*proposals.PROPOSALS, *proposals.CHAINS)]
    assert found["refined"]["k-hat above .7"] < 0.01 < 0.9 < found["guide"]["k-hat above .7"]  # as README has it


@pytest.mark.slow
def test_proposals_measure_every_row(records: Any, tmp_path: Path) -> None:
    proposals: Any = importlib.import_module("proposals")
    torch.manual_seed(0)
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(nets.MLP(2, [8]), (1, 28, 28)),
        conditionals.DiagonalNormal(nets.MLP((1, 28, 28), [8]), 2),
    )
    x = torch.rand(8, 1, 28, 28).round()
    settings = argparse.Namespace(seed=0, particles=50, chains=2, prior_temperatures=3, guide_temperatures=4)
    for row in (*proposals.PROPOSALS, *proposals.CHAINS):
        its = proposals.measure(vae, x, row, settings)
        records.keep(tmp_path / "rows.json", row, its)
        assert its["seconds"] > 0
        if row.startswith("bdmc"):
            assert (its["images of the model"], its["temperatures"]) == (2, 3 if row == "bdmc-prior" else 4)
            assert its["gap"] == pytest.approx(its["NLL, at most"] - its["NLL, at least"], abs=1e-3)
        else:
            assert its["NLL error"] > 0
            assert 0 < its["ESS share"] <= 1
    assert "2 chains, T = 4" in proposals.table(tmp_path / "rows.json")
