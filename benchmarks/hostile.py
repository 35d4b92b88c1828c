"""Small whole files of every kind that the library reads, and damage to them; see ``fuzz.py``."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import pyro_vae
from pyro_vae import VAE, checkpoint, conditionals, data, fit, likelihoods, nets, priors
from pyro_vae.checkpoint import files
from pyro_vae.data import named

Random = random.Random
Whole = Callable[[Any], bool] | None
"""Tells whether what was read is what was written; None where the damage may have changed it in good order."""

NUMBERS = (0, 1, 2, 127, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**64 - 1)
HUGE = (-1, 0, 10**5, 10**6, 10**9, 2**31, 2**40, 2**63, 10**30)
VALUES: tuple[Callable[[], Any], ...] = (
    *(lambda n=n: n for n in HUGE),
    *(lambda v=v: v for v in (True, False, None, "", "x" * 5000, "../../x", "/etc/passwd", "\x1b[2J\n", 0.5, -0.5)),
    *(lambda v=v: v for v in (1e308, -1e308, math.nan, math.inf, 1e-320)),
    list,
    dict,
    lambda: [1] * 100_000,
    lambda: [10**5, 10**5],
    lambda: {"a": 1},
    lambda: {str(i): i for i in range(1000)},
    lambda: nested(200),
    lambda: {"$tensor": "nowhere"},
    lambda: {"$tuple": [3, 4]},
    lambda: {"$pairs": [[[1], 2]]},
    lambda: {"$pairs": [[1, 2], [3]]},
    lambda: {"$slice": ["a", None, 0]},
    lambda: {"$dtype": "onnx"},
    lambda: {"$dtype": ["float32"]},
    lambda: {"$same": ""},
    lambda: {"$same": []},
    lambda: {"$type": "builtins.eval"},
    lambda: {"$type": "torch.nn.MultiheadAttention"},
    lambda: {"$class": "os.system", "arguments": {"command": "touch /tmp/owned"}},
    lambda: {"$class": "pyro_vae.nets.MLP", "arguments": {"input_shape": 10**9, "hidden": [10**9]}},
    lambda: {"$partial": {"$type": "torch.nn.MultiheadAttention"}, "args": [10**5, 1], "keywords": {}},
    lambda: {"$partial": {"$type": "torch.nn.Threshold"}},
    lambda: {"$partial": 3, "args": [], "keywords": {}},
)


def nested(depth: int) -> Any:
    """Lists within lists."""
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        templates: folders with whole files.
        read: reads a folder as a user would.
        damages: ways of damaging a folder, by name.
    """

    templates: list[Path]
    read: Callable[[Path], Any]
    damages: dict[str, Callable[[Path, Random], Whole]]

    def copy(self, work: Path, rng: Random) -> None:
        """Makes a folder of whole files."""
        shutil.copytree(rng.choice(self.templates), work)

    def damage(self, work: Path, rng: Random) -> tuple[str, Whole]:
        """Damages it; what was done, in words, and how to tell whether what is read is right."""
        name = rng.choice(list(self.damages))
        return name, self.damages[name](work, rng)


# Damage to bytes


