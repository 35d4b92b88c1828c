"""An image in a file, as PIL decodes it, of which nothing is lost without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin

from pyro_vae.data.parsing import lost, reading

# Those of which PIL decodes pixels by itself. It passes PostScript, which is a language of programs, on to Ghostscript,
# and opens a file by what it holds, whatever it is called.
_KINDS = [
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "JPEG",
    "JPEG2000",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "SUN",
    "TGA",
    "TIFF",
    "WEBP",
]
_MOST_PIXELS = 2**25
_GRAY_MODES = frozenset({"1", "L", "LA"})
_COLOR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


def suffixes() -> set[str]:
    """Those of the files that are read as images."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in _KINDS}


@contextmanager
def opened(path: Path, file: IO[bytes]) -> Iterator[Image.Image]:
    """An image of which PIL has read the head alone, and which is not too large to be decoded.

    By its handle: PIL maps a file that it opens by name into memory, and garbles a TIFF there that is to be turned.

    Args:
        path: for messages.
        file: holds the image.
    """
    with Image.open(file, formats=_KINDS) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise lost(path, f"at most {_MOST_PIXELS} pixels; got {image.width} x {image.height}", "Resize it")
        yield image


def read_image(path: Path, file: IO[bytes] | None = None) -> tuple[npt.NDArray[Any], bool]:
    """An image file, upright, and whether it had transparency, which is dropped.

    Shapes: H rows, W columns.

    Args:
        path: of the file.
        file: holds the image, where it is opened already, or is a part of another.

    Returns:
        uint8 (1, H, W) of grays or (3, H, W) of colors; float32 k / 65535 of 16-bit grays.

    Raises:
        ValueError: a damaged file, or one of which a part would be lost: several pages, more than 8 bits of color,
            channels beside the colors.
    """
    if file is None:
        with path.open("rb") as file:
            return read_image(path, file)
    head = file.read(4096)
    file.seek(0)
    with reading(path), opened(path, file) as image:
        pages = getattr(image, "n_frames", 1)
        depth, mode = _depth(head, image), image.mode
        if pages > 1:
            raise lost(path, f"one image; got {pages} pages or frames", "Save each as a file, or pass an array")
        if depth > 8 and not mode.startswith("I"):
            raise lost(path, f"8 bits per channel; got {depth} bits of color", "Convert it, or pass an array")
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(path, image)
        upright = ImageOps.exif_transpose(image)
        if mode.startswith("I;16") or (mode == "I" and depth > 8):  # which PIL scales to 16 bits
            grays = np.asarray(upright).astype(np.float32)
            return (grays / 65535)[None], bool((grays == upright.info.get("transparency", -1)).any())
        alpha = "A" in upright.mode or "transparency" in upright.info
        seen_through = alpha and bool((np.asarray(upright.convert("RGBA"))[..., 3] < 255).any())
        if mode in _GRAY_MODES:
            return np.asarray(upright.convert("L"))[None], seen_through
        if mode in _COLOR_MODES:
            return np.asarray(upright.convert("RGB")).transpose(2, 0, 1), seen_through
    raise lost(path, f"8 bits per channel; got mode {mode!r}", "Convert it, or pass an array")


def _depth(head: bytes, image: Image.Image) -> int:
    """Bits per channel of a file, of which PIL keeps eight of colors; 0 where its kind has no more, or no colors."""
    tiles = getattr(image, "tile", [])  # how PIL is about to decode it
    if image.format == "PNG":
        return head[24]
    if image.format == "PPM" and "I;16" in str(tiles):
        return 16
    if image.format == "PPM" and isinstance(tiles[0][3], tuple) and tiles[0][0].startswith("ppm"):
        return int(tiles[0][3][1]).bit_length()  # of the largest value
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(277, 1) > 1:
        return max(image.tag_v2.get(258, (1,)))
    if image.format == "SGI":
        return 16 if "SGI16" in str(tiles) or ";16B" in str(tiles) else 8
    if image.format == "JPEG2000" and (start := head.find(b"\xff\x4f\xff\x51")) >= 0:
        return (head[start + 42] & 0x7F) + 1
    if image.format == "AVIF" and (start := head.find(b"av1C")) >= 0:
        return 10 if head[start + 6] & 0x40 else 8
    return 0


def _check_tiff(path: Path, image: TiffImagePlugin.TiffImageFile) -> None:
    """Raises for what PIL cuts from a TIFF, or reads as other numbers than are meant, without a word."""
    tags = image.tag_v2
    samples, bands = tags.get(277, 1), len(image.getbands())
    bits, signed, white_is_zero = tags.get(258, (1,))[0], 2 in tags.get(339, (1,)), tags.get(262) == 0
    if samples > bands:
        raise lost(path, f"{bands} channels of {image.mode}; got {samples}", "Pass an array of all")
    if image.mode.startswith("I;16") and (bits != 16 or white_is_zero):
        got = f"{bits} bits" if bits != 16 else "white as 0"
        raise lost(path, f"grays of 16 bits with black as 0; got {got}", "Convert it, or pass an array")
    if image.mode == "L" and signed:
        raise lost(path, "grays from 0; got signed ones", "Convert it, or pass an array")
