"""Benchmarks: of steps, which must compute the same, and of Pyro's own tests, whose outcomes must be told apart."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def step_time(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("step_time")


def test_step_time_contenders_that_compute_something_else_are_refused(step_time: Any) -> None:
    torch.manual_seed(0)

    def losses(indices: Tensor) -> list[float]:
        return (100.0 + torch.randn(len(indices))).tolist()

    batches = [torch.zeros(10, 4, dtype=torch.int64)] * 3
    step_time.check({"ours": losses, "equal": losses}, batches, 4)
    for other in (lambda indices: [loss + 3.0 for loss in losses(indices)], lambda indices: [torch.nan] * len(indices)):
        with pytest.raises(SystemExit, match="other computes something else"):
            step_time.check({"ours": losses, "other": other}, batches, 4)


def test_step_time_every_step_of_a_block_is_a_batch_of_new_data(step_time: Any) -> None:
    setting = step_time.Setting("784-400-20", 100, 1, False, 1, 2, (), torch.device("cpu"))
    blocks = setting.task().blocks(2)
    seen = torch.cat([next(blocks).flatten() for _ in range(300)])
    assert torch.equal(seen.sort().values, torch.arange(60_000))


def test_kill_counts_the_steps_that_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    lost = importlib.import_module("kill")._lost
    assert lost([1, 2, 3, 4, 3, 4, 5, 5, 6]) == [2, 1]
    assert lost([1, 2, 3]) == []


TESTS_AS_PYROS = """
import pytest, torch, pyro, pyro.distributions as dist
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

class Own(Trace_ELBO):
    def loss_and_grads(self, *args, **kwargs):
        return float(torch.as_tensor(super().loss_and_grads(*args, **kwargs))) + 0.0  # a number, which has no graph

def model():
    pyro.sample("z", dist.Normal(0.0, 1.0))

def guide():
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

@pytest.mark.parametrize("loss", [Trace_ELBO, Own])
def test_loss(loss):
    assert isinstance(SVI(model, guide, Adam({"lr": 0.1}), loss()).step(), float)

def test_module():
    assert SVI.__module__.startswith("pyro.") and Trace_ELBO.__module__.startswith("pyro.")

def test_skipped():
    pytest.skip()

def test_missing():
    raise ImportError("you need to install `graphviz`")
