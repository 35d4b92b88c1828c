"""What every test starts from and must leave behind."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PYRO_VAE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked ``cuda`` where there is no such device."""
    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@contextlib.contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Context manager that fails where something appears in a folder; hidden files are those of tools."""
    before = set(os.listdir(folder))
    yield
    left = sorted(name for name in set(os.listdir(folder)) - before if name[0] not in "._")
    assert not left, f"expected nothing new in {folder}; got {left}. Let the test write into tmp_path."


@pytest.fixture(autouse=True)
def _clean_checkout() -> Iterator[None]:
    """Fails a test that leaves a file in the checkout's root, which is the current folder of most runs."""
    with nothing_left(ROOT):
        yield


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """Seeds the draws of each test, and fails one that leaves Pyro's or torch's global state changed."""
    torch.manual_seed(0)
    before = pyro.settings.get(), torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    after = pyro.settings.get(), torch.get_default_dtype(), torch.is_grad_enabled()
    # Parameters of ``pyro.param`` statements are there as Pyro has them; those of modules are left by stock Pyro alone.
    left = [name for name, value in pyro.get_param_store().named_parameters() if isinstance(value, nn.Parameter)]
    pyro.clear_param_store()
    assert left == []
    assert after == before


@pytest.fixture
def global_store(_global_state: None) -> Iterator[None]:
    """For tests of stock Pyro, which puts parameters of modules into its global param store: empties it at the end."""
    yield
    pyro.clear_param_store()


@pytest.fixture
def mnist() -> Path:
    """The folder with ``MNIST/raw``: that of the environment variable PYRO_VAE_DATA, or the one beside the checkout."""
    if not (DATA / "MNIST" / "raw").is_dir():
        pytest.skip("no MNIST on disk: set PYRO_VAE_DATA")
    return DATA
