"""What every reader of a file shares: errors in one wording, and bounds on what a file may take.

A file may come from anyone. Nothing in it is run, what it claims is compared with what it is before memory is taken for
it, and a message holds no control characters of it.
"""

from __future__ import annotations

import errno
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from PIL import Image

from pyro_vae.checks import printable

_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What parsers raise on damaged files."""


@contextmanager
def reading(path: Path, remedy: str = "Write it again.") -> Iterator[None]:
    """Turns what a parser raises on a damaged file into one error that names the file and the remedy."""
    try:
        yield
    except _LostError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _damaged(path, error, "Pass a smaller image.") from error
    except _DAMAGE as error:
        raise _damaged(path, error, remedy) from error
    except OSError as error:
        # The decoders of PIL report a truncated image as an OSError without an error number; a full disk has one. A
        # place before the beginning of the file is EINVAL.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(path, error, remedy) from error


def _damaged(path: Path, error: Exception, remedy: str) -> ValueError:
    reason = printable((str(error).strip().splitlines() or [type(error).__name__])[0])
    return ValueError(f"{file_of(path)}: expected a complete file of its kind; got one that fails ({reason}). {remedy}")


def file_of(path: Path) -> str:
    """The subject of a message about a file."""
    return f"File {printable(path, 1000)}"


def folder_of(path: Path) -> str:
    """The subject of a message about a folder."""
    return f"Folder {printable(path, 1000)}"


class _LostError(ValueError):
    """An error of ours, which :func:`reading` passes on."""


def lost(path: Path, expected: str, remedy: str) -> ValueError:
    """An error of a file of which a part would be lost, or which would take more than it may."""
    return _LostError(f"{file_of(path)}: expected {expected}. {remedy}.")


def entries(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """What an archive holds, under names that lead nowhere else, though nothing is unpacked into a folder.

    Raises:
        ValueError: a name that does.
    """
    found = archive.infolist()
    for name in (PurePosixPath(entry.filename.replace("\\", "/")) for entry in found):
        if name.is_absolute() or ".." in name.parts:
            raise lost(path, f"names within the archive; got {printable(name)}", "Do not trust it")
    return found


_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others take memory by their headers


@contextmanager
def unpacking(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> Iterator[IO[bytes]]:
    """Context manager of what is packed into an archive, which is not more than it may be.

    Raises:
        ValueError: it would be more, or is packed in a way that numpy and others do not use.
    """
    if member.compress_type not in _METHODS:
        raise ValueError(f"the method {member.compress_type} of compression")
    if member.file_size > most:
        raise lost(
            path,
            f"at most {most} bytes packed into its {path.stat().st_size}; got {member.file_size}",
            "Unpack it yourself, if you trust it",
        )
    with archive.open(member) as file:
        yield file
