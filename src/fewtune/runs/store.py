"""Results as append-only JSON lines: what is there is never changed, and a line that a crash cut short counts for nothing.

Knows no method and no data. Several processes may write to one file.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fewtune import registry
from fewtune.errors import DataError, SpecError
from fewtune.tasks.metrics import Interval, Ratio


@dataclass(frozen=True)
class Result:
    """What a job came to: metrics and what each test row adds to the `metric` that methods are compared by, or why it `failed`.

    That is a 0 or 1 each in `right` where rows are right or wrong, else what stands `over` and `under` the line (see `Ratio`).
    `data`, `method`, `shots` and `seed` say what the job was called when it ran; what it was is in `key`.
    """

    key: str
    data: str
    method: str
    shots: int | None
    seed: int
    failed: str | None = None
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    metric: str = "accuracy"
    right: str = ""
    over: tuple[float, ...] = ()
    under: tuple[float, ...] = ()
    trained_parameters: int = 0
    seconds: float = 0.0

    def having(self, ratio: Ratio) -> Result:
        """The result with what each row adds to its metric."""
        if ratio.counts:
            return replace(self, metric=ratio.metric, right="".join("01"[right] for right in ratio.over_N.astype(int)))
        return replace(self, metric=ratio.metric, over=tuple(ratio.over_N.tolist()), under=tuple(ratio.under_N.tolist()))

    @property
    def ratio(self) -> Ratio:
        """What each row adds to the metric."""
        if self.over:
            return Ratio(self.metric, np.array(self.over), np.array(self.under))
        return Ratio(self.metric, np.array([float(right) for right in self.right]), np.ones(len(self.right)))


@dataclass(frozen=True)
class Store:
    """The results in one file."""

    path: Path

    def load(self) -> dict[str, Result]:
        """Each job's result by its key, the first where there are several; raises `DataError` for lines that are no results."""
        try:
            whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unusable(error) from None
        found: dict[str, Result] = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            result = _read(line, f"{self.path}:{number}")
            found.setdefault(result.key, result)
        return found

    def append(self, result: Result) -> None:
        """Add a line and wait until it is on the disk; raises `DataError` where the file cannot be written."""
        line = json.dumps(registry.to_dict(result), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            with open(self.path, "ab+", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                _drop_torn(file.fileno())
                written = os.write(file.fileno(), line)
                if written < len(line):
                    raise OSError(0, "The disk is full")
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> DataError:
        fix = "Change `out` in the job file."
        return DataError(expected="a file for results", got=error.strerror or "none", where=str(self.path), fix=fix)


def _drop_torn(file: int) -> None:
    """Cut off a last line without its end: whoever was writing it holds the lock no more, so it is dead."""
    size = os.fstat(file).st_size
    end = size
    while end and os.pread(file, 1, end - 1) != b"\n":
        block = os.pread(file, min(4096, end), max(0, end - 4096))
        end = end - len(block) + block.rfind(b"\n") + 1
    if end < size:
        os.ftruncate(file, end)


def _read(line: bytes, where: str) -> Result:
    try:
        return registry.from_dict(Result, json.loads(line), where)
    except (ValueError, AttributeError, TypeError, SpecError):
        fix = "Remove the line, or change `out` in the job file."
        raise DataError(
            expected="a result of `fewtune compare`", got=repr(line[:60].decode(errors="replace")), where=where, fix=fix
        ) from None
