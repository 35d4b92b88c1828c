"""Files that someone has planted: each is refused in our words, runs nothing, and takes no memory to speak of.

Random damage to every kind of file is ``benchmarks/fuzz.py``'s. Elsewhere are a pickle in the place of CIFAR-10
(``test_data_downloads.py``), code in a repository of the hub (``test_hub.py``), links between folders of images
(``test_data_arrays.py``), and files that are merely damaged (``test_data.py``, ``test_checkpoint.py``).
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import resource
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vae
from pyro_vae import VAE, checkpoint, conditionals, data, fit, likelihoods, nets, priors
from pyro_vae.checkpoint import files

ROOM = 2**30
Read = Callable[[Path], Any]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """What no test may make."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def refused(message: str, read: Callable[[], Any], error: type[Exception] = ValueError) -> None:
    """Reads with room for a gigabyte, and expects an error in our words that is not for want of memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = Path("/proc/self/statm")
    if size.exists():
        used = int(size.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    try:
        with pytest.raises(error, match=message) as caught:
            read()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    said, cause = str(caught.value), caught.value.__context__
    assert "expected " in said
    assert said.isprintable()
    assert len(said) < 1500
    while cause is not None:
        assert not isinstance(cause, MemoryError)
        assert "allocate" not in str(cause)
        cause = cause.__context__


def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(nets.MLP(2, [4]), 6),
        conditionals.DiagonalNormal(nets.MLP(6, [4]), 2),
    )


def go_on(folder: Path) -> None:
    fit(vae(), torch.zeros(8, 6), epochs=2, batch_size=4, seed=1, progress=False, folder=folder, resume=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a run and of a program, to be copied."""
    top = tmp_path_factory.mktemp("whole")
    fit(vae(), torch.zeros(8, 6), epochs=1, batch_size=4, seed=1, progress=False, folder=top / "run", keep_best=True)
    pyro_vae.save(top / "program", vae())
    return top


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "run", tmp_path / "run"))


@pytest.fixture
def program(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "program", tmp_path / "program"))


# Pickles


def plain(payload: Payload) -> bytes:
    return pickle.dumps(payload)


def of_torch(payload: Payload) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": payload}, file)
    return file.getvalue()


def of_numpy(payload: Payload) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([payload], dtype=object), allow_pickle=True)
    return file.getvalue()


def archived(content: bytes, name: str = "images.npy") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def test_payload_runs_where_it_is_unpickled(tmp_path: Path) -> None:
    payload = Payload(tmp_path / "ran")
    for load, content in (
        (pickle.load, plain(payload)),
        (lambda file: torch.load(file, weights_only=False), of_torch(payload)),
        (lambda file: np.load(file, allow_pickle=True), of_numpy(payload)),
    ):
        load(io.BytesIO(content))
        payload.marker.unlink()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("set.npy", of_numpy),
        ("set.npy", plain),
        ("set.npz", lambda payload: archived(of_numpy(payload))),
        ("set.npz", lambda payload: archived(plain(payload))),
        ("set.npz", of_torch),
        ("set.pt", of_torch),
        ("set.pth", of_torch),
        ("set.pkl", plain),
        ("folder/1.png", plain),
        ("folder/1.npy", of_numpy),
    ],
)
def test_load_of_data_unpickles_nothing(
    name: str, make: Callable[[Payload], bytes], tmp_path: Path, marker: Path
) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(make(Payload(marker)))
    source = path.parent if "folder" in name else path
    refused(r"(File|Folder) .*: expected .*; got ", lambda: data.load(source))


@pytest.mark.parametrize("make", [plain, of_torch])
@pytest.mark.parametrize("name", ["program.json", "arguments.safetensors", "weights.safetensors", "best.safetensors"])
@pytest.mark.parametrize("read", [pyro_vae.load, pyro_vae.from_pretrained])
def test_load_of_a_program_unpickles_nothing(
    read: Any, name: str, make: Callable[[Payload], bytes], run: Path, marker: Path
) -> None:
    (run / name).write_bytes(make(Payload(marker)))
    refused("Checkpoint: expected .*; got ", lambda: read(run, weights="best" if "best" in name else "last"))


