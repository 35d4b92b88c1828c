"""Files from strangers: damages every kind of file that the library reads, and counts what becomes of them.

    python benchmarks/fuzz.py --files 10000             # minutes
    python benchmarks/fuzz.py --kinds png run --seed 3  # some kinds, other damage
    python benchmarks/fuzz.py --only 4711               # one file, with the whole error

Each file is read by a child process as a user would read it, with room for 1 GiB of memory more than it had, 5 seconds,
and a hook that sees what Python is asked to import, start, delete or write elsewhere. It is *read* (all of the file is
as it was, or its kind has no checksum and it is a valid set), *refused* by an error in our words, or a *fault*.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile

SECONDS, ROOM = 5.0, 2**30
OUR_WORDS = re.compile(r"expected .* got ")
_NO_MEMORY = re.compile("allocate|MemoryError|not enough memory")


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        index: its number.
        kind: of file.
        damage: what was done to it, in words.
        outcome: read, refused or fault.
        what: the error, or the fault.
        seconds: that it took.
        growth: bytes that the process grew by at most.
    """

    index: int
    kind: str
    damage: str
    outcome: str
    what: str = ""
    seconds: float = 0.0
    growth: int = 0


class TooLong(BaseException):
    """Past any ``except Exception`` of a parser."""


class Watch:
    """Sees what Python is asked to do while it is armed, through an audit hook, of which a process has one for good."""

    _ALWAYS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.startfile", "subprocess.", "pickle.", "socket.")
    _CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink", "os.mkdir")

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.armed = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event.startswith(self._ALWAYS):
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "import" and arguments[0] not in sys.modules and not self._expected(arguments[0]):
            self.seen.append(f"import {arguments[0]}")
        elif event == "open" and self._writes(arguments) and self._outside(arguments[0]):
            self.seen.append(f"open for writing {arguments!r:.200}")
        elif event in self._CHANGES and any(
            self._outside(os.path.join(os.path.realpath(os.path.dirname(path)), "it"))
            for path in map(os.fsdecode, (each for each in arguments[:2] if isinstance(each, str | bytes | Path)))
        ):
            self.seen.append(f"{event} {arguments!r:.200}")

    @staticmethod
    def _expected(name: str) -> bool:
        return name.partition(".")[0] in sys.modules or name.startswith("_")

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        _, mode, flags = arguments
        return bool(set(mode or "") & set("wax+") or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)))

    def _outside(self, path: Any) -> bool:
        if isinstance(path, int):
            return False
        return not Path(os.path.realpath(os.fsdecode(path))).is_relative_to(self.folder)


@contextlib.contextmanager
def bounded(watch: Watch) -> Iterator[None]:
    """Context manager with an end to time and memory, and with the hook armed."""

    def end(*_: object) -> None:
        raise TooLong

    former = signal.signal(signal.SIGALRM, end)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + ROOM, limit[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    watch.seen, watch.armed = [], True
    try:
        yield
    finally:
        watch.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_AS, limit)


def status(name: str) -> int:
    """A size of this process, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{name}:")[2].split()[0]) * 1024


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def judged(error: BaseException, watch: Watch) -> tuple[str, str]:
    """Whether an error refuses a file in our words, and what it says."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, TooLong):
        return "fault", f"over {SECONDS:g} seconds"
    if any(isinstance(each, MemoryError) or _NO_MEMORY.search(str(each)) for each in causes(error)):
        return "fault", f"over 1 GiB: {said}"
    # Weights that are not finite are a run's to have: fit names them once a loss is none.
    kinds = ValueError | TypeError | OSError | FloatingPointError
    ours = isinstance(error, kinds) and OUR_WORDS.search(str(error))
    if not ours or not said.isprintable() or len(said) > 1500 or watch.seen:
        return "fault", said
    return "refused", said


