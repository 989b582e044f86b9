"""What `peft_accuracy.py` shows of its runs: a row for each method, and each method against full tuning of the same rows."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accuracy_plan import PARTS, Job, Part, jobs
from machine import FIRST, heading, table
from runs import spread
from scipy.stats import norm, t

COLUMNS = ("method", "data", "trained on", "share trained", "bytes", "accuracy", "processor s", "seeds")


def rows_of(asked: Sequence[Job], results: Mapping[Job, Mapping[str, Any]]) -> list[list[str]]:
    """One row for each method, data set and size; what is not finished yet is said to be missing."""
    groups: dict[tuple[str, int, int, str], list[Job]] = {}
    for job in asked:
        groups.setdefault((job.data, job.k, job.rows, job.method), []).append(job)
    return [_row(group, [results[job] for job in group if job in results]) for group in groups.values()]


def _row(group: Sequence[Job], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    job = group[0]
    size = f"{job.k} a class" if job.k else f"{job.rows:,} rows" if job.rows else "all rows"
    start = [job.method, job.data, size]
    if not runs:
        return [*start, "–", "–", "missing", "–", f"0 of {len(group)}"]
    if refused := [run["refused"] for run in runs if "refused" in run]:
        return [*start, "–", "–", "refused: " + " ".join(refused[0].split()), "–", f"{len(runs)} of {len(group)}"]
    return [
        *start,
        f"{100 * runs[0]['share_trained']:.3g} %",
        f"{runs[0]['bytes']:,}",
        _accuracy(job, runs),
        f"{statistics.mean(run['fit_processor_seconds'] for run in runs):.0f}",
        f"{len(runs)} of {len(group)}",
    ]


def _accuracy(job: Job, runs: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over the seeds; with other domains, on the one trained on and on each other, and the others' mean."""

    def on(name: str) -> list[float]:
        return [run["tests"][name]["metrics"]["accuracy"]["value"] for run in runs]

    if not job.others:
        return spread(on(job.data))
    means = [statistics.mean(values) for values in zip(*map(on, job.others), strict=True)]
    each = ", ".join(f"{name} {spread(on(name))}" for name in job.others)
    return f"{spread(on(job.data))}; others {spread(means)} ({each})"


# Against full tuning


@dataclass(frozen=True)
class Contrast:
    """A method against full tuning of the same rows, run by run: R runs, shares of right answers; `where` tells what they are of, and
    `tested` how many rows each is of."""

    method: str
    where: str
    share: float
    tested: int
    own_R: tuple[float, ...]
    full_R: tuple[float, ...]

    @property
    def points(self) -> tuple[float, float, float]:
        """The mean difference and its 90 % interval, in points: by Student's t over runs, and no narrower than test rows allow, as if each
        side had its own."""
        found = [100 * (own - full) for own, full in zip(self.own_R, self.full_R, strict=True)]
        mean, runs = statistics.mean(found), len(found)
        half = 100 * float(norm.ppf(0.95)) * math.sqrt(sum(p * (1 - p) for p in (*self.own_R, *self.full_R)) / self.tested) / runs
        if runs > 1:
            half = max(half, float(t.ppf(0.95, runs - 1)) * statistics.stdev(found) / math.sqrt(runs))
        return mean, mean - half, mean + half

    @property
    def verdict(self) -> str:
        """What the interval says."""
        _, low, high = self.points
        return "better" if low > 0 else "worse" if high < 0 else "cannot be told apart"

    def cells(self) -> list[str]:
        """A row of the table."""
        mean, low, high = self.points
        means = (f"{100 * statistics.mean(values):.1f}" for values in (self.own_R, self.full_R))
        return [
            self.method,
            self.where,
            f"{100 * self.share:.3g} %",
            *means,
            f"{mean:+.1f} ({low:+.1f} to {high:+.1f})",
            str(len(self.own_R)),
            self.verdict,
        ]


