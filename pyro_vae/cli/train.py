"""``pyro-vae train`` and ``pyro-vae resume``."""

from __future__ import annotations

import inspect
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace

from pyro_vae import VAE, data, evaluation, fit
from pyro_vae.checkpoint import files
from pyro_vae.checkpoint.folder import HISTORY
from pyro_vae.checkpoint.programs import RUN, checkpoints
from pyro_vae.cli import programs, sources
from pyro_vae.cli.parser import Parser
from pyro_vae.training import History, Row
from pyro_vae.training.kept import kept_history
from pyro_vae.version import __version__

CONFIG = "config.yaml"
_NOT_OPTIONS: set[str | int] = {
    "program", "train", "validation", "loss", "optimizer", "scheduler", "folder", "resume", "progress", "on_step",
    "on_epoch", "beta", "seed",
}  # fmt: skip


def parser() -> Parser:
    """Options of ``train``, from the signatures of what they are handed to."""
    made = Parser(
        usage="pyro-vae train --data DATA [--OPTION VALUE ...]",
        description="Trains a VAE on a set, and keeps it in a folder. Figures are nats per datum.",
    )
    made.add_argument("--config", action="config", help="a YAML file of these options")
    made.add_argument(
        "--out", type=str | None, default=None, help="the run's folder; runs/NAME, or the next that is free, by default"
    )
    made.add_function_arguments(sources.read)
    made.titled("data")
    made.add_argument("--latent_dim", type=int | None, default=None, help="dimensions of z; by the data when left out")
    networks = Literal["auto", "mlp", "conv", "resnet"]
    made.add_argument("--network", type=networks, default="auto", help="of encoder and decoder; by the data for auto")
    made.add_argument(
        "--hidden",
        type=list[int] | int | str | None,
        default=None,
        help="sizes of the layers, or channels: 200,200",
    )
    made.add_argument(
        "--standardize", type=bool, default=True,
        help="standardize reals within the likelihood; log-likelihoods are of the data's own units all the same",
    )  # fmt: skip
    made.add_part("likelihood", None, "p(x|z); chosen by the data when left out")
    made.add_part("prior", "pyro_vae.priors.StandardNormal", "p(z)")
    made.add_part("posterior", None, "q(z|x); by the support of the prior when left out")
    made.add_part("loss", "pyro_vae.elbo.ELBO", "the ELBO estimator, whose negative is the loss")
    made.add_argument(
        "--beta", type=float | str | None, default=None, help='weight of the KL: a number or "linear(0, 1, epochs=10)"'
    )
    made.add_part("optimizer", "torch.optim.Adam", "of torch", lr=1e-3, fused=True)
    made.add_function_arguments(fit, skip=_NOT_OPTIONS)
    made.titled("training")
    epochs = next(action for action in made._actions if action.dest == "epochs")
    epochs.help = "passes through the training data; as many as have 8,000 steps, or 2,500 of a small set, if left out"
    made.add_argument("--seed", type=int, default=0, help="of the first weights, the order of the data and all draws")
    known = Literal["tensorboard", "mlflow"]
    made.add_argument(
        "--track", type=list[known] | known | None, default=None,
        help="also write each epoch to tensorboard, in the run's folder, or mlflow; history.jsonl is always written",
    )  # fmt: skip
    made.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    return made


def train(options: Namespace) -> None:
    """Trains, prints what was found and chosen, and writes the folder."""
    folder = Path(options.out) if options.out else _free(options.data)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if restarted and options.out and (folder / CONFIG).exists():  # by torchrun, after a rank has died
        resume(str(folder))
        return
    if (folder / CONFIG).exists() and not is_other_rank():
        raise ValueError(
            f"--out: expected a folder without a run; got {folder}. Go on with it by pyro-vae resume {folder}, or give "
            "another one."
        )
    splits, vae = prepared(options)
    if is_other_rank():
        run(options, splits, vae, folder, resume=False)
        return
    with _made(folder):
        files.replace(folder / CONFIG, configuration(options).encode())
        history = run(options, splits, vae, folder, resume=False)
    finished(vae, splits, history, folder, options.seed)


def resume(folder: str, epochs: int | None = None, steps: int | None = None) -> None:
    """Goes on with a run that was interrupted, or makes it longer.

    Args:
        folder: the run's.
        epochs: of the whole run, those before included.
        steps: of the whole run, those before included.
    """
    options = options_of(folder)
    if epochs is not None or steps is not None:
        options.epochs, options.steps = epochs, steps
    splits, vae = prepared(options)
    if not is_other_rank() and (path := Path(folder)) and (path / RUN).is_file() and checkpoints(path):
        print(f"goes on; {len(kept_history(path))} whole epochs are in the last checkpoint", flush=True)
    history = run(options, splits, vae, Path(folder), resume=True)
    if is_other_rank():
        return
    files.replace(Path(folder) / CONFIG, configuration(options).encode())
    finished(vae, splits, history, Path(folder), options.seed)


