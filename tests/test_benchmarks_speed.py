"""Programs of the benchmark of steps, and the one command that compares all ratios with those that are kept."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def step_time(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("step_time")


@pytest.mark.parametrize("name", ["mlp", "vamp", "conv", "counts"])
def test_programs_by_hand_have_the_densities_of_ours(name: str, step_time: Any) -> None:
    torch.manual_seed(0)
    program = step_time.PROGRAMS[name]
    dataset = program.dataset(False).take(600)
    task = step_time.Task(*(program.network or ([8], 3)), 1, 4, dataset, program)
    ours, by_hand, index = step_time.our_vae(task), task.by_hand(), torch.arange(4)
    (x, *context), z = task.gather(index), torch.randn(4, by_hand.latent)
    assert [each.shape for each in by_hand.gather(index, *dataset.held)] == [x.shape, *(c.shape for c in context)]
    torch.testing.assert_close(by_hand.encode(x)[0], ours.encode(x).mean)
    torch.testing.assert_close(by_hand.encode(x)[1], ours.encode(x).stddev)
    constant = by_hand.latent / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(by_hand.log_prior(z) - constant, ours.prior().log_prob(z), rtol=1e-4, atol=1e-4)
    expected = ours.decode(z, *context).log_prob(x)
    for found in (by_hand.log_likelihood(z, x, *context), by_hand.likelihood(z, *context).log_prob(x)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(by_hand.prior(x).log_prob(z), ours.prior().log_prob(z), rtol=1e-4, atol=1e-4)
    sizes = [sorted(p.numel() for p in each.parameters()) for each in (ours, by_hand)]
    assert sizes[0] == sizes[1]


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module: Any = importlib.import_module("speed")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "speed")
    return module


def test_ratios_are_medians_of_blocks_side_by_side_with_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    ratios: Any = importlib.import_module("ratios")
    found = ratios.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0])  # of 2, 3 and 1
    assert found["ratio"] == 2.0
    assert found["error"] == pytest.approx(1.25 * 2.0 / 1.35 / math.sqrt(3))
    generator = torch.Generator().manual_seed(0)
    many = (1 + 0.1 * torch.randn(4000, 25, generator=generator)).tolist()
    medians = torch.tensor([ratios.ratio(row, [1.0] * 25)["ratio"] for row in many])
    errors = torch.tensor([ratios.ratio(row, [1.0] * 25)["error"] for row in many])
    assert errors.mean().item() == pytest.approx(medians.std().item(), rel=0.1)


def test_speed_flags_a_ratio_that_grew_beyond_the_margin_and_three_errors(speed: Any) -> None:
    before = {"ratio": 0.8, "error": 0.0}
    assert not speed.is_slower(before, {"ratio": 0.83, "error": 0.0})
    assert speed.is_slower(before, {"ratio": 0.85, "error": 0.0})
    assert not speed.is_slower(before, {"ratio": 0.85, "error": 0.02})
    assert not speed.is_slower(before, {"ratio": 0.4, "error": 0.0})


def test_speed_compares_with_what_is_kept_and_names_what_fails(
    speed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(name: str, path: Path) -> dict[str, Any] | None:
        path.write_text("")
        return None if name == "conv" else {"rows": {"ours / theirs": {"ratio": found[name], "error": 0.01}}}

    found = {"vamp": 0.5, "counts": 0.8}
    monkeypatch.setattr(speed, "measure", measure)
    for flags, status in (["--keep", "--only", "vamp", "counts"], 0), (["--only", "vamp", "conv", "counts"], 1):
        monkeypatch.setattr(sys, "argv", ["speed.py", *flags])
        with pytest.raises(SystemExit) as ended:
            speed.main()
        assert ended.value.code == status
        found["counts"] = 1.0
    said = capsys.readouterr().out
    assert said.endswith("+25.0% slower\n\n1 slower; failed: conv\n")
    assert "| vamp | ours / theirs | 0.50 | 0.01 |" in speed.table()
    assert all((BENCHMARKS / command[0]).exists() for command in speed.TABLES.values())


def test_speed_measure_of_a_benchmark_that_fails_is_none(speed: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('error: broken')")
    speed.TABLES["broken"] = [str(tmp_path / "broken.py")]
    try:
        assert speed.measure("broken", tmp_path / "found.json") is None
    finally:
        del speed.TABLES["broken"]
