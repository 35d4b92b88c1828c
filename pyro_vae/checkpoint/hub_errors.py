"""What huggingface_hub raises, in our words.

Its classes derive from those of its HTTP library, which is another one in each of its major versions: requests, httpx,
httpx2. None of them is imported or named here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_LOGIN = "log in with `hf auth login`, set HF_TOKEN, or give token=..."
_NETWORK = "Check the network, and the variables HF_ENDPOINT and HF_HUB_OFFLINE"


@contextlib.contextmanager
def in_our_words(subject: str, repo_id: str, revision: str | None) -> Iterator[None]:
    """Context manager in which an error of huggingface_hub becomes one of ours, which says what to do."""
    try:
        yield
    except failures() as error:
        raise _told(error, subject, repr(repo_id) + (f" of revision {revision!r}" if revision else "")) from error


def _told(error: Exception, subject: str, what: str) -> Exception:
    """Our error for one of huggingface_hub; of those that derive from each other the narrower ones come first."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{subject}: expected the name of a repository; got {what}. The hub says: {error}")
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{subject}: expected a user who may see {what}; got one who has yet to accept its conditions. Do so at "
            f"{constants.ENDPOINT}, and {_LOGIN}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{subject}: expected a repository {what} on the hub, or a folder here; got neither. Check the name; if it "
            f"is private, {_LOGIN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{subject}: expected {what}; got a repository without that. Check the revision.")
    if isinstance(error, errors.LocalTokenNotFoundError) or _status(error) in (401, 403):
        return PermissionError(
            f"{subject}: expected a token that is valid for {what}; got none, or another: {said_by(error)}. To mend "
            f"it, {_LOGIN}"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return ConnectionError(
            f"{subject}: expected to reach {constants.ENDPOINT} for {what}, or a copy in the cache; got "
            f"{said_by(error.__context__ or error)}, and no copy. {_NETWORK}, or give a folder."
        )
    if is_unreachable(error):
        return ConnectionError(
            f"{subject}: expected to reach {constants.ENDPOINT} for {what}; got {said_by(error)}. {_NETWORK}."
        )
    return OSError(f"{subject}: expected the hub to give or take {what}; got {said_by(error)}. Try again later.")


def failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: its own errors, and those of its HTTP library and of hf_xet, which moves files."""
    from huggingface_hub import errors

    foreign = [kind for kind in errors.HfHubHTTPError.__mro__ if not kind.__module__.startswith(("builtins", "hugg"))]
    return (
        foreign[-1],
        errors.HfHubHTTPError,
        errors.EntryNotFoundError,
        errors.HFValidationError,
        errors.LocalTokenNotFoundError,
        ConnectionError,  # of hf_xet, as the next two are; of the hub where it is told to be offline
        TimeoutError,
        RuntimeError,
    )


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def is_unreachable(error: BaseException) -> bool:
    """Whether there was no answer, or one of a hub that is out of order."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return (_status(error) or 0) >= 500
    others = (errors.EntryNotFoundError, errors.HFValidationError, errors.LocalTokenNotFoundError, RuntimeError)
    return isinstance(error, failures()) and not isinstance(error, others)


def said_by(error: BaseException) -> str:
    """What an error says, in one line."""
    text = " ".join(str(getattr(error, "server_message", None) or error).split())
    status = _status(error)
    return f"{type(error).__name__}{f' {status}' if status else ''}: {text:.200}".rstrip(".")
