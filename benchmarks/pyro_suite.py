"""Pyro's own tests with our SVI and our estimators in the place of Pyro's.

    python benchmarks/pyro_suite.py ../pyro
    python benchmarks/pyro_suite.py ../pyro --modes eager compiled --files nn infer/test_gradient.py -k plate --verbose
    python benchmarks/pyro_suite.py ../pyro --modes compiled --files infer/test_gradient.py --every 16
    python benchmarks/pyro_suite.py ../pyro --examples    # Pyro's examples in place of its tests

Each file of a checkout of Pyro runs in a process of its own with the installed Pyro, not the checkout's, and with names
of ``pyro.infer`` replaced before its tests are collected: this file is also the plugin of pytest that does so.

    stock        nothing replaced
    eager        SVI by ours, with compile=False
    recorded     SVI by ours, with compile=True but the recorded graph run as it is; a test's first step is made thrice,
                 since the first is eager and most tests make no other
    compiled     the same, with the graph compiled
    estimators   Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO and RenyiELBO by ours, in stock SVI;
                 a site has the gradient that Pyro would give it

A test is refused when it meets an error of ours, "subject: expected ...; got ...", and has failed when it meets
another; one that fails or runs out of time in stock Pyro too, in the same run of this script, counts apart. Tests that
are expected to fail in Pyro count as skipped. Under the table is each sentence that tests were refused with, and each
failure with its explanation, or without one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.infer
import pyro_examples
import pytest
import torch
from torch.fx import GraphModule

import pyro_vae
from pyro_vae import elbo
from pyro_vae.compilation import graph
from pyro_vae.elbo.draws import Call
from pyro_vae.elbo.gradients import Bound

FILES = [
    *(f"infer/test_{name}.py" for name in ("gradient", "valid_models", "inference", "multi_sample_elbos")),
    "infer/test_conjugate_gradients.py",
    "params",
    "nn",
]
OUTCOMES = ["passed", "refused", "failed", "as stock", "skipped", "timed out"]
_VALID = r"test_valid_models\.py::test_"
EXPLAINED = [
    ("", r"install .?graphviz", "graphviz is not installed here"),
    (
        r"test_autoregressive\.py::.*test_jacobians",
        r"requires_grad=True to a scalar",
        "a warning of torch, newer than Pyro's tests, which make errors of it",
    ),
    (
        rf"{_VALID}((non)?empty_model_empty_guide_ok|enum_discrete_(misuse|missing_config)_warning"
        r"|plate_enum_discrete_no_discrete_vars_warning)\[",
        r"No warnings were raised",
        "asks for Pyro's warning of sites without a mark of enumeration, or with one in vain; ours is told by its "
        "argument what is summed over, and reads no marks of the guide. Loss and gradient are Pyro's",
    ),
    (
        rf"{_VALID}enum_discrete_iplates_plate_dependency_warning\[True-",
        r"No warnings were raised",
        "asks for Pyro's warning of a site outside the plate of an enumerated one, on which it may depend; it does "
        "not, and the loss is Pyro's",
    ),
    (
        rf"{_VALID}(dim_allocation_ok\[Enum-False|enum_discrete_parallel_(nested_)?ok\[|vectorized_num_particles\["
        r"|(enumerate_parallel_plate_ok|enum_discrete_(plate_shape_broadcasting_ok|vectorized_num_particles))\[.*None\])",
        r"assert torch\.Size",
        "its programs assert the shapes of Pyro's draws; ours have other dims, after a first run without. Without "
        "these asserts the loss is Pyro's, to 1e-12 where all is summed over",
    ),
    (
        rf"{_VALID}(enumerate_parallel_plate_ok|enum_discrete_(plate_shape_broadcasting_ok|vectorized_num_particles))"
        r"\[.*-3\]",
        r"assert torch\.Size",
        "its programs assert the shapes of Pyro's draws; without these asserts it is refused, for infer num_samples=3",
    ),
    (
        rf"{_VALID}enum_in_model_(plate_)?ok",
        r"assert torch\.Size",
        "its programs assert the shapes of Pyro's draws; without these asserts it is refused, for latents of the model "
        "alone beside some of the guide that are summed over",
    ),
    (
        rf"{_VALID}(nested_plate_plate_dim_error_3|obs_mask_multivariate_error)\[",
        r"Regex pattern did not match",
        "asks for the words of Pyro's error; the wrong program ends in one of torch's about the same sizes",
    ),
    (
        r"test_gradient\.py::test_particle_gradient\[Enum-(nonreparam|reparam-False)\]",
        r"At key 'scale': tensor\(\[0\.8832\]\)",
        "another unbiased gradient at the same draw: .459 -2.105 1.992 in the mean of 8,000, Pyro's .456 -2.130 1.969, "
        "exactly .5 -2 2",
    ),
]
"""Why tests fail: their names, what is in the error, and the reason, which was looked at in each."""
OURS = re.compile(r"[^:]+: expected .+; got .+\. .+", re.DOTALL)
MODE, RESULTS, SECONDS, EVERY = (f"PYRO_SUITE_{name}" for name in ("MODE", "RESULTS", "SECONDS", "EVERY"))
STEPS = 3
TIMED_OUT = 77  # exit status


class ChosenByPyro(elbo.Gradient):
    """The gradient that Pyro gives a site unasked: pathwise where it has one, else the score function's."""

    def loss(self, estimator: Bound, call: Call) -> torch.Tensor:
        assert call.structure is not None
        own: dict[str, elbo.Gradient] = {
            name: elbo.Pathwise() if latent.reparameterized else elbo.Score()
            for name, latent in call.structure.guide.items()
        }
        return elbo.BySite(own).loss(estimator, call)


