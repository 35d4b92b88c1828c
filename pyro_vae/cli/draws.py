"""``pyro-vae sample``, ``reconstruct`` and ``encode``: what a trained program makes, as pictures and tables."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_vae.checkpoint import files
from pyro_vae.cli import sources
from pyro_vae.cli.runs import OpenedRun, opened
from pyro_vae.cli.train import arguments

Split = Literal["train", "validation", "test"]


def sample(folder: str, num: int = 64, out: str | None = None, mean: bool | None = None, seed: int = 0) -> None:
    """Draws data from the model: z ~ p(z), x ~ p(x|z).

    Args:
        folder: the run's.
        num: how many.
        out: a .png of images, a .csv of rows, or a .npz; samples.png or samples.csv of the folder when left out.
        mean: E[x|z] in place of a draw of x; so of images, and a draw of others, when left out.
        seed: of the draws.
    """
    run = opened(folder)
    mean = _mean(run, mean)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        context = run.contexts(num)
        x = run.program.sample(num, *context, mean=mean)
    kind = "E[x|z]" if mean else "x ~ p(x|z)"
    _write(run, x, out, "samples", f"z ~ p(z), {kind}")


def reconstruct(
    folder: str,
    num: int = 32,
    out: str | None = None,
    data: str | None = None,
    split: Split = "test",
    mean: bool | None = None,
    seed: int = 0,
) -> None:
    """Encodes data and decodes them again: z ~ q(z|x), then E[x|z] or x ~ p(x|z).

    Args:
        folder: the run's.
        num: how many, the first ones.
        out: a .png of pairs of images, a .csv of rows, or a .npz; reconstructions.png or .csv when left out.
        data: other data than the run's.
        split: which part of the run's data.
        mean: E[x|z] in place of a draw of x; so of images, and a draw of others, when left out.
        seed: of the draws.
    """
    run = opened(folder)
    mean = _mean(run, mean)
    chosen = run.dataset(data, split).take(num)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x, *context = chosen.batch(torch.arange(len(chosen)), torch.Generator().manual_seed(seed))
        made = run.program.reconstruct(x, *context, mean=mean)
    _write(run, made, out, "reconstructions", f"{'E[x|z]' if mean else 'x ~ p(x|z)'}, z ~ q(z|x)", x)


def encode(folder: str, out: str | None = None, data: str | None = None, split: Split = "test") -> None:
    """Writes the latents of data, the mean of q(z|x), with the row of each datum in its file, from 0, and its label.

    Args:
        folder: the run's.
        out: a .csv or a .npz; latents.csv of the folder when left out.
        data: other data than the run's, all of which are encoded, or the part of a set that is split.
        split: which part of the run's data.
    """
    run = opened(folder)
    chosen = run.dataset(data, split)
    options = {name: run.options[name] for name in arguments(sources.read)}
    rows = sources.rows(split=split, **options) if data is None else torch.arange(len(chosen))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        z = torch.cat([run.program.encode(x).mean for x, *_ in chosen.batches(1000, generator=generator)]).flatten(1)
    path = Path(out) if out else Path(folder, "latents.csv")
    names = sources.class_names(run.options.data, run.options.labels) if data is None else []
    columns: dict[str, Any] = {"row": rows.numpy()}
    if chosen.labels is not None:
        labels = chosen.labels.tolist()
        columns["label"] = np.array([names[label] for label in labels] if names else labels)
    if path.suffix == ".npz":
        _write_npz(path, latents=z.numpy(), **columns)
    elif path.suffix == ".csv":
        written = [[f"{value:.9g}" for value in each] for each in z.tolist()]
        beside = [values.tolist() for values in columns.values()]
        header = ["row", *(f"z{i}" for i in range(z.shape[1])), *list(columns)[1:]]
        _write_csv(path, header, [[b[0], *each, *b[1:]] for each, *b in zip(written, *beside, strict=True)])
    else:
        raise ValueError(f"--out: expected a .csv or .npz file; got {path.name}. Give one of these.")
    print(f"{path}: {len(z):,} x {z.shape[1]} latents of {chosen.name}")


def _mean(run: OpenedRun, mean: bool | None) -> bool:
    """Whether E[x|z] is asked for, which categories have none of."""
    table = getattr(run.program.likelihood, "table", None)
    coded = [] if table is None else [column.name for column in table.columns if column.values]
    if mean and coded:
        raise ValueError(
            f"--mean: expected columns of numbers; got {coded[0]!r}, of categories, which have no mean. Leave it out "
            "for draws."
        )
    return len(run.program.likelihood.event_shape) == 3 if mean is None else mean


def _write(
    run: OpenedRun, x: Tensor, out: str | None, stem: str, caption: str, originals: Tensor | None = None
) -> None:
    """Images as a picture, rows as a table."""
    images = x.dim() == 4 and x.shape[1] in (1, 3)
    path = Path(out) if out else run.folder / f"{stem}{'.png' if images else '.csv'}"
    if path.suffix == ".png" and images:
        _draw(run, x, path, caption, originals)
    elif path.suffix == ".npz":
        _write_npz(path, x=x.numpy(), **({} if originals is None else {"originals": originals.numpy()}))
    elif path.suffix == ".csv" and x.dim() == 2:
        table = getattr(run.program.likelihood, "table", None)
        if table is not None and "E[x|z]" not in caption:
            _replace(path, table.frame(x).to_csv(index=False, float_format="%.9g"))
        else:
            names = list(run.splits.train.columns) or [f"x{i}" for i in range(x.shape[1])]
            _write_csv(path, names, [[f"{value:.9g}" for value in row] for row in x.tolist()])
    else:
        shapes = "a .png or .npz" if images else "a .csv or .npz" if x.dim() == 2 else "a .npz"
        raise ValueError(f"--out: expected {shapes} file for data of shape {tuple(x.shape[1:])}; got {path.name}.")
    print(f"{path}: {len(x):,} of {caption}")


def _draw(run: OpenedRun, x: Tensor, path: Path, caption: str, originals: Tensor | None) -> None:
    """Pictures, on the scale of the training data where these are no fractions."""
    from pyro_vae import plots  # with matplotlib

    seen = run.splits.train.take(1000).tensor()
    low, high = min(0.0, float(seen.min())), max(1.0, float(seen.max()))
    x = (x - low) / (high - low)
    if originals is None:
        figure = plots.images(x, caption=caption)
    else:
        figure = plots.reconstructions((originals - low) / (high - low), x, caption=f"x, above {caption}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _write_csv(path: Path, names: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    _replace(path, text.getvalue())


def _write_npz(path: Path, **arrays: Any) -> None:
    np.savez_compressed(content := io.BytesIO(), **arrays)
    _replace(path, content.getvalue())


def _replace(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, content.encode() if isinstance(content, str) else content)
