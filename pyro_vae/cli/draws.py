"""``pyro-vae sample``, ``reconstruct`` and ``encode``: what a trained program makes, as pictures and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_vae.checkpoint import files
from pyro_vae.cli.runs import OpenedRun, opened

Split = Literal["train", "validation", "test"]


def sample(folder: str, num: int = 64, out: str | None = None, mean: bool = False, seed: int = 0) -> None:
    """Draws data from the model: z ~ p(z), x ~ p(x|z).

    Args:
        folder: the run's.
        num: how many.
        out: a .png of images, a .csv of rows, or a .npz; samples.png or samples.csv of the folder when left out.
        mean: E[x|z] in place of a draw of x.
        seed: of the draws.
    """
    run = opened(folder)
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
    mean: bool = True,
    seed: int = 0,
) -> None:
    """Encodes data and decodes them again: z ~ q(z|x), then E[x|z] or x ~ p(x|z).

    Args:
        folder: the run's.
        num: how many, the first ones.
        out: a .png of pairs of images, a .csv of rows, or a .npz; reconstructions.png or .csv when left out.
        data: other data than the run's.
        split: which part of the run's data.
        mean: E[x|z] in place of a draw of x.
        seed: of the draws.
    """
    run = opened(folder)
    chosen = run.dataset(data, split).take(num)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x, *context = chosen.batch(torch.arange(len(chosen)), torch.Generator().manual_seed(seed))
        made = run.program.reconstruct(x, *context, mean=mean)
    _write(run, made, out, "reconstructions", f"x above {'E[x|z]' if mean else 'x ~ p(x|z)'}, z ~ q(z|x)", x)


def encode(folder: str, out: str | None = None, data: str | None = None, split: Split = "test") -> None:
    """Writes the latents of data, the mean of q(z|x), a row per datum in the order of the data.

    Args:
        folder: the run's.
        out: a .csv or a .npz, which has labels too; latents.csv of the folder when left out.
        data: other data than the run's, all of which are encoded.
        split: which part of the run's data.
    """
    run = opened(folder)
    chosen = run.dataset(data, split)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        z = torch.cat([run.program.encode(x).mean for x, *_ in chosen.batches(1000, generator=generator)]).flatten(1)
    path = Path(out) if out else Path(folder, "latents.csv")
    names = [f"z{i}" for i in range(z.shape[1])]
    if path.suffix == ".npz":
        labels = {} if chosen.labels is None else {"labels": chosen.labels.numpy()}
        _write_npz(path, latents=z.numpy(), **labels)
    elif path.suffix == ".csv":
        rows = z if chosen.labels is None else torch.cat([z.double(), chosen.labels[:, None]], 1)
        _write_csv(path, rows, names if chosen.labels is None else [*names, "label"])
    else:
        raise ValueError(f"--out: expected a .csv or .npz file; got {path.name}. Give one of these.")
    print(f"{path}: {len(z):,} x {z.shape[1]} latents of {chosen.name}")


def _write(
    run: OpenedRun, x: Tensor, out: str | None, stem: str, caption: str, originals: Tensor | None = None
) -> None:
    """Images as a picture, rows as a table."""
    images = x.dim() == 4 and x.shape[1] in (1, 3)
    path = Path(out) if out else run.folder / f"{stem}{'.png' if images else '.csv'}"
    if path.suffix == ".png" and images:
        from pyro_vae import plots  # with matplotlib

        scale = max(1.0, float(x.max())) if originals is None else max(1.0, float(originals.max()))
        figure = (
            plots.images(x / scale, caption=caption)
            if originals is None
            else plots.reconstructions(originals / scale, x / scale, caption=caption)
        )
        figure.savefig(path, dpi=150)
    elif path.suffix == ".npz":
        _write_npz(path, x=x.numpy(), **({} if originals is None else {"originals": originals.numpy()}))
    elif path.suffix == ".csv" and x.dim() == 2:
        table = getattr(run.program.likelihood, "table", None)
        if table is not None and not caption.endswith("E[x|z]") and "E[x|z]," not in caption:
            files.replace(path, table.frame(x).to_csv(index=False).encode())
        else:
            columns = run.splits.train.columns or [f"x{i}" for i in range(x.shape[1])]
            _write_csv(path, x, list(columns))
    else:
        shapes = "a .png or .npz" if images else "a .csv or .npz" if x.dim() == 2 else "a .npz"
        raise ValueError(f"--out: expected {shapes} file for data of shape {tuple(x.shape[1:])}; got {path.name}.")
    print(f"{path}: {len(x):,} of {caption}")


def _write_csv(path: Path, rows: Tensor, names: list[str]) -> None:
    lines = [",".join(f"{value:.9g}" for value in row) for row in rows.tolist()]
    files.replace(path, "\n".join([",".join(names), *lines, ""]).encode())


def _write_npz(path: Path, **arrays: Any) -> None:
    import io

    np.savez_compressed(content := io.BytesIO(), **arrays)
    files.replace(path, content.getvalue())
