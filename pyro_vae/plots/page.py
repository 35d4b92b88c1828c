"""One page of HTML on a run: its settings, its figures and every picture that its program allows.

The page is one file: pictures are in it, and it loads nothing and runs nothing.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from torch import nn

from pyro_vae import checks, evaluation
from pyro_vae.checkpoint import files
from pyro_vae.checkpoint.programs import a_path, load
from pyro_vae.data import Dataset, as_dataset
from pyro_vae.evaluation.modes import rows_of
from pyro_vae.evaluation.results import rounded
from pyro_vae.lab import Comparison
from pyro_vae.plots import diagnostics, pictures, spaces, tabular, training
from pyro_vae.plots.runs import viewed
from pyro_vae.tables import Table
from pyro_vae.training import History
from pyro_vae.training.kept import UNDER_WAY, kept_history

_DPI = 160
T = TypeVar("T")
_UNITS = {"epoch": "", "seconds": "s", "lr": "per step", "beta": "weight of the KL", "skipped": "steps"}
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 46rem; margin: 0 auto; padding: 0 1rem 3rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; border-bottom: 1px solid #ccc; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 2rem 0 0.25rem; }
figure { margin: 0 0 1.5rem; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: 0.9rem; color: #333; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.15rem 0.6rem 0.15rem 0; text-align: right; vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
td:nth-child(n + 2) { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 1px solid #999; }
table.words td { text-align: left; white-space: normal; } table.words td + td, li { overflow-wrap: anywhere; }
@media (max-width: 480px) {
  table { font-size: 0.75rem; } th, td { padding-right: 0.4rem; } ul { padding-left: 1.2rem; }
}
"""


@partial(checks.arguments, "plots.report")
def report(
    folder: str | os.PathLike[str],
    data: Any,
    labels: Any = None,
    out: str | os.PathLike[str] | None = None,
    *,
    verdicts: evaluation.Report | None = None,
    comparison: Comparison | None = None,
    classes: Sequence[Any] = (),
    max_data: int = 200,
    seed: int = 0,
) -> Path:
    """Writes a page on a run, or on a saved program: settings, history, verdicts, and the pictures that apply.

    What does not apply, or cannot be drawn, is listed at the end with the reason.

    Args:
        folder: of ``fit(..., folder=...)`` or of :func:`pyro_vae.save`.
        data: to judge by, held out from training: a Dataset, with its contexts, or what
            :func:`~pyro_vae.data.as_dataset` makes one of; a DataFrame is read by the program's own table.
        labels: of the data, (N,), for the picture of the latents; those of the Dataset when left out.
        out: the file to write, ``report.html`` in the folder when left out; an earlier one is replaced by the whole new
            one.
        verdicts: of :func:`~pyro_vae.evaluation.report` on these data, where they have been made; they are made here
            when left out.
        comparison: of :func:`~pyro_vae.lab.compare`, whose figures are to be shown too.
        classes: classes and functions of yours that the program is built of, see :func:`pyro_vae.load`.
        max_data: data, chosen by the seed, that the verdicts look at; at least 30 for there to be any. 200 take about
            ten seconds for a small VAE.
        seed: of all draws; the global generators are left as they were.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: there is no program in the folder.
        OSError: the page cannot be written.
        ValueError: data that are not the program's, or a damaged file.

    Example:
        >>> import tempfile
        >>> from pyro_vae import VAE, conditionals, likelihoods, nets, priors, save
        >>> vae = VAE(
        ...     prior=priors.StandardNormal(1),
        ...     likelihood=likelihoods.Bernoulli(nets.MLP(1, [8]), 2),
        ...     posterior=conditionals.DiagonalNormal(nets.MLP(2, [8]), 1),
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, vae)
        ...     report(folder, torch.tensor([[0.0, 1.0], [1.0, 1.0]]).repeat(10, 1)).name
        'report.html'
    """
    path = a_path("plots.report", folder)
    target = Path(out) if out is not None else path / "report.html"
    if target.is_dir():
        raise ValueError(
            f"plots.report: expected out the path of a file; got the folder {os.fspath(target)!r}. Name a file in it."
        )
    checks.whole("plots.report", "max_data", max_data)
    program = load(path, classes=list(classes))
    table = getattr(getattr(program, "likelihood", None), "table", None)
    frame = isinstance(table, Table) and type(data).__name__ == "DataFrame"
    data = as_dataset(data, "data", kinds=table if frame else None)
    with viewed("plots.report", program, data, (), seed, most=2):
        pass  # raises for data that are not the program's, before the first picture
    if labels is not None:
        spaces.groups_of(labels, len(data), torch.arange(len(data)))  # likewise
    page = _Page()
    try:
        history: History | None = kept_history(path)
    except FileNotFoundError:  # of a program that was saved, or a run whose checkpoints are gone
        history = None
    _summary(page, path, program, data, history)
    page.heading("What is right and wrong with it")
    found = page.attempt("Verdicts", lambda: _verdicts(program, data, max_data, seed)) if verdicts is None else verdicts
    if found is not None:
        _diagnosis(page, found)
    if comparison is not None:
        _estimators(page, comparison)
    _training(page, history)
    _pictures(page, program, data, labels, seed)
    _record(page, history)
    files.replace(target.absolute(), page.text(f"{type(program).__name__}, {path.name}").encode())
    return target


