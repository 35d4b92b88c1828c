"""Small stumbling blocks that users met: each is right, or a sentence of ours."""

import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import members
import pytest
import torch

import pyro_vae
from pyro_vae import ConditionalVAE, checkpoint, conditionals, likelihoods, nets, priors


@pytest.mark.parametrize("name", members.PROGRAMS)
def test_ProgramModule_is_no_network(name: str) -> None:
    program, args = members.PROGRAMS[name]()
    with pytest.raises(TypeError, match="expected a call of one of its parts"):
        program(*args)


def test_pyro_vae_has_plots_and_testing() -> None:
    code = "import pyro_vae; pyro_vae.plots.images, pyro_vae.testing.check_prior"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="module 'pyro_vae' has no attribute 'plot'"):
        _ = pyro_vae.plot


def test_pyro_vae_has_no_public_name_that_hides_a_module() -> None:
    root = Path(pyro_vae.__file__).parent
    for path in root.rglob("*.py"):
        if path.stem != "__init__" and path.parent != root:
            package = importlib.import_module(".".join(["pyro_vae", *path.relative_to(root).parts[:-1]]))
            value = getattr(package, path.stem, None)
            assert value is None or isinstance(value, ModuleType), path


def _conditional_vae() -> ConditionalVAE:
    return ConditionalVAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(nets.MLP(2, [5], context_shapes=[10]), 4),
        conditionals.DiagonalNormal(nets.MLP(4, [5], context_shapes=[10]), 2),
    )


@pytest.mark.parametrize(("context", "error"), [((5,), TypeError), ((torch.eye(10)[3],), ValueError), ((), ValueError)])
def test_ConditionalVAE_samples_a_row_for_each_context(context: Any, error: type[Exception]) -> None:
    vae = _conditional_vae()
    assert vae.sample(torch.eye(10)[:3]).shape == (3, 4)
    with pytest.raises(error, match=r"ConditionalVAE.sample: expected contexts of shapes \[\('N', 10\)\]; got"):
        vae.sample(*context)


def test_Poisson_refuses_the_logarithm_of_a_library_size() -> None:
    x = torch.poisson(torch.full((6, 20), 40.0))
    likelihood = likelihoods.Poisson(nets.MLP(2, []), 20, library_size=True)
    likelihood.check_data(x, x.sum(-1))
    with pytest.raises(ValueError, match="expected a library_size; got the logarithm of each datum's total"):
        likelihood.check_data(x, x.sum(-1).log())


def test_save_in_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoint.save(tmp_path / "nowhere" / "a.safetensors", torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="expected a module with values; got Linear on the meta device"):
        checkpoint.load(tmp_path / "a", torch.nn.Linear(1, 1, device="meta"))


def test_save_makes_files_of_the_usual_mode_and_threads_do_not_collide(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        threads = [
            threading.Thread(target=checkpoint.save, args=(tmp_path / "a.safetensors", torch.nn.Linear(2, 2)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
    checkpoint.load(tmp_path / "a.safetensors", torch.nn.Linear(2, 2))
