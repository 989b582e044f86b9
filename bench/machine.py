"""What the measurements share: a heading that says where, when and how they were made, and the reading of the data folder.

Knows no model and no method.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import fewtune
from fewtune.data.example import Example
from fewtune.data.readers import read
from fewtune.data.sampling import spread
from fewtune.errors import DataError, FewtuneError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
FIRST = "the first of the file, or spread evenly over it where it is sorted by label"
"""Which test rows measure, where not all do."""
DEFAULT_SHARED = ROOT.parent / "shared"
_PACKAGES = ("torch", "transformers", "peft")
_PRIVATE = ("--shared", "--out")  # where things are on one machine, nothing about what was measured


@dataclass(frozen=True)
class DataSet:
    """`data/<name>/{train,test}.jsonl.gz` with its `meta.json`, and `splits/<name>.json`, under the folder `shared`."""

    shared: Path
    name: str

    def labels(self) -> tuple[str, ...]:
        """The labels in the order of `meta.json`; raises `DataError` for a set without any."""
        labels = tuple(self._json(f"data/{self.name}/meta.json").get("labels") or ())
        if not labels:
            raise _unusable(f"data set {self.name}", "a closed set of labels", "none", "Choose a classification data set.")
        return labels

    def fields(self) -> tuple[str, ...]:
        """The columns that hold the text, or the pair of texts."""
        given = self._json(f"data/{self.name}/meta.json")["fields"]
        return ("text",) if "text" in given else ("text_a", "text_b")

    def rows(self, part: str) -> tuple[Example, ...]:
        """All rows of `train` or `test`, in the order of the file."""
        path = self._path(f"data/{self.name}/{part}.jsonl.gz")
        return read(path, text=self.fields(), label="label", labeled=True, known=self.labels()).examples

    @cached_property
    def test(self) -> tuple[Example, ...]:
        """The rows that measure."""
        return self.rows("test")

    def first(self, count: int) -> tuple[Example, ...]:
        """The first `count` test rows, or all of them with 0; of a file that is sorted by label as many, spread evenly over it."""
        if self.is_sorted(count):
            return spread(self.test, count)
        return self.test[: count or None]

    def cut(self, count: int) -> dict[str, bool]:
        """What a run on `first` is known by beside `count`: nothing, unless rows are spread over the file."""
        return {"spread": True} if self.is_sorted(count) else {}

    def is_sorted(self, count: int) -> bool:
        """Whether the first `count` test rows lack a label, so that they cannot stand for the rest."""
        return 0 < count < len(self.test) and {row.label for row in self.test[:count]} != {row.label for row in self.test}

    @cached_property
    def train(self) -> tuple[Example, ...]:
        """The rows from which shots are drawn."""
        return self.rows("train")

    def shots(self, k: int, *, seed: int) -> tuple[Example, ...]:
        """The `k` rows a class that the splits name for `seed`; raises `DataError` if they name none."""
        splits, key = self._json(f"splits/{self.name}.json"), f"k{k}-s{seed}"
        if key not in splits:
            known = ", ".join(name for name in splits if name.startswith("k"))
            raise _unusable(f"splits of {self.name}", f"the draw {key}", "none of that name", f"Known: {known}.")
        return tuple(self.train[row] for row in splits[key]["train"])

    def pool(self, *, seed: int) -> tuple[Example, ...]:
        """The unlabelled rows that the splits name for `seed`, without their labels."""
        rows = self._json(f"splits/{self.name}.json")[f"pool-s{seed}"]["unlabeled"]
        return tuple(Example(self.train[row].fields) for row in rows)

    def _json(self, name: str) -> dict[str, dict[str, list[int]]]:
        return dict(json.loads(self._path(name).read_text(encoding="utf-8")))

    def _path(self, name: str) -> Path:
        if not (self.shared / name).is_file():
            raise _unusable(name, "a file in the folder of data sets", "none", "Name the folder with --shared.")
        return self.shared / name


def _unusable(where: str, expected: str, got: str, fix: str) -> DataError:
    return DataError(expected=expected, got=got, where=where, fix=fix)


def heading(title: str, script: str, arguments: Sequence[str]) -> str:
    """The first lines of a results file: what, when, on which machine, with which versions, by which command."""
    lines = [
        f"# {title}",
        "",
        f"- Date: {datetime.now(UTC).date().isoformat()}",
        f"- Machine: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, {memory()}{load()}",
        f"- Versions: fewtune {fewtune.__version__}, {versions()}, Python {platform.python_version()}",
        f"- Command: `{command(script, arguments)}`",
    ]
    return "\n".join(lines) + "\n"


def command(script: str, arguments: Sequence[str]) -> str:
    """What was typed, without what concerns one machine only.

    >>> command("bench/x.py", ["--shared", "/data", "--rows", "500", "--shared=/data"])
    'python bench/x.py --rows 500'
    """
    kept: list[str] = []
    private = False
    for argument in arguments:
        if not private and not argument.startswith(_PRIVATE):
            kept.append(argument)
        private = argument in _PRIVATE
    return shlex.join(["python", script, *kept])


def load() -> str:
    """What else the machine did while this ran, where that was much."""
    average = os.getloadavg()[0]
    return f", a load of {average:.1f} (other work ran at the same time)" if average > 1.5 else ""


def forget_peak() -> None:
    """Let the greatest memory use of this process be counted from now on."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_bytes() -> int:
    """The greatest memory use of this process so far (Linux: VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kilobytes) * 1024


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory() -> str:
    """How much memory the machine has."""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1024**3:.0f} GiB of memory"


def versions() -> str:
    """The versions of the packages that do the work."""
    return ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("|" + "|".join(line) + "|" if number == 1 else f"| {' | '.join(line)} |" for number, line in enumerate(lines))


def write(path: Path, text: str) -> None:
    """Write `text` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def guarded(run: Callable[[], None]) -> int:
    """The exit code of a script that does `run`: 2, with one line, for what fewtune refuses."""
    try:
        run()
    except FewtuneError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