class _Page:
    """The parts of a page, and what is not in it."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._left_out: list[tuple[str, str]] = []

    def heading(self, title: str, words: str = "") -> None:
        self._parts.append(f"<h2>{_escaped(title)}</h2>" + (f"<p>{_escaped(words)}</p>" if words else ""))

    def picture(self, title: str, caption: str, make: Callable[[], Figure]) -> None:
        """Adds a figure, unless it is refused."""
        figure = self.attempt(title, make)
        if figure is None:
            return
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
        source = base64.b64encode(buffer.getvalue()).decode()
        width = round(figure.get_figwidth() * 110)
        self._parts.append(
            f'<h3>{_escaped(title)}</h3><figure><img alt="{_escaped(title)}" width="{width}" '
            f'src="data:image/png;base64,{source}"><figcaption>{_escaped(caption)}</figcaption></figure>'
        )

    def attempt(self, title: str, make: Callable[[], T]) -> T | None:
        """What a program may not allow; the reason is told at the end of the page."""
        try:
            return make()
        except (ValueError, NotImplementedError, ImportError) as error:
            self.leave_out(title, str(error).split("\n")[0])
            return None

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> None:
        head = "".join(f"<th>{_escaped(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        kind = ' class="words"' if words else ""
        head = f"<thead><tr>{head}</tr></thead>" if head else ""
        self._parts.append(f'<div class="wide"><table{kind}>{head}<tbody>{body}</tbody></table></div>')

    def items(self, lines: Iterable[str]) -> None:
        self._parts.append("<ul>" + "".join(f"<li>{_escaped(line)}</li>" for line in lines) + "</ul>")

    def leave_out(self, title: str, why: str) -> None:
        self._left_out.append((title, why))

    def text(self, title: str) -> str:
        """The whole page."""
        left = ""
        if self._left_out:
            lines = "".join(f"<li><b>{_escaped(name)}</b>: {_escaped(why)}</li>" for name, why in self._left_out)
            left = f"<h2>Not shown, and why</h2><ul>{lines}</ul>"
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
            f"<title>{_escaped(title)}</title><style>{_STYLE}</style></head><body><h1>{_escaped(title)}</h1>"
            f"{''.join(self._parts)}{left}</body></html>\n"
        )


def _escaped(text: object) -> str:
    """What files and names say, as HTML shows it and never runs it."""
    return html.escape(str(text))


def _summary(page: _Page, path: Path, program: Any, data: Dataset, history: History | None) -> None:
    parts = [type(p).__name__ for role in ("prior", "likelihood", "posterior") if (p := getattr(program, role, None))]
    count = sum(p.numel() for p in program.parameters()) if isinstance(program, nn.Module) else 0
    page.items(
        [
            f"A program of {', '.join(parts) or type(program).__name__}, with {count:,} parameters, from {path.name}.",
            f"Judged by {data!r}.",
            *(history.telling() if history is not None else ["The folder holds no history of its training."]),
        ]
    )
    if history is None or not history.epochs:
        return
    epoch = history.best_epoch or len(history)
    row = next((row for row in history.epochs if row.get("epoch") == epoch), history.epochs[-1])
    ended = history.stopped != UNDER_WAY
    words = (
        "of these weights, which are judged below" if ended else "; the weights of the last checkpoint are judged below"
    )
    page.heading(f"Figures of epoch {row.get('epoch', epoch):g}", f"As training had them {words}.")
    page.table(
        ["", "value", "unit"], [(_words(n), f"{v:.6g}", _UNITS.get(n, "nats per datum")) for n, v in row.items()]
    )


def _training(page: _Page, history: History | None) -> None:
    if history is None:
        page.leave_out("Training", "the folder holds no history of a run")
        return
    page.heading("Training")
    page.picture(
        "The ELBO and its terms",
        "Nats per datum, at beta = 1, whatever was optimized; an objective that is another than -ELBO is drawn "
        "beside it. All should fall and level off; validation that turns up while training falls is overfitting, and a "
        "KL that goes to 0 a collapsed posterior.",
        lambda: training.curves(history),
    )
    page.picture(
        "Rate and distortion",
        "Each point is an epoch; along a gray line -ELBO, written on it, is the same. Training should cross the lines "
        "downwards; moving along one trades what the latents cost for what the reconstructions lose.",
        lambda: training.rate_distortion(history),
    )


def _pictures(page: _Page, program: Any, data: Dataset, labels: Any, seed: int) -> None:
    shape = data.event_shape
    if len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3)):
        page.heading("Images")
        _of_images(page, program, data, seed)
    elif len(shape) == 1:
        page.heading("Columns")
        page.picture(
            "Columns of data and of draws",
            "Shares of rows, in the unit of each column. The dashed line, draws of the model, should follow the bars "
            "of the data. Missing values are left out.",
            lambda: tabular.marginals(program, data, seed=seed),
        )
        page.picture(
            "How columns go together",
            "Spearman's rank correlations, without unit. Both matrices should look alike, and the points lie on the "
            "line, within the gray band of the data's own noise.",
            lambda: tabular.correlations(program, data, seed=seed),
        )
    else:
        page.leave_out("Images, columns", f"the data are of shape {tuple(shape)}, neither images nor a table")
    page.heading("Latents")
    page.picture(
        "Where the data are",
        "Each point is the mean of q(z|x) of a datum. Groups of one label that hold together show that the latents "
        "know it; they need not, since labels took no part in training."
        + (" No labels were given." if labels is None and data.labels is None else ""),
        lambda: spaces.latents(program, data, labels=labels, seed=seed),
    )
    page.picture(
        "Units in use",
        "KL of each unit in nats per datum, or where units have none of their own the variance of its posterior mean. "
        "Hatched units are inactive: they tell nothing about the data, and a program without them is as good.",
        lambda: diagnostics.units(program, data, seed=seed),
    )


def _of_images(page: _Page, program: Any, data: Dataset, seed: int) -> None:
    page.picture(
        "Data and reconstructions",
        "At one draw of q(z|x) each. The means should look like the data without their noise, the draws like the data; "
        "below them −log p(x|z) in nats, smaller for what is reconstructed better.",
        lambda: pictures.reconstructed(program, data, seed=seed),
    )
    page.picture(
        "Samples",
        "Images at latents of the prior should look like those of the aggregate posterior, and both like the data. "
        "Where only the prior's are bad, the prior has mass where no datum is encoded.",
        lambda: pictures.samples(program, data, seed=seed),
    )
    page.picture(
        "Interpolations",
        "Between two data at the ends. All images on the way should look like data, and change bit by bit.",
        lambda: spaces.interpolations(program, data, seed=seed),
    )
    page.picture(
        "The latent plane",
        "Each image stands for as much of the prior as each other. It should change smoothly, and all of it be like "
        "data.",
        lambda: spaces.manifold(program, data, seed=seed),
    )


def _verdicts(program: Any, data: Dataset, max_data: int, seed: int) -> evaluation.Report:
    """The verdicts on some of the data, chosen by the seed."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:max_data]
    rows = rows_of("plots.report", program, data.subset(order), seed)
    like = next(iter(program.parameters()), rows[0])
    rows = tuple(row.to(like.device) for row in (rows[0].to(like.dtype), *rows[1:]))
    return evaluation.report(program, *rows, num_particles=200, max_data=max(max_data, 30), seed=seed)


