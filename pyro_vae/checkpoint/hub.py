"""Programs on the Hugging Face hub: the files of a folder, as a repository of models has them.

    pyro_vae.push_to_hub("runs/digits", "ada/digits")
    vae = pyro_vae.from_pretrained("ada/digits")

Files are sent and fetched by the names that :func:`~pyro_vae.checkpoint.programs.save` gives them, and read by
:func:`~pyro_vae.checkpoint.programs.load`: whatever else a repository holds stays there, and nothing of it is run.
``huggingface_hub`` is imported when one of the two is called, and with it a token, an endpoint and a cache are found
where its users have them: ``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_OFFLINE``.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from pyro_vae import checks
from pyro_vae.checkpoint import files
from pyro_vae.checkpoint.card import on_the_hub
from pyro_vae.checkpoint.hub_errors import failures, in_our_words, is_unreachable, said_by
from pyro_vae.checkpoint.programs import (
    ARGUMENTS,
    BEST,
    CARD,
    PROGRAM,
    WEIGHTS,
    a_path,
    load,
    read_description,
    save,
)
from pyro_vae.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

_SENT = (PROGRAM, ARGUMENTS, WEIGHTS, BEST, CARD)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_TIMEOUT = 10.0  # seconds for the first answer; huggingface_hub itself waits for as long as the system does


@partial(checks.arguments, "push_to_hub")
def push_to_hub(
    folder_or_program: nn.Module | str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Puts a program into a repository of the Hugging Face hub, from which :func:`from_pretrained` gives it back.

    All is one commit: files of a program that was there before, and is replaced, are removed by it. Checkpoints and the
    history of a run stay at home.

    Args:
        folder_or_program: a folder that ``pyro_vae.save`` or ``fit(..., folder=...)`` wrote, or a program, of which the
            repository gets a card only if it has none.
        repo_id: ``"owner/name"``; made where it does not exist.
        private: whether only its owners see it; as the owner's settings are where it is None.
        revision: a branch, made where it does not exist; the main one by default.
        token: one that may write; by default that of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        The address of the commit.

    Raises:
        ConnectionError: the hub cannot be reached.
        FileNotFoundError: the folder has no such program, or no weights.
        ImportError: huggingface_hub is not installed.
        OSError: the hub refused.
        PermissionError: there is no token, or one that may not write there.
        TypeError: the program cannot be built again, see ``pyro_vae.save``.
        ValueError: a damaged file; a name that is none; a repository that is public and was to be private.
    """
    hub = _huggingface_hub("push_to_hub")
    if not _REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"push_to_hub: expected repo_id 'owner/name'; got {repo_id!r:.100}. Give both.")
    with tempfile.TemporaryDirectory() as temporary:
        if isinstance(folder_or_program, nn.Module):
            save(temporary, folder_or_program)
            folder = Path(temporary)
        else:
            folder = _loadable(folder_or_program)
        if token is False or not (token if isinstance(token, str) else hub.get_token()):
            raise PermissionError(
                "push_to_hub: expected a token that may write; got none. Log in with `hf auth login`, set HF_TOKEN, or "
                "give token=..., which https://huggingface.co/settings/tokens makes."
            )
        with in_our_words("push_to_hub", repo_id, revision):
            api = hub.HfApi(token=token, library_name="pyro_vae", library_version=__version__)
            there = _present(api, repo_id, private, revision)
            sent = [name for name in _SENT if (folder / name).is_file()]
            if isinstance(folder_or_program, nn.Module) and CARD in there:
                sent.remove(CARD)
            operations = [hub.CommitOperationAdd(name, _content(folder / name, repo_id, revision)) for name in sent]
            stale = [name for name in _SENT if name in there and name not in sent and name != CARD]
            return str(
                api.create_commit(
                    repo_id,
                    [*operations, *(hub.CommitOperationDelete(name) for name in stale)],
                    commit_message=f"Program of pyro_vae {__version__}",
                    revision=revision,
                ).commit_url
            )


@partial(checks.arguments, "from_pretrained")
def from_pretrained(
    repo_id_or_folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    classes: Iterable[Any] = (),
    weights: Literal["last", "best"] = "last",
    token: str | bool | None = None,
) -> Any:
    """Builds a program of the Hugging Face hub, or of a folder, with its weights, as ``pyro_vae.load`` does.

    Files are kept in the hub's cache. Where the hub cannot be reached, the copy there is loaded, with a warning, or
    without one if ``HF_HUB_OFFLINE`` is set.

    Args:
        repo_id_or_folder: ``"owner/name"``, or a folder; of two with one name it is the folder.
        revision: a branch, a tag or a commit of the repository; with the whole name of a commit the program is the same
            for ever.
        classes: classes and functions of yours that the program is built of.
        weights: those that training ended with, or those of its best epoch.
        token: of a user who may see the repository; by default that of ``hf auth login`` or ``HF_TOKEN``; False: none.

    Raises:
        ConnectionError: the hub cannot be reached, and there is no copy.
        FileNotFoundError: no such folder, repository or revision, none that the token may see, or no program in it.
        ImportError: huggingface_hub is not installed.
        OSError: files that are not of the size that the hub tells.
        PermissionError: a token that is none, or a repository whose conditions its user has yet to accept.
        ValueError: a damaged file; a class that is neither this package's nor given; a revision of a folder.

    Example:
        >>> from pyro_vae import priors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, priors.StandardNormal(2))
        ...     from_pretrained(folder)().event_shape
        torch.Size([2])
    """
    checks.choice("from_pretrained", "weights", weights, ["last", "best"])
    if isinstance(repo_id_or_folder, os.PathLike) or Path(repo_id_or_folder).is_dir():
        if revision is not None:
            raise ValueError(
                f"from_pretrained: expected no revision of a folder; got {revision!r}, and "
                f"{os.fspath(repo_id_or_folder)!r} is a folder here. Leave it out, or call from another place."
            )
        return load(repo_id_or_folder, classes=classes, weights=weights)
    if not _REPOSITORY.fullmatch(repo_id_or_folder):
        raise FileNotFoundError(
            "from_pretrained: expected a folder, or the name 'owner/name' of a repository on the hub; got "
            f"{repo_id_or_folder!r:.200}, which is neither. Check the path."
        )
    hub = _huggingface_hub("from_pretrained")
    with in_our_words("from_pretrained", repo_id_or_folder, revision):
        folder = _fetched(hub, repo_id_or_folder, revision, BEST if weights == "best" else WEIGHTS, token)
    return load(folder, classes=classes, weights=weights)


