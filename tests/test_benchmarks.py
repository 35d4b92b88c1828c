"""The benchmark of steps, which must not time programs that compute different things."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def step_time(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("step_time")


def test_contenders_that_compute_something_else_are_refused(step_time: Any) -> None:
    torch.manual_seed(0)

    def losses(indices: Tensor) -> list[float]:
        return (100.0 + torch.randn(len(indices))).tolist()

    batches = [torch.zeros(10, 4, dtype=torch.int64)] * 3
    step_time.check({"ours": losses, "equal": losses}, batches, 4)
    for other in (lambda indices: [loss + 3.0 for loss in losses(indices)], lambda indices: [torch.nan] * len(indices)):
        with pytest.raises(SystemExit, match="other computes something else"):
            step_time.check({"ours": losses, "other": other}, batches, 4)


def test_every_step_of_a_block_is_a_batch_of_new_data(step_time: Any) -> None:
    setting = step_time.Setting("784-400-20", 100, 1, False, 1, 2, ())
    blocks = setting.task().blocks(2)
    seen = torch.cat([next(blocks).flatten() for _ in range(300)])
    assert torch.equal(seen.sort().values, torch.arange(60_000))


@pytest.mark.slow
@pytest.mark.parametrize("particles", ["1", "3"])
def test_step_time_compares_equal_contenders(particles: str) -> None:
    command = [str(BENCHMARKS / "step_time.py"), "--batch-size", "16", "--rounds", "2", "--particles", particles]
    result = subprocess.run(
        [sys.executable, *command, "--only", "eager", "example", "no validation", "NumPyro"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    _, rows = result.stdout.split("is x faster\n")
    names = [line[:30].strip() for line in rows.splitlines()]
    assert names[:2] == ["pyro_vae, compiled", "pyro_vae, eager"]
    assert {"by hand, eager", "Pyro, no validation", "Pyro, fused, no validation"} <= set(names)
    assert ("NumPyro, jitted loop" in names) != ("NumPyro is left out" in result.stdout)