def flip(content: bytearray, rng: Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if content:
            content[place(content, rng)] ^= 1 << rng.randrange(8)


def cut(content: bytearray, rng: Random) -> None:
    del content[rng.randrange(len(content) + 1) :]


def lengthen(content: bytearray, rng: Random) -> None:
    content += rng.choice((bytes(1), rng.randbytes(100), bytes(content[:200]), b"\xff" * 5000))


def number(content: bytearray, rng: Random) -> None:
    """Writes a large or small number where one may be."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        size = rng.choice((1, 2, 4, 8))
        value = rng.choice(NUMBERS) % 2 ** (8 * size)
        start = place(content, rng)
        content[start : start + size] = value.to_bytes(size, rng.choice(("little", "big")))


def digits(content: bytearray, rng: Random) -> None:
    """Makes another number of one that is written in digits."""
    found = list(re.finditer(rb"\d+", content[:20_000]))
    if found:
        each = rng.choice(found)
        content[each.start() : each.end()] = str(rng.choice((*HUGE, *NUMBERS))).encode()


def swap(content: bytearray, rng: Random) -> None:
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    c = rng.randrange(b, len(content) + 1)
    content[:] = content[:a] + content[b:c] + content[a:b] + content[c:]


def double(content: bytearray, rng: Random) -> None:
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    content[a:a] = content[a:b] * rng.choice((1, 1, 3, 100))


def blank(content: bytearray, rng: Random) -> None:
    start, size = place(content, rng), rng.choice((1, 4, 16, 200))
    content[start : start + size] = rng.choice((b"\0", b"\xff", b"A")) * size


def head(content: bytearray, rng: Random) -> None:
    """The head of another kind of file."""
    others = (b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM", b"\xff\xd8\xff\xe0", b"P6\n", b"PK\3\4", b"\x93NUMPY")
    other = rng.choice(
        (*others, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x80\x04\x95", b"{", b"\0" * 8)
    )
    content[: rng.choice((0, len(other)))] = other


def place(content: bytearray, rng: Random) -> int:
    """A place in a file, more often than not in its head."""
    most = max(1, len(content))
    return rng.randrange(min(most, rng.choice((64, 512, most))))


BYTES = (flip, cut, lengthen, number, number, digits, swap, double, blank, head)


def of_bytes(pattern: str, how: Callable[[bytearray, Random], None], work: Path, rng: Random) -> None:
    """Damages one file of a pattern."""
    path = rng.choice(sorted(path for path in work.rglob(pattern) if path.is_file()))
    content = bytearray(path.read_bytes())
    how(content, rng)
    path.write_bytes(content)


# Damage to folders


def link_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def link_to_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def odd_name(path: Path) -> None:
    path.rename(path.with_name("a\nb\x1b[31m" + path.name))


def no_text(path: Path) -> None:
    path.rename(path.with_name("a\udcff" + path.name))


def loop(path: Path) -> None:
    (path.parent / "around").symlink_to(path.parent, target_is_directory=True)


def deep(path: Path) -> None:
    folder = path.parent
    for _ in range(100):
        folder = folder / "d"
    folder.mkdir(parents=True)
    shutil.copy(path, folder / path.name)


def gone(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def holes(path: Path) -> None:
    """A file that is large and takes no room."""
    with path.open("r+b") as file:
        file.truncate(2**33)


ENTRIES = (link_out, link_to_nowhere, link_to_device, pipe, make_folder, odd_name, no_text, loop, deep, gone, empty)


def of_entry(work: Path, rng: Random) -> None:
    rng.choice(ENTRIES)(rng.choice(sorted(path for path in work.rglob("*") if path.is_file())))


# Damage to JSON, and to files of weights behind their checksums


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with every key of it."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [found for key in keys for found in places(value[key])]


def changed(value: Any, rng: Random) -> Any:
    """A value with something in it that is otherwise."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 5))):
        found = places(value)
        if not found:
            return rng.choice(VALUES)()
        container, key = rng.choice(found)
        way = rng.randrange(6)
        if way == 0:
            del container[key]
        elif way == 1 and isinstance(container, dict):
            container[rng.choice(("x", "", "$class", "$tuple", "__class__", "params"))] = container.pop(key)
        elif way == 2:
            container[key] = rng.choice(found)[0]
            value = _without_loops(value)
        elif way == 3 and isinstance(container[key], int | float):
            container[key] = container[key] * rng.choice((-1, 10, 1000, 10**6, 10**9))
        else:
            container[key] = rng.choice(VALUES)()
    return value


def _without_loops(value: Any) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(json.dumps(value))
    return None


def json_values(name: str, work: Path, rng: Random) -> None:
    """Other values, with the checksum that they ask for."""
    content = files.read_json(work / name)
    content = changed(content, rng)
    files.write_json(work / name, content if isinstance(content, dict) else {"program": content})


def json_text(name: str, work: Path, rng: Random) -> None:
    """JSON that is awkward to read."""
    text = (work / name).read_text(encoding="utf-8")
    bomb = rng.choice(
        ("[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 5000, "1" * 5000, "[" + "[]," * 2_000_000 + "0]")
    )
    start = text.index(":") + 1
    text = rng.choice(
        (bomb, text[:start] + bomb + text[start:], text.replace("{", '{"format": 1, ', 1), "[1, 2]", '"a"')
    )
    (work / name).write_text(text, encoding="utf-8")


def stored_values(pattern: str, work: Path, rng: Random) -> None:
    """Other metadata of a file of weights, with the checksum that they ask for."""
    path = rng.choice(sorted(work.rglob(pattern)))
    tensors, metadata = files.read(path)
    metadata = changed(metadata, rng)
    files.write(path, tensors, metadata if isinstance(metadata, dict) else {"state": metadata})


OTHERS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda tensor: torch.zeros(0),
    lambda tensor: torch.zeros(1000, 1000),
    lambda tensor: torch.tensor(3.0),
    lambda tensor: tensor.double(),
    lambda tensor: tensor.to(torch.float8_e4m3fn),
    lambda tensor: tensor.to(torch.complex64),
    lambda tensor: tensor.bool(),
    lambda tensor: tensor.long(),
    lambda tensor: tensor * math.nan,
    lambda tensor: tensor.unsqueeze(0),
    lambda tensor: tensor.flatten()[:-1],
    lambda tensor: torch.full_like(tensor, 200),
)


def stored_tensors(pattern: str, work: Path, rng: Random) -> None:
    """Other tensors, with the checksum that they ask for."""
    path = rng.choice(sorted(work.rglob(pattern)))
    tensors, metadata = files.read(path)
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(sorted(tensors))
        tensor = tensors.pop(name)
        tensors[rng.choice((name, name, name, "x", "", "../x"))] = rng.choice(OTHERS)(tensor)
        if not tensors:
            tensors["x"] = tensor
    files.write(path, tensors, metadata)


def stored_header(pattern: str, work: Path, rng: Random) -> None:
    """Another header of a file of weights."""
    path = rng.choice(sorted(work.rglob(pattern)))
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(changed(json.loads(content[8 : 8 + size]), rng)).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])


