"""Prompt tuning against a fresh classifier head on the same PLM, from 4 to 64 labelled rows a class: a table and a figure.

Le Scao and Rush 2021 ("How many data points is a prompt worth?"): with few rows a prompt says what many rows would have to. Both sides
train the same LoRA for the same steps; one reads label words with the LM head, the other learns a linear head on the last token. Runs
are those of bench/fewshot.py and are not repeated. Drawing needs the extra `bench`.

    python bench/learning_curve.py
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fewshot
import torch
from machine import RESULTS, guarded, write

SIDES = {"default": "prompt: template and label words", "head-lora": "head: a fresh linear classifier"}
ZEROSHOT = "zeroshot-calibrated"
USUAL = ("--k", "4", "8", "16", "64", "--configurations", ZEROSHOT, *SIDES, "--out", str(RESULTS / "learning_curve.md"))
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "learning_curve.svg"


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each data set: the mean over seeds as a line, each seed as a point, zero-shot as a dotted line."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "fewtune", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    names = list(dict.fromkeys(result["data"] for result in results))
    figure, panels = pyplot.subplots(1, len(names), figsize=(4.2 * len(names), 3.2), squeeze=False, layout="constrained")
    for panel, name in zip(panels[0], names, strict=True):
        here = [result for result in results if result["data"] == name]
        for (side, title), colour in zip(SIDES.items(), ("#1b6ca8", "#d1495b"), strict=True):
            points = {k: [_accuracy(run) for run in here if (run["configuration"], run["k"]) == (side, k)] for k in _shots(here, side)}
            panel.plot(list(points), [statistics.mean(values) for values in points.values()], color=colour, label=title)
            for k, values in points.items():
                panel.scatter([k] * len(values), values, color=colour, s=14, alpha=0.6, linewidths=0)
        for run in here:
            if run["configuration"] == ZEROSHOT:
                panel.axhline(_accuracy(run), color="#777777", linestyle=":", label="zero-shot, calibrated")
        panel.set_xscale("log", base=2)
        panel.set_xticks(_shots(here, "default"), [str(k) for k in _shots(here, "default")])
        panel.set(title=name, xlabel="labelled rows a class", ylabel="accuracy, %")
    panels[0][0].legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _shots(results: Sequence[Mapping[str, Any]], side: str) -> list[int]:
    return sorted({run["k"] for run in results if run["configuration"] == side})


def _accuracy(run: Mapping[str, Any]) -> float:
    return 100 * float(run["metrics"]["accuracy"]["value"])


def main(arguments: Sequence[str]) -> int:
    """Run what is not finished, then write the table and draw."""
    options = fewshot.parse([*USUAL, *arguments])
    torch.set_num_threads(options.threads)
    return guarded(lambda: _all(options, arguments))


def _all(options: Any, arguments: Sequence[str]) -> None:
    results = fewshot.run_all(fewshot.jobs(options), options)
    title, script = "Prompt tuning against a classifier head", "bench/learning_curve.py"
    write(options.out, fewshot.page(results, arguments, title=title, script=script))
    draw(results, FIGURE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