@pytest.mark.parametrize("suffix", ["pt", "pth", "pkl", "bin"])
@pytest.mark.parametrize("read", [pyro_vae.load, pyro_vae.from_pretrained])
def test_load_takes_no_pickle_for_weights_that_are_gone(read: Read, suffix: str, program: Path, marker: Path) -> None:
    (program / "weights.safetensors").unlink()
    (program / f"weights.{suffix}").write_bytes(of_torch(Payload(marker)))
    refused("expected a file at .*weights.safetensors.*; got none", lambda: read(program), FileNotFoundError)


@pytest.mark.parametrize("make", [plain, of_torch])
@pytest.mark.parametrize("name", ["run.json", "checkpoints/*.safetensors"])
def test_resume_unpickles_nothing(name: str, make: Callable[[Payload], bytes], run: Path, marker: Path) -> None:
    for path in run.glob(name):
        path.write_bytes(make(Payload(marker)))
    (run / "checkpoints" / "state.pt").write_bytes(make(Payload(marker)))
    refused("expected .*; got ", lambda: go_on(run))


@pytest.mark.parametrize("make", [plain, of_torch])
def test_checkpoint_load_unpickles_nothing(make: Callable[[Payload], bytes], tmp_path: Path, marker: Path) -> None:
    (tmp_path / "state.pt").write_bytes(make(Payload(marker)))
    refused("expected a file written by pyro_vae", lambda: checkpoint.load(tmp_path / "state.pt", vae()))


# Names of code


class Given:
    """What a user gives as one of the classes; its parts are not given."""

    def method(self) -> None: ...


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "subprocess.Popen",
        "torch.load",
        "planted_module.Planted",
        "planted_module",
        "pyro_vae.nets.torch.load",
        "pyro_vae.checkpoint.files.replace",
        "Given.method",
        "Given.__init__.__globals__",
        "",
    ],
)
@pytest.mark.parametrize("how", ["$class", "$type", "$partial", "within"])
def test_load_imports_and_calls_nothing_that_a_description_names(
    how: str, name: str, program: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_module.py").write_text(f"open({str(marker)!r}, 'w')\nPlanted = dict\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    touch = f"open({str(marker)!r}, 'w')"
    described: dict[str, Any] = {
        "$class": {"$class": name, "arguments": {"command": f"touch {marker}"}},
        "$type": {"$type": name},
        "$partial": {"$partial": {"$type": name}, "args": [touch], "keywords": {}},
    }
    content = files.read_json(program / "program.json")
    if how == "within":
        content["program"]["arguments"]["prior"] = described["$class"]
    else:
        content["program"] = described[how]
    files.write_json(program / "program.json", content)
    refused(r"expected classes of pyro_vae, or of classes=.*; got", lambda: pyro_vae.load(program, classes=[Given]))
    assert "planted_module" not in sys.modules


# Text


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (nested(900), "expected "),
        (10**400, "expected "),
        (10**12, "expected "),
        (-1, "expected "),
        (float("nan"), "expected "),
        (float("inf"), "expected "),
        ([10**5] * 4, "expected "),
        ("\x1b[2J" * 1000, "expected "),
        ({"$tensor": "nowhere"}, "expected a (value that was saved|description)"),
    ],
    ids=["deep", "400 digits", "large", "negative", "nan", "inf", "product", "escapes", "no tensor"],
)
def test_load_refuses_values_that_no_program_has(value: Any, message: str, program: Path) -> None:
    content = files.read_json(program / "program.json")
    content["program"]["arguments"]["prior"]["arguments"] = {"event_shape": value}
    name = next(iter(files.read_json(program / "program.json")["program"]["arguments"]["prior"]["arguments"]))
    content["program"]["arguments"]["prior"]["arguments"] = {name: value}
    files.write_json(program / "program.json", content)
    refused(message, lambda: pyro_vae.load(program))


@pytest.mark.parametrize(
    ("insert", "got"),
    [
        ("[" * 100_000, "maximum recursion|line 1|Expecting"),
        ('{"a": ' * 100_000, "maximum recursion|Expecting"),
        ("[" + "[]," * 600_000 + "0]", "more than .* groups"),
        ("1" * 5000, "4300 digits"),
        ('1, "program": 2', "one name twice"),
        ("NaN", "another checksum"),
    ],
    ids=["deep lists", "deep groups", "many", "long number", "twice", "nan"],
)
def test_load_refuses_text_that_is_awkward_to_read(insert: str, got: str, program: Path) -> None:
    (program / "program.json").write_text(f'{{"format": 1, "sha256": "", "program": {insert}}}', encoding="utf-8")
    refused(f"expected JSON of format 1 .*; got .*({got})", lambda: pyro_vae.load(program))


# Sizes


def safetensors(header: dict[str, Any] | bytes, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + bytes(16)


def tensor(shape: list[int], end: int) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({}, 2**63),
        safetensors({}, 2**64 - 1),
        safetensors({}, 2**26),
        safetensors(tensor([2**40], 2**42)),
        safetensors(tensor([2**32, 2**32], 16)),
        safetensors(tensor([2**62], 2**64 - 1)),
        safetensors(tensor([4], 2**62)),
        safetensors(b'{"a": ' * 10_000),
        safetensors(b'{"__metadata__": {"pyro_vae": "' + b"[" * 50_000 + b'"}}'),
    ],
    ids=["2^63", "2^64", "2^26", "large", "overflow", "2^62", "offsets", "deep", "deep metadata"],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "arguments.safetensors"])
def test_load_refuses_sizes_that_a_file_does_not_have(content: bytes, name: str, program: Path) -> None:
    (program / name).write_bytes(content)
    refused("expected a file written by pyro_vae.*; got", lambda: pyro_vae.load(program))