def _huggingface_hub(subject: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{subject}: expected huggingface_hub to be installed; got {error}. Use pip install 'pyro-vae[hub]'."
        ) from error
    return huggingface_hub


def _loadable(folder: str | os.PathLike[str]) -> Path:
    """A folder whose program others will be able to load."""
    path = a_path("push_to_hub", folder)
    read_description(path)
    files.check_links(path, [path / CARD])  # which is sent as it is
    if not (path / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"push_to_hub: expected the weights of a program in {os.fspath(folder)!r}; got no {WEIGHTS}, which a run "
            "has once it is over. Give the program itself: push_to_hub(pyro_vae.load(folder), ...)."
        )
    for name in (WEIGHTS, BEST):
        if (path / name).is_file():
            files.read(path / name)
    return path


def _present(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> set[str]:
    """The files of a repository, and of its branch; both are made where there are none.

    Raises:
        ValueError: it is public and was to be private, or the other way round.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo_id, timeout=_TIMEOUT)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private)
        info = api.model_info(repo_id, timeout=_TIMEOUT)
    if private is not None and info.private is not private:
        wanted, got = ("private", "public") if private else ("public", "private")
        raise ValueError(
            f"push_to_hub: expected {repo_id!r} {wanted}; got one that exists and is {got}. Change it in its settings "
            "on the hub, or choose another name."
        )
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
        info = api.model_info(repo_id, revision=revision, timeout=_TIMEOUT)
    return _sizes(info).keys() & set(_SENT)


def _content(path: Path, repo_id: str, revision: str | None) -> str | bytes:
    """What is sent of a file: itself, or a card that says how it is loaded from there."""
    if path.name != CARD:
        return str(path)
    repository = f'"{repo_id}"' if revision is None else f'"{repo_id}", revision="{revision}"'
    text = path.read_bytes().decode(errors="surrogateescape")
    return on_the_hub(text, repository).encode(errors="surrogateescape")


def _fetched(hub: Any, repo_id: str, revision: str | None, weights: str, token: str | bool | None) -> Path:
    """The folder in the hub's cache with the files of a program.

    Raises:
        FileNotFoundError: the repository has no program, or no such weights.
        OSError: files of other sizes than those of the repository.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    api = hub.HfApi(token=token, library_name="pyro_vae", library_version=__version__)
    names = [PROGRAM, ARGUMENTS, weights]
    download = partial(
        hub.snapshot_download,
        repo_id,
        revision=revision,
        allow_patterns=names,
        token=token,
        library_name="pyro_vae",
        library_version=__version__,
    )
    try:
        info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    except failures() as error:
        if not is_unreachable(error):
            raise
        folder = Path(download(local_files_only=True))
        if not isinstance(error, OfflineModeIsEnabled):
            warnings.warn(
                f"from_pretrained cannot reach the hub, and loads the copy of {repo_id!r} in the cache, of commit "
                f"{folder.name}, which may not be the newest: {said_by(error)}",
                stacklevel=4,
            )
        return folder
    sizes = {name: size for name, size in _sizes(info).items() if name in names}
    _check_sizes(repo_id, sizes, weights)
    folder = Path(download())
    if folder.name != info.sha:
        raise OSError(
            f"from_pretrained: expected {repo_id!r} to stay as it is while it is downloaded; got commit {folder.name} "
            f"after {info.sha}. Call again."
        )
    for name, size in sizes.items():
        got = (folder / name).stat().st_size
        if got != size:
            raise OSError(
                f"from_pretrained: expected {size} bytes of {name} of {repo_id!r}; got {got} in "
                f"{os.fspath((folder / name).resolve())!r}. Delete that file, and call again."
            )
    return folder


def _check_sizes(repo_id: str, sizes: dict[str, int | None], weights: str) -> None:
    """Raises for a repository from which no program can be loaded, before anything is downloaded."""
    for name in (PROGRAM, weights):
        if name not in sizes:
            raise FileNotFoundError(
                f"from_pretrained: expected a program of pyro_vae, with {weights}, in {repo_id!r}; got no {name}. "
                "Check the name, and the weights that are asked for."
            )
    size = sizes[PROGRAM] or 0
    if size > files.LARGEST_TEXT:
        raise ValueError(
            f"from_pretrained: expected {PROGRAM} of {repo_id!r} of {files.LARGEST_TEXT} bytes at most; got {size}. "
            "It is no description that pyro_vae wrote."
        )


def _sizes(info: ModelInfo) -> dict[str, int | None]:
    return {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