# Damage to arrays and images behind their checksums


def npy_header(content: bytearray, rng: Random) -> None:
    """A head that says another type, shape or order."""
    size = struct.unpack("<H", content[8:10])[0]
    number_of = rng.choice((*HUGE, 7, 12))
    shapes: tuple[str, ...] = (
        "()",
        "(7,)",
        f"({number_of},)",
        f"({number_of}, 3)",
        f"(6, {number_of})",
        "(1,) * 3",
        "(True, 3)",
        "6, 3",
    )
    shapes += (f"({', '.join(['1'] * 70)})", f"(0, {number_of})", "(6, 3.0)", "(" * 300, "-6, 3", "(-1, -18)")
    types: tuple[str, ...] = (
        "'<f4'",
        "'|O'",
        "'<U1000000000'",
        "'|V99999'",
        "'<c8'",
        "'<M8[ns]'",
        "[('a', '<f4')]",
        "'>f8'",
        "'|b1'",
    )
    types += ("[('a', '<f8', (1000, 1000, 1000))]", "'<f16'", "'|S0'", "'x'", "3", "'<f2'", "{'names': ['a']}")
    dtype, order = rng.choice(("'<f4'", rng.choice(types))), rng.choice(("False", "False", "True", "3"))
    text = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {rng.choice(shapes)}, }}"
    content[8 : 10 + size] = struct.pack("<H", len(text)) + text.encode()


