"""Programs on the Hugging Face hub: there and back, against a stub on the loopback, and what goes wrong on the way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stub import TOKEN, Hub, Refusal, Repository, serving
from torch import nn

import pyro_vae
from pyro_vae import VAE, conditionals, likelihoods, nets, priors
from pyro_vae.checkpoint import files

huggingface_hub = pytest.importorskip("huggingface_hub")

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # of httpx, called by the hub's client

PUSHED = {"program.json", "weights.safetensors", "README.md"}


def a_vae(latent_dim: int = 2) -> VAE:
    return VAE(
        priors.StandardNormal(latent_dim),
        likelihoods.Bernoulli(nets.MLP(latent_dim, [5]), 4),
        conditionals.DiagonalNormal(nets.MLP(4, [5]), latent_dim),
    )


class OwnBody(nets.MLP):
    """A class that the library does not know."""


def alike(program: VAE, other: VAE) -> bool:
    x = torch.eye(4)
    return torch.equal(program.encode(x).mean, other.encode(x).mean)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stub, at which huggingface_hub's settings point; its cache and its token are in the test's folder."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE"):
        monkeypatch.setattr(constants, name, str(home / "hub"), raising=False)
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its servers the stub is not; large files go by LFS
    with serving() as stub:
        point_at(stub.url, monkeypatch)
        end_session()
        yield stub
        end_session()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    if hasattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE)


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points at a port at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_at(f"http://127.0.0.1:{port}", monkeypatch)


def end_session() -> None:
    """Closes connections: huggingface_hub before 1.0 asks whether it is offline when it opens them."""
    from huggingface_hub.utils import _http

    end = "close_session" if hasattr(_http, "close_session") else "reset_sessions"
    getattr(_http, end)()


def push(*args: Any, **options: Any) -> str:
    return pyro_vae.push_to_hub(*args, token=TOKEN, **options)


# There and back.


def test_a_program_comes_back(hub: Hub) -> None:
    vae = a_vae()
    address = push(vae, "ada/digits")
    assert address.startswith(f"{hub.url}/ada/digits/commit/")
    assert alike(pyro_vae.from_pretrained("ada/digits"), vae)
    assert hub.repositories["ada/digits"].files().keys() == PUSHED
    assert hub.fetched == {"program.json", "weights.safetensors"}
    assert len(hub.large) == 1  # sent apart from the commit, as the hub wants files of tensors


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    vae = a_vae()
    pyro_vae.save(tmp_path / "digits", vae)
    assert alike(pyro_vae.from_pretrained(tmp_path / "digits"), vae)
    assert alike(pyro_vae.from_pretrained(str(tmp_path / "digits")), vae)
    with pytest.raises(ValueError, match="expected no revision of a folder; got 'v1'"):
        pyro_vae.from_pretrained(tmp_path / "digits", revision="v1")


def test_of_a_run_only_what_a_program_is_loaded_from_is_sent(hub: Hub, tmp_path: Path) -> None:
    vae = a_vae()
    pyro_vae.fit(vae, torch.eye(4), validation=torch.eye(4), epochs=2, folder=tmp_path / "run", keep_best=True)
    (tmp_path / "run" / "notes.txt").write_text("secret")
    push(tmp_path / "run", "ada/run")
    sent = hub.repositories["ada/run"].files()
    assert sent.keys() == PUSHED | {"best.safetensors"}
    assert {"checkpoints", "history.jsonl", "run.json"} <= set(os.listdir(tmp_path / "run"))
    assert alike(pyro_vae.from_pretrained("ada/run"), vae)
    assert "best.safetensors" not in hub.fetched
    best = pyro_vae.load(tmp_path / "run", weights="best")
    assert alike(pyro_vae.from_pretrained("ada/run", weights="best"), best)


def test_the_card_has_what_the_hub_reads_and_says_how_to_load_the_program(hub: Hub, tmp_path: Path) -> None:
    pyro_vae.save(tmp_path / "digits", a_vae(), {"test_elbo": -2.5})
    here = (tmp_path / "digits" / "README.md").read_text(encoding="utf-8")
    push(tmp_path / "digits", "ada/digits", revision="v1")
    there = hub.repositories["ada/digits"].files("v1")["README.md"].decode()
    for text in (here, there):
        assert text.startswith("---\nlibrary_name: pyro_vae\ntags:\n- pyro\n- variational-autoencoder\n---\n\n# VAE\n")
        assert "| test_elbo | -2.5 | nats per datum |" in text
    assert 'pyro_vae.load("path/to/this/folder")' in here
    assert 'pyro_vae.from_pretrained("ada/digits", revision="v1")' in there
    assert "path/to/this/folder" not in there


def test_a_card_that_a_repository_has_is_kept_beside_a_program(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["ada/digits"] = Repository({"README.md": b"# by hand"})
    push(a_vae(), "ada/digits")
    assert hub.repositories["ada/digits"].files()["README.md"] == b"# by hand"
    pyro_vae.save(tmp_path, a_vae())
    push(tmp_path, "ada/digits")
    assert hub.repositories["ada/digits"].files()["README.md"] != b"# by hand"


def test_what_a_former_program_leaves_is_removed(hub: Hub) -> None:
    former = {"best.safetensors": b"old", "arguments.safetensors": b"old", "paper.pdf": b"theirs"}
    hub.repositories["ada/digits"] = Repository(former)
    push(a_vae(), "ada/digits")
    assert hub.repositories["ada/digits"].files().keys() == PUSHED | {"paper.pdf"}


def test_revisions_are_kept_apart(hub: Hub) -> None:
    first, second = a_vae(), a_vae(3)
    commit = push(first, "ada/digits").rpartition("/")[2]
    push(second, "ada/digits")
    push(first, "ada/digits", revision="small")
    assert alike(pyro_vae.from_pretrained("ada/digits"), second)
    assert alike(pyro_vae.from_pretrained("ada/digits", revision="small"), first)
    assert alike(pyro_vae.from_pretrained("ada/digits", revision=commit), first)
    with pytest.raises(
        FileNotFoundError, match="expected 'ada/digits' of revision 'v9'; got a repository without that"
    ):
        pyro_vae.from_pretrained("ada/digits", revision="v9")


def test_classes_of_the_user_are_given(hub: Hub) -> None:
    vae = VAE(priors.StandardNormal(2), likelihoods.Bernoulli(OwnBody(2, [5]), 4), a_vae().posterior)
    push(vae, "ada/own")
    with pytest.raises(ValueError, match=r"expected classes of pyro_vae, or of classes=...; got 'OwnBody'"):
        pyro_vae.from_pretrained("ada/own")
    assert alike(pyro_vae.from_pretrained("ada/own", classes=[OwnBody]), vae)


def test_a_private_repository_is_made_and_is_seen_with_a_token(hub: Hub) -> None:
    vae = a_vae()
    push(vae, "ada/secret", private=True)
    assert hub.repositories["ada/secret"].private
    with pytest.raises(FileNotFoundError, match="expected a repository 'ada/secret' on the hub, or a folder here"):
        pyro_vae.from_pretrained("ada/secret")
    assert alike(pyro_vae.from_pretrained("ada/secret", token=TOKEN), vae)


def test_nothing_private_is_sent_to_a_public_repository(hub: Hub) -> None:
    hub.repositories["ada/open"] = Repository({})
    with pytest.raises(ValueError, match="expected 'ada/open' private; got one that exists and is public"):
        push(a_vae(), "ada/open", private=True)
    assert not hub.repositories["ada/open"].files()


# Hostile and damaged repositories.


def pushed(hub: Hub, **others: bytes) -> dict[str, bytes]:
    """The files of a repository, which is changed in place."""
    push(a_vae(), "ada/digits")
    repository = hub.repositories["ada/digits"]
    repository.commit("main", {**repository.files(), **others})
    return repository.commits[repository.branches["main"]]


def test_code_of_a_repository_is_neither_fetched_nor_run(hub: Hub, tmp_path: Path) -> None:
    touch = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()".encode()
    hostile = ["weights.pt", "program.py", "__init__.py", "setup.py", "sub/program.json", "sub/weights.safetensors"]
    contents = pushed(hub, **dict.fromkeys(hostile, touch))
    assert contents.keys() > set(hostile)
    pyro_vae.from_pretrained("ada/digits")
    assert hub.fetched == {"program.json", "weights.safetensors"}
    cached = {path.name for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert not cached & {"weights.pt", "program.py", "__init__.py", "setup.py"}
    assert not (tmp_path / "ran").exists()


def test_a_repository_of_something_else_is_refused_before_it_is_fetched(hub: Hub) -> None:
    hub.repositories["ada/bert"] = Repository({"pytorch_model.bin": b"x", "config.json": b"{}"})
    with pytest.raises(
        FileNotFoundError, match=r"expected a program of pyro_vae, with weights.safetensors, in 'ada/bert'"
    ):
        pyro_vae.from_pretrained("ada/bert")
    push(a_vae(), "ada/digits")
    with pytest.raises(FileNotFoundError, match=r"with best.safetensors, in 'ada/digits'; got no best.safetensors"):
        pyro_vae.from_pretrained("ada/digits", weights="best")
    assert hub.fetched == set()


def test_a_description_that_would_fill_a_disk_is_not_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(a_vae(), "ada/digits")
    monkeypatch.setattr(files, "LARGEST_TEXT", 100)
    with pytest.raises(ValueError, match=r"expected program.json of 'ada/digits' of 100 bytes at most; got"):
        pyro_vae.from_pretrained("ada/digits")
    assert hub.fetched == set()


def test_a_changed_file_is_an_error(hub: Hub) -> None:
    contents = pushed(hub)
    weights = bytearray(contents["weights.safetensors"])
    weights[-1] ^= 1
    contents["weights.safetensors"] = bytes(weights)
    with pytest.raises(ValueError, match="another checksum than its own"):
        pyro_vae.from_pretrained("ada/digits")


def test_a_file_of_another_size_than_the_hub_tells_is_an_error(hub: Hub) -> None:
    push(a_vae(), "ada/digits")
    hub.wrong_sizes = True
    with pytest.raises(OSError, match=r"expected \d+ bytes of program.json of 'ada/digits'; got \d+ in .* Delete that"):
        pyro_vae.from_pretrained("ada/digits")


# No network, no token, no such thing.


def test_without_a_network_the_cached_copy_is_loaded_with_a_warning(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = a_vae()
    push(vae, "ada/digits")
    pyro_vae.from_pretrained("ada/digits")
    with monkeypatch.context() as patch:
        unreachable(patch)
        with pytest.warns(UserWarning, match="cannot reach the hub, and loads the copy of 'ada/digits'") as caught:
            assert alike(pyro_vae.from_pretrained("ada/digits"), vae)
        assert caught[0].filename == __file__
    hub.refusal = Refusal(503, message="maintenance")
    with pytest.warns(UserWarning, match="which may not be the newest: HfHubHTTPError 503: maintenance"):
        assert alike(pyro_vae.from_pretrained("ada/digits"), vae)


def test_without_a_network_and_a_copy_it_fails_fast(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable(monkeypatch)
    with pytest.raises(
        ConnectionError, match=r"^from_pretrained: expected to reach http://127\S+ for 'ada/digits', or a"
    ):
        pyro_vae.from_pretrained("ada/digits")
    with pytest.raises(ConnectionError, match=r"^push_to_hub: expected to reach http://127\S+ for 'ada/digits'; got"):
        push(a_vae(), "ada/digits")


def test_a_hub_that_does_not_answer_is_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.checkpoint.hub._TIMEOUT", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point_at(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        begun = time.monotonic()
        for call in (lambda: pyro_vae.from_pretrained("ada/digits"), lambda: push(a_vae(), "ada/digits")):
            with pytest.raises(ConnectionError, match=r"expected to reach .*[Tt]imeout"):
                call()
    assert time.monotonic() - begun < 5


def test_offline_mode_is_heeded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = a_vae()
    push(vae, "ada/digits")
    pyro_vae.from_pretrained("ada/digits")
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # undone by the fixture
    end_session()
    hub.requests.clear()
    assert alike(pyro_vae.from_pretrained("ada/digits"), vae)
    with pytest.raises(ConnectionError, match=r"got OfflineModeIsEnabled: .* Check the network"):
        pyro_vae.from_pretrained("ada/other")
    with pytest.raises(ConnectionError, match="got OfflineModeIsEnabled"):
        push(vae, "ada/digits")
    assert hub.requests == []


def test_a_missing_repository_is_named(hub: Hub) -> None:
    for token in (None, TOKEN):
        with pytest.raises(FileNotFoundError, match=r"repository 'ada/none' on the hub, or a folder here; got neither"):
            pyro_vae.from_pretrained("ada/none", token=token)


@pytest.mark.parametrize(
    ("refusal", "error", "message"),
    [
        (Refusal(403, "GatedRepo", "ask first"), PermissionError, "got one who has yet to accept its conditions"),
        (Refusal(403, "", "not yours"), PermissionError, "expected a token that is valid .* 403: .*not yours"),
        (
            Refusal(429, "", "slow down"),
            OSError,
            "expected the hub to give or take 'ada/digits'; got HfHubHTTPError 429",
        ),
        (Refusal(400, "", "no such thing"), OSError, "got BadRequestError 400: no such thing. Try again later."),
        (Refusal(500, "", "broken"), ConnectionError, "expected to reach http"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Refusal) else "",
)
def test_what_the_hub_says_is_passed_on(refusal: Refusal, error: type[Exception], message: str, hub: Hub) -> None:
    hub.refusal = refusal
    for call in (lambda: pyro_vae.from_pretrained("ada/digits"), lambda: push(a_vae(), "ada/digits")):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(("raised", "error"), [(ConnectionError, ConnectionError), (RuntimeError, OSError)])
def test_what_moves_large_files_may_fail(
    raised: type[Exception], error: type[Exception], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(a_vae(), "ada/digits")

    def broken(*args: Any, **options: Any) -> None:
        raise raised("Network error: Request error")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", broken)
    for call in (lambda: pyro_vae.from_pretrained("ada/digits"), lambda: push(a_vae(), "ada/digits")):
        with pytest.raises(error, match=rf"expected .*; got {raised.__name__}: Network error: Request error\. \w+"):
            call()


def test_a_commit_during_the_download_is_an_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(a_vae(), "ada/digits")
    download = huggingface_hub.snapshot_download

    def after_another_push(*args: Any, **options: Any) -> str:
        push(a_vae(), "ada/digits")
        return download(*args, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", after_another_push)
    with pytest.raises(OSError, match="expected 'ada/digits' to stay as it is while it is downloaded; got commit"):
        pyro_vae.from_pretrained("ada/digits")


@pytest.mark.parametrize("name", ["./runs/digits", "digits", "/runs", "a/b/c", "", "a\\b", "ada/../x", "~/runs"])
def test_what_cannot_be_a_repository_is_said_to_be_no_folder(name: str, hub: Hub) -> None:
    if name:
        with pytest.raises(FileNotFoundError, match="expected a folder, or the name 'owner/name'"):
            pyro_vae.from_pretrained(name)
    with pytest.raises(ValueError, match="push_to_hub: expected repo_id 'owner/name'; got"):
        push(a_vae(), name)
    assert hub.requests == []


def test_a_name_that_the_hub_does_not_take_is_an_error(hub: Hub) -> None:
    with pytest.raises(ValueError, match="expected the name of a repository; got 'ada/a--b'"):
        pyro_vae.from_pretrained("ada/a--b")


def test_a_token_is_needed_to_write(hub: Hub) -> None:
    with pytest.raises(PermissionError, match="push_to_hub: expected a token that may write; got none"):
        pyro_vae.push_to_hub(a_vae(), "ada/digits")
    with pytest.raises(PermissionError, match="push_to_hub: expected a token that may write; got none"):
        pyro_vae.push_to_hub(a_vae(), "ada/digits", token=False)
    assert hub.requests == []
    hub.repositories["eve/digits"] = Repository({})
    with pytest.raises(PermissionError, match=r"got none, or another: HfHubHTTPError 403: .*owner"):
        push(a_vae(), "eve/digits")


def test_a_wrong_token_is_an_error(hub: Hub) -> None:
    with pytest.raises(PermissionError, match="expected a token that is valid for 'ada/digits'; got none, or another"):
        pyro_vae.push_to_hub(a_vae(), "ada/digits", token="hf_wrong")
    with pytest.raises(PermissionError, match="expected a token that is valid for 'ada/digits'; got none, or another"):
        pyro_vae.from_pretrained("ada/digits", token="hf_wrong")
    with pytest.raises(PermissionError, match="got none, or another: LocalTokenNotFoundError"):
        pyro_vae.from_pretrained("ada/digits", token=True)


def test_a_saved_token_is_found(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "home" / "token").write_text(TOKEN)
    pyro_vae.push_to_hub(a_vae(), "ada/digits")
    assert hub.repositories["ada/digits"].files().keys() == PUSHED


def test_a_folder_that_could_not_be_loaded_is_not_sent(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a file at .*program.json"):
        push(tmp_path / "none", "ada/digits")
    pyro_vae.save(tmp_path, a_vae())
    weights = tmp_path / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="expected a file written by pyro_vae"):
        push(tmp_path, "ada/digits")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"got no weights.safetensors, which a run has once it is over"):
        push(tmp_path, "ada/digits")
    with pytest.raises(TypeError, match="expected modules that record the arguments they are built with; got Linear"):
        push(nn.Linear(1, 1), "ada/digits")
    assert hub.requests == []


def test_malformed_calls_are_refused(hub: Hub) -> None:
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        (pyro_vae.push_to_hub, (3, "ada/digits"), {}, "expected folder_or_program to be a Module"),
        (pyro_vae.push_to_hub, (a_vae(), 3), {}, "expected repo_id to be a str"),
        (pyro_vae.push_to_hub, (a_vae(), "ada/digits"), {"private": 1}, "expected private True or False"),
        (pyro_vae.push_to_hub, (a_vae(), "ada/digits"), {"token": 1}, "expected token to be a str"),
        (pyro_vae.from_pretrained, (3,), {}, "expected repo_id_or_folder to be a str"),
        (pyro_vae.from_pretrained, ("ada/digits",), {"revision": 3}, "expected revision to be a str"),
        (pyro_vae.from_pretrained, ("ada/digits",), {"branch": "v1"}, "expected arguments of the names"),
    ]
    for function, args, options, message in calls:
        with pytest.raises(TypeError, match=message):
            function(*args, **options)
    with pytest.raises(ValueError, match="expected weights one of 'last', 'best'; got 'worst'"):
        pyro_vae.from_pretrained("ada/digits", weights="worst")  # type: ignore[arg-type]
    assert hub.requests == []


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: pyro_vae.from_pretrained("ada/digits"), lambda: push(a_vae(), "ada/digits")):
        with pytest.raises(ImportError, match=r"expected huggingface_hub .* Use pip install 'pyro-vae\[hub\]'"):
            call()


@pytest.mark.slow
def test_the_variables_of_the_hub_are_heeded_in_a_process_of_its_own(hub: Hub, tmp_path: Path) -> None:
    push(a_vae(), "ada/digits")
    script = (
        "import sys, pyro_vae\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "print(pyro_vae.from_pretrained('ada/digits'))"
    )
    home = tmp_path / "another"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HOME": str(tmp_path / "nobody")}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("VAE(")
    assert [path.name for path in (home / "hub").iterdir() if path.name.startswith("models")] == ["models--ada--digits"]
    offline = {**environment, "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "1"}
    again = subprocess.run([sys.executable, "-c", script], env=offline, capture_output=True, text=True, check=True)
    assert again.stdout == run.stdout
