"""Trackers: callbacks of :func:`~pyro_vae.fit` that write an epoch's figures to a file, to TensorBoard, MLflow or W&B.

Each function here makes one callback, which is called as a user's own is, with the row of an epoch::

    fit(vae, train, on_epoch=trackers.jsonl("log.jsonl"))
    fit(vae, train, on_epoch=trackers.all_of(trackers.jsonl("log.jsonl"), trackers.tensorboard("tb", vae, x)))
    fit(vae, train, on_epoch=lambda row: row["epoch"] % 10 or tensorboard(row))  # every tenth epoch

What an epoch has told is on the disk when the next one begins, so that a crash loses none of it. Pictures and latents
are drawn in evaluation mode, with random numbers of their own, the same at every epoch: a run is the same to the last
bit with and without trackers.

An epoch is logged once. A run that goes on, ``fit(..., resume=True)``, takes epochs again that came after its last
checkpoint: give ``resume=True`` to its trackers too, and these epochs are replaced (in MLflow and W&B, which replace
nothing, left as they were). Without it a log that exists is an error, and not mixed with that of another run.

Shapes: N data, H rows and W columns of an image.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torchvision.utils import make_grid

from pyro_vae import checks
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.runs import one_run
from pyro_vae.models import Program
from pyro_vae.traces.tracing import unchanged_param_store
from pyro_vae.training import Row
from pyro_vae.training.figures import seeded

Callback = Callable[[Row], None]
_SIDE = 8  # images in a row of a picture


def all_of(*callbacks: Callback) -> Callback:
    """One callback that calls several, in their order.

    Example:
        >>> epochs = []
        >>> both = all_of(lambda row: epochs.append(row["epoch"]), lambda row: epochs.append(-row["epoch"]))
        >>> both({"epoch": 1})
        >>> epochs
        [1, -1]
    """
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(
                f"trackers.all_of: expected callbacks; got {type(callback).__name__}. Give functions of an epoch's row."
            )

    def on_epoch(row: Row) -> None:
        for callback in callbacks:
            callback(row)

    return on_epoch


def jsonl(path: str | os.PathLike[str], *, resume: bool = False) -> Callback:
    """Writes a line of JSON per epoch: the row of the history, with the words "NaN", "Infinity" and "-Infinity".

    JSON has no such numbers; ``float`` reads the words. ``pandas.read_json(path, lines=True)`` reads the file.

    Args:
        path: of the file, whose folder is made where there is none.
        resume: go on with the file of a run that goes on: epochs from the first one of these on are replaced, and so
            is a line that was interrupted.

    Raises:
        FileExistsError: a file that exists, without resume=True.
        ValueError: a file that is none of a run; when called, an epoch that was logged before.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "log.jsonl")
        >>> tracker = jsonl(path)
        >>> tracker({"epoch": 1, "loss": 3.5})
        >>> tracker({"epoch": 2, "loss": math.inf})
        >>> print(path.read_text(), end="")
        {"epoch": 1, "loss": 3.5}
        {"epoch": 2, "loss": "Infinity"}
    """
    checks.instance("trackers.jsonl", "path", path, (str, os.PathLike), "Give the path of a file.")
    file = Path(path).absolute()  # also for a program that changes its working directory
    _check_new("trackers.jsonl", file, file.exists(), resume)
    file.parent.mkdir(parents=True, exist_ok=True)

    def begin(epoch: int) -> int:
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        kept = [line for i, line in enumerate(lines) if _epoch_of(file, line, last=i == len(lines) - 1) < epoch]
        new = file.with_name(f".{file.name}.new")
        new.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        new.replace(file)
        return 0

    def write(_: int, row: Row) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({name: _plain(value) for name, value in row.items()}, allow_nan=False) + "\n")

    return _each_once("trackers.jsonl", begin, write, resume)


def tensorboard(
    folder: str | os.PathLike[str],
    program: Program | None = None,
    *batch: Tensor,
    resume: bool = False,
) -> Callback:
    """Writes an epoch's figures for TensorBoard, where a program is given histograms, and of images pictures.

    Figures of training and validation data are ``train/elbo`` and so on. Of a program there are histograms of the
    parameters; of one with a batch of data also of a draw of its latents, and, where the data are images
    (N, 1 or 3, H, W), pictures of the originals, of their reconstructions E[x|z] at one draw of the guide, and of
    E[x|z] at one of the prior. Black and white are 0 and 1, or the least and the greatest pixel of data beyond these.
    ``tensorboard --logdir tb`` shows them.

    Args:
        folder: for TensorBoard's files.
        program: what is trained.
        batch: some data and their contexts, the arguments of model and guide.
        resume: go on with the folder of a run that goes on; TensorBoard leaves out what was logged for epochs from the
            first one of these on.

    Raises:
        ImportError: no TensorBoard: ``pip install 'pyro-vae[tracking]'``.
        FileExistsError: a folder with a log, without resume=True.
        TypeError, ValueError: a batch that the program does not take; when called, an epoch that was logged before.
    """
    checks.instance("trackers.tensorboard", "folder", folder, (str, os.PathLike), "Give the path of a folder.")
    path = Path(folder).absolute()
    library = _imported("tensorboard", "torch.utils.tensorboard", "pip install 'pyro-vae[tracking]'")
    _check_new("trackers.tensorboard", path, any(path.glob("events.out.tfevents.*")), resume)
    _check("trackers.tensorboard", program, batch)
    writers: list[Any] = []

    def begin(epoch: int) -> int:
        for former in writers:
            former.close()
        # Of a new run, which has left nothing to purge, it changes nothing.
        writers[:] = [library.SummaryWriter(os.fspath(path), purge_step=epoch)]
        return 0

    def write(epoch: int, row: Row) -> None:
        (writer,) = writers
        for name, value in row.items():
            writer.add_scalar(_tag(name), value, epoch)
        for name, picture in _pictures(program, batch).items():
            writer.add_image(name, picture, epoch)
        for name, values in _values(program, batch).items():
            writer.add_histogram(name, values, epoch)
        writer.flush()

    callback = _each_once("trackers.tensorboard", begin, write, resume)
    weakref.finalize(callback, lambda: [writer.close() for writer in writers])  # it has a thread and an open file
    return callback


def mlflow(program: Program | None = None, *batch: Tensor, resume: bool = False) -> Callback:
    """Logs an epoch's figures, and of images pictures, to MLflow's active run, which is started where there is none.

    Args:
        program: what is trained, for pictures; see :func:`tensorboard`. MLflow has no histograms.
        batch: some data and their contexts.
        resume: go on with a run, ``mlflow.start_run(run_id=...)``, whose epochs are not logged again.

    Raises:
        ImportError: no MLflow.
        FileExistsError: when called, a run with epochs, without resume=True.
        ValueError: when called, an epoch that was logged before.
    """
    library = _imported("mlflow", "mlflow", "pip install mlflow")
    _check("trackers.mlflow", program, batch)

    def begin(_: int) -> int:
        run = library.active_run() or library.start_run()
        last = int(library.get_run(run.info.run_id).data.metrics.get("epoch", 0))
        _check_new("trackers.mlflow", run.info.run_id, last > 0, resume)
        return last

    def write(epoch: int, row: Row) -> None:
        library.log_metrics({_tag(name): float(value) for name, value in row.items()}, step=epoch)
        for name, picture in _pictures(program, batch).items():
            library.log_image(_pixels(picture), key=name, step=epoch)

    return _each_once("trackers.mlflow", begin, write, resume)


def wandb(run: Any, program: Program | None = None, *batch: Tensor, resume: bool = False) -> Callback:
    """Logs an epoch's figures, histograms, and of images pictures, to a run of Weights & Biases.

    Args:
        run: ``wandb.init(project=...)``. Charts are over its figure ``epoch``.
        program: what is trained; see :func:`tensorboard`.
        batch: some data and their contexts.
        resume: go on with a run, ``wandb.init(id=..., resume="allow")``, whose epochs are not logged again.

    Raises:
        ImportError: no Weights & Biases.
        FileExistsError: when called, a run with epochs, without resume=True.
        ValueError: when called, an epoch that was logged before.
    """
    library = _imported("wandb", "wandb", "pip install wandb")
    if not (callable(getattr(run, "log", None)) and hasattr(run, "summary")):
        raise TypeError(f"trackers.wandb: expected a run; got {type(run).__name__}. Give wandb.init(project=...).")
    _check("trackers.wandb", program, batch)

    def begin(_: int) -> int:
        last = int(run.summary.get("epoch", 0))
        _check_new("trackers.wandb", getattr(run, "id", run), last > 0, resume)
        run.define_metric("*", step_metric="epoch")
        return last

    def write(_: int, row: Row) -> None:
        told: dict[str, Any] = {_tag(name): value for name, value in row.items()}
        told |= {name: library.Image(_pixels(picture)) for name, picture in _pictures(program, batch).items()}
        told |= {name: library.Histogram(values.numpy()) for name, values in _values(program, batch).items()}
        run.log(told)

    return _each_once("trackers.wandb", begin, write, resume)


def _each_once(subject: str, begin: Callable[[int], int], write: Callable[[int, Row], None], resume: bool) -> Callback:
    """A callback that logs each epoch once.

    Args:
        subject: the tracker, for messages.
        begin: given the first epoch of a run, or of one that goes on; the last one that is to stay as it was logged.
        write: logs an epoch.
        resume: whether runs may go on.
    """
    checks.flag(subject, "resume", resume)
    last: int | None = None
    kept = 0

    def on_epoch(row: Row) -> None:
        nonlocal last, kept
        row = {name: _number(subject, name, value) for name, value in row.items()}
        epoch = int(row["epoch"])
        if last is None or (resume and epoch <= last):
            kept = begin(epoch)
        elif epoch <= last:
            raise ValueError(
                f"{subject}: expected an epoch after {last}; got {epoch} again. Make a tracker for each run, or give "
                "resume=True for one that goes on."
            )
        last = epoch
        if epoch > kept:
            write(epoch, row)

    return on_epoch


def _check_new(subject: str, where: object, exists: bool, resume: bool) -> None:
    if exists and not resume:
        raise FileExistsError(
            f"{subject}: expected no log at {str(where)!r}; got one of an earlier run. Go on with it by resume=True, "
            "or give another place."
        )


def _imported(name: str, module: str, command: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"trackers.{name}: expected {name} to be installed; got {error}. Use {command}.") from error


def _check(subject: str, program: Any, batch: tuple[Any, ...]) -> None:
    """Raises for a program and a batch that do not fit; the program is not run, since a lazy guide would be made."""
    if program is not None and not isinstance(program, Program):
        raise TypeError(
            f"{subject}: expected a program with model and guide; got {type(program).__name__}. Give the VAE, then "
            "data and their contexts."
        )
    for part in batch:
        checks.instance(subject, "batch", part, Tensor, "Give some data as a tensor: train.tensor()[:32].")
    check_data = getattr(program, "check_data", None)
    if batch and check_data is not None:
        check_data(*batch)


def _number(subject: str, name: str, value: Any) -> float:
    try:
        return value if type(value) is int else float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{subject}: expected the figures of an epoch to be numbers; got {type(value).__name__} as {name!r}. Give "
            "a number, or keep it elsewhere."
        ) from None


def _plain(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _epoch_of(file: Path, line: str, *, last: bool) -> float:
    """The epoch of a line; infinity of a last one that was interrupted."""
    try:
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("epoch"), int):
            return row["epoch"]
    except ValueError:
        if last:
            return math.inf
    raise ValueError(
        f"trackers.jsonl: expected lines of epochs in {os.fspath(file)!r}; got {checks.printable(line, 60)!r}. Give "
        "another file."
    )


def _tag(name: str) -> str:
    """``train_elbo`` as ``train/elbo``, by which figures are grouped where they are shown."""
    group, _, rest = name.partition("_")
    return f"{group}/{rest}" if group in ("train", "validation") and rest else name


def _values(program: Any, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Finite values for histograms, float (n,): of the parameters, and of latents."""
    parts = getattr(program, "guide", None), getattr(program, "model", None), program  # the last has the fullest names
    named: dict[Tensor, str] = {}
    for part in parts:
        named |= {p: name for name, p in part.named_parameters()} if isinstance(part, nn.Module) else {}
    found = {f"parameters/{name}": parameter for parameter, name in named.items()}
    found |= {f"latents/{name}": value for name, value in _latents_of(program, batch).items()}
    flat = {name: value.detach().flatten().float().cpu() for name, value in found.items()}
    return {name: value[value.isfinite()] for name, value in flat.items() if bool(value.isfinite().any())}


