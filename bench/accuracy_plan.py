"""Which ways of tuning `peft_accuracy.py` runs, on what, and how often: parts, each with its jobs. Knows no model and no figures."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

SPECS: Mapping[str, str] = {
    **{"full": "subset", "lora": "lora", "dora": "lora:dora=true", "houlsby": "houlsby", "pfeiffer": "pfeiffer"},
    **{"parallel": "parallel", "adapter": "pfeiffer", "ia3": "ia3", "biases": "bitfit", "prefix": "prefix"},
    **{"soft-prompt": "soft-prompt", "head-only": ""},
}
"""Method → deltas, as the flag names them."""
EVERY = ("full", "lora", "dora", "houlsby", "pfeiffer", "parallel", "ia3", "biases", "prefix", "soft-prompt", "head-only")
ALL = 0
"""The size that means all rows."""


@dataclass(frozen=True)
class Part:
    """Data sets × sizes × seeds × methods on one backbone. A size is (`k` rows a class, or 0; `rows` in all, 0 for as many as `k` says);
    `others` are tested, too; `length` is the most tokens of a text, 0 for the default; `benefit` is what
    is said of tuning few weights, to be shown or not."""

    title: str
    backbone: str
    cloze: bool
    data: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    others: tuple[str, ...] = ()
    length: int = 0
    benefit: str = ""


DOMAINS = ("mr", "amazon_kitchen", "amazon_electronics", "amazon_books")
FEW, MANY = ((16, 0),), ((0, 1000),)
SMALL = "A small share of the weights is enough: shown by methods that are not worse, as far as so many runs can tell."
PARTS: Mapping[str, tuple[Part, ...]] = {
    "head": (
        Part(
            "Head, 16 rows a class",
            "minilm-l6",
            False,
            ("sst2", "trec", "agnews", "snips", "cr"),
            FEW,
            (13, 21, 42),
            EVERY,
            benefit=SMALL,
        ),
        Part("Head, 1,000 rows", "minilm-l6", False, ("sst2", "trec", "agnews"), MANY, (13, 21), EVERY, benefit=SMALL),
    ),
    "cloze": (
        Part(
            "Label words, 16 rows a class",
            "smollm2-135m",
            True,
            ("sst2", "cr"),  # of two labels each, so 80 steps a run; TREC's six take 240
            FEW,
            (13, 21, 42),
            ("full", "lora", "adapter", "prefix", "soft-prompt", "ia3", "biases"),
            benefit=SMALL,
        ),
    ),
    # Reviews of several hundred words: their beginnings do, and halve the time.
    "domain": (
        Part(
            "Other domains, 1,000 rows, 128 tokens",
            "minilm-l6",
            False,
            ("mr",),
            MANY,
            (13,),
            EVERY,
            others=DOMAINS,
            length=128,
            benefit="Few trained weights leave more of the PLM as it was, so that other domains than the one trained on gain: shown by "
            "methods that are better there.",
        ),
    ),
    "resource": (
        Part(
            "From few to all rows",
            "minilm-l6",
            False,
            ("sst2", "agnews"),
            ((0, 16), (0, 64), (0, 256), (0, 1024), (0, ALL)),
            (13,),
            ("full", "lora", "adapter", "prefix"),
            benefit="Few trained weights are the better choice where rows are few: shown by methods that are better there.",
        ),
    ),
}


@dataclass(frozen=True)
class Job:
    """One run: trained on `k` rows a class or on `rows` rows of `data`, tested on the first `test_rows` of it and of the `others`."""

    part: str
    backbone: str
    cloze: bool
    data: str
    k: int
    rows: int
    seed: int
    method: str
    test_rows: int
    others: tuple[str, ...] = ()
    length: int = 0

    def facts(self) -> dict[str, Any]:
        """What a finished run is known by: not the part that asked for it, nor a length that is the default."""
        return {name: value for name, value in asdict(replace(self, part="")).items() if name != "length" or value}


def jobs(name: str, part: Part, options: argparse.Namespace) -> Iterator[Job]:
    """The runs of a part: all methods of a seed before the next seed, so that a table that is cut short compares like with like."""
    for seed, data, (k, rows), method in itertools.product(part.seeds, part.data, part.sizes, part.methods):
        if method in options.methods and data in (options.data or part.data) and seed in (options.seeds or part.seeds):
            others = tuple(other for other in part.others if other != data)
            count = rows if k or rows else options.most
            yield Job(name, part.backbone, part.cloze, data, k, count, seed, method, options.test_rows, others, part.length)