class Trace(elbo.ELBO):
    """Ours, made as Pyro's Trace_ELBO and TraceGraph_ELBO are."""

    options: dict[str, Any] = {"gradient": ChosenByPyro()}

    def __init__(self, num_particles: int = 1, max_plate_nesting: float = 0, **options: Any) -> None:
        vectorize = options.get("vectorize_particles", False)
        super().__init__(num_particles, **self.options, vectorize=vectorize)


class MeanField(Trace):
    """Ours, made as Pyro's TraceMeanField_ELBO is."""

    options = {"analytic_kl": True}


class Enum(Trace):
    """Ours, made as Pyro's TraceEnum_ELBO is."""

    options = {"gradient": "enumerate"}


class Renyi(elbo.RenyiELBO):
    """Ours, made as Pyro's RenyiELBO is."""

    def __init__(self, alpha: float = 0, num_particles: int = 2, max_plate_nesting: float = 0, **options: Any) -> None:
        vectorize = options.get("vectorize_particles", False)
        super().__init__(num_particles, ChosenByPyro(), alpha=alpha, vectorize=vectorize)


ESTIMATORS = {
    "Trace_ELBO": Trace,
    "TraceGraph_ELBO": Trace,
    "TraceMeanField_ELBO": MeanField,
    "TraceEnum_ELBO": Enum,
    "RenyiELBO": Renyi,
}


def our_svi(*, compile: bool) -> type[pyro_vae.SVI]:
    """Our SVI, which compiles from its second step on or never, whatever it is called with."""

    class SVI(pyro_vae.SVI):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, compile=compile, **kwargs)

        def step(self, *args: Any, **kwargs: Any) -> float:
            if compile and not self.num_steps:
                for _ in range(STEPS - 1):
                    super().step(*args, **kwargs)
            return super().step(*args, **kwargs)

    return SVI


def replace(names: dict[str, Any]) -> None:
    """Replaces classes in the modules of ``pyro.infer`` that hold them."""
    for name, ours in names.items():
        theirs = getattr(pyro.infer, name)
        for module in [m for key, m in sys.modules.items() if key.startswith("pyro.infer")]:
            # Pyro's other classes derive from these, and have done so already
            if vars(module).get(name) is theirs:
                setattr(module, name, ours)