def _latents_of(program: Any, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return _drawn(program, *batch) if program is not None and batch else {}


def _pictures(program: Any, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Pictures (3, H, W) with values in [0, 1]: of images alone."""
    if program is None or not batch or batch[0].dim() != 4 or batch[0].shape[1] not in (1, 3):
        return {}
    x = batch[0].nan_to_num(0)
    black, white = min(0.0, float(x.min())), max(1.0, float(x.max()))
    images = {"originals": x, **_means(program, *batch)}
    return {
        name: make_grid(((value.cpu().float() - black) / (white - black)).clamp(0, 1), _SIDE, pad_value=1.0)
        for name, value in images.items()
    }


def _pixels(picture: Tensor) -> Any:
    """A picture as MLflow and W&B take it: uint8 (H, W, 3)."""
    return (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@in_evaluation_mode
@torch.no_grad()
def _drawn(program: Program, x: Tensor, *context: Tensor) -> dict[str, Tensor]:
    """A draw of the guide's latents by name."""
    with seeded(0, x.device):
        return {name: site["value"] for name, _, site in one_run(program, (x, *context)).latents()}


@in_evaluation_mode
@torch.no_grad()
def _means(program: Program, x: Tensor, *context: Tensor) -> dict[str, Tensor]:
    """E[x|z] at a draw of the guide and at one of the prior; a draw of x where there is no such mean."""
    with seeded(0, x.device), unchanged_param_store(), pyro.validation_enabled(False):
        posterior = one_run(program, (x, *context)).model
        prior = poutine.trace(poutine.uncondition(program.model)).get_trace(x, *context)
        names = [name for name in posterior.observation_nodes if posterior.nodes[name]["value"] is x]
        sites = [trace.nodes[name] for name in names for trace in (posterior, prior)]
        means = dict(zip(("reconstructions", "samples"), map(_mean, sites), strict=False))
    return {name: mean.reshape(x.shape) for name, mean in means.items() if mean.numel() == x.numel()}


def _mean(site: Any) -> Tensor:
    try:
        mean: Tensor = site["fn"].mean
    except NotImplementedError:
        return site["fn"].sample()
    return mean if bool(mean.isfinite().all()) else site["fn"].sample()
