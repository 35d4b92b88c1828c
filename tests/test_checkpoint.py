"""Checkpoints: what is saved is what is loaded, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from pyro_vae import VAE, checkpoint, conditionals, likelihoods, nets, priors
from pyro_vae.checkpoint.tree import pack, unpack


def small_vae(hidden: int = 4) -> VAE:
    return VAE(
        prior=priors.MixtureOfNormals(2, num_components=3),
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [hidden]), 6),
        posterior=conditionals.DiagonalNormal(nets.MLP(6, [hidden]), 2),
    )


def test_load_gives_what_was_saved_bit_for_bit(tmp_path: Path) -> None:
    saved, loaded = small_vae(), small_vae()
    checkpoint.save(tmp_path / "vae.safetensors", saved, {"epochs": 3, "name": "digits"})
    assert checkpoint.load(tmp_path / "vae.safetensors", loaded) == {"epochs": 3, "name": "digits"}
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    x = torch.rand(5, 6)
    assert torch.equal(saved.encode(x).mean, loaded.encode(x).mean)


def test_save_replaces_an_existing_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    for epochs in (1, 2):
        checkpoint.save(path, small_vae(), {"epochs": epochs})
    assert checkpoint.load(path, small_vae()) == {"epochs": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    checkpoint.save(path, small_vae(), {"epochs": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.save(path, small_vae(), {"epochs": object()})
    assert checkpoint.load(path, small_vae()) == {"epochs": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_load_refuses_another_structure_and_leaves_the_module(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    checkpoint.save(path, small_vae(hidden=5))
    vae = small_vae()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    with pytest.raises(ValueError, match=r"expected the tensors of this VAE; got others in .*: guide\.posterior"):
        checkpoint.load(path, vae)
    assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())


def test_load_refuses_a_file_that_is_missing_damaged_or_foreign(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    with pytest.raises(FileNotFoundError, match=re.escape(f"Checkpoint: expected a file at {str(path)!r}; got none.")):
        checkpoint.load(path, small_vae())
    checkpoint.save(path, small_vae())
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"Checkpoint: expected a file written by pyro_vae\.checkpoint\.save"):
        checkpoint.load(path, small_vae())
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"Checkpoint: expected a file written by pyro_vae\.checkpoint\.save"):
        checkpoint.load(path, nn.Linear(2, 1))


def test_save_keeps_a_body_that_encoder_and_decoder_share(tmp_path: Path) -> None:
    def tied() -> nn.ModuleDict:
        shared = nn.Linear(2, 2)
        return nn.ModuleDict({"encoder": nn.Sequential(shared), "decoder": nn.Sequential(shared, nn.Linear(2, 1))})

    first, second = tied(), tied()
    checkpoint.save(tmp_path / "tied.safetensors", first)
    checkpoint.load(tmp_path / "tied.safetensors", second)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert second["encoder"][0].weight is second["decoder"][0].weight  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_load_refuses_tensors_of_another_type(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint.save(tmp_path / "vae.safetensors", small_vae().to(dtype))
    with pytest.raises(ValueError, match="expected the tensors of this VAE; got others"):
        checkpoint.load(tmp_path / "vae.safetensors", small_vae())


def test_load_sees_every_flipped_bit_and_every_truncation(tmp_path: Path) -> None:
    path, vae = tmp_path / "vae.safetensors", small_vae()
    checkpoint.save(path, vae, {"epochs": 3})
    content = path.read_bytes()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    flipped = (bytearray(content) for _ in range(0, len(content), 7))
    for place, damaged in zip(range(0, len(content), 7), flipped, strict=True):
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            assert checkpoint.load(path, vae) == {"epochs": 3}  # a flip of white space, or of the checksum's name
        assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())
    for length in range(0, len(content), 29):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="Checkpoint: expected a file written by"):
            checkpoint.load(path, vae)


def test_save_removes_files_of_killed_savers_after_an_hour(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    old, new = tmp_path / ".vae.safetensors.0", tmp_path / ".vae.safetensors.1"
    for file in (old, new):
        file.touch()
    os.utime(old, (0, 0))
    checkpoint.save(path, small_vae())
    assert sorted(tmp_path.iterdir()) == [new, path]


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_save_on_a_full_disk_leaves_the_earlier_file(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vae.safetensors"
    checkpoint.save(path, small_vae(), {"epochs": 1})

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(os, "fsync", lambda number: None)
        monkeypatch.setattr(Path, "open", full)
    elif failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, small_vae(), {"epochs": 2})
    monkeypatch.undo()
    assert checkpoint.load(path, small_vae()) == {"epochs": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_save_does_not_take_a_folder_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="expected the path of a file; got the folder"):
        checkpoint.save(tmp_path, small_vae())


def test_pack_and_unpack_keep_types_and_places() -> None:
    value = {
        "a": {"b": torch.ones(1)},
        "a.b": torch.zeros(1),
        "sizes": torch.Size([2, 3]),
        "steps": Counter({3: 2}),
        "by place": {(1, 2): [None, True]},
    }
    tensors: dict[str, torch.Tensor] = {}
    again = unpack(json.loads(json.dumps(pack(value, tensors))), tensors)
    assert (again["a"]["b"], again["a.b"]) == (torch.ones(1), torch.zeros(1))
    assert type(again["sizes"]) is torch.Size
    assert again["steps"] == value["steps"]
    assert type(again["steps"]) is Counter
    assert again["by place"] == value["by place"]
    with pytest.raises(TypeError, match="got OrderedDict at 'x'"):
        pack({"x": OrderedDict(a=1)}, {})


def test_save_takes_tensors_of_any_strides(tmp_path: Path) -> None:
    """One element is contiguous whatever its stride, which an expanded tensor has 0 of."""
    first, second = nn.Module(), nn.Module()
    for module, value in ((first, 3.0), (second, 0.0)):
        module.register_buffer("one", torch.tensor(value).expand(1).clone(memory_format=torch.preserve_format))
        module.register_buffer("rows", torch.full((4, 2), value).t())
        module.register_buffer("none", torch.zeros(0, 3))
    assert first.get_buffer("one").stride() == (0,)
    checkpoint.save(tmp_path / "x.safetensors", first)
    checkpoint.load(tmp_path / "x.safetensors", second)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
