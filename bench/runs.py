"""What scripts share that tune and measure many times: templates, tasks, a run's figures, and the store of finished runs.

Finished runs are kept line by line, so that a script may be stopped at any time. Knows no configuration.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import DataSet

import fewtune
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example
from fewtune.data.sampling import derive, shots
from fewtune.data.sampling import spread as evenly
from fewtune.evaluation import evaluate
from fewtune.model import TunedModel
from fewtune.routes import Routes
from fewtune.tasks.task import Task


@dataclass(frozen=True)
class Prompt:
    """A template, and words for the labels whose names do not read well in it."""

    template: str
    words: Mapping[str, str] = field(default_factory=dict)


_SENTIMENT = Prompt("Review: {text}\nSentiment: {slot}")
_REVIEWS = (
    *("sst2", "mr", "cr", "imdb", "yelp_short", "uci_amazon_sentences", "uci_yelp_sentences"),
    *("amazon_books", "amazon_electronics", "amazon_kitchen"),
)
PROMPTS: Mapping[str, Prompt] = {
    **dict.fromkeys(_REVIEWS, _SENTIMENT),
    "agnews": Prompt("Article: {text}\nTopic: {slot}"),
    "rte": Prompt("{text_a}\nQuestion: {text_b} Yes or no?\nAnswer: {slot}", {"entailment": "yes", "not entailment": "no"}),
    "snli": Prompt(
        "{text_a}\nQuestion: {text_b} True, false or neither?\nAnswer: {slot}",
        {"entailment": "true", "neutral": "neither", "contradiction": "false"},
    ),
    "fewglue_boolq": Prompt("{text_b}\nQuestion: {text_a}?\nAnswer: {slot}"),
}
"""A set that is not named here, such as trec, gets what a user gets who gives only data."""
_KINDS = {"abbreviation": "Expression", "description": "Description", "entity": "Entity", "human": "Human", "location": "Location"}
FILLED: Mapping[str, Prompt] = {
    **dict.fromkeys(_REVIEWS, Prompt("{text} It was {slot}.", {"negative": "terrible", "positive": "great"})),
    "trec": Prompt("{slot}: {text}", {**_KINDS, "number": "Number"}),
    "agnews": Prompt(
        "{slot} News: {text}", {"world": "World", "sports": "Sports", "business": "Business", "science and technology": "Tech"}
    ),
}
"""For masked LMs: those of LM-BFF (Gao et al. 2021, table 1) and PET (Schick & Schütze 2021, agnews, P5), as they were published."""


def prompt_of(name: str, backbone: Backbone) -> Prompt | None:
    """How a PLM is asked about a data set; None: as a user gets it who gives only data."""
    return (PROMPTS if backbone.causal else FILLED).get(name)


def task_of(dataset: DataSet, prompt: Prompt | None) -> Task:
    """The task of a data set, asked as `prompt` says, or as a user gets who gives only data."""
    return Task.classification(
        dataset.labels(),
        templates=(prompt.template,) if prompt else (),
        words={label: prompt.words.get(label, label) for label in dataset.labels()} if prompt and prompt.words else None,
        fields=dataset.fields(),
        name=dataset.name,
    )


def figures(model: TunedModel, test: Sequence[Example]) -> dict[str, Any]:
    """What a tuned model is worth on labelled rows, as plain data."""
    found = evaluate(model, test)
    return {
        "metrics": {name: asdict(interval) for name, interval in found.measures.metrics.items()},
        "test_rows": len(test),
        "shortened": found.shortened,
        "predict_seconds": found.seconds,
        "trained_parameters": model.trained_parameters,
        "precision": model.backbone.precision,
        "threads": torch.get_num_threads(),
        "calibrator": model.calibrator.to_dict(),
    }


# Judged on training rows


def drawn(data: DataSet, k: int, count: int, *, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """`k` training rows a class, and `count` other ones that judge, spread over the rest; none has the text of one that is learned from."""
    rows = shots(data.train, k, seed=derive(seed, data.name))
    texts = {tuple(row.fields.values()) for row in rows}
    return rows, evenly([row for row in data.train if tuple(row.fields.values()) not in texts], count)


def right(model: TunedModel | Routes, rows: Sequence[Example]) -> float:
    """How often the model is right on these rows; it is taken out afterwards."""
    try:
        return statistics.fmean(answer.label == row.label for answer, row in zip(model.predict(rows), rows, strict=True))
    finally:
        model.remove()


# What is finished


def code_hash() -> str:
    """Which code runs: a change to the package makes its older figures history."""
    digest, root = hashlib.sha256(), Path(fewtune.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root.parent.parent)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def key_of(facts: Mapping[str, Any], backbone: Backbone) -> str:
    """A name for all that decides a run's figures except the code."""
    whole = {**facts, "weights": backbone.fingerprint, "tokens": backbone.tokenizer_fingerprint}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """The last result of each key; a line that a crash cut short counts for nothing."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[result["key"]] = result
    return found


def append(path: Path, result: Mapping[str, Any]) -> None:
    """Add one line; the line break comes first, so that a line that a crash cut short spoils no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(result))
        file.flush()
        os.fsync(file.fileno())


def spread(values: Sequence[float]) -> str:
    """Mean ± sample deviation of shares, in percent.

    >>> spread([0.5, 0.7])
    '60.0 ± 14.1'
    """
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean
