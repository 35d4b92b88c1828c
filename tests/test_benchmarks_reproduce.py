"""The table of published figures: what a row says of its run, and what is refused before a run begins."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COMMITTED = BENCHMARKS / "results" / "reproduce"


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("reproduce")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def cells(table: str) -> list[dict[str, str]]:
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_table_has_the_figures_of_runs_and_marks_those_of_fewer_images(reproduce: Any) -> None:
    figures = json.loads((COMMITTED / "iwae-1-iwae-5-400-0.json").read_text("utf-8"))
    for seed, images in enumerate((10_000, 100)):
        made = figures | {"seed": seed, "NLL images": images, "-ELBO": 92.5, "NLL": 86.25, "NLL error": 0.5}
        (reproduce.RESULTS / f"{seed}.json").write_text(json.dumps(made), "utf-8")
    full, some = cells(reproduce.table())
    assert (full["-ELBO"], full["NLL, nats"], full["difference"]) == ("92.50", "86.25 ± 0.50", "+0.71")
    assert full["passes"] == "400 of 3,280"
    assert some == full | {"NLL, nats": "86.25 ± 0.50 of 100 images"}


def test_committed_runs_are_whole_ones_of_rows_and_settings_that_their_names_say(reproduce: Any) -> None:
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in COMMITTED.glob("*.json")}
    assert found
    for name, its in found.items():
        some = "" if its["NLL images"] == reproduce.TEST_IMAGES else f"-{its['NLL images']}"
        assert name == f"{its['row']}-{its['passes']}-{its['seed']}{some}"
        row = reproduce.ROWS[its["row"]]
        assert (its["published"], its["published units"]) == (row.published, row.units), name
        assert its["as published"] == (its["passes"] == 3280), name
        assert its["NLL images"] == 10_000 or its["passes"] < 100, name  # a long run is evaluated whole
        assert its["NLL"] < its["-ELBO"], name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vamp", "--nll-images", "10001"], "--nll-images: expected 1 to 10,000; got 10,001"),
        (["vamp", "--passes", "0"], "--passes: expected 1 to 3,280; got 0"),
        (["--table"], "expected runs in .*; got none. Name a row to run: iwae-1-vae-1, "),
        (["vamps"], r"argument ROW: expected one of iwae-1-vae-1, .*, sbn-wake-sleep-5; got 'vamps'"),
    ],
)
def test_what_cannot_be_run_or_shown_is_said_at_once(
    arguments: list[str],
    words: str,
    reproduce: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["reproduce.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        reproduce.main()
    assert re.search(words, capsys.readouterr().err)


def test_readme_shows_rows_as_they_were_measured() -> None:
    found = [json.loads(path.read_text("utf-8")) for path in COMMITTED.glob("*.json")]
    measured = [
        f"| {its['passes']:,} | {its['NLL']:.2f} ± {its['NLL error']:.2f} | {its['published']:.2f} |"
        for its in found
        if its["published"] is not None
    ]
    readme = (BENCHMARKS.parent / "README.md").read_text("utf-8")
    shown = [row for row in readme.splitlines() if row.startswith(("| VAE, k", "| IWAE, k"))]
    assert shown
    assert all(any(row.replace("± .", "± 0.").count(each) for each in measured) for row in shown)