AGAINST = ("method", "on", "share trained", "accuracy", "full, same runs", "difference (90 %)", "runs", "against full")
VERDICTS = ("better", "worse", "cannot be told apart")
OTHERS = "other domains"


def contrasts(part: Part, asked: Sequence[Job], results: Mapping[Job, Mapping[str, Any]]) -> list[Contrast]:
    """Each method over all runs that it shares with full tuning: size by size where there are several, and on the other domains."""
    done = {(job.data, job.k, job.rows, job.seed, job.method): results[job] for job in asked if "metrics" in results.get(job, {})}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    shares: dict[str, float] = {}
    tested: dict[str, int] = {}
    for (*place, method), run in done.items():
        full = done.get((*place, "full"))
        if full and method != "full":
            shares[method] = run["share_trained"]
            for where, names in _places(part, run).items():
                pair = tuple(statistics.mean(each["tests"][name]["metrics"]["accuracy"]["value"] for name in names) for each in (run, full))
                found.setdefault((where, method), []).append(pair)
                tested[where] = sum(run["tests"][name]["test_rows"] for name in names)
    order = [(where, method) for where in dict.fromkeys(where for where, _ in found) for method in part.methods if (where, method) in found]
    return [Contrast(method, where, shares[method], tested[where], *zip(*found[where, method], strict=True)) for where, method in order]


def _places(part: Part, run: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What the accuracies of a run are of → the data sets tested."""
    own = f"{run['rows']:,} rows" if len(part.sizes) > 1 else "its own domain" if run["others"] else "test rows"
    return {own: (run["data"],), **({OTHERS: tuple(run["others"])} if run["others"] else {})}


def findings(found: Sequence[Contrast]) -> list[str]:
    """What the data show, and what they do not: the methods of each verdict, place by place."""
    lines = []
    for where in dict.fromkeys(contrast.where for contrast in found):
        mine = [contrast for contrast in found if contrast.where == where]
        said = {verdict: [contrast.method for contrast in mine if contrast.verdict == verdict] for verdict in VERDICTS}
        groups = (f"{verdict}: {', '.join(methods) or 'none'}" for verdict, methods in said.items() if methods or verdict == "better")
        lines.append(f"- On {where}: {'; '.join(groups)}.")
    return lines


# The page


def page(options: argparse.Namespace, results: Mapping[Job, Mapping[str, Any]], arguments: Sequence[str]) -> str:
    """The results file."""
    codes = ", ".join(dict.fromkeys(result["code"] for result in results.values()))
    facts = (
        f"- Tested on {options.test_rows or 'all'} test rows ({FIRST}); float32; code: {codes or 'none yet'} (hash of its sources)",
        "- Steps of 8 rows: fewtune's default, at least three passes over the rows; every delta with its own default learning rate",
        "",
        "Accuracy in percent, mean ± sample deviation over the seeds, which choose the training rows and all that is random. *Share "
        "trained*: of the backbone's weights, the head aside; *bytes*: of the numbers in an artifact, the head with them. *adapter* "
        "is *pfeiffer*. Differences to full tuning are run by run, their intervals by Student's t and no narrower than the test rows "
        "allow; that of a single run knows nothing of other training rows.",
    )
    parts = [heading("Accuracy of the ways of tuning", "bench/peft_accuracy.py", arguments) + "\n".join(facts)]
    for name in options.part:
        for part in PARTS[name]:
            asked = list(jobs(name, part, options))
            missing = sum(job not in results for job in asked)
            state = f"{missing} of {len(asked)} runs are still missing." if missing else f"All {len(asked)} runs are there."
            parts += [f"## {part.title} ({part.backbone})", state, table(COLUMNS, rows_of(asked, results))]
            if found := contrasts(part, asked, results):
                parts += [f"Against full tuning. {part.benefit}", table(AGAINST, [contrast.cells() for contrast in found])]
                parts += ["\n".join(findings(found))]
    return "\n\n".join(parts) + "\n"