"""


@pytest.mark.slow
def test_pyro_suite_replaces_names_and_tells_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tests" / "infer").mkdir(parents=True)
    (tmp_path / "setup.cfg").write_text("[tool:pytest]\nfilterwarnings = error\n")
    (tmp_path / "tests" / "infer" / "test_a.py").write_text(TESTS_AS_PYROS)
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / "pyro_suite.py"), str(tmp_path), "--files", "infer/test_a.py", "--verbose"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("infer/")]
    assert rows == [
        ["infer/test_a.py", "stock", "3", "0", "1", "0", "1", "0"],
        ["infer/test_a.py", "eager", "2", "0", "1", "1", "1", "0"],
        ["infer/test_a.py", "recorded", "1", "1", "1", "1", "1", "0"],
        ["infer/test_a.py", "compiled", "1", "1", "1", "1", "1", "0"],
        ["infer/test_a.py", "estimators", "2", "0", "1", "1", "1", "0"],
    ]
    assert "    2  SVI: expected a step that can be compiled; got one that cannot: " in result.stdout
    assert "failed test_a.py::test_module: AssertionError: " in result.stdout
    assert "stock: test_a.py::test_missing: graphviz is not installed here: ImportError: " in result.stdout
    assert "eager: test_a.py::test_module: no explanation: AssertionError: " in result.stdout


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


@pytest.mark.parametrize(
    "name", ["64 shards .npy", "images, thread", "tar of .npy", "Hugging Face", "mapped .npy, sparse"]
)
def test_streams_all_sources_are_of_the_same_pixels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    streams = importlib.import_module("streams")
    if name.startswith("mapped"):
        stream = streams.SOURCES[name](tmp_path, 64, gigabytes=1e-3)
        assert len(stream) == 1e6 // 784
        assert int(stream.sample.images.max()) == 0
        assert os.stat(tmp_path / "x.npy").st_blocks * 512 < 1e5 < os.path.getsize(tmp_path / "x.npy")
        return
    if name == "Hugging Face":
        pytest.importorskip("datasets")
    stream = streams.SOURCES[name](tmp_path, 64)
    values = torch.cat([images for _, (_, images, *_) in stream.feed(64)]).flatten(1)
    assert torch.equal(values, torch.from_numpy(streams.pixels(64)))
    assert stream.sample.binarization == streams.in_memory(tmp_path, 64).binarization == "dynamic"


def test_deep_makes_images_that_a_likelihood_of_levels_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    deep: Any = importlib.import_module("deep")
    images = deep.shapes(20, 0)
    assert torch.equal(images, deep.shapes(20, 0))
    assert not torch.equal(images, deep.shapes(20, 1))
    torch.testing.assert_close(images * 255, (images * 255).round(), rtol=0.0, atol=1e-4)
    deep.flat(deep.LIKELIHOODS["mixture"], 4).check_data(images)
    assert len(deep.deep(deep.LIKELIHOODS["logistic"], 4).latents) == 20


@pytest.mark.slow
def test_deep_prints_a_row_for_each_contender() -> None:
    command = [str(BENCHMARKS / "deep.py"), "--steps", "2", "--images", "300", "--batch-size", "4", "--channels", "4"]
    result = subprocess.run(
        [sys.executable, *command, "--only", "flat, mixture", "deep, logistic, checkpoint"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [line.rsplit(maxsplit=5) for line in result.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["flat, mixture", "deep, logistic, checkpoint"]
    assert all(0 < float(row[1]) < 20 for row in rows)


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("scaling")


@pytest.fixture
def ranks(scaling: Any) -> Any:
    return importlib.import_module("ranks")


def test_scaling_all_reduce_sends_twice_the_bytes_in_the_end(scaling: Any) -> None:
    assert scaling.all_reduce(1e6, 1, 1e-8, 1e-3) == 0
    assert scaling.all_reduce(1e6, 2, 1e-8, 1e-3) == pytest.approx(2 * (0.5e6 * 1e-8 + 1e-3))
    assert scaling.all_reduce(1e6, 10**6, 1e-8, 0.0) == pytest.approx(2 * 1e6 * 1e-8, rel=1e-5)


def test_scaling_Costs_predict_adds_up_the_parts(scaling: Any) -> None:
    costs = scaling.Costs(1e-3, 2e-9, 1e-10, 1e-6, 1e-9, 1e-4, processors=2.0)
    setting = {"ranks": 4, "parameters": 1_000_000, "batch_size": 400, "megabits": 80 / scaling.WIRE}
    found = costs.predict(setting)
    assert found["processor"] == pytest.approx(1e-3 + 2e-3 + 1e-2)
    assert found["compute"] == pytest.approx(2 * found["processor"])  # four ranks on two processors
    assert found["communication"] == pytest.approx(4e-3 + 1.5 * 4e6 / 1e7 + 12 * 1e-4)
    assert found["input"] == pytest.approx(2 * 100 * 1e-6)
    assert found["step"] == pytest.approx(found["compute"] + found["communication"] + found["input"])
    assert costs.predict(setting | {"ranks": 1})["communication"] == 0
    assert costs.predict(setting | {"ranks": 2})["compute"] == pytest.approx(1e-3 + 2e-3 + 2e-2)


def test_scaling_fit_finds_the_constants_of_the_settings_that_it_may_see(scaling: Any, ranks: Any) -> None:
    costs = scaling.Costs(2e-3, 3e-9, 5e-11, 4e-6, 2e-9, 5e-4, processors=1.5)
    rows = []
    for size, (megabits, hidden, batch_size) in itertools.product(ranks.RANKS, ranks.SETTINGS):
        if (size == 1) == (megabits == 0):
            row = {"ranks": size, "megabits": megabits, "hidden": hidden, "batch_size": batch_size}
            row |= {"parameters": 1629 * hidden + 804}
            rows.append(row | costs.predict(row) | {"held_out": ranks.held_out(row)})
    found = scaling.fit([row if scaling.is_fitted(row) else row | {"compute": 1.0, "input": 1.0} for row in rows])
    assert vars(found) == pytest.approx(vars(costs), rel=1e-3)


def test_scaling_predicts_the_measured_steps_that_were_held_out_within_15_percent(scaling: Any, ranks: Any) -> None:
    rows = json.loads(ranks.RESULTS.read_text())["rows"]
    assert all(row["held_out"] == ranks.held_out(row) for row in rows)
    costs = scaling.fit(rows)
    unseen = [row for row in rows if scaling.is_modeled(row) and row["held_out"]]
    assert {row["ranks"] for row in unseen} == {1, 2, 3, 4}
    names = ("ranks", "megabits", "hidden")
    errors = {tuple(row[name] for name in names): abs(costs.predict(row)["step"] / row["step"] - 1) for row in unseen}
    assert [setting for setting, error in errors.items() if error > 0.15] == [(3, 1000, 256)]  # which the guide names
    assert len(errors) == len(unseen) == 26


def test_scaling_Cluster_takes_nodes_then_the_better_of_ring_and_tree(scaling: Any) -> None:
    cluster = scaling.Cluster(traffic=1e12, inside=1e11, between=1e10, message=1e-5, losses=1e-4)
    copies, within = 16e9 / 1e12, 14 * (0.5e9 / 1e11 + 1e-5)
    assert cluster.communicate(1e9, 1) == 0
    assert cluster.communicate(1e9, 8) == pytest.approx(copies + within)
    assert cluster.communicate(1e9, 16) == pytest.approx(copies + within + 2 * (0.25e9 / 1e10 + 1e-5))  # a ring
    little = cluster.communicate(1, 1024) - cluster.communicate(1, 8)
    assert little == pytest.approx(14 * 1e-5, rel=1e-3)  # a tree of 128 nodes
    assert cluster.agree(1024) == pytest.approx(2046 * 1e-4)


def test_ranks_without_root_measures_the_loopback_and_says_so(
    ranks: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def launch(size: int, limited: bool, images: Path) -> list[dict[str, Any]]:
        assert images.exists()
        seconds = next(times)
        setting = {"namespaces": limited, "ranks": size, "megabits": 0, "hidden": 256, "parameters": 9, "batch_size": 8}
        return [setting | dict.fromkeys(ranks.FIGURES, seconds)]

    times = iter([1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 3.0, 4.0, 8.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(ranks, "launch", launch)
    monkeypatch.setattr(ranks.shutil, "which", lambda name: None)
    rows = ranks.measure(3)
    assert "Network namespaces are left out" in capsys.readouterr().out
    assert [row["ranks"] for row in rows] == [1, 2, 3, 4]
    assert not any(row["namespaces"] for row in rows)
    assert (rows[0]["step"], rows[0]["steps"]) == (3.0, [1.0, 3.0, 8.0])


CAN = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") is not None


@pytest.mark.skipif(not CAN, reason="needs root and ip")
def test_ranks_namespaces_are_removed_when_interrupted(ranks: Any) -> None:
    def names() -> list[str]:
        found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        return [line for line in found.splitlines() if line.startswith(f"ranks-{os.getpid()}-")]

    with pytest.raises(KeyboardInterrupt), ranks.namespaces(2) as prefixes:  # noqa: PT012 - what is inside is tested
        assert len(names()) == 3
        ping = subprocess.run([*prefixes[0], "ip", "address"], capture_output=True, text=True, check=True)
        assert "10.77.0.1/24" in ping.stdout
        raise KeyboardInterrupt
    assert not names()


@pytest.mark.slow
def test_ranks_two_measure_every_setting(ranks: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((10_000, ranks.PIXELS), dtype=np.uint8))
    rows = ranks.launch(2, False, tmp_path / "x.npy")
    assert [row["hidden"] for row in rows] == [256, 1228, 4914]
    assert [row["parameters"] for row in rows] == [418_104, 2_002_464, 8_010_644]
    for row in rows:
        assert all(row[name] > 0 for name in ranks.FIGURES)
        assert row["communication"] < row["step"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


def test_gpu_tells_what_failed_and_what_it_left_out(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(run: Any) -> None:
        """What fails."""
        raise AssertionError(f"expected a GPU; got {run.device}")

    def exits(run: Any) -> None:
        raise SystemExit("error: other computes something else")  # as step_time has it

    parts = {"good": (lambda run: None, 0), "bad": (fails, 0), "other": (exits, 0), "long": (fails, 1e9)}
    parts["last"] = (lambda run: None, 0)
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--quick"])
    before = torch.get_float32_matmul_precision()
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    torch.set_float32_matmul_precision(before)
    said = capsys.readouterr().out
    assert ended.value.code == 2
    assert "AssertionError: expected a GPU; got cpu" in said
    assert "SystemExit: error: other computes something else" in said
    assert "long: left out, as 4" in said
    assert said.endswith("passed, 0.0 s\n\n2 failed: bad, other; left out: long\n")


def test_gpu_stops_a_part_that_does_not_end(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGALRM), torch.get_float32_matmul_precision()
    monkeypatch.setattr(gpu, "PARTS", {"hangs": (lambda run: time.sleep(60), 0), "next": (lambda run: None, 0)})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--budget", "0.2"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    torch.set_float32_matmul_precision(before[1])
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert "TimeoutError: expected an end within 0 s" in said
    assert "1 failed: hangs; left out: next" in said
    assert signal.getsignal(signal.SIGALRM) == before[0]


@pytest.mark.slow
def test_gpu_prints_tests_as_they_end_names_what_failed_and_kills_what_does_not_end(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tests").mkdir()
    file = tmp_path / "tests" / "test_it.py"
    source = "import pytest, time\n"
    for name, line in {"good": "pass", "bad": "assert 1 == 2"}.items():
        source += f"@pytest.mark.cuda\ndef test_{name}():\n    {line}\n"
    file.write_text(source + "@pytest.mark.cuda\ndef test_slow():\n    time.sleep(300)\n")
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "test_bad FAILED" in line:
            raise TimeoutError

    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "say", say)
    run, start = gpu.Run(torch.device("cpu"), True, lambda: 100.0), time.perf_counter()
    with pytest.raises(TimeoutError):
        gpu.tests(run)
    assert time.perf_counter() - start < 200
    assert any("test_good PASSED" in line for line in lines)
    file.write_text(source)
    monkeypatch.setattr(gpu, "say", lines.append)
    with pytest.raises(AssertionError, match=r"pytest ended with 1: =+ 1 failed, 1 passed"):
        gpu.tests(run)


def test_devices_one_that_is_not_there_is_told(gpu: Any) -> None:
    devices = sys.modules["devices"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a device of this machine; got 'cuda:99' \(.*\)"):
        devices.device("cuda:99")
    cpu = devices.device("cpu")
    assert 20 <= devices.milliseconds(lambda: time.sleep(0.02), cpu) < 2_000


@pytest.mark.slow
def test_gpu_asks_a_cpu_the_same() -> None:
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--quick", "--only", "replay", "memory"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)},
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("\nnone failed\n")
    assert "twice the learning rate moves 2.0" in result.stdout