def npz_members(work: Path, rng: Random) -> None:
    """An archive with other members than it had, each with its own checksum."""
    members = [(name, bytearray(content)) for name, content in _members(work / "set.npz")]
    name, content = members[0]
    way = rng.randrange(6)
    if way == 0:
        npy_header(content, rng)
    elif way == 1:
        rng.choice(BYTES)(content, rng)
    elif way == 2:
        content += bytes(rng.choice((10**6, 400 * 10**6)))
    elif way == 3:
        head_of = b"{'descr': '|u1', 'fortran_order': False, 'shape': (400000, 1000), }"
        content[:] = b"\x93NUMPY\x01\0" + struct.pack("<H", len(head_of)) + head_of + bytes(400_000_000)
    members[0] = (rng.choice((name, name, "../../x.npy", "x", "/x.npy", "images.npy\n")), content)
    if way == 4:
        members += [(f"{i}.npy", bytearray(content)) for i in range(2000)]
    elif way == 5:
        members.append(members[0])
    with zipfile.ZipFile(work / "set.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members:
            archive.writestr(name, bytes(content))


def _members(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def zip_sizes(content: bytearray, rng: Random) -> None:
    """Other sizes and offsets in an archive's directory."""
    starts = [each.start() for each in re.finditer(b"PK\1\2|PK\3\4|PK\5\6", content)]
    if starts:
        start = rng.choice(starts) + rng.choice((8, 10, 12, 14, 18, 20, 22, 24, 26, 28, 42))
        content[start : start + 4] = rng.choice(NUMBERS[:12]).to_bytes(8, "little")[:4]


def png_chunks(content: bytearray, rng: Random) -> None:
    """Other chunks of a PNG, with their checksums."""
    chunks, start = [], 8
    while start + 8 <= len(content):
        size = int.from_bytes(content[start : start + 4], "big")
        chunks.append((bytes(content[start + 4 : start + 8]), bytearray(content[start + 8 : start + 8 + size])))
        start += 12 + size
    way, i = rng.randrange(7), rng.randrange(len(chunks))
    if way == 0:
        chunks[0][1][0:8] = struct.pack(">II", *rng.choices((1, 7, 1000, 5000, 50_000, 2**31 - 1), k=2))
    elif way == 1:
        chunks[0][1][rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    elif way == 2:
        rng.choice(BYTES[:5])(chunks[i][1], rng)
    elif way == 3:
        chunks.insert(i, rng.choice(chunks))
    elif way == 4:
        bomb = zlib.compress(bytes(200_000_000), 1)
        chunks.insert(1, rng.choice(((b"zTXt", bytearray(b"a\0\0" + bomb)), (b"iCCP", bytearray(b"a\0\0" + bomb)))))
    elif way == 5:
        chunks[0][1][0:8] = struct.pack(">II", 5000, 5000)
        chunks[1:-1] = [(b"IDAT", bytearray(zlib.compress(bytes(5001 * 5000), 9)))]
    else:
        chunks.insert(1, (b"acTL", bytearray(struct.pack(">II", rng.choice(NUMBERS) % 2**32, 0))))
    content[8:] = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def tiff_tags(content: bytearray, rng: Random) -> None:
    """Other fields of a TIFF's tags."""
    start = int.from_bytes(content[4:8], "little")
    count = int.from_bytes(content[start : start + 2], "little")
    for _ in range(rng.choice((1, 1, 2))):
        entry = start + 2 + 12 * rng.randrange(max(1, count))
        offset, size = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 4)))
        value = rng.choice((*NUMBERS, 7, 50_000, 10**6)) % 2 ** (8 * size)
        content[entry + offset : entry + offset + size] = value.to_bytes(size, "little")


def sizes(offsets: tuple[int, ...], width: int, order: Any, content: bytearray, rng: Random) -> None:
    """Other numbers in the fields of a head."""
    for _ in range(rng.choice((1, 2))):
        offset = rng.choice(offsets)
        value = rng.choice((*NUMBERS, 7, 5000, 50_000)) % 2 ** (8 * width)
        content[offset : offset + width] = value.to_bytes(width, order)


# Whole files


