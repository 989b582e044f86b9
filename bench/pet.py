"""PET and iPET: members one by one, together, and the small student that learns from what they say of unlabelled rows.

For each data set and seed: every pattern on smollm2-135m and the encoder minilm-l6, tuned on K rows a class; the members together; the
students of the first and of the last generation, whether or not later ones are better. With `--foreign` also what `fit` keeps when its
pool is another data set's, with `--guarded` what `fit --strategy ipet` keeps of the generations and gives with its own.
Seconds are those of this process's processor time. Finished runs are not repeated.

    python bench/pet.py --data sst2 trec --seeds 13 21 42 --generations 2
    python bench/pet.py --data sst2 --seeds 13 --foreign snips
    python bench/pet.py --data trec --seeds 13 --generations 2 --guarded
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import DEFAULT_SHARED, FIRST, RESULTS, DataSet, guarded, heading, table, write
from runs import append, code_hash, finished, key_of, spread, task_of

from fewtune import artifact, job
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load
from fewtune.data.example import Example, Split
from fewtune.model import TunedModel
from fewtune.recipe import Recipe
from fewtune.settings import Settings, recipe_of, without_slot
from fewtune.strategies.lessons import Lessons
from fewtune.strategies.members import Round, answered
from fewtune.strategies.school import School
from fewtune.tasks.task import Task
from fewtune.train.fit import Session

RAW = RESULTS / "pet.jsonl"
"""Kept beside the page, for a run takes a quarter of an hour and more."""
PLMS = ("smollm2-135m", "minilm-l6")
_REVIEWS = (
    "Review: {text}\nSentiment: {slot}",
    "{text}\nSentiment: {slot}",
    "Review: {text}\nQuestion: What is the sentiment of this review?\nAnswer: {slot}",
)
PATTERNS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("sst2", "cr", "yelp_short"), _REVIEWS),
    "agnews": ("Article: {text}\nTopic: {slot}", "{text}\nTopic: {slot}", "{text}\nCategory: {slot}"),
    "trec": ("Question: {text}\nType: {slot}", "{text}\nAnswer type: {slot}", "Question: {text}\nThe answer is a kind of {slot}"),
    "sms_spam": ("Message: {text}\nLabel: {slot}", "{text}\nCategory: {slot}", "Message: {text}\nIs this message spam or ham? {slot}"),
}
"""Fixed beforehand; three of each."""
_OWN = "own"
"""In the place of another data set: the pool of the set itself."""


# One run


def taught(
    task: Task, train: Sequence[Example], pool: Sequence[Example], test: Sequence[Example], plms: Sequence[Backbone], seed: int, last: int
) -> dict[str, Any]:
    """Members, ensemble and student of the generations 0 to `last`."""
    settings = Settings(strategy="pet", seed=seed)
    contestants: list[tuple[Recipe, Backbone]] = [(without_slot(recipe_of(task, one, settings)), one) for one in plms]
    split = Split(train=tuple(train), unlabeled=tuple(pool))
    school = School.of(Lessons(), contestants, split, Session())
    clock = time.process_time()
    (mix,) = school.unseen(split, (), Session()).mixes
    took = {"folds": time.process_time() - clock}
    sets: list[Sequence[Example]] = [train] * len(school.members)
    found: list[dict[str, Any]] = []
    for generation in range(last + 1):
        clock = time.process_time()
        (log_MNC,) = answered(school.members, [Round(sets, (*school.pool, *test), Session())], Session())
        shares_NC = mix(log_MNC)
        rows = len(school.pool)
        seconds = time.process_time() - clock
        singles = [_accuracy(log_NC[rows:], test, task) for log_NC in log_MNC]
        one = {"singles": singles, "ensemble": _accuracy(shares_NC[rows:], test, task), "teachers": seconds}
        if generation in (0, last):
            one["student"] = _student(school, train, shares_NC[:rows], test)
        found.append(one)
        sets = [school.grown(train, school.pool, log_MNC[:, :rows], mix, number, generation + 1) for number in range(len(log_MNC))]
    speed = [_speed(_tuned(member, train), test) for member in school.members]
    return {
        **took,
        "members": [member.name for member in school.members],
        "weights": list(mix.weights_M),
        "generations": found,
        "speed": speed,
    }


def _student(school: School, train: Sequence[Example], shares_NC: torch.Tensor, test: Sequence[Example]) -> dict[str, Any]:
    clock = time.process_time()
    model = school.taught(train, school.pool, shares_NC, Session())
    seconds = time.process_time() - clock
    right = _accuracy(model.probabilities(test), test, school.task)
    numbers = sum(one.numel() * one.element_size() for state in artifact.tensors(model).values() for one in state.values())
    return {"accuracy": right, "seconds": seconds, "bytes": numbers, "speed": _speed(model, test)}


def _tuned(member: Any, train: Sequence[Example]) -> TunedModel:
    """A member's model as it answers; a single step does, for its speed does not depend on them."""
    recipe = replace(member.recipe, fit=replace(member.recipe.fit, steps=1))
    return member.strategy.run(recipe, Split(train=tuple(train)), member.backbone, session=Session())


