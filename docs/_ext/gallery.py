"""Sphinx extension: the gallery, made from the first words of every example and what it prints or draws.

Outputs are kept in ``data/gallery/``: ``<example>.txt``, with the hash of the example that printed it, and
``<example>.png``, where there is a picture. ``python docs/_ext/gallery.py`` runs the examples that have changed and
writes them anew.
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OUTPUTS = ROOT / "docs" / "data" / "gallery"

# Arguments by which an example runs within a minute, and the picture that it leaves, if any.
RUNS: dict[str, tuple[list[str], str]] = {
    "anomalies_breast_cancer": ([], ""),
    "choose_parts": (["--epochs", "2", "--priors", "standard", "real-nvp", "--guides", "diagonal-normal"], ""),
    "compare_elbo_estimators": (["--dataset", "digits", "--draws", "100", "--steps", "100"], "off_snr.png"),
    "digits_as_counts": (["--epochs", "10", "--seeds", "2"], ""),
    "digits_picture": ([], "digits.png"),
    "elbo_in_bytes": ([], ""),
    "impute_wine": ([], ""),
    "mnist_svi": (["--dataset", "digits", "--epochs", "20"], "samples.png"),
    "sklearn_pipeline": (["--latents", "2", "--epochs", "20"], ""),
}


def digest(example: Path) -> str:
    """What an output belongs to: the example and its arguments."""
    return hashlib.sha256(example.read_bytes() + repr(RUNS[example.stem]).encode()).hexdigest()[:16]


def examples() -> list[Path]:
    """The examples, each of which has a line in ``RUNS``."""
    found = sorted((ROOT / "examples").glob("*.py"))
    if differ := {path.stem for path in found} ^ RUNS.keys():
        raise ValueError(f"docs/_ext/gallery.py: expected a run of each example; {sorted(differ)} differ.")
    return found


def page() -> str:
    """The gallery in MyST Markdown."""
    lines = [
        "# Gallery\n\nExamples of under 100 lines each, which are run by the tests. Without MNIST they use "
        "scikit-learn's data.\n"
    ]
    for path in examples():
        title, _, _ = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")
        arguments, picture = RUNS[path.stem]
        lines.append(
            f"## {path.stem}\n\n{title}\n\n```bash\n{' '.join(['python', f'examples/{path.name}', *arguments])}\n```\n"
        )
        output = OUTPUTS / f"{path.stem}.txt"
        if output.exists():
            printed = output.read_text(encoding="utf-8").partition("\n")[2].strip().splitlines()
            shown = printed if len(printed) <= 24 else [*printed[:22], "..."]
            lines.append("```text\n" + "\n".join(shown) + "\n```\n")
        if picture and (OUTPUTS / f"{path.stem}.png").exists():
            lines.append(f"![What {path.name} draws](data/gallery/{path.stem}.png)\n")
        code = f"```{{literalinclude}} ../examples/{path.name}\n```"
        lines.append(f"<details><summary>The whole example</summary>\n\n{code}\n\n</details>\n")
    return "\n".join(lines)


def current(path: Path) -> bool:
    """Whether the output in the repository is that of the example as it is."""
    output = OUTPUTS / f"{path.stem}.txt"
    return output.exists() and output.read_text(encoding="utf-8").partition("\n")[0] == digest(path)


def main() -> None:
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    for path in examples():
        if current(path):
            continue
        arguments, picture = RUNS[path.stem]
        with tempfile.TemporaryDirectory() as folder:
            out = ["--out", folder] if picture else []
            command = [sys.executable, str(path), *arguments, *out]
            environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
            result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
            printed = result.stdout.replace(folder, "runs")
            (OUTPUTS / f"{path.stem}.txt").write_text(f"{digest(path)}\n{printed}", encoding="utf-8")
            if picture:
                (OUTPUTS / f"{path.stem}.png").write_bytes((Path(folder) / picture).read_bytes())
        print(path.stem, flush=True)


def setup(app: Any) -> dict[str, bool]:
    def write(app: Any, config: Any) -> None:
        path, text = Path(app.srcdir) / "gallery.md", page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")

    app.connect("config-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    main()