def _diagnosis(page: _Page, found: evaluation.Report) -> None:
    faults = [f"{f.check.severity.upper()} {f.name}: {f.line}. {f.check.remedy}" for f in found.found]
    page.items(faults or [f"No fault or note in {len(found.findings)} checks of {found.num_data:,} data."])
    shown = [
        (_words(name), " ± ".join(rounded(e.value, e.standard_error)), e.unit, f"{e.num_data:,} × {e.num_particles:,}")
        for name, e in found.estimates().items()
    ]
    page.table(["", "value ± s.e.", "unit", "data × draws"], shown)
    page.picture(
        "Importance weights",
        "Estimates of log p(x) of data with k-hat above 0.7, hatched, are too low by an unknown amount; an effective "
        "sample size near K means a guide near the posterior.",
        lambda: diagnostics.weights(found.log_marginal_likelihood),
    )
    ranks, predictive = found.calibration, found.predictive
    if ranks is not None:
        page.picture(
            "Ranks of latents",
            "Flat for a guide that is the posterior, with the dots of the units between the dashed lines. Both ends "
            "high: the guide is too narrow; the middle high: too wide.",
            lambda: diagnostics.calibration(ranks),
        )
    if predictive is not None:
        page.picture(
            "Ranks of the data",
            "Of elements of x among draws of their likelihood; flat for a right likelihood.",
            lambda: diagnostics.predictive(predictive),
        )
    for name, why in found.not_measured.items():
        page.leave_out(name, why)