def _speed(model: TunedModel, test: Sequence[Example]) -> float:
    """Texts a second of processor time; the deltas come out afterwards."""
    try:
        rows = test[:100]
        clock = time.process_time()
        model.probabilities(rows)
        return len(rows) / (time.process_time() - clock)
    finally:
        model.remove()


def _accuracy(scores_NC: torch.Tensor, test: Sequence[Example], task: Task) -> float:
    answers = scores_NC.argmax(1).tolist()
    return statistics.mean(task.labels[answer] == example.label for answer, example in zip(answers, test, strict=True))


def guarded_fit(
    task: Task, train: Sequence[Example], pool: Sequence[Example], test: Sequence[Example], plms: Sequence[Backbone], seed: int, way: str
) -> dict[str, Any]:
    """What `fit` gives with this pool and strategy, and without any pool."""
    found = {}
    for side, rows in (("pool", pool), ("none", ())):
        strategy = way if rows else "ladder"
        clock = time.process_time()
        settings = Settings(strategy=strategy, seed=seed)
        model = job.tune(task, Split(train=tuple(train), unlabeled=tuple(rows)), plms[0], settings, session=Session(), beside=plms[1:])
        seconds = time.process_time() - clock
        kept = {name: model.about[name] for name in ("kept", "pet", "estimate") if name in model.about}
        found[side] = {"accuracy": _accuracy(model.probabilities(test), test, task), "seconds": seconds, **kept}
        model.remove()
    return found


# The page


def page(
    results: Sequence[Mapping[str, Any]], fits: Sequence[Mapping[str, Any]], options: argparse.Namespace, arguments: Sequence[str]
) -> str:
    """The results file."""
    codes = ", ".join(dict.fromkeys(str(one["code"]) for one in (*results, *fits)))
    facts = (
        f"- PLMs: {' and '.join(PLMS)}; {options.k} labelled rows a class, {options.pool} unlabelled ones; {options.threads} thread(s)",
        f"- Tested on {options.rows} rows ({FIRST})",
        f"- Code: {codes} (hash of the package's sources)",
        "",
        "Accuracy in percent, mean ± sample deviation over the seeds. *patterns*: the three on smollm2-135m, each tuned on the labelled "
        "rows; the best one on the test rows nobody can know beforehand. *in-context*: smollm2-135m, untuned, shown labelled "
        "rows. *encoder*: minilm-l6, contrastive. *ensemble*: all, stacked. *student*: minilm-l6, a head and low-rank updates.",
    )
    columns = (
        "data",
        "seeds",
        "pattern mean",
        "best pattern",
        "in-context",
        "encoder",
        "ensemble",
        "PET student",
        "student − pattern mean",
        "student / ensemble",
    )
    parts = [heading("PET", "bench/pet.py", arguments) + "\n".join(facts)]
    rows = [_row(name, [one for one in results if one["data"] == name]) for name in dict.fromkeys(str(one["data"]) for one in results)]
    if results:
        parts.append(table(columns, [*rows, _row("mean", results)]))
        head = (
            "data",
            "seed",
            "folds, s",
            "members and labels, s",
            "student, s",
            "student, bytes",
            "student, texts a s",
            "ensemble, texts a s",
            "ratio",
        )
        parts += ["Seconds of processor time, and speed:", table(head, [_cost(one) for one in results])]
    later = [one for one in results if len(one["generations"]) > 1]
    if later:
        head = ("data", "seed", "generations", "pattern mean", "ensemble", "iPET student", "PET student")
        parts += ["iPET, every generation taken:", table(head, [_later(one) for one in later])]
    if own := [one for one in fits if one["from"] == _OWN]:
        head = ("data", "seed", "generations kept", "kept", "accuracy", "without a pool")
        parts += [
            "What `fit --strategy ipet` gives, which keeps a generation only if it is not worse:",
            table(head, [_own(one) for one in own]),
        ]
    if foreign := [one for one in fits if one["from"] != _OWN]:
        head = ("data", "pool of", "seed", "kept", "shift", "accuracy with it", "without any")
        parts += ["What `fit` gives with a pool from elsewhere, and with none:", table(head, [_foreign(one) for one in foreign])]
    return "\n\n".join(parts) + "\n"