def one(index: int, seed: int, kinds: dict[str, hostile.Kind], watch: Watch, *, loud: bool = False) -> Outcome:
    """Damages the file of a number and reads it."""
    rng = random.Random(f"{seed} {index}")
    name = list(kinds)[index % len(kinds)]
    kind = kinds[name]
    work = watch.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    kind.copy(work, rng)
    damage, whole = kind.damage(work, rng)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, start = status("VmRSS"), time.perf_counter()
    try:
        with bounded(watch), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kind.read(work)
        outcome, what = "read", ""
        if watch.seen:
            outcome, what = "fault", "; ".join(watch.seen)
        elif whole is not None and not whole(found):
            outcome, what = "fault", "read, though its checksum is another"
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is counted
        if loud:
            traceback.print_exc()
        outcome, what = judged(error, watch)
        if watch.seen:
            what += " AND " + "; ".join(watch.seen)
    growth = status("VmHWM") - before
    if growth > ROOM:
        outcome, what = "fault", f"grew by {growth} bytes; {what}"
    return Outcome(index, name, damage, outcome, what, time.perf_counter() - start, growth)


def work(arguments: argparse.Namespace, indices: range) -> None:
    """Of a child process: a line of JSON for each file, beginning with its number alone."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    if arguments.only is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=arguments.folder) as folder:
        kinds = hostile.kinds(Path(folder).resolve() / "whole", arguments.kinds)
        watch = Watch(Path(folder))
        for name, kind in kinds.items():  # what is imported at first use is imported now
            kind.copy(watch.folder / "work", random.Random(0))
            kind.read(watch.folder / "work")
            shutil.rmtree(watch.folder / "work")
            print(json.dumps(f"{name} is ready"), file=report, flush=True)
        for index in indices:
            print(json.dumps(index), file=report, flush=True)
            found = one(index, arguments.seed, kinds, watch, loud=arguments.only is not None)
            print(json.dumps(vars(found)), file=report, flush=True)


def outcomes(arguments: argparse.Namespace) -> Iterator[Outcome]:
    """Of all files, by child processes, each of which goes on where the former one died."""
    index = 0
    while index < arguments.files:
        command = [sys.executable, __file__, "--from", str(index), *sys.argv[1:]]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout is not None
            begun = -1
            while True:
                ready, _, _ = select.select([child.stdout], [], [], 60 if begun < 0 else SECONDS + 10)
                line = child.stdout.readline() if ready else b""
                if not line:
                    break
                content = json.loads(line)
                if isinstance(content, int):
                    begun = content
                elif isinstance(content, dict):
                    yield Outcome(**content)
                    index = begun + 1
            child.kill()
            died = child.wait()
        if begun < 0:
            raise SystemExit("The whole files cannot be read: run with --only 0 to see why.")
        if index < arguments.files:
            kind = (arguments.kinds or list(hostile.MADE))[begun % len(arguments.kinds or hostile.MADE)]
            yield Outcome(begun, kind, "?", "fault", f"the process died of {died}" if ready else "it hangs")
            index = begun + 1


def table(found: list[Outcome]) -> str:
    """Counts by kind."""
    lines = ["kind             files    read  refused  faults   slowest   largest growth"]
    kinds = dict.fromkeys(each.kind for each in found)
    for kind in [*sorted(kinds), ""]:
        some = [each for each in found if kind in ("", each.kind)]
        count = Counter(each.outcome for each in some)
        slowest, largest = (max((getattr(e, n) for e in some), default=0) for n in ("seconds", "growth"))
        lines.append(
            f"{kind or 'all':15s} {len(some):6d} {count['read']:7d} {count['refused']:8d} {count['fault']:7d} "
            f"{slowest:7.2f} s {largest / 2**20:10.0f} MiB"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(hostile.MADE))
    parser.add_argument("--folder", type=Path, help="where files are written; the system's for temporary ones if none")
    parser.add_argument("--only", type=int, help="the number of one file, whose error is shown in full")
    parser.add_argument("--from", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    first = getattr(arguments, "from")
    if arguments.only is not None:
        work(arguments, range(arguments.only, arguments.only + 1))
        return
    if first is not None:
        work(arguments, range(first, arguments.files))
        return
    start, found = time.perf_counter(), []
    for outcome in outcomes(arguments):
        found.append(outcome)
    print(table(found))
    print(f"seed {arguments.seed}, {time.perf_counter() - start:.0f} s")
    faults = defaultdict(list)
    for each in found:
        if each.outcome == "fault":
            faults[each.kind, re.sub(r"\d+|'[^']*'", "_", each.what)[:120]].append(each)
    for (kind, _), some in faults.items():
        print(f"{len(some):5d} x {kind}, --only {some[0].index}: {some[0].damage}: {some[0].what[:300]!r}")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
