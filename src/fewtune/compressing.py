"""`fewtune compress`: a model's folder and rows in, the folder of a smaller model out. Knows files and what was promised; what makes a
model smaller is in `fewtune.strategies.compression`, what is measured in `fewtune.sizing`.

    model/ ─► way, way … ─► a candidate ─► measured beside the full model ─┐
           └► the next rung of the ladder …                               ─┴─► the best that keeps the promise ─► small/
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fewtune import __version__, artifact, job, registry, sources
from fewtune.data import overlap
from fewtune.data.example import Example, Split
from fewtune.data.sampling import derive, distinct
from fewtune.errors import ArtifactError, DataError, InputError, SpecError
from fewtune.folders import check_target
from fewtune.model import TunedModel
from fewtune.sizing import Beside, Measured, beside
from fewtune.sources import Say, Source
from fewtune.strategies.compression import COMPRESSIONS, Compression
from fewtune.strategies.distill import Distill
from fewtune.tasks.task import Task
from fewtune.train.fit import Progress, Session

Rung = tuple[Compression, ...]
"""Ways that are applied one after another."""
_ORDER = ("int8", "narrow", "distill", "prune", "share")
"""Ways of the table from cheap to dear; any others come last."""
_BOTH = (("narrow", "int8"), ("distill", "int8"))
"""Ways that make a model smaller together than each alone: what is pruned would be rounded whole, what is shared not at all."""
_FEWEST, _MOST_HELD = 10, 2000


@dataclass(frozen=True)
class Target:
    """A promise: at most `size` of the bytes, at least `speed` times as fast, at most `drop` points lost; all that are named hold."""

    size: float | None = None
    speed: float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        fits = {
            "size": (self.size is None or 0 < self.size < math.inf, "a share of the bytes, above 0"),
            "speed": (self.speed is None or 0 < self.speed < math.inf, "times as fast, above 0"),
            "drop": (self.drop is None or 0 <= self.drop < math.inf, "points lost, at least 0"),
        }
        registry.check_ranges(self, "--target", fits)
        if self.size is None and self.speed is None and self.drop is None:
            raise SpecError(expected="a promise", got="none", where="--target", fix="Name size=0.5, speed=2 or drop=1.")

    def __str__(self) -> str:
        """As a flag has it."""
        named = {"size": self.size, "speed": self.speed, "drop": self.drop}
        return ",".join(f"{name}={value:g}" for name, value in named.items() if value is not None)

    def kept(self, found: Beside) -> bool:
        """Whether the measured figures keep the promise; of points lost the mean over the rows decides, not the end of its interval."""
        return (
            (self.size is None or found.size <= self.size)
            and (self.speed is None or found.speed >= self.speed)
            and (self.drop is None or found.drop.value <= self.drop)
        )

    def order(self, found: Beside) -> tuple[float, float]:
        """The least is taken of those that keep the promise: where points lost are bounded the smallest, or, where a speed is named beside
        them, the fastest; else the one that loses least."""
        if self.drop is None:
            return found.drop.value, found.size
        return (found.size, -found.speed) if self.speed is None else (-found.speed, found.size)


@dataclass(frozen=True)
class Tried:
    """A rung of the ladder: the ways, and what was measured or why they were refused."""

    by: tuple[str, ...]
    found: Beside | None = None
    refused: str = ""
    keeps: bool = False

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        if self.found is None:
            return {"by": list(self.by), "refused": self.refused}
        return {"by": list(self.by), **self.found.to_dict(), "keeps": self.keeps}


@dataclass(frozen=True)
class Compressed:
    """What was tried, and which of it was written to `folder`: nothing where no rung kept the promise."""

    tried: tuple[Tried, ...]
    chosen: Tried | None
    target: Target | None
    folder: Path | None
    rows: dict[str, int]
    seconds: float

    @property
    def full(self) -> Measured | None:
        """The full model, measured beside the one that was chosen, or the last."""
        found = [one.found for one in (*self.tried, self.chosen) if one is not None and one.found is not None]
        return found[-1].full if found else None

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        return {
            "model": None if self.folder is None else str(self.folder),
            "kept": self.chosen is not None,
            "by": None if self.chosen is None else list(self.chosen.by),
            "target": None if self.target is None else str(self.target),
            "full": None if self.full is None else self.full.to_dict(),
            "tried": [one.to_dict() for one in self.tried],
            "rows": self.rows,
            "seconds": {"compress": self.seconds},
        }


def ladder(seed: int) -> tuple[Rung, ...]:
    """Each way of the table with its defaults, from cheap to dear; then narrower blocks, and fewer layers, in eight bits."""
    names = [name for name in _ORDER if name in COMPRESSIONS.members]
    names += [name for name in COMPRESSIONS if name not in _ORDER]
    return tuple(tuple(way(name, seed) for name in rung) for rung in [*((name,) for name in names), *_BOTH])


def way(text: str, seed: int) -> Compression:
    """The way that a flag names; it draws by `seed` unless it names one of its own."""
    found = COMPRESSIONS.from_text(text, "--by")
    own = "seed" in {part.partition("=")[0].strip() for part in text.partition(":")[2].split(",")}
    return found if own or not hasattr(found, "seed") else replace(found, seed=seed)  # type: ignore[type-var]


def compress_files(
    folder: Path,
    data: Source,
    out: Path,
    *,
    by: Rung = (),
    target: Target | None = None,
    unlabeled: Source | None = None,
    teachers: Sequence[Path] = (),
    device: str | None = None,
    seed: int = 42,
    overwrite: bool = False,
    say: Say = lambda line: None,
    progress: Progress = lambda what, done, steps, loss: None,
) -> Compressed:
    """Read the model and the rows, make it smaller and write it to `out`: by these ways, or by the best rung of the ladder.

    Of `teachers` a folder is a model that a student of `distill` learns from, too; a file holds rows with labels from elsewhere, as
    `fewtune.data.teacher` has them, for all ways that learn. A part of the labelled rows is held out to measure; nothing is written where
    no rung keeps the promise. Raises `InputError` for what cannot be used. What was tried is kept beside `out` until a model is written, so
    the same command, or one with another promise, goes on.
    """
    if not by and target is None:
        raise SpecError(
            expected="ways or a promise", got="neither", where="compress", fix="Give --by distill:layers=3, or --target size=0.5."
        )
    if by and not any(isinstance(way, Distill) for way in by) and any(not one.is_file() for one in teachers):
        raise SpecError(
            expected="a way that has teachers", got="none", where="--teacher", fix="Add --by distill, or leave the teachers out."
        )
    manifest = artifact.read_manifest(folder)
    models = tuple(one for one in teachers if not one.is_file())
    fingerprints = (manifest["fingerprint"], *(artifact.read_manifest(one)["fingerprint"] for one in models))
    given = _Given(data, unlabeled, tuple(replace(data, data=one, label=None) for one in teachers if one.is_file()))
    given.check()
    check_target(out, overwrite=overwrite)
    work, start = _work(out.absolute()), time.perf_counter()
    full = _whole(folder, device)
    split, held = given.read(full.task, seed, say)
    if manifest.get("exits"):
        say("The exits are left out: what they promise was shown of the full model.")
    trial = _Trial(folder, full, models, split, held, work, fingerprints, device, seed, say, progress)
    tried = [trial.run(rung, refuse=not by) for rung in ((by,) if by else ladder(seed))]
    tried = [replace(one, keeps=one.found is not None and (target is None or target.kept(one.found))) for one in tried]
    kept = [one for one in tried if one.keeps and one.found is not None]
    chosen = min(kept, key=lambda one: (target or Target(drop=0.0)).order(one.found)) if kept else None  # type: ignore[arg-type]
    if chosen is not None:
        trial.write(chosen, out.absolute())
        shutil.rmtree(work, ignore_errors=True)
    learned = {"learned": len(split.train), "unlabeled": len(split.unlabeled)}
    counts = {**learned, **({"taught": len(split.taught)} if split.taught else {}), "measured": len(held)}
    return Compressed(tuple(tried), chosen, target, out if chosen else None, counts, time.perf_counter() - start)


@dataclass(frozen=True)
class _Given:
    """The files with rows: labelled, without labels, labelled by others."""

    data: Source
    unlabeled: Source | None
    taught: tuple[Source, ...]

    def check(self) -> None:
        """Raise `DataError` for one that cannot be read, before a model is loaded."""
        for source in (self.data, *self.taught, *([self.unlabeled] if self.unlabeled else [])):
            sources.check_source(source)

    def read(self, task: Task, seed: int, say: Say) -> tuple[Split, tuple[Example, ...]]:
        """What is learned from, and the rows that measure, of which none is among it."""
        rows = sources.read(self.data, labeled=True, task=task, say=say).examples
        learn, held = parts(rows, seed)
        if len(learn) + len(held) < len(rows):
            say(f"{len(rows) - len(learn) - len(held):,} labelled rows have a text that stands there before and are left out.")
        pool = sources.read(self.unlabeled, labeled=False, task=task, say=say).examples if self.unlabeled else ()
        taught = tuple(row for source in self.taught for row in sources.teacher_rows(source, task))
        split = Split(train=learn, unlabeled=_without(held, pool), taught=_without(held, taught))
        if left := len(pool) + len(taught) - len(split.unlabeled) - len(split.taught):
            say(f"{left:,} other rows are left out: their texts are among those that measure.")
        say(f"{len(learn):,} labelled rows are learned from, {len(held):,} measure.")
        return split, held


def _without(held: tuple[Example, ...], rows: tuple[Example, ...]) -> tuple[Example, ...]:
    found = overlap.found_in(rows, {"held": held})
    return tuple(row for number, row in enumerate(rows) if number not in found)


def parts(rows: Sequence[Example], seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(to learn from, to measure by): a fifth of the rows measures, 2,000 at most; a text that stands twice counts once. Raises
    `DataError` for too few."""
    rows = distinct(rows)
    held = min(_MOST_HELD, max(len(rows) // 5, _FEWEST))
    if len(rows) < 2 * _FEWEST:
        fix = "Give more rows with --data: some are held out to measure."
        raise DataError(expected=f"at least {2 * _FEWEST} labelled rows, no two alike", got=str(len(rows)), where="compress", fix=fix)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(derive(seed, "compress", "parts"))).tolist()
    return tuple(rows[index] for index in order[held:]), tuple(rows[index] for index in order[:held])


def _work(out: Path) -> Path:
    """The hidden folder beside `out`, where candidates are made; raises `ArtifactError` at once where none can be."""
    work = out.with_name(f".{out.name}.work")
    try:
        work.mkdir(parents=True, exist_ok=True)
        if not any(work.iterdir()):
            work.rmdir()  # what is refused before there is a candidate leaves nothing behind
    except OSError as error:
        got = error.strerror or str(error)
        raise ArtifactError(expected="a place to write to", got=got, where=str(out), fix="Name another folder.") from error
    return work


def _there(folder: Path) -> bool:
    try:
        return bool(artifact.read_manifest(folder))
    except ArtifactError:
        return False


def _whole(folder: Path, device: str | None) -> TunedModel:
    """The model without its exits, on a PLM of its own."""
    return replace(artifact.load_one(folder, device=device), exits=None)


@dataclass(frozen=True)
class _Trial:
    """What every rung is tried with."""

    folder: Path
    full: TunedModel
    teachers: tuple[Path, ...]
    split: Split
    held: tuple[Example, ...]
    work: Path
    fingerprints: tuple[str, ...]
    device: str | None
    seed: int
    say: Say
    progress: Progress

    def run(self, rung: Rung, *, refuse: bool) -> Tried:
        """Make the candidate, if it is not there yet, and measure it; with `refuse` a model that it does not suit is no error."""
        by = tuple(map(COMPRESSIONS.to_text, rung))
        self.say(f"{' + '.join(by)}:")
        try:
            path = self._made(rung, by)
        except InputError as error:
            if not refuse:
                raise
            self.say(f"refused: {error}")
            return Tried(by, refused=str(error))
        small = _whole(path, self.device)
        found = beside((self.folder, self.full), (path, small), self.held)
        self.say(f"size {found.size:.2f}, speed {found.speed:.2f}, {found.drop.value:+.1f} points lost.")
        return Tried(by, found)

    def _key(self, by: tuple[str, ...]) -> str:
        rows = [job.plain_rows(part) for part in (self.split.train, self.split.unlabeled, self.split.taught)]
        machine = [__version__, torch.__version__, torch.get_num_threads(), str(self.full.backbone.device)]
        return registry.key_of([by, self.fingerprints, *rows, *machine, self.seed])

    def _made(self, rung: Rung, by: tuple[str, ...]) -> Path:
        """The candidate's folder, which an earlier run of the same may have written; what a shorter rung has made is gone on with."""
        path = self._path(by)
        done = next((number for number in range(len(by), 0, -1) if _there(self._path(by[:number]))), 0)
        if done:
            self.say("It is there already." if done == len(by) else f"{' + '.join(by[:done])} is there already.")
        if done == len(by):
            return path
        # Each rung starts from a model of its own, for a way may install its deltas on the PLM that it was given.
        model = _whole(self._path(by[:done]) if done else self.folder, self.device)
        key = self._key(by)
        session = Session(self.work, key, progress=self.progress, say=self.say)
        for number, one in enumerate(rung[done:], start=done):
            model = self._smaller(one, model, session.child(f"{key[:8]}-{number}"))
        about = {name: value for name, value in model.about.items() if name not in ("estimate", "rungs")}
        compressed = {"by": [*about.get("compressed", {}).get("by", ()), *by[done:]], "from": self.fingerprints[0]}
        artifact.save(replace(model, about={**about, "compressed": compressed}), path, overwrite=True)
        return path

    def _path(self, by: tuple[str, ...]) -> Path:
        return self.work / self._key(by)[:16]

    def _smaller(self, way: Compression, model: TunedModel, session: Session) -> TunedModel:
        """What one way makes of the model; who learns from teachers learns from the others, too."""
        if not (self.teachers and isinstance(way, Distill)):
            return way.run(model, self.split, session=session)
        others = [_whole(folder, self.device) for folder in self.teachers]
        return way.taught_by((model, *others), self.split, session=session)

    def write(self, chosen: Tried, out: Path) -> None:
        """The candidate with what was measured of it, but for speed, which is no two times the same: a folder's bytes are."""
        model = _whole(self._path(chosen.by), self.device)
        assert chosen.found is not None
        measured = {"rows": len(self.held), **{name: chosen.found.to_dict()[name] for name in ("size", "drop")}}
        about = {**model.about, "compressed": {**model.about["compressed"], "measured": measured}}
        artifact.save(replace(model, about=about), out, overwrite=True)
