"""What it costs to read data while training on them: time waited for input, time of a step, memory of the process.

    python benchmarks/streams.py
    python benchmarks/streams.py --gigabytes 20 --steps 2000 --only sparse

Each source is trained on by ``fit`` in a process of its own: 784-400-20 with Adam, batches of 128, bits of each batch
drawn, the compiled step; the same pixels in all but the large file, which is sparse: of zeros that take no disk, so
that it costs what reading costs where the system has the file in its cache. ``input`` is what the loop waits for
batches, in milliseconds and as a share of all its time, which ``step`` has; ``ratio`` is of that to data in memory.
``reading`` is a pass without training. Figures are medians of blocks of steps, without the first, which compiles.
"""

from __future__ import annotations

import argparse
import io
import itertools
import multiprocessing
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import VAE, conditionals, data, fit, likelihoods, nets, priors

SIDE, BATCH = 28, 128
PIXELS = SIDE * SIDE


def sparse(path: Path, gigabytes: float) -> int:
    """Makes a ``.npy`` file of zeros that takes no disk; the number of its rows."""
    rows = int(gigabytes * 1e9) // PIXELS
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (rows, PIXELS)})
        file.truncate(file.tell() + rows * PIXELS)
    return rows


def pixels(n: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (n, PIXELS), dtype=np.uint8)


def in_memory(folder: Path, n: int) -> data.Dataset:
    return data.Dataset("memory", torch.from_numpy(pixels(n)), levels=255, binarization="dynamic")


def mapped(folder: Path, n: int, gigabytes: float) -> data.Stream:
    sparse(folder / "x.npy", gigabytes)
    return data.stream(folder / "x.npy", levels=255, binarize="dynamic")


def shards(folder: Path, n: int, parts: int) -> data.Stream:
    for i, part in enumerate(np.array_split(pixels(n), parts)):
        np.save(folder / f"{i:04}.npy", part)
    return data.stream(folder / "*.npy", binarize="dynamic")


def images(folder: Path, n: int, workers: int) -> data.Stream:
    (folder / "images").mkdir()
    for i, row in enumerate(pixels(n)):
        Image.fromarray(row.reshape(SIDE, SIDE)).save(folder / "images" / f"{i:06}.png")
    return data.stream(folder / "images", binarize="dynamic", workers=workers)


def tars(folder: Path, n: int, workers: int) -> data.Stream:
    with tarfile.open(folder / "x.tar", "w") as archive:
        for i, row in enumerate(pixels(n)):
            content = io.BytesIO()
            np.save(content, row)
            info = tarfile.TarInfo(f"{i:06}.npy")
            info.size = content.tell()
            content.seek(0)
            archive.addfile(info, content)
    return data.stream(folder / "x.tar", binarize="dynamic", workers=workers)


def hugging_face(folder: Path, n: int, workers: int) -> data.Stream:
    import datasets

    features = datasets.Features({"x": datasets.List(datasets.Value("uint8"), length=PIXELS)})
    rows = datasets.Dataset.from_dict({"x": pixels(n)}, features=features)
    return data.stream(rows, binarize="dynamic", workers=workers)


def loader(folder: Path, n: int, workers: int) -> data.Stream:
    made = DataLoader(TensorDataset(torch.from_numpy(pixels(n))), batch_size=512, num_workers=workers)
    return data.stream(made, binarize="dynamic")


SOURCES: dict[str, Callable[..., Any]] = {
    "in memory": in_memory,
    "mapped .npy, sparse": mapped,
    "64 shards .npy": partial(shards, parts=64),
    "images, thread": partial(images, workers=0),
    "images, 2 workers": partial(images, workers=2),
    "tar of .npy": partial(tars, workers=0),
    "Hugging Face": partial(hugging_face, workers=0),
    "Hugging Face, 2 workers": partial(hugging_face, workers=2),
    "DataLoader, 2 workers": partial(loader, workers=2),
}


@dataclass
class Figures:
    """Of a source: milliseconds of a step and of waiting, of blocks; data read per second; MiB at the peak, N."""

    steps: list[float]
    waits: list[float]
    rate: float
    peak: float
    size: int


class Waits:
    """A set of data whose feed is timed."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, feed: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            batches = feed(*args, **kwargs)
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                self.seconds += time.perf_counter() - start
                if batch is None:
                    return
                yield batch

        return timed


def measure(name: str, n: int, gigabytes: float, steps: int, block: int) -> Figures:
    """Trains on a source and measures it."""
    with tempfile.TemporaryDirectory() as folder:
        more = {"gigabytes": gigabytes} if name.startswith("mapped") else {}
        source = SOURCES[name](Path(folder), n, **more)
        waits = Waits()
        kind: Any = type(source)
        feed = kind.feed
        start, rows = time.perf_counter(), 0
        for x, *_ in source.batches(BATCH, shuffle=True, generator=torch.Generator().manual_seed(0)):
            rows += len(x)
            if rows >= min(n, 40_000):
                break
        rate = rows / (time.perf_counter() - start)
        kind.feed = lambda self, *args, **kwargs: waits.of(partial(feed, self))(*args, **kwargs)
        times: list[tuple[float, float]] = []

        def on_step(step: int, loss: float) -> None:
            if step % block == 0:
                times.append((time.perf_counter(), waits.seconds))

        shape = source.event_shape
        torch.manual_seed(0)
        vae = VAE(
            priors.StandardNormal(20),
            likelihoods.Bernoulli(nets.MLP(20, [400]), shape),
            conditionals.DiagonalNormal(nets.MLP(shape, [400]), 20),
        )
        fit(vae, source, steps=steps, batch_size=BATCH, compile=True, progress=False, seed=0, on_step=on_step)
    pairs = list(itertools.pairwise(times))[1:]
    return Figures(
        [(after[0] - before[0]) / block * 1e3 for before, after in pairs],
        [(after[1] - before[1]) / block * 1e3 for before, after in pairs],
        rate,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        len(source),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20.0, help="of the mapped file")
    parser.add_argument("--data", type=int, default=40_000, help="images of the others")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""])
    arguments = parser.parse_args()
    block = max(1, arguments.steps // 12)
    names = ["in memory", *(n for n in SOURCES if n != "in memory" and any(w in n for w in arguments.only))]
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, batches of {BATCH}, medians of blocks of steps"
    )
    print(
        f"{'source':26} {'data':>11} {'step, ms':>9} {'input, ms':>9} {'input':>6} {'ratio':>6} {'reading/s':>10} "
        f"{'peak, MiB':>9}"
    )
    baseline = 0.0
    for name in names:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(measure, name, arguments.data, arguments.gigabytes, arguments.steps, block).result()
        step, wait = statistics.median(found.steps), statistics.median(found.waits)
        baseline = baseline or step
        print(
            f"{name:26} {found.size:11,} {step:9.2f} {wait:9.3f} {wait / step:6.1%} {step / baseline:6.2f} "
            f"{found.rate:10,.0f} {found.peak:9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
