"""The page on a run: one file that says and shows what the run did, and loads nothing."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

import pyro_vae
from pyro_vae import VAE, conditionals, data, elbo, evaluation, fit, lab, likelihoods, nets, plots, priors, schedules
from pyro_vae.training.kept import kept_history

BITS = (torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()
LABELS = torch.arange(60) % 3


def vae_of(latent: int = 2) -> VAE:
    torch.manual_seed(0)
    return VAE(
        priors.StandardNormal(latent),
        likelihoods.Bernoulli(nets.MLP(latent, [8]), (1, 4, 4)),
        conditionals.DiagonalNormal(nets.MLP((1, 4, 4), [8]), latent),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a<b>&c"
    fit(
        vae_of(),
        BITS[:40],
        validation=BITS[40:],
        epochs=3,
        beta=schedules.linear(0.0, 1.0, epochs=2),
        patience=5,
        seed=7,
        folder=folder,
        progress=False,
    )
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    state = torch.get_rng_state()
    path = plots.report(run, BITS, labels=LABELS)
    assert path == run / "report.html"
    assert torch.equal(torch.get_rng_state(), state)
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []  # each tag is closed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.slow
def test_report_is_one_file_that_loads_and_runs_nothing(page: str) -> None:
    found = Tags(page)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "iframe", "object", "embed"})
    links = [v for _, attributes in found.tags for n, v in attributes.items() if n in ("src", "href", "srcset")]
    assert links
    assert all(str(link).startswith("data:") for link in links)
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert not re.search(r"url\(|@import|http", re.sub(r'src="[^"]*"', "", page))


@pytest.mark.slow
def test_report_shows_every_picture_that_applies_with_its_name_and_what_one_should_see(page: str) -> None:
    found = Tags(page)
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert [image["alt"] for image in images] == [
        "Importance weights",
        "Ranks of latents",
        "Ranks of the data",
        "The ELBO and its terms",
        "Rate and distortion",
        "Data and reconstructions",
        "Samples",
        "Interpolations",
        "The latent plane",
        "Where the data are",
        "Units in use",
    ]
    for image in images:
        content = base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,"))
        pixels = imread(io.BytesIO(content), format="png")
        assert pixels.shape[1] > 300
        assert pixels[..., :3].std() > 0.01  # something is drawn
    assert page.count("<figcaption>") == len(images)
    assert "should" in page


@pytest.mark.slow
def test_report_has_the_figures_of_the_best_epoch_and_the_settings(page: str, run: Path) -> None:
    words, history = Tags(page).words, kept_history(run)
    assert history.best_epoch is not None
    assert f"Figures of epoch {history.best_epoch}" in words
    row = history.epochs[history.best_epoch - 1]
    for name, value in row.items():
        place = words.index(name.replace("_", " "))
        assert words[place + 1] == f"{value:.6g}"
    assert words[words.index("validation kl") + 2] == "nats per datum"
    assert words[words.index("optimizer") :][:2] == ["optimizer", "Adam"]
    assert words[words.index("seed") + 1] == "7"
    assert words[words.index("beta, class") + 1] == "linear"
    assert words[words.index("versions, pyro_vae") + 1] == pyro_vae.__version__
    for line in history.telling():
        assert line in words


@pytest.mark.slow
def test_report_escapes_what_names_say(page: str) -> None:
    assert "VAE, a<b>&c" in "".join(Tags(page).words)
    assert "<b>&c" not in page


def test_kept_history_is_that_of_the_run(tmp_path: Path) -> None:
    history = fit(vae_of(), BITS, BITS, epochs=2, seed=0, folder=tmp_path / "a", progress=False, patience=1)
    kept = kept_history(tmp_path / "a")
    assert (kept.epochs, kept.stopped, kept.best_epoch) == (history.epochs, history.stopped, history.best_epoch)
    assert (kept.settings["loss"], kept.settings["epochs"]) == ("ELBO", 2)


def test_kept_history_of_a_run_that_is_not_over(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    fit(vae_of(), BITS, epochs=2, seed=0, folder=folder, progress=False)
    (folder / "weights.safetensors").unlink()  # which a run writes when it ends
    assert kept_history(folder).stopped.startswith("under way, or interrupted")
    (checkpoint,) = (folder / "checkpoints").iterdir()
    checkpoint.write_bytes(b"")
    with pytest.raises(ValueError, match="expected a file written by"):
        kept_history(folder)
    checkpoint.unlink()
    with pytest.raises(FileNotFoundError, match="kept_history: expected a checkpoint of the run"):
        kept_history(folder)


def test_report_of_a_saved_program_says_what_is_not_shown(tmp_path: Path) -> None:
    pyro_vae.save(tmp_path / "vae", vae_of(3))
    text = plots.report(tmp_path / "vae", BITS[:20], out=tmp_path / "page.html").read_text(encoding="utf-8")
    words = "".join(Tags(text).words)
    assert "Training: the folder holds no history of a run" in words
    assert "The latent plane: plots.manifold: expected one latent of 2 real elements" in words
    assert "Verdicts: report: expected at least 30 data" in words
    assert "No labels were given." in words


@pytest.mark.slow
def test_report_takes_verdicts_and_comparisons_that_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = vae_of()
    pyro_vae.save(tmp_path / "vae", vae)
    verdicts = evaluation.report(vae, BITS, num_particles=25)
    comparison = lab.compare(vae.model, vae.guide, BITS, [elbo.ELBO()], draws=100, progress=False)
    monkeypatch.setattr(evaluation, "report", None)  # not made again
    path = plots.report(tmp_path / "vae", BITS, verdicts=verdicts, comparison=comparison)
    text = path.read_text(encoding="utf-8")
    titles = [attributes["alt"] for tag, attributes in Tags(text).tags if tag == "img"]
    start = titles.index("Ranks of latents")
    assert titles[start : start + 4] == [
        "Ranks of latents",
        "Ranks of the data",
        "Signal-to-noise ratio against K",
        "Variance against time",
    ]
    assert "60 × 25" in Tags(text).words


def test_report_of_a_table_has_its_columns(tmp_path: Path) -> None:
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [5]), 3),
        conditionals.DiagonalNormal(nets.MLP(3, [5]), 2),
    )
    pyro_vae.save(tmp_path / "vae", vae)
    x = data.as_dataset(torch.randn(20, 3).numpy())
    text = plots.report(tmp_path / "vae", x).read_text(encoding="utf-8")
    titles = [attributes["alt"] for tag, attributes in Tags(text).tags if tag == "img"]
    assert titles[:2] == ["Columns of data and of draws", "How columns go together"]
    assert "Samples" not in titles


def test_report_leaves_an_earlier_one_whole_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyro_vae.save(tmp_path / "vae", vae_of())
    out = tmp_path / "page.html"
    out.write_text("earlier")
    with pytest.raises(ValueError, match=r"expected data of shape \(N, 1, 4, 4\)"):
        plots.report(tmp_path / "vae", torch.zeros(9, 1, 5, 5), out=out)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            plots.report(tmp_path / "vae", BITS[:20], out=out)
    assert out.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "vae"]
    with pytest.raises(ValueError, match="expected out the path of a file; got the folder"):
        plots.report(tmp_path / "vae", BITS, out=tmp_path)
    with pytest.raises(FileNotFoundError):
        plots.report(tmp_path / "nothing", BITS)
    with pytest.raises(
        ValueError, match=r"expected labels of shape \(60,\), numbers or words; got int64 of shape \(2,\)"
    ):
        plots.report(tmp_path / "vae", BITS, labels=[0, 1])


FRAME = """<iframe width="{width}" height="4000" style="border:0" srcdoc="{page}"></iframe><script>
onload = () => {{
  const found = document.querySelector("iframe").contentDocument, images = [...found.images];
  const broken = images.filter(image => !image.complete || !image.naturalWidth).length;
  const narrowest = Math.min(...images.map(image => Math.floor(image.getBoundingClientRect().width)));
  document.title = [found.documentElement.scrollWidth, broken, images.length, narrowest].join(",");
}};
</script>"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def chromium(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", *options,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_report_opens_in_chromium_at_the_width_of_a_desk_and_of_a_phone(run: Path, page: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    shot = tmp_path / "page.png"
    result = chromium(tmp_path, f"--screenshot={shot}", "--window-size=1200,5000", path.as_uri())
    assert "CONSOLE" not in result.stderr
    pixels = imread(shot)
    assert pixels.shape[1] == 1200
    assert pixels[..., :3].std() > 0.05
    for width in (1200, 400):  # in a frame, since no window of Chromium is as narrow as a phone
        (tmp_path / "frame.html").write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
        result = chromium(tmp_path, "--dump-dom", "--window-size=1300,5000", (tmp_path / "frame.html").as_uri())
        title = re.search(r"<title>(\d+),(\d+),(\d+),(\d+)</title>", result.stdout)
        assert title is not None
        content, broken, images, narrowest = map(int, title.groups())
        assert content == width  # nothing is beyond the right edge
        assert (broken, images) == (0, 11)
        assert narrowest > 200


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_chromium_tells_of_an_error_on_its_console(tmp_path: Path) -> None:
    """That the test above can fail."""
    (tmp_path / "page.html").write_text("<script>nothing()</script>")
    assert "CONSOLE" in chromium(tmp_path, "--dump-dom", (tmp_path / "page.html").as_uri()).stderr
