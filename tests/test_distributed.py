"""Training by several processes: the gradient is that of one process on the whole batch, and ranks stay alike."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks_worker import ESTIMATORS, data_of, enumerated, figures, vae

from pyro_vae import distributed, fit

WORKER = Path(__file__).with_name("ranks_worker.py")

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")


def launch(jobs: str, folder: Path, ranks: int = 2, deaths: int = 0, **environment: str) -> None:
    result = torchrun([str(WORKER), jobs, str(folder)], folder, ranks, deaths, **environment)
    assert result.returncode == 0, result.stderr[-4000:]


def torchrun(
    command: list[str], folder: Path, ranks: int = 2, deaths: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    # Of its own, which no other torchrun can take the port of.
    options = ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={deaths}"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[1]), **environment},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def read(folder: Path, name: str, ranks: int = 2) -> list[Any]:
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quick")
    jobs = "gradients,masked,curves,unseeded,figures,nonfinite,refused,evaluated,sharded"
    launch(jobs, folder, ESTIMATORS="IWELBO dreg,score running mean")
    return folder


def check_gradients(folder: Path, estimators: int) -> None:
    found = json.loads((folder / "gradients.json").read_text())
    assert len(found) == 3 * (estimators + 2)  # of two types and compiled; and of a VampPrior and SigmaNormal
    for name, difference in found.items():
        assert difference < (1e-12 if "float64" in name else 1e-6), name


def test_ranks_sum_to_the_gradient_of_one_process(quick: Path) -> None:
    check_gradients(quick, 2)


def test_ranks_have_the_running_mean_of_one_process_where_data_are_masked(quick: Path) -> None:
    for alone, together in read(quick, "masked"):
        assert together == pytest.approx(alone, rel=1e-12)


def test_ranks_have_the_curve_of_one_process(quick: Path) -> None:
    program, x, how = enumerated()
    alone = [row["loss"] for row in fit(program, x, **how).epochs]
    for losses in read(quick, "curves"):
        assert losses == pytest.approx(alone, rel=1e-6)
    assert alone[-1] < alone[0]


def test_fit_of_ranks_without_a_seed_goes_on_with_its_own_draws(quick: Path) -> None:
    for found in read(quick, "unseeded"):
        assert found["parted"] == found["whole"]


def test_fit_of_ranks_draws_other_numbers_on_each_for_the_figures_of_an_epoch(quick: Path) -> None:
    (first, alone), (last, _) = read(quick, "figures")
    assert first == last
    assert first != pytest.approx(alone, abs=1e-3)
    assert first == pytest.approx(alone, abs=1.0)


def test_over_ranks_gives_every_rank_the_figures_of_one_process(quick: Path) -> None:
    first, last = read(quick, "evaluated")
    assert first.pop("nan") == last.pop("nan") + " (on rank 1)"
    assert first == last
    alone = figures(vae("normal", torch.float32), data_of(torch.float32))
    for name in ("kl", "variance", "means"):  # which nothing is drawn for
        torch.testing.assert_close(torch.tensor(first[name]), torch.tensor(alone[name]), rtol=1e-5, atol=1e-6)
    assert sum(first["optimized"]) == pytest.approx(sum(alone["optimized"]), abs=2.0)
    expected = torch.distributions.Normal(0.0, 2**0.5).log_prob(torch.linspace(-2, 2, 7))
    torch.testing.assert_close(torch.tensor(first["known"]), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.tensor(first["one"]), expected[:1], rtol=1e-6, atol=1e-6)
    for value, exact, error in zip(first["wide"], expected.tolist(), first["error"], strict=True):
        assert 0 < abs(value - exact) < 5 * error
    assert "0 faults" in first["report"]


def test_over_ranks_raises_on_all_what_one_raises(quick: Path) -> None:
    for found in read(quick, "evaluated"):
        assert "tensor([0.3333, 0.6667,    nan])" in found["nan"]
        assert (
            "expected the same program and data on all ranks; got another on rank 1 than on rank 0: argument 0"
            in (found["others"])
        )
        assert "Guide.posterior.body.layers.0.weight" in found["another"]
        assert "got another on rank 1 than on rank 0: Located.loc." in found["method"]
        assert "got another on rank 1 than on rank 0: param loc." in found["stored"]


@pytest.mark.parametrize("name", ["ELBO", "IWELBO dreg", "VIMCO", "score running mean", "wake-sleep"])
def test_SVI_takes_the_steps_of_whole_networks_with_sharded_ones(quick: Path, name: str) -> None:
    for found in read(quick, "sharded"):
        losses, values = found[name]
        assert losses < 1e-12 > values  # of gradients, weights and their averages
        assert set(map(tuple, found["shards"].values())) == {(8, 4)}


def test_sharded_networks_are_refused_by_name_where_they_would_be_lost(quick: Path) -> None:
    first, last = read(quick, "sharded")
    for found in (first, last):
        assert "on a mesh of the processes that take the steps, 1; got them on one of 2. Pass ranks=" in found["alone"]
        assert "SVI: expected whole parameters for compile=True" in found["compiled"]
        assert "got DiagonalNormal, which returns a Independent, and whose gradients" in found["distribution"]
        for name, subject in (("fit", "fit"), ("evaluated", "elbo_terms"), ("saved", "save"), ("kept", "Checkpoint")):
            assert found[name].startswith(f"{subject}: expected parameters that are whole on every rank; got 4 that")
    for name in ("nonfinite", "nonfinite part"):
        assert "on every rank at step 1" in first[name]
        assert "this rank's data" in last[name]


def test_ranks_refuse_a_step_that_is_not_finite_on_one(quick: Path) -> None:
    first, last = read(quick, "nonfinite")
    assert "'x' of the model at data 39" in last["raise"] or "'x' of the model at data 39" in first["raise"]
    assert any("expected a finite loss on every rank" in words["raise"] for words in (first, last))
    assert first["skip"] == last["skip"] == "[1, 1]"


def test_ranks_name_what_they_cannot_share(quick: Path) -> None:
    for words in read(quick, "refused"):
        assert "got batch normalization" in words["normalization"]
        assert (
            "SVI: expected networks that see one datum at a time for 2 ranks; got batch"
            in words["normalization by hand"]
        )
        assert "SVI: expected a bound that is a sum over the data for 2 ranks; got RenyiELBO" in words["loss by hand"]
        assert "every site in the plate 'data' for 2 ranks; got 'loc' outside of it" in words["outside by hand"]
        assert "SVI: expected the same parameters on all ranks; got " in words["grown"]
        assert "of the 2 that train; got one of rank=" in words["stream"]
        assert "expected the same data of an epoch on all ranks; got another on rank 1" in words["sequence"]
        assert words["folder"].startswith("fit: expected a folder without weights")  # which the first rank alone sees
        assert "at least the 2 ranks" in words["few"]
        assert "got another on rank 1 than on rank 0: train" in words["data"]
        assert "the same parameters and buffers on all ranks; got another on rank 1" in words["apart"]
        assert "SVI: expected the same initial parameters on all ranks; got another on rank 1" in words["weights"]


def test_ranks_of_an_attempt_agree_on_a_name_that_those_before_them_did_not_have() -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    store.set("pyro_vae/asked/2", "asked by a process that has died")
    names = []
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            names.append(list(pool.map(lambda rank: distributed._attempt(store, rank, 3), range(3))))
    assert [len(set(each)) for each in names] == [1, 1]
    assert names[0] != names[1]


@pytest.mark.slow
def test_ranks_of_two_machines_begin_again_together_where_one_of_them_dies(tmp_path: Path) -> None:
    """The machines' agents count restarts each for itself; one restart is enough."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    options = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", "--rdzv-backend=c10d"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, f"--rdzv-endpoint={endpoint}"]
    command += [str(WORKER), "joined", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[1])}
    agents = [subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [agent.wait(timeout=600) for agent in agents] == [0, 0]
    assert (tmp_path / "died").exists()
    assert read(tmp_path, "joined") == [2.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_sum_to_the_gradient_of_one_process_for_every_estimator(tmp_path: Path, ranks: int) -> None:
    launch("gradients,fit" if ranks == 4 else "gradients", tmp_path, ranks, RUNS="long")
    check_gradients(tmp_path, len(ESTIMATORS))
    if ranks == 4:
        first, *others = read(tmp_path, "long", ranks)
        assert others == [first] * 3  # to the last bit, after 1,000 steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    launch("fit,interrupt", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eager", "compiled", "parts", "early", "small", "long"])
def test_fit_leaves_ranks_with_equal_weights_and_figures(trained: Path, name: str) -> None:
    first, last = read(trained, name)
    assert first == last
    assert first["stopped"] == ("early stopping" if name == "early" else "completed")


@pytest.mark.slow
def test_fit_of_ranks_compiled_is_as_eager(trained: Path) -> None:
    eager, compiled = (read(trained, name)[0]["rows"] for name in ("eager", "compiled"))
    for one, other in zip(eager, compiled, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.slow
def test_fit_of_ranks_ends_at_one_step_where_one_is_interrupted(trained: Path) -> None:
    assert read(trained, "interrupt") == [["interrupted", 0]] * 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are not listed in /proc")
def test_ranks_leave_no_thread_of_gloo_behind(trained: Path) -> None:
    """Threads that outlive the interpreter abort the process at times, which torchrun takes for a failure."""
    for rank in range(2):
        names = read(trained, "threads")[rank]
        assert names
        assert not [name for name in names if "gloo" in name]


@pytest.mark.slow
def test_fit_of_ranks_that_are_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    deaths = [[4, 1], [31, 0]]
    for folder in (killed, whole):
        folder.mkdir()
    launch("resume", killed, deaths=len(deaths), DEATHS=json.dumps(deaths))
    launch("resume", whole)
    assert len(list(killed.glob("died-*"))) == len(deaths)
    assert json.loads((killed / "end.json").read_text()) == json.loads((whole / "end.json").read_text())
    steps = {f: [line.split() for line in (f / "steps.txt").read_text().splitlines()] for f in (killed, whole)}
    counts = Counter(step for step, _ in steps[killed])
    assert set(counts) == {step for step, _ in steps[whole]}
    assert sum(counts.values()) - len(counts) <= 3 * len(deaths)  # again: at most those since the last checkpoint
    assert {tuple(each) for each in steps[killed]} == {tuple(each) for each in steps[whole]}  # equal losses too


@pytest.mark.slow
def test_fit_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    for ranks, epochs in ((2, 1), (3, 2)):
        launch("resume", tmp_path, ranks, EPOCHS=str(epochs))
        assert json.loads((tmp_path / "end.json").read_text())["epochs"] == epochs
    steps = [int(line.split()[0]) for line in (tmp_path / "steps.txt").read_text().splitlines()]
    assert steps == list(range(1, 23))


@pytest.mark.slow
def test_fit_of_a_stream_by_ranks_sees_each_datum_once_an_epoch(tmp_path: Path) -> None:
    """Also where it goes on amid an epoch with another number of ranks."""
    for ranks, stop in ((2, 11), (3, 99)):
        launch("stream", tmp_path, ranks, STOP=str(stop))
    before, after = read(tmp_path, "seen-11"), read(tmp_path, "seen-99", 3)
    assert [len(each) for each in before] == [24 + 12, 23 + 12]  # an epoch of 8 steps, and 4 steps of 6 data
    assert Counter(itertools.chain(*before, *after)) == dict.fromkeys(range(47), 2)
    assert sorted(before[0][:24] + before[1][:23]) == list(range(47))


@pytest.mark.slow
def test_examples_and_commands_run_by_torchrun(tmp_path: Path) -> None:
    example = WORKER.parents[1] / "examples" / "mnist_svi.py"
    train = ["-m", "pyro_vae", "train", "--data", "digits", "--network", "mlp", "--steps", "6", "--out", "run"]
    evaluate = ["-m", "pyro_vae", "evaluate", "run", "--num-particles", "20"]
    for command in ([str(example), "--dataset", "digits", "--steps", "6", "--out", "example"], train):
        result = torchrun(command, tmp_path)
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("test: -ELBO") == 1  # the first rank's
    result = torchrun(evaluate, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("active units") == 1
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["-log p(x)"]["num_particles"] == 20
    assert (tmp_path / "example" / "vae" / "weights.safetensors").is_file()
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    assert "steps: 6" in (tmp_path / "run" / "config.yaml").read_text()