def program(prior: priors.Prior | None = None) -> VAE:
    torch.manual_seed(0)
    return VAE(
        prior=prior or priors.MixtureOfNormals(2, num_components=3),
        likelihood=likelihoods.Bernoulli(nets.MLP(2, [4]), 6),
        posterior=conditionals.DiagonalNormal(nets.MLP(6, [4], activation=nn.Tanh), 2),
    )


def bits() -> torch.Tensor:
    return (torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def programs() -> list[nn.Module]:
    """Programs of most kinds of parts."""
    normalize = nets.Standardize(torch.zeros(6), torch.ones(6))
    image = (1, 2, 4)
    parts: list[Any] = [
        (slice(0, 4), partial(likelihoods.Categorical, 3)),
        (4, likelihoods.Normal),
        (5, partial(likelihoods.StudentT, df=3.0)),
    ]
    standardized = likelihoods.Standardized(likelihoods.SigmaNormal(nets.MLP(2, [4]), 6), normalize)

    def guide(shape: Any = 6) -> conditionals.Conditional:
        return conditionals.DiagonalNormal(nets.MLP(shape, [4]), 2)

    return [
        program(),
        program(priors.VampPrior(torch.rand(3, 6))),
        VAE(
            priors.NeuralSpline(2, num_layers=2, hidden=[4], num_bins=4),
            likelihoods.MixtureOfDiscretizedLogistics(nets.MLP(2, [4]), image, num_components=2, levels=16),
            conditionals.InverseAutoregressiveFlow(nets.MLP(image, [4]), 2, num_layers=2, hidden=[4], context_dim=4),
        ),
        VAE(
            priors.RealNVP(2, num_layers=2, hidden=[4]),
            likelihoods.Dequantized(likelihoods.LogitNormal(nets.MLP(2, [4]), 6), levels=16),
            conditionals.Sylvester(nets.MLP(6, [4], transform=normalize), 2, num_layers=2, num_reflections=2),
        ),
        VAE(priors.MaskedAutoregressive(2, 2, [4]), likelihoods.Mixed(nets.MLP(2, [4]), parts), guide()),
        VAE(priors.Laplace(2), standardized, conditionals.MixtureOfNormals(nets.MLP(6, [4]), 2, num_components=3)),
        VAE(
            priors.StandardNormal(2),
            likelihoods.Bernoulli(nets.ConvDecoder(2, (1, 8, 8), [4, 4]), (1, 8, 8)),
            conditionals.LowRankNormal(nets.ConvEncoder((1, 8, 8), [4, 4]), 2, rank=1),
        ),
        pyro_vae.HierarchicalVAE(
            priors.StandardNormal(3),
            [conditionals.DiagonalNormal(nets.MLP(3, [4]), 2)],
            likelihoods.Binomial(nets.MLP(2, [4]), 6, total_count=16),
            [guide(), conditionals.Planar(nets.MLP(2, [4]), 3, num_layers=2)],
        ),
    ]


def make_checkpoint(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    checkpoint.save(folder / "vae.safetensors", program(), {"epochs": 3, "names": ["a", "b"]})
    return [folder]


def make_programs(folder: Path) -> list[Path]:
    for i, each in enumerate(programs()):
        pyro_vae.save(folder / str(i), each)
    return sorted(folder.iterdir())


def resumed(folder: Path, epochs: int = 2) -> VAE:
    vae = program()
    optimizer = partial(torch.optim.Adam, lr=1e-3, fused=True)
    kept: dict[str, Any] = {"folder": folder, "resume": True, "checkpoint_every": "1 epoch", "progress": False}
    schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=4)
    rest: dict[str, Any] = {"patience": 3, "validation": bits()[:4], "ema_decay": 0.9, "seed": 0}
    fit(vae, bits(), optimizer=optimizer, scheduler=schedule, epochs=epochs, batch_size=4, **kept, **rest)
    return vae


def make_run(folder: Path) -> list[Path]:
    resumed(folder, epochs=1)
    return [folder]


def make_npy(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    np.save(folder / "set.npy", np.random.default_rng(0).random((6, 3), np.float32))
    return [folder]


def make_npz(folder: Path) -> list[Path]:
    for i, save in enumerate((np.savez, np.savez_compressed)):
        (folder / str(i)).mkdir(parents=True)
        save(folder / str(i) / "set.npz", images=np.ones((6, 3), np.float32), labels=np.arange(6))
    return sorted(folder.iterdir())


def make_idx(folder: Path) -> list[Path]:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 12, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 12) + bytes(range(12)))
    return [folder]


