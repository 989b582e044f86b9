"""One PLM that the labelled rows choose, or one way of each PLM side by side: draws of eight rows a class, judged on these as `fit` judges
them, and on other training rows. No test row is looked at, and none of the sets is one of bench/contrastive.py.

The figures behind `_JOINED` in `fewtune.strategies.ladder`.

    python bench/combine.py
    python bench/combine.py --plms smollm2-135m mpnet-base
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import DEFAULT_SHARED, RESULTS, DataSet, guarded, heading, table, write
from runs import PROMPTS, drawn, right, spread, task_of

from fewtune import estimate
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.plm import load
from fewtune.settings import Settings, recipe_of, without_slot
from fewtune.strategies.ladder import judge, settled
from fewtune.strategies.rungs import Joined, rungs_of
from fewtune.train.fit import Session

SETS = ("mr", "uci_amazon_sentences", "uci_yelp_sentences", "sms_spam")
USUAL = (Settings().backbone, *Settings().beside)


@dataclass(frozen=True)
class Draw:
    """How often what is kept is right on other rows, by the name of the rule, and what that is; how much each PLM is heard."""

    data: str
    alone: tuple[str, float]
    joined: tuple[str, float]
    weights: tuple[float, ...] = ()


def draw(name: str, seed: int, plms: Sequence[Backbone], options: argparse.Namespace) -> Draw:
    """One draw of a set's training rows."""
    data = DataSet(options.shared, name)
    rows, others = drawn(data, options.k, options.rows, seed=seed)
    split, settings, task = Split(train=rows), Settings(seed=seed), task_of(data, PROMPTS.get(name))
    contestants = settled([(without_slot(recipe_of(task, plm, settings)), plm) for plm in plms], split)
    judged = judge(rungs_of(contestants, split), split, Session(), tempered=True, brief=True)
    last = judged.rungs[-1]
    count = len(judged.rungs) - len(judged.margins)
    kept = {estimate.simplest(judged.losses_NM[:, :count]), judged.kept}
    share = {number: right(judged.rungs[number].run(split, Session()), others) for number in kept}
    alone, joined = ((judged.rungs[number].name, share[number]) for number in (min(kept), judged.kept))
    return Draw(name, alone, joined, last.mix.weights_M if isinstance(last, Joined) else ())


def page(draws: Sequence[Draw], options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """The results file."""
    rows = []
    for name in (*options.data, "all"):
        own = [one for one in draws if name in (one.data, "all")]
        if own:
            side = sum(" + " in one.joined[0] for one in own)
            figures = [spread([getattr(one, rule)[1] for one in own]) for rule in ("alone", "joined")]
            rows.append([name, str(len(own)), *figures, f"{side} of {len(own)}"])
    gains = [100 * (one.joined[1] - one.alone[1]) for one in draws]
    differ = [gain for gain, one in zip(gains, draws, strict=True) if one.joined[0] != one.alone[0]]
    found = (
        f"Where it matters ({len(differ)} of {len(draws)} draws) side by side gives {statistics.fmean(differ):+.1f} points"
        if differ
        else ""
    )
    found += f" (standard error {statistics.stdev(differ) / len(differ) ** 0.5:.1f})." if len(differ) > 1 else ""
    facts = (
        f"- {' and '.join(options.plms)}; {options.k} labelled rows a class; accuracy in percent, mean ± "
        f"sample deviation, on {options.rows} other training rows\n"
        "- *one alone*: the simplest way that is not worse, of all PLMs; *side by side*: one way of each PLM, unless that is worse by a "
        "standard error or the others are hardly heard"
    )
    each = [
        [one.data, *(f"{name} ({100 * right:.1f})" for name, right in (one.alone, one.joined)), ", ".join(f"{w:.2f}" for w in one.weights)]
        for one in draws
    ]
    columns = ("data", "draws", "one alone", "side by side", "kept side by side")
    parts = [heading("One PLM or several", "bench/combine.py", arguments) + facts, table(columns, rows), found]
    return "\n\n".join([*parts, table(("data", "one alone", "side by side", "weights"), each)]) + "\n"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="One PLM that the labelled rows choose, or one way of each PLM side by side.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--data", nargs="+", default=list(SETS))
    parser.add_argument("--plms", nargs="+", default=list(USUAL))
    parser.add_argument("--k", type=int, default=8, help="labelled rows a class")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--rows", type=int, default=300, help="other training rows that judge")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.out = options.out or RESULTS / f"combine-{options.plms[-1]}.md"
    return options


def main(arguments: Sequence[str]) -> int:
    """All draws; the page is written anew after each."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    return guarded(lambda: _run(options, arguments))


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    plms, draws = [load(name, say=print) for name in options.plms], list[Draw]()
    for seed, name in itertools.product(range(1, options.draws + 1), options.data):
        draws.append(draw(name, seed, plms, options))
        print(name, seed, draws[-1], flush=True)
        write(options.out, page(draws, options, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
