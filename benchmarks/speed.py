"""All tables of speed in one command, by ratio, beside those that are committed.

    python benchmarks/speed.py                       # measures and compares: half an hour on a quiet machine
    python benchmarks/speed.py --only counts vamp
    python benchmarks/speed.py --keep                # and writes benchmarks/results/speed, to be committed
    python benchmarks/speed.py --table               # of what is committed

Every figure is the time of ours over that of a peer, from blocks that ran side by side on one thread, with a standard
error from the spread of the blocks. A ratio is called slower where it has grown by more than 5%, the largest standard
error that was seen on a busy machine, and by three standard errors of the difference. Other processors have other
ratios: compare on the one that was committed. A benchmark that fails is named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "speed"
PEERS = ["--only", "by hand, compiled", "pyro_vae, eager", "Pyro, fused, no validation"]
STEP = ["step_time.py", "--rounds", "9", "--steps", "3", *PEERS]

TABLES = {
    "mlp": [*STEP, "NumPyro, jitted update"],
    "mlp, IWELBO(50)": [*STEP, "--particles", "50", "--batch-size", "100", "--steps", "1"],
    "vamp": [*STEP, "--program", "vamp"],
    "conv": [*STEP, "--program", "conv"],
    "counts": [*STEP, "--program", "counts"],
    "estimators": ["estimators.py", "--particles", "5"],
    "log p(x)": ["evaluation.py", "--images", "20", "--blocks", "7"],
}
MARGIN = 0.05

Rows = dict[str, dict[str, float]]


def file(name: str) -> Path:
    return RESULTS / f"{re.sub('[^a-zA-Z0-9]+', '-', name).strip('-')}.json"


def committed(name: str) -> Rows:
    """The rows of a table that are kept, by ``ours / peer``; none where it was never measured."""
    return json.loads(file(name).read_text("utf-8"))["rows"] if file(name).exists() else {}


def measure(name: str, path: Path) -> dict[str, Any] | None:
    """What a table finds now, or None where its benchmark fails."""
    script, *words = TABLES[name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)}
    command = [sys.executable, str(FOLDER / script), *words, "--json", str(path)]
    print(f"{name}: {' '.join(command[1:-2])}", flush=True)
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if result.returncode or not path.exists():
        print((result.stdout + result.stderr)[-2000:])
        return None
    return json.loads(path.read_text("utf-8"))


def is_slower(before: dict[str, float], now: dict[str, float]) -> bool:
    """Whether a ratio has grown beyond the margin and three standard errors."""
    error = math.hypot(before["error"] / before["ratio"], now["error"] / now["ratio"])
    return now["ratio"] / before["ratio"] - 1 > max(MARGIN, 3 * error)


def compared(name: str, rows: Rows) -> tuple[list[str], int]:
    """A line for each ratio, and how many are slower."""
    lines, slower = [], 0
    for pair, now in rows.items():
        line = f"{name:16} {pair:55}"
        before = committed(name).get(pair)
        if before is None:
            lines.append(f"{line} {'':16} {now['ratio']:7.3f} ± {now['error']:.3f}")
            continue
        worse = is_slower(before, now)
        slower += worse
        lines.append(
            f"{line} {before['ratio']:7.3f} ± {before['error']:.3f}  {now['ratio']:7.3f} ± {now['error']:.3f} "
            f"{now['ratio'] / before['ratio'] - 1:+8.1%} {'slower' if worse else ''}".rstrip()
        )
    return lines, slower


def table() -> str:
    """The ratios that are kept, as Markdown."""
    lines = ["| table | ours / peer | ratio of times | standard error |", "|---|---|---|---|"]
    for name in TABLES:
        for pair, row in committed(name).items():
            lines.append(f"| {name} | {pair} | {row['ratio']:.2f} | {row['error']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE")
    parser.add_argument("--keep", action="store_true", help="write what is found over what is committed")
    parser.add_argument("--table", action="store_true", help="print what is committed, and measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    lines, slower, failed = [f"{'':73}committed        now              change"], 0, []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            found = measure(name, Path(folder, "found.json"))
            if found is None:
                failed.append(name)
                continue
            Path(folder, "found.json").unlink()
            more, worse = compared(name, found["rows"])
            lines, slower = lines + more, slower + worse
            if arguments.keep:
                RESULTS.mkdir(parents=True, exist_ok=True)
                file(name).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(f"\n{slower} slower; failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