def make_omniglot(folder: Path) -> list[Path]:
    (folder / "omniglot-py").mkdir(parents=True)
    file = io.BytesIO()
    Image.new("1", (105, 105), 1).save(file, "PNG")
    for part in ("background", "evaluation"):
        with zipfile.ZipFile(folder / "omniglot-py" / f"images_{part}.zip", "w") as archive:
            for i in range(6):
                archive.writestr(f"images_{part}/A/{i // 3}/{i}.png", file.getvalue())
    return [folder]


PACKED = tuple({"compression": how} for how in (None, "tiff_lzw", "tiff_deflate", "packbits"))


def make_images(
    suffixes: tuple[str, ...], modes: tuple[str, ...], options: tuple[dict[str, Any], ...], folder: Path
) -> list[Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    for count, (suffix, mode, each) in enumerate(itertools.product(suffixes, modes, options)):
        image = Image.fromarray(pixels) if mode == "RGB" else Image.fromarray(pixels).convert("L").convert(mode)
        (folder / str(count)).mkdir(parents=True)
        for i in range(3):
            image.save(folder / str(count) / f"{i}.{suffix}", **each)
    return sorted(folder.iterdir())


def make_folders(folder: Path) -> list[Path]:
    for i in range(6):
        for path in (
            folder / "classes" / str(i % 2),
            folder / "parts" / ("train", "test")[i % 2] / "a",
            folder / "flat",
        ):
            path.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 40 * i).save(path / f"{i}.png")
    return sorted(folder.iterdir())


# Kinds


def read_set(work: Path) -> Any:
    return data.load(next(iter(sorted(work.iterdir())), work / "set.npy"))


def read_images(work: Path) -> Any:
    found = data.load(work)
    assert all(len(part) for part in found)
    return found


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(expected: dict[str, torch.Tensor], found: Any) -> bool:
    own = found.state_dict()
    return own.keys() == expected.keys() and all(torch.equal(own[n], t) for n, t in expected.items())


def read_checkpoint(work: Path) -> nn.Module:
    vae = program()
    with torch.no_grad():
        for tensor in vae.state_dict().values():
            tensor.zero_()
    checkpoint.load(work / "vae.safetensors", vae)
    return vae


def run_bytes(how: Callable[[bytearray, Random], None], pattern: str, work: Path, rng: Random) -> Whole:
    of_bytes(pattern, how, work, rng)
    return None


def checkpoint_bytes(how: Callable[[bytearray, Random], None], work: Path, rng: Random) -> Whole:
    whole = weights(read_checkpoint(work))
    of_bytes("*", how, work, rng)
    return lambda found: same(whole, found)


def program_bytes(how: Callable[[bytearray, Random], None], work: Path, rng: Random) -> Whole:
    whole = weights(pyro_vae.load(work))
    of_bytes("*", how, work, rng)
    return lambda found: same(whole, found)


def _names(functions: Any) -> dict[str, Any]:
    return {function.__name__: function for function in functions}


def _of_bytes(pattern: str, *more: Callable[[bytearray, Random], None]) -> dict[str, Any]:
    """Damage to bytes; what knows the kind of file counts more than what does not."""
    named = {**_names(BYTES), **{f"fields {i}": each for i, each in enumerate(more * 4)}}
    return {name: partial(run_bytes, how, pattern) for name, how in named.items()}