def zeros(size: int) -> bytes:
    """A raw deflate stream of zeros: blocks of a mebibyte, of which one is packed and repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * -(-size // 2**20) + b"\x03\x00"


def bomb(name: str, size: int, said: int) -> bytes:
    """An archive of one member, which unpacks to far more than the archive has."""
    packed, encoded = zeros(size), name.encode()
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(packed), said, len(encoded), 0)
    local = b"PK\3\4" + fields + encoded + packed
    central = b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + encoded
    return local + central + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


def test_bomb_is_an_archive_that_unpacks() -> None:
    with zipfile.ZipFile(io.BytesIO(bomb("a", 2**22, 2**22))) as archive:
        assert [each.file_size for each in archive.infolist()] == [2**22]
    assert zlib.decompress(zeros(2**22), -15) == bytes(2**22)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", lambda: bomb("images.npy", 3 * 2**30, 3 * 2**30), "expected at most .* bytes packed into its"),
        ("a.npz", lambda: bomb("images.npy", 3 * 2**30, 1000), "expected a complete file"),
        (
            "a.zip",
            lambda: bomb("images.npy", 3 * 2**30, 3 * 2**30),
            "expected a .npy, .npz, .csv, .parquet or .h5ad file",
        ),
        ("a.gz", lambda: gzip.compress(b""), "expected a .npy, .npz, .csv, .parquet or .h5ad file"),
        ("a.npy", lambda: b"\x1f\x8b\x08" + bytes(7) + zeros(2**31), "neither an array nor an archive"),
        ("a.npz", lambda: archived(np_head((2**40,))), "for which there are .* bytes"),
        ("a.npy", lambda: np_head((2**31, 2**31)), "for which there are .* bytes"),
        ("a.npz", lambda: archived(np_file(), "../../images.npy"), "expected names within the archive; got"),
        ("a.npz", lambda: archived(np_file(), "/tmp/images.npy"), "expected names within the archive; got"),
        ("a.npz", lambda: archived(np_file(), "..\\images.npy"), "expected names within the archive; got"),
    ],
)
def test_load_refuses_archives_and_arrays_of_other_sizes_and_places(
    name: str, content: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content())
    refused(message, lambda: data.load(folder / name))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / name]


def np_file() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((6, 2), np.float32))
    return file.getvalue()


def np_head(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(100)


def omniglot(root: Path, content: bytes) -> None:
    (root / "omniglot-py").mkdir()
    for part in ("background", "evaluation"):
        (root / "omniglot-py" / f"images_{part}.zip").write_bytes(content)


@pytest.mark.parametrize("name", ["a/../../1.png", "/1.png", "C:/../1.png"])
def test_load_omniglot_refuses_names_that_lead_out_of_an_archive(name: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (105, 105), 1).save(file, "PNG")
    omniglot(tmp_path, archived(file.getvalue(), name))
    refused("expected names within the archive; got", lambda: data.load("omniglot", tmp_path))


@pytest.mark.parametrize(("said", "message"), [(3 * 2**30, "expected at most .* bytes packed"), (900, "complete file")])
def test_load_omniglot_refuses_bombs(said: int, message: str, tmp_path: Path) -> None:
    omniglot(tmp_path, bomb("images/A/1/1.png", 3 * 2**30, said))
    refused(message, lambda: data.load("omniglot", tmp_path))


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"\x1f\x8b\x08" + bytes(7) + zeros(2**31), "neither images nor labels"),
        (struct.pack(">4I", 0x803, 2**31, 2**15, 2**15) + bytes(100), "bytes in place of"),
        (struct.pack(">4I", 0x803, 1, 28, 28), "16 bytes in place of 800"),
        (struct.pack(">6I", 0x805, *[2**31] * 5), "neither images nor labels"),
    ],
    ids=["gzip", "large", "short", "dimensions"],
)
def test_load_idx_refuses_other_sizes_before_it_reads(content: bytes, got: str, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(content)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 1) + b"\0")
    refused(f"expected a complete file of its kind; got one that fails .*{got}", lambda: data.load("mnist", tmp_path))


def test_load_idx_does_not_read_a_file_of_holes(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        with (raw / f"{name}-ubyte").open("wb") as file:
            file.write(struct.pack(">4I", 0x803, 1, 28, 28))
            file.truncate(2**33)
    refused("8589934592 bytes in place of 800", lambda: data.load("mnist", tmp_path))


def png(width: int, height: int, packed: bytes) -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.mark.parametrize(
    "packed",
    [lambda: zlib.compress(bytes(1000)), lambda: b"\x78\x9c" + zeros(50_001 * 50_000) + bytes(4)],
    ids=["its head alone", "all of it"],
)
def test_load_refuses_images_of_billions_of_pixels(packed: Callable[[], bytes], tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(50_000, 50_000, packed()))
    refused(
        r"0\.png: expected at most \d+ pixels; got 50000 x 50000|complete file.*Pass a smaller",
        lambda: data.load(tmp_path),
    )


# Links


def test_load_refuses_images_that_are_links_out_of_their_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for path in (tmp_path / "private.png", tmp_path / "set" / "1.png"):
        Image.new("L", (4, 4)).save(path)
    (tmp_path / "set" / "2.png").symlink_to("../private.png")
    refused("expected files of its own; got links that lead out of it, 2.png", lambda: data.load(tmp_path / "set"))


@pytest.mark.parametrize("name", ["program.json", "weights.safetensors", "run.json", "best.safetensors", "checkpoints"])
@pytest.mark.parametrize("read", [pyro_vae.load, pyro_vae.from_pretrained, go_on])
def test_folders_with_links_out_of_them_are_refused(read: Read, name: str, run: Path, tmp_path: Path) -> None:
    """Though what they lead to is whole, and is read where it lies."""
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to("../elsewhere")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    refused("expected .*; got (links that lead out of it|a link)", lambda: read(run))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name != ".lock") == [
        each for each in before if each != ".lock"
    ]


@pytest.mark.parametrize("read", [pyro_vae.load, go_on])
def test_checkpoints_that_are_links_out_of_a_run_are_refused(read: Read, run: Path, tmp_path: Path) -> None:
    (run / "weights.safetensors").unlink()
    newest = max((run / "checkpoints").iterdir())
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    refused("expected files of its own in .*; got links that lead out of it", lambda: read(run))


def test_load_follows_links_within_a_folder_and_those_of_the_cache_of_the_hub(program: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("program.json", "weights.safetensors"):
        shutil.copy(program / name, blobs / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert pyro_vae.load(snapshot).state_dict().keys() == vae().state_dict().keys()
    (program / "weights.safetensors").rename(program / "other")
    (program / "weights.safetensors").symlink_to("other")
    assert pyro_vae.load(program).state_dict().keys() == vae().state_dict().keys()
    (snapshot / "weights.safetensors").unlink()
    (snapshot / "weights.safetensors").symlink_to(program / "other")
    refused("got links that lead out of it, weights.safetensors", lambda: pyro_vae.load(snapshot))


def test_push_to_hub_sends_no_private_file_as_the_card(program: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    (tmp_path / "id_rsa").write_text("secret", encoding="utf-8")
    (program / "README.md").unlink()
    (program / "README.md").symlink_to("../id_rsa")
    refused("got links that lead out of it, README.md", lambda: pyro_vae.push_to_hub(program, "ada/digits", token="x"))


# States of a run that have their checksum


def stored(run: Path, change: Callable[[Any, dict[str, torch.Tensor]], None]) -> None:
    for path in (run / "checkpoints").iterdir():
        tensors, metadata = files.read(path)
        change(metadata["state"], tensors)
        files.write(path, tensors, metadata)


def _first(state: Any) -> Any:
    return state["svi"]["optimizer"]["state"]["$pairs"][0][1]


def _set_rate(state: Any, _: Any) -> None:
    state["svi"]["optimizer"]["param_groups"][0]["lr"] = [1]


def _drop_moment(state: Any, _: Any) -> None:
    del _first(state)["exp_avg_sq"]


def _replace_moment(state: Any, _: Any) -> None:
    _first(state)["exp_avg"] = 3


def _enlarge_moment(state: Any, tensors: dict[str, torch.Tensor]) -> None:
    tensors[_first(state)["exp_avg"]["$tensor"]] = torch.zeros(1000, 1000)


def _add_parameter(state: Any, _: Any) -> None:
    state["svi"]["optimizer"]["state"]["$pairs"].append([7777, {"step": 1}])


def _count_by_a_list(state: Any, _: Any) -> None:
    state["svi"]["compiler"]["steps"] = [[[[4]], [1]]]


def _shift_steps(state: Any, _: Any) -> None:
    state["svi"]["num_steps"] = -2


def _best_of_words(state: Any, _: Any) -> None:
    state["best"] = "x"


def _history_of_words(state: Any, _: Any) -> None:
    state["history"]["epochs"] = [{"epoch": "\x1b[2J"}]


@pytest.mark.parametrize(
    "change",
    [
        _set_rate,
        _drop_moment,
        _replace_moment,
        _enlarge_moment,
        _add_parameter,
        _count_by_a_list,
        _shift_steps,
        _best_of_words,
        _history_of_words,
    ],
)
def test_resume_refuses_a_state_that_would_fail_later(change: Callable[..., None], run: Path) -> None:
    stored(run, change)
    refused("fit: expected a checkpoint of this run in .*; got one from which it cannot go on", lambda: go_on(run))


def test_resume_refuses_averages_and_schedules_of_other_kinds(tmp_path: Path) -> None:
    def train(epochs: int, **options: Any) -> None:
        schedule = torch.optim.lr_scheduler.ExponentialLR
        given: dict[str, Any] = {"scheduler": lambda o: schedule(o, 0.9), "ema_decay": 0.9, "patience": 3, **options}
        given["validation"] = torch.zeros(4, 6)
        fit(vae(), torch.zeros(8, 6), epochs=epochs, batch_size=4, seed=1, progress=False, folder=tmp_path, **given)

    train(1)
    whole = {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}

    def enlarge_average(state: Any, tensors: dict[str, torch.Tensor]) -> None:
        place = next(iter(state["svi"]["averages"].values()))["$tensor"]
        tensors[place] = tensors[place].unsqueeze(0)

    def set_gamma(state: Any, _: Any) -> None:
        state["scheduler"]["gamma"] = "x"

    def cut_best(state: Any, _: Any) -> None:
        state["stopping"]["state"].pop()

    for change in (enlarge_average, set_gamma, cut_best):
        stored(tmp_path, change)
        refused("expected a checkpoint of this run in .*; got one from which", lambda: train(2, resume=True))
        for path, content in whole.items():
            path.write_bytes(content)
    train(2, resume=True)


def test_resume_refuses_a_folder_in_the_place_of_weights(run: Path) -> None:
    (run / "weights.safetensors").unlink()
    (run / "weights.safetensors").mkdir()
    refused("fit: expected a file weights.safetensors in .*; got a link, or something else", lambda: go_on(run))