def options_of(folder: str) -> Namespace:
    """The options that a run was made with.

    Raises:
        FileNotFoundError: it was not made by ``train``.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: expected a folder that pyro-vae train made, with {CONFIG}; got none. Check the path."
        )
    return parser().parse_path(str(path))


def configuration(options: Namespace) -> str:
    """The options as YAML, which repeat the run: all but the folder."""
    kept = options.clone()
    kept.out, kept.config = None, None
    path = Path(kept.data).expanduser()
    kept.data = str(path.resolve()) if path.exists() else kept.data
    text: str = parser().dump(kept)
    return f"# pyro_vae {__version__}: pyro-vae train --config {CONFIG}\n{text}"


def prepared(options: Namespace) -> tuple[data.Splits, VAE]:
    """Data and program of the options, which become those that were chosen."""
    programs.bits(options)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if options.device == "cuda" else options.device
    splits = sources.read(**{name: options[name] for name in arguments(sources.read)})
    splits = programs.with_contexts(options, data.Splits(*(part.to(device) for part in splits)))
    _check_missing(splits)
    said = _length(options, len(splits.train))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        vae, chosen = programs.build(options, splits.train)
    if not is_other_rank():
        print(sources.described(splits), *chosen, *said, programs.described(vae), sep="\n", flush=True)
    return splits, vae.to(device)


def _length(options: Namespace, num_train: int) -> list[str]:
    """Gives a run without a length the one of examples/mnist_svi.py, and says so."""
    if options.epochs is not None or options.steps is not None:
        return []
    steps, per_epoch = 8000 if num_train > 10_000 else 2500, -(-num_train // options.batch_size)
    options.epochs = max(1, round(steps / per_epoch))
    return [f"{options.epochs:,} epochs of {per_epoch:,} steps"]


def _check_missing(splits: data.Splits) -> None:
    """Raises for values that are missing in other parts than the training data, of which the VAE would know nothing."""
    if splits.train.levels is not None or bool(splits.train.images.isnan().any()):
        return
    for name in ("validation", "test"):
        part = getattr(splits, name)
        if part.levels is None and bool(part.images.isnan().any()):
            raise ValueError(
                f"{part.name}: expected missing values in the training data where the {name} part has some; got none, "
                "since they are few. Choose another --split_seed, or fill them in."
            )


def run(options: Namespace, splits: data.Splits, vae: VAE, folder: Path, *, resume: bool) -> History:
    """Calls ``fit``."""
    names = [name for name in arguments(fit) if name not in _NOT_OPTIONS]
    return fit(
        vae,
        splits.train,
        splits.validation,
        loss=programs.loss_of(options),
        optimizer=programs.made_by_optimizer(options.optimizer),
        beta=programs.beta_of(options.beta),
        seed=options.seed,
        folder=folder,
        resume=resume,
        progress=sys.stderr.isatty(),
        on_epoch=None if is_other_rank() else _tracker(options.track, vae, splits.test, folder, resume),
        **{name: options[name] for name in names},
    )


def finished(vae: VAE, splits: data.Splits, history: History, folder: Path, seed: int) -> None:
    """Says what was learned, and what one may do next."""
    print(*history.telling(), sep="\n")
    if history.stopped == "interrupted":
        print(f"go on: pyro-vae resume {folder}")
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        terms = [evaluation.elbo_terms(vae, *batch) for batch in splits.test.batches(1000)]
    names = ("elbo", "expected_log_likelihood", "kl")
    means = {name: torch.cat([getattr(each, name) for each in terms]).mean().item() for name in names}
    print(
        f"test: -ELBO {-means['elbo']:.2f}, -E_q[log p(x|z)] {-means['expected_log_likelihood']:.2f}, "
        f"KL {means['kl']:.2f} nats per datum\n{folder}: see pyro-vae evaluate, sample, report {folder}"
    )


def arguments(function: Callable[..., Any]) -> list[str]:
    """The names of a function's arguments."""
    return list(inspect.signature(function).parameters)


def _tracker(
    names: list[str] | str | None, vae: VAE, test: data.Dataset, folder: Path, resume: bool
) -> Callable[[Row], None] | None:
    """What writes an epoch's figures elsewhere, with pictures of some test data where they are images."""
    if not names:
        return None
    from pyro_vae import trackers

    batch = test.batch(torch.arange(min(8, len(test))), torch.Generator(test.device).manual_seed(0))
    make: dict[str, Callable[[], Callable[[Row], None]]] = {
        "tensorboard": lambda: trackers.tensorboard(folder / "tensorboard", vae, *batch, resume=resume),
        "mlflow": lambda: trackers.mlflow(vae, *batch, resume=resume),
    }
    return trackers.all_of(*(make[name]() for name in ([names] if isinstance(names, str) else names)))


def is_other_rank() -> bool:
    """Whether this is one of torchrun's processes that writes and says nothing, since the first does."""
    return int(os.environ.get("RANK", "0")) > 0


def _free(source: str) -> Path:
    """The first folder of the set's name that does not exist."""
    stem = Path(source).stem or "run"
    paths = itertools.chain([Path("runs", stem)], (Path("runs", f"{stem}-{i}") for i in itertools.count(2)))
    return next(path for path in paths if not path.exists())


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Context manager that makes a folder, and takes it back where not one epoch, or a checkpoint of one, was made."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        history = folder / HISTORY
        begun = (history.exists() and history.stat().st_size > 0) or any(
            not p.stem.endswith("-000000000") for p in checkpoints(folder)
        )
        if not begun:
            (folder / CONFIG).unlink(missing_ok=True)
            if folder in new:
                shutil.rmtree(folder)
            for path in new:
                if path.exists() and not any(path.iterdir()):
                    path.rmdir()
        raise