_CHECKPOINT = {
    **{name: partial(checkpoint_bytes, how) for name, how in _names(BYTES).items()},
    "header": partial(stored_header, "*.safetensors"),
    "values": partial(stored_values, "*.safetensors"),
    "tensors": partial(stored_tensors, "*.safetensors"),
    "entry": of_entry,
}
_PROGRAM = {
    **{name: partial(program_bytes, how) for name, how in _names(BYTES).items()},
    **{f"json values {i}": partial(json_values, "program.json") for i in range(9)},
    "json text": partial(json_text, "program.json"),
    "header": partial(stored_header, "*.safetensors"),
    "values": partial(stored_values, "*.safetensors"),
    "tensors": partial(stored_tensors, "*.safetensors"),
    "entry": of_entry,
}
_RUN = {
    **_of_bytes("*"),
    "json values": partial(json_values, "run.json"),
    "json text": partial(json_text, "run.json"),
    "header": partial(stored_header, "checkpoints/*.safetensors"),
    **{f"values {i}": partial(stored_values, "checkpoints/*.safetensors") for i in range(9)},
    **{f"tensors {i}": partial(stored_tensors, "checkpoints/*.safetensors") for i in range(3)},
    "entry": of_entry,
}


def _set(pattern: str, *more: Callable[[bytearray, Random], None]) -> dict[str, Any]:
    return {**_of_bytes(pattern, *more), "entry": of_entry}


MADE: dict[str, tuple[Callable[[Path], list[Path]], Callable[[Path], Any], dict[str, Any]]] = {
    "checkpoint": (make_checkpoint, read_checkpoint, _CHECKPOINT),
    "program": (make_programs, pyro_vae.load, _PROGRAM),
    "run": (make_run, resumed, _RUN),
    "npy": (make_npy, read_set, _set("*.npy", npy_header)),
    "npz": (make_npz, read_set, {**_set("*.npz", zip_sizes), "members": npz_members}),
    "idx": (
        make_idx,
        lambda work: data.load("mnist", work, validation=1),
        _set("*ubyte", partial(sizes, (0, 1, 2, 3), 1, "big"), partial(sizes, (4, 8, 12), 4, "big")),
    ),
    "omniglot": (make_omniglot, lambda work: data.load("omniglot", work), _set("*.zip", zip_sizes)),
    "png": (
        partial(make_images, ("png",), ("L", "RGB", "RGBA", "P", "1", "LA"), ({},)),
        read_images,
        _set("*.png", png_chunks),
    ),
    "jpeg": (
        partial(make_images, ("jpg",), ("L", "RGB", "CMYK"), ({}, {"progressive": True})),
        read_images,
        _set("*.jpg", partial(sizes, (163, 165), 2, "big")),
    ),
    "tiff": (partial(make_images, ("tif",), ("L", "RGB", "I;16"), PACKED), read_images, _set("*.tif", tiff_tags)),
    "gif": (
        partial(make_images, ("gif",), ("L", "P"), ({},)),
        read_images,
        _set("*.gif", partial(sizes, (6, 8), 2, "little")),
    ),
    "bmp": (
        partial(make_images, ("bmp",), ("L", "RGB", "1"), ({},)),
        read_images,
        _set("*.bmp", partial(sizes, (10, 14, 18, 22, 26, 30, 46), 4, "little")),
    ),
    "netpbm": (partial(make_images, ("ppm",), ("L", "RGB", "1"), ({},)), read_images, _set("*.ppm")),
    "webp": (partial(make_images, ("webp",), ("RGB", "RGBA"), ({"lossless": True}, {})), read_images, _set("*.webp")),
    "others": (
        partial(make_images, ("jp2", "avif", "tga", "sgi", "pcx", "qoi"), ("RGB",), ({},)),
        read_images,
        _set("*.*"),
    ),
    "folder": (make_folders, read_images, {"entry": of_entry}),
}


def kinds(folder: Path, names: list[str] | None = None) -> dict[str, Kind]:
    """The kinds of some names, with whole files in a folder."""
    named._probe = _offline  # a set of which a file is gone is not downloaded
    return {name: Kind(MADE[name][0](folder / name), *MADE[name][1:]) for name in names or MADE}


def _offline(urls: list[str]) -> None:
    raise ConnectionError("offline")