def _row(name: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    first = [one["generations"][0] for one in results]
    patterns, students = [statistics.mean(one["singles"][:3]) for one in first], [one["student"]["accuracy"] for one in first]
    columns = (
        patterns,
        [max(one["singles"][:3]) for one in first],
        *([_named(one, mark) for one in results] for mark in ("in-context", PLMS[1])),
        [one["ensemble"] for one in first],
        students,
    )
    gain = statistics.mean(student - pattern for student, pattern in zip(students, patterns, strict=True))
    kept = statistics.mean(one["student"]["accuracy"] / one["ensemble"] for one in first)
    seeds = ", ".join(dict.fromkeys(str(one["seed"]) for one in results))
    figures = (f"{100 * statistics.mean(column):.1f}" if name == "mean" else spread(column) for column in columns)
    return [name, seeds, *figures, f"{100 * gain:+.1f}", f"{100 * kept:.1f} %"]


def _named(one: Mapping[str, Any], mark: str) -> float:
    """The accuracy of the member whose name ends so."""
    return next(single for name, single in zip(one["members"], one["generations"][0]["singles"], strict=True) if name.endswith(mark))


def _together(speeds: Sequence[float]) -> float:
    """Texts a second where every member reads each text."""
    return 1 / sum(1 / speed for speed in speeds)


def _cost(one: Mapping[str, Any]) -> list[str]:
    first, together = one["generations"][0], _together(one["speed"])
    student = first["student"]
    figures = (
        one["folds"],
        first["teachers"],
        student["seconds"],
        student["bytes"],
        student["speed"],
        together,
        student["speed"] / together,
    )
    return [one["data"], str(one["seed"]), *(f"{figure:,.0f}" for figure in figures)]


def _later(one: Mapping[str, Any]) -> list[str]:
    first, last = one["generations"][0], one["generations"][-1]
    shares = (statistics.mean(last["singles"][:3]), last["ensemble"], last["student"]["accuracy"], first["student"]["accuracy"])
    return [one["data"], str(one["seed"]), str(len(one["generations"]) - 1), *(f"{100 * share:.1f}" for share in shares)]


def _foreign(one: Mapping[str, Any]) -> list[str]:
    pool, none = one["pool"], one["none"]
    return [
        *(one["data"], one["from"], str(one["seed"]), pool["kept"], f"{pool['pet']['shift']:.2f}"),
        *(f"{100 * side['accuracy']:.1f}" for side in (pool, none)),
    ]


def _own(one: Mapping[str, Any]) -> list[str]:
    pool, none = one["pool"], one["none"]
    count = f"{pool['pet'].get('generations', 0)} of {one['generations']}"
    return [one["data"], str(one["seed"]), count, pool["kept"], *(f"{100 * side['accuracy']:.1f}" for side in (pool, none))]


def main(arguments: Sequence[str]) -> None:
    """Run what is not finished, and write the page after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--data", nargs="+", default=["sst2", "trec", "sms_spam"], choices=list(PATTERNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[13])
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--pool", type=int, default=2000, help="at most so many unlabelled rows")
    parser.add_argument("--rows", type=int, default=500, help="the first test rows only")
    parser.add_argument("--generations", type=int, default=0, help="of iPET, after the first; with the first of the seeds")
    parser.add_argument("--foreign", nargs="*", default=[], help="pools of these data sets in the place of the own one")
    parser.add_argument("--guarded", action="store_true", help="with --generations, also fit --strategy ipet; with the first of the seeds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--older", action="store_true", help="take finished runs of earlier code too; the page lists the codes")
    parser.add_argument("--finished", action="store_true", help="run nothing; write the page of what is finished")
    parser.add_argument("--out", type=Path, default=RESULTS / "pet.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    plms, known, code = [load(name) for name in PLMS], finished(RAW), code_hash()
    results: list[dict[str, Any]] = []
    fits: list[dict[str, Any]] = []
    for name, seed in itertools.product(options.data, options.seeds):
        dataset = DataSet(options.shared, name)
        task = replace(task_of(dataset, None), templates=PATTERNS[name])
        test, train = dataset.first(options.rows), dataset.shots(options.k, seed=seed)
        common = {"data": name, "seed": seed, "k": options.k, "pool": options.pool, "rows": options.rows, **dataset.cut(options.rows)}
        last = options.generations if seed == options.seeds[0] else 0
        for source in (None, *options.foreign, *([_OWN] if options.guarded and last else [])):
            # What is finished with fewer generations is shown, too.
            asked = [common | more for more in _asked(source, last)]
            facts, key = asked[0], key_of(asked[0], plms[0])
            if options.finished:
                key = next((key for key in (key_of(one, plms[0]) for one in asked) if key in known), key)
                if key not in known:
                    continue
            result = known.get(key)
            if result is None or not (options.older or result["code"] == code):
                pool = (dataset if source in (None, _OWN) else DataSet(options.shared, source)).pool(seed=seed)[: options.pool]
                if source is None:
                    found = taught(task, train, pool, test, plms, seed, last)
                else:
                    found = guarded_fit(task, train, pool, test, plms, seed, f"ipet:generations={last}" if source == _OWN else "pet")
                result = {"key": key, "code": code, **facts, **found}
                append(RAW, result)
            (results if source is None else fits).append(result)
            write(options.out, page(results, fits, options, arguments))
            print(f"{name} seed {seed} {source or ''} done", flush=True)


def _asked(source: str | None, last: int) -> list[dict[str, Any]]:
    """What a run is known by beside its data, the wanted one first."""
    if source is None:
        return [{"generations": most} for most in range(last, -1, -1)]
    return [{"from": source, "generations": last} if source == _OWN else {"from": source}]


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