def as_recorded(graph: GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., Sequence[torch.Tensor]]:
    """A recorded graph, run as it is."""
    return graph


def compiled() -> None:
    replace({"SVI": our_svi(compile=True)})


def recorded() -> None:
    vars(graph)["compile_graph"] = as_recorded
    compiled()


MODES: dict[str, Callable[[], None]] = {
    "stock": lambda: None,
    "eager": lambda: replace({"SVI": our_svi(compile=False)}),
    "recorded": recorded,
    "compiled": compiled,
    "estimators": lambda: replace(ESTIMATORS),
}


# --- the plugin of pytest, in a process of its own -------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    if MODE in os.environ:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch._inductor  # noqa: F401 - what importing it warns of is nothing that a test provokes
        MODES[os.environ[MODE]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what was not chosen, and what an earlier process of the same file and mode has run."""
    if RESULTS in os.environ:
        items[:] = items[:: int(os.environ[EVERY])]
        known = read(Path(os.environ[RESULTS]))
        items[:] = [item for item in items if name_of(item) not in known]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    def stop(*_: object) -> None:
        # An exception in the middle of a step would leave Pyro's handlers behind, and fail the tests that follow.
        write(item, "timed out", "")
        os._exit(TIMED_OUT)

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(int(os.environ.get(SECONDS, "0")))
    try:
        return (yield)
    finally:
        signal.alarm(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    if RESULTS in os.environ and (report.when == "call" or not report.passed):
        write(item, *outcome_of(report.outcome, call.excinfo.value if call.excinfo is not None else None))
    return report


def name_of(item: pytest.Item) -> str:
    return item.nodeid.rpartition("/")[2]


def write(item: pytest.Item, outcome: str, line: str) -> None:
    """Adds a test's outcome to the file that the script reads."""
    with Path(os.environ[RESULTS]).open("a") as file:
        file.write(json.dumps([name_of(item), outcome, line]) + "\n")


def read(results: Path) -> dict[str, tuple[str, str]]:
    """Outcome and first line of the error by test."""
    rows = [json.loads(row) for row in results.read_text().splitlines()] if results.exists() else []
    return {name: (outcome, line) for name, outcome, line in rows}


def outcome_of(outcome: str, error: BaseException | None) -> tuple[str, str]:
    """A test's outcome, with what we refuse told from what fails, and the first line of its error."""
    if outcome == "passed":
        return outcome, ""
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for each in chain:
        if OURS.fullmatch(str(each)) and is_ours(each):
            return "refused", " ".join(str(each).split())
    first = chain[0] if chain else None
    lines = str(first).strip().splitlines() or [""]
    return outcome, f"{type(first).__name__}: {lines[0]}"


def is_ours(error: BaseException) -> bool:
    """Whether an exception, or the warning that is one, comes from our package."""
    folder = str(Path(pyro_vae.__file__).parent)
    return any(frame.filename.startswith(folder) for frame in traceback.extract_tb(error.__traceback__))


# --- the script ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """Of the tests of a file in a mode: outcome and first line of the error by name; whether all were run."""

    tests: dict[str, tuple[str, str]]
    note: str = ""

    def count(self, outcome: str) -> int:
        return sum(own == outcome for own, _ in self.tests.values())


def run(checkout: Path, file: str, mode: str, options: argparse.Namespace) -> Result:
    """Runs the tests of a file of the checkout in a process of its own, and in another what one that ends has left."""
    command = [sys.executable, "-m", "pytest", "-p", "pyro_suite", "-p", "no:cacheprovider", "-q", "--no-header"]
    command += ["-c", str(checkout / "setup.cfg"), "--rootdir", str(checkout), str(checkout / "tests" / file)]
    command += ["-W", "ignore::pytest.PytestRemovedIn10Warning"] if hasattr(pytest, "PytestRemovedIn10Warning") else []
    command += ["-k", options.k] if options.k else []
    paths = [str(Path(__file__).parent), str(Path(pyro_vae.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            MODE: mode,
            RESULTS: str(results),
            SECONDS: str(options.test_timeout),
            EVERY: str(options.every),
        }
        until = time.monotonic() + options.timeout
        call = partial(
            subprocess.run, command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        note, number = "", -1
        try:
            while (done := call(timeout=max(until - time.monotonic(), 0))).returncode not in (0, 1, 5):  # 5: no tests
                if len(read(results)) == number:
                    note = "pytest: " + (done.stderr or done.stdout).strip().splitlines()[-1]
                    break
                number = len(read(results))
        except subprocess.TimeoutExpired:
            note = f"cut off after {options.timeout} s"
        return Result(read(results), note)


def apart_from(result: Result, stock: Result | None) -> Result:
    """The outcomes with those told apart that are failures of stock Pyro too."""
    if stock is None:
        return result
    bad = ("failed", "timed out")
    same = {
        name for name, (outcome, _) in result.tests.items() if outcome in bad and stock.tests.get(name, [""])[0] in bad
    }
    return Result(
        {name: ("as stock" if name in same else own, line) for name, (own, line) in result.tests.items()}, result.note
    )


def verbose(result: Result) -> None:
    """Prints the tests that did not pass."""
    for name, (outcome, line) in result.tests.items():
        if outcome not in ("passed", "skipped"):
            print(f"    {outcome} {name}: {line}")


def explanation(name: str, line: str) -> str:
    """Why a test failed, of its name and the first line of its error."""
    found = (why for test, error, why in EXPLAINED if re.search(test, name) and re.search(error, line))
    return next(found, "no explanation")


def table(options: argparse.Namespace) -> None:
    """Prints outcomes by file and mode, and then what was refused with which words."""
    refusals: Counter[str] = Counter()
    failures: list[str] = []
    print(f"{'':34} {'':11}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
    for file in options.files:
        results: dict[str, Result] = {}
        for mode in options.modes:
            result = apart_from(run(options.checkout, file, mode, options), results.get("stock"))
            results[mode] = result
            counts = "".join(f"{result.count(outcome):10}" for outcome in OUTCOMES)
            print(f"{file:34} {mode:11}{counts}  {result.note}".rstrip(), flush=True)
            if options.verbose:
                verbose(result)
            refusals.update(line for outcome, line in result.tests.values() if outcome == "refused")
            failures += [
                f"{mode}: {name}: {explanation(name, line) if outcome == 'failed' else outcome}: {line}"
                for name, (outcome, line) in result.tests.items()
                if outcome in ("failed", "timed out")
            ]
    if refusals:
        print("\nrefused, with the number of tests:")
    for line, number in refusals.most_common():
        print(f"{number:5}  {line}")
    if failures:
        print("\nfailed, or ran out of time:")
    for line in failures:
        print(f"       {line}".removesuffix(": "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder with Pyro's sources, of the release that is installed")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--files", nargs="+", default=FILES, help="files or folders below the checkout's tests/")
    parser.add_argument("-k", metavar="EXPRESSION", help="only tests of such names, as pytest takes them")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth test of a file")
    parser.add_argument("--timeout", type=int, default=900, help="seconds for a file in a mode")
    parser.add_argument("--test-timeout", type=int, default=60, help="seconds for a test")
    parser.add_argument("--verbose", action="store_true", help="name the tests that did not pass, with their errors")
    parser.add_argument("--examples", action="store_true", help="Pyro's examples in place of its tests")
    options = parser.parse_args()
    options.checkout = options.checkout.resolve()
    if not (options.checkout / "tests" / "infer").is_dir():
        parser.error(f"expected a checkout of Pyro with its tests; got {options.checkout}")
    print(f"tests of {options.checkout}, Pyro {pyro.__version__} as installed, torch {torch.__version__}\n")
    with suppress(KeyboardInterrupt):
        if options.examples:
            pyro_examples.table(options.checkout, options.k)
        else:
            table(options)


if __name__ == "__main__":
    main()
