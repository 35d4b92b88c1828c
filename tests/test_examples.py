"""The examples, run as a user runs them, in a process of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import pyro_vae

ROOT = Path(__file__).parents[1]


def run(example: str, *arguments: str, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if data is not None:
        environment["PYRO_VAE_DATA"] = str(data)
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )


def test_examples_are_short() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 100, path.name


@pytest.mark.slow
def test_mnist_svi_falls_back_loudly_on_digits_and_leaves_its_results(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("mnist_svi.py", "--epochs", "2", "--out", str(out), data=tmp_path / "nothing")
    assert result.returncode == 0, result.stderr
    assert "NO MNIST: training on scikit-learn's 1,797 digits" in result.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert -64 * 0.7 < metrics["test_elbo"] < 0
    assert metrics["test_elbo"] == pytest.approx(metrics["test_expected_log_likelihood"] - metrics["test_kl"], abs=1e-3)
    assert metrics["history"]["settings"]["binarization"] == "dynamic"
    assert {path.name for path in out.glob("*.png")} == {"reconstructions.png", "samples.png", "curves.png"}
    assert pyro_vae.load(out / "vae").sample(2).shape == (2, 1, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "mnist"), "Dataset 'mnist': expected .* PYRO_VAE_DATA"),
        (("--dataset", "digits", "--out", "/dev/null/out"), "--out: expected a folder one can write to"),
        (("--dataset", "digits", "--epochs", "0"), "fit: expected steps at least 1; got 0"),
        (("--dataset", "digits", "--steps", "0"), "fit: expected steps at least 1; got 0"),
        (("--dataset", "digit"), "expected one of .*; got 'digit'. Did you mean 'digits'"),
    ],
)
def test_mnist_svi_says_what_is_wrong(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = run("mnist_svi.py", "--out", str(tmp_path / "out"), *arguments, data=tmp_path / "nothing")
    assert result.returncode == 1
    error = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert re.search(message, error), error


@pytest.mark.slow
def test_choose_parts_groups_rows_that_compare_and_tells_of_pairs_that_do_not_fit() -> None:
    chosen = ["--likelihoods", "bernoulli", "categorical", "--priors", "standard", "vamp", "--guides", "iaf"]
    result = run("choose_parts.py", "--epochs", "1", *chosen)
    assert result.returncode == 0, result.stderr
    groups = result.stdout.strip().split("\n\n")
    assert [group.splitlines()[0] for group in groups] == ["bits", "gray levels, as probabilities"]
    for group, likelihood in zip(groups, ("bernoulli", "categorical"), strict=True):
        standard, vamp = group.splitlines()[2:]
        assert standard.split()[:3] == [likelihood, "standard", "iaf"]
        assert float(standard.split()[3]) > 0
        assert "VampPrior: expected a posterior of independent Normals" in vamp


@pytest.mark.slow
def test_compare_elbo_estimators_says_in_words_what_its_tables_mean(tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = ["--draws", "100", "--steps", "20", "--out", str(out)]
    result = run("compare_elbo_estimators.py", *small, data=tmp_path / "nothing")
    assert result.returncode == 0, result.stderr
    assert "NO MNIST: using scikit-learn's 1,797 digits" in result.stderr
    said = [line for line in result.stdout.splitlines() if line.startswith("- ")]
    stl = "IWELBO stl, K=4, IWELBO stl, K=16, IWELBO stl, K=64"
    assert said[0] == f"- Biased, which more steps do not cure: {stl}."
    assert re.match(r"- IWELBO pathwise, from K = 1 to 64: .* It dies", said[1])
    assert re.match(r"- IWELBO dreg, from K = 1 to 64: .* It grows", said[3])
    assert said[4] == "- Biased, which more steps do not cure: none that these draws could tell."
    assert said[5] == "- Without variance here, so that training comes to rest: ELBO stl, K=1, IWELBO dreg, K=16."
    parts = [f"{part}{end}" for part in ("off", "optimum", "images") for end in (".json", ".csv")]
    parts += [f"{part}{end}" for part in ("off", "images") for end in ("_snr.png", "_cost.png")]
    assert {path.name for path in out.iterdir()} == {*parts, "race.json", "race.png", "rank.json", "rank.png"}
    off = {row["estimator"]: row for row in json.loads((out / "off.json").read_text())["rows"]}
    assert off["IWELBO stl, K=64"]["bias"] == pytest.approx(0.75, abs=5 * off["IWELBO stl, K=64"]["bias_error"])
    assert off["IWELBO pathwise, K=1"]["gap"] == pytest.approx(0.273, abs=5 * off["IWELBO pathwise, K=1"]["gap_error"])
    curves = json.loads((out / "race.json").read_text())["curves"]
    assert [point["step"] for point in curves["IWAE, dreg, K=16"]] == [0, 4, 8, 12, 16, 20]
    (verdict,) = json.loads((out / "rank.json").read_text())["verdicts"]
    assert {verdict["first"], verdict["second"]} == {"ELBO", "IWAE, dreg, K=16"}
    joined = f"{verdict['first']} {'is better than' if verdict['better'] else 'and'} {verdict['second']}"
    assert joined in result.stdout
    assert "One seed: the claim is about these trained programs on new data" in result.stdout


@pytest.mark.slow
def test_compare_elbo_estimators_says_what_is_wrong(tmp_path: Path) -> None:
    nothing, out = str(tmp_path / "nothing"), str(tmp_path / "out")
    for arguments, message in (
        (("--dataset", "mnist", "--data-dir", nothing, "--out", out), r"error: Dataset 'mnist': expected"),
        (("--dataset", "digits", "--out", "/dev/null/out"), r"error: --out: expected a folder one can write to"),
    ):
        result = run("compare_elbo_estimators.py", *arguments)
        assert result.returncode == 1
        assert re.search(message, result.stderr), result.stderr


@pytest.mark.slow
def test_impute_wine_beats_the_column_means_and_covers_what_was_taken_out() -> None:
    result = run("impute_wine.py")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    together = next(line for line in lines if line.startswith("all "))
    imputed, means, missing = (float(number) for number in together.split()[1:])
    assert imputed < 0.9 * means
    assert means == pytest.approx(1, abs=0.1)
    assert missing == pytest.approx(0.3 * 178 * 13, rel=0.1)
    intervals = next(line for line in lines if line.startswith("Intervals"))
    level, covered, error = (float(number) for number in re.findall(r"\d\.\d+", intervals))
    assert level == 0.9
    assert covered == pytest.approx(level, abs=0.04)
    assert error < 0.02
    assert any(re.match(r"Wines of 14\.2% and hue 1\.2: color intensity \d", line) for line in lines)


@pytest.mark.slow
def test_digits_as_counts_ranks_four_likelihoods_of_one_measure() -> None:
    result = run("digits_as_counts.py", "--epochs", "25", "--seeds", "2")
    assert result.returncode == 0, result.stderr
    table = result.stdout.split("s.e.\n")[1].splitlines()
    assert re.match(r"ZeroInflatedPoisson +1 ", table[0])
    assert sum(" seed 1: validation ELBO -1" in line for line in result.stdout.splitlines()) == 4
    assert "in nats per datum, of probabilities of whole numbers, N = 299 test data" in result.stdout


@pytest.mark.slow
def test_digits_picture_has_below_each_digit_its_reconstruction(tmp_path: Path) -> None:
    result = run("digits_picture.py", "--epochs", "30", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    picture = matplotlib.image.imread(tmp_path / "digits.png")[..., 0]
    assert picture.shape == (240, 960)
    digits, reconstructed, drawn, _ = (row.ravel() for row in np.split(picture, 4))
    assert np.corrcoef(digits, reconstructed)[0, 1] > 0.8
    assert np.corrcoef(digits, drawn)[0, 1] < 0.7


@pytest.mark.slow
def test_anomalies_breast_cancer_keeps_its_false_alarm_rate_and_finds_malignant_cases() -> None:
    result = run("anomalies_breast_cancer.py")
    assert result.returncode == 0, result.stderr
    lines = {line.split(":")[0]: line.split(":", 1)[-1] for line in result.stdout.splitlines()}
    rates = {
        name: [float(number) for number in re.findall(r"\b0\.\d+", lines[name])]
        for name in ("False alarms", "Detected", "Area under ROC")
    }
    value, low, high = rates["False alarms"]
    assert low <= 0.05 <= high
    assert value <= high
    assert rates["Detected"][1] > 0.5
    assert 0.8 < rates["Area under ROC"][1] < rates["Area under ROC"][2] < 1
    shares = [float(line.split()[-2 if line.endswith("nats") else -1]) for line in lines if line.startswith("  ")]
    case = next(line for name, line in lines.items() if name.startswith("Malignant case"))
    score, average = (float(number) for number in re.findall(r"-?\d+\.\d", case))
    assert sum(shares) == pytest.approx(score - average, abs=0.5)  # shares and averages to one decimal each
    assert len(shares) == 7


@pytest.mark.slow
def test_sklearn_pipeline_compares_latents_of_a_vae_and_of_pca() -> None:
    result = run("sklearn_pipeline.py", "--latents", "2", "--epochs", "1", "20")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    row = re.fullmatch(r" +2 +(0\.\d+) +(0\.\d+) +([+-]0\.\d+) ± 0\.\d+ +(Normal|Binomial), 20 epochs", lines[2])
    assert row is not None, lines
    pca, vae, difference = (float(number) for number in row.groups()[:3])
    assert difference == pytest.approx(vae - pca, abs=1e-6)
    assert vae > pca > 0.5
    digits, halves = (float(number) for number in re.findall(r"-\d+\.\d", lines[-1]))
    assert digits > halves + 10


@pytest.mark.slow
def test_elbo_in_bytes_comes_back_and_is_shorter_than_gzip(tmp_path: Path) -> None:
    out = tmp_path / "digits.vae"
    result = run("elbo_in_bytes.py", "--epochs", "60", "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert "898 digits of 64 pixels came back bit for bit: True" in result.stdout
    ratio, net = (
        float(number) for number in re.findall(r"\d\.\d{4}$|(?<=ELBO: )\d\.\d{4}", result.stdout, re.MULTILINE)
    )
    assert 0.99 < net < ratio < 1.02
    (gzipped,) = re.findall(r"gzip of the same pixels: ([\d,]+) bytes", result.stdout)
    assert out.stat().st_size < int(gzipped.replace(",", "")) < 36_000
    bits, of_x, of_z = map(int, re.findall(r"(\d+) bits: (\d+) for x given z, .* and (\d+) for z", result.stdout)[0])
    assert abs(bits - of_x - of_z) <= 1