def _estimators(page: _Page, comparison: Comparison) -> None:
    page.heading("Estimators of the gradient")
    page.picture(
        "Signal-to-noise ratio against K",
        "Without unit; higher is better. A line that falls says that more particles make the gradient less clear.",
        lambda: diagnostics.snr(comparison),
    )
    page.picture(
        "Variance against time",
        "Further down and to the left is better; along a gray line, variance times time is the same.",
        comparison.cost_figure,
    )


def _record(page: _Page, history: History | None) -> None:
    if history is None:
        return
    page.heading("Settings")
    page.table([], _flat("", history.settings), words=True)
    if history.epochs:
        columns = history.columns()
        page.heading("History", "In nats per datum, unless the name says otherwise.")
        page.table(
            list(map(_words, columns)), [[f"{v:.5g}" for v in row] for row in zip(*columns.values(), strict=True)]
        )


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    """Nested settings as lines; what is none, and what a reader cannot use, is left out."""
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if key not in ("sha256", "program", "columns")}
        return [line for key, part in kept.items() for line in _flat(f"{name}, {key}" if name else key, part)]
    if isinstance(value, (list, tuple)) and any(isinstance(part, dict) for part in value):
        return [line for part in value for line in _flat(name, part)]
    return [] if value is None else [(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))]


def _words(name: str) -> str:
    return name.replace("_", " ")
