"""What a terminal shows: results as tables, work as bars. Knows how results look, computes none.

Nothing heavy is imported before something is shown.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from fewtune.completion import Completion
    from fewtune.compressing import Compressed, Tried
    from fewtune.costs import Cost, Costs
    from fewtune.course import Taught
    from fewtune.evaluation import Early, Evaluation, Route
    from fewtune.inspection import Answer, Inspection
    from fewtune.prompt.search import Found
    from fewtune.runs.table import Comparison, Row
    from fewtune.tasks.metrics import Measures


def say(line: str) -> None:
    """A line beside the results, on standard error."""
    typer.echo(line, err=True)


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(data, ensure_ascii=False))


def print_lines(facts: Mapping[str, object]) -> None:
    """A line for each fact, its name in front."""
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:{width}}  {value}")


def show_compressed(made: Compressed) -> None:
    """The full model and each that was tried beside it, and where the one that was taken lies."""
    from rich.table import Table

    full = made.full
    metric = "metric" if full is None else full.ratio.metric
    table = Table("model", "needed", "texts/s", "speed", metric, "points lost", "", title=f"{made.rows['measured']} rows held out")
    if full is not None:
        rate = f"{full.texts_per_second:.0f}"
        table.add_row("full", _megabytes(full.bytes.needed), rate, "1.00", f"{full.ratio.value:.3f}", "", "")
    for one in made.tried:
        table.add_row(" + ".join(one.by), *_tried(one, taken=one is made.chosen))
    _show(table)
    if made.folder is not None:
        typer.echo(f"model  {made.folder}")


def _tried(one: Tried, *, taken: bool) -> tuple[str, ...]:
    if one.found is None:
        return ("refused", *[""] * 5)
    small, drop = one.found.small, one.found.drop
    return (
        _megabytes(small.bytes.needed),
        f"{small.texts_per_second:.0f}",
        f"{one.found.speed:.2f}",
        f"{small.ratio.value:.3f}",
        f"{drop.value:+.1f} ({drop.low:+.1f} – {drop.high:+.1f})",
        "taken" if taken else "keeps it" if one.keeps else "",
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def show_evaluation(found: Evaluation) -> None:
    """Metrics with their intervals, then each label's figures and the confusion."""
    from rich.table import Table

    measures = found.measures
    metrics = Table("metric", "value", "95 % interval", title=f"{measures.rows} rows")
    for name, metric in measures.metrics.items():
        metrics.add_row(name, f"{metric.value:.3f}", f"{metric.low:.3f} – {metric.high:.3f}")
    _show(metrics)
    if measures.classes:
        _show(_classes(measures))
    if found.routes:
        _show(_alone(found.routes))
    if found.exits:
        _show(*_early(found.exits))
    if found.shortened:
        _show(f"{found.shortened} of {measures.rows} rows were shortened to fit.")


def _alone(routes: Sequence[Route]) -> Table:
    """How well each of several models does alone, by the metric that comes first."""
    from rich.markup import escape
    from rich.table import Table

    first = next(iter(routes[0].alone.measures.metrics))
    table = Table("alone", "method", first, "95 % interval")
    for route in routes:
        found = route.alone.measures.metrics[first]
        table.add_row(escape(route.backbone), escape(route.method), f"{found.value:.3f}", f"{found.low:.3f} – {found.high:.3f}")
    return table


def _early(found: Early) -> list[RenderableType]:
    """Where rows left, then speed against the metric: what other thresholds would give."""
    from rich.table import Table

    from fewtune.tasks.metrics import named

    layers = Table("after layer", "rows", "", title=f"Where rows left the {found.depth} layers")
    for layer, share in found.shares:
        layers.add_row(str(layer), f"{share:.1%}", "█" * round(30 * share))
    curve = Table("mean layer", named(found.metric), "agreement", title="What other thresholds would give")
    for point in found.curve:
        curve.add_row(f"{point.mean_layer:.2f}", f"{point.value:.3f}", f"{point.agreement:.3f}")
    return [layers, curve]


def _classes(measures: Measures) -> Table:
    """A row for each label, with how often each was given where there is room for that, else with those given most instead."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    given = [f"→ {label}" for label in measures.labels] if measures.confusion else []
    longest = max(map(len, measures.labels))
    whole = not given or longest + sum(len(name) + 3 for name in given) + 46 <= Console().width
    table = Table()
    table.add_column("label", overflow="fold")
    for name in ("precision", "recall", "f1", "rows", *(map(escape, given) if whole else ())):
        table.add_column(name, justify="right", no_wrap=True)
    if not whole:
        table.add_column("given instead", overflow="fold")
    for row, counts in zip(measures.classes, measures.confusion or [()] * len(measures.classes), strict=True):
        scores = (f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}", str(row.support))
        shown = list(map(str, counts)) if whole else [escape(_instead(row.label, measures.labels, counts))]
        table.add_row(escape(row.label), *scores, *shown)
    return table


def _instead(label: str, labels: Sequence[str], counts: Sequence[int], most: int = 3) -> str:
    """The labels that were given most often instead of `label`.

    >>> _instead("a", ["a", "b", "c", "d"], [5, 0, 2, 3])
    'd 3, c 2'
    """
    others = sorted((pair for pair in zip(counts, labels, strict=True) if pair[0] and pair[1] != label), key=lambda pair: -pair[0])
    listed = ", ".join(f"{other} {count}" for count, other in others[:most])
    return listed + (", …" if len(others) > most else "")


def show_costs(found: Costs) -> None:
    """A row for each method; those that the backbone refuses stand below, with the reason."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fewtune.costs import Refused

    step = f"{found.step.batch_size} × {found.step.length} tokens, {found.precision}"
    table = Table(title=escape(f"{found.backbone}, {found.backbone_parameters:,} weights; a step of {step}"), box=box.SIMPLE)
    table.add_column("method", overflow="fold")
    for name in ("trained", "share", "a task", "100 tasks", "a step", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    notes = [f"100 tasks: one copy of the backbone and what each task stores; 100 full copies take {size(found.hundred_copies)}."]
    for method in found.methods:
        if isinstance(method, Refused):
            notes.append(f"{method.delta}: {method.reason}")
            continue
        table.add_row(*map(escape, _cost(found, method)))
        if method.stored_parameters != method.trained_parameters:
            notes.append(f"{method.delta}: {method.stored_parameters:,} numbers are stored.")
    _show(table, *map(escape, notes))


def _cost(found: Costs, cost: Cost) -> list[str]:
    numbers = [f"{cost.trained_parameters:,}", f"{found.share(cost):.2%}", size(cost.task_bytes), size(found.hundred_tasks(cost))]
    return [cost.delta, *numbers, f"{cost.seconds.step:.3f} s", size(cost.memory.total)]


def show_inspection(found: Inspection) -> None:
    """How far each step moved, as figures and bars; then the rows whose label changed."""
    from rich.markup import escape
    from rich.table import Table

    from fewtune.inspection import SHOWN

    states = {"embeddings": found.embeddings, **{str(step): moved for step, moved in enumerate(found.moved)}}
    most = max(states.values()) or 1.0
    layers = Table("step", "moved", "", title=f"How far states move: ‖Δh‖ / ‖h‖, mean over {found.rows} rows")
    for name, moved in states.items():
        layers.add_row(name, f"{moved:.4f}", "█" * round(30 * moved / most))
    _show(layers)
    if found.note:
        _show(escape(found.note))
        return
    shown = found.changed[:SHOWN]
    title = f"{len(found.changed)} of {found.rows} rows changed their label"
    if not shown:
        _show(f"{title}.")
        return
    rows = Table("row", "text", "before", "after", title=title if shown == found.changed else f"{title}; the first {SHOWN}")
    for changed in shown:
        answers = map(_answer, (changed.before, changed.after))
        rows.add_row(str(changed.row), escape(changed.text[:200]), *map(escape, answers))
    _show(rows)


def _answer(answer: Answer) -> str:
    return answer.label if answer.probability is None else f"{answer.label} {answer.probability:.2f}"


def show_found(name: str, found: Found) -> None:
    """What a search tried, the best first; then what is found, and how much the figures say."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{name}, on {found.rows} labelled rows", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("loss", "accuracy"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("tried", overflow="fold")
    for one in found.shown:
        marks = ", ".join(mark for mark, true in (("averaged", one.kept), ("given", one.given)) if true)
        table.add_row(f"{one.loss:.3f}", f"{100 * one.accuracy:.0f}", marks, escape(one.text.replace("\n", "\\n")))
    _show(table, escape(found.summary(name)), *map(escape, found.lines), escape(found.verdict(name)))


def show_completion(found: Completion) -> None:
    """The text as it goes on, if it does; tokens with their probabilities, those of each gap in a table."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if found.written:
        typer.echo(found.written.text)
    for number, candidates in enumerate([found.next] if found.next else found.gaps, start=1):
        table = Table(title="next token" if found.next else f"gap {number}", box=box.SIMPLE)
        table.add_column("token")
        table.add_column("probability", justify="right", no_wrap=True)
        for one in candidates:
            table.add_row(escape(repr(one.text)), f"{one.probability:.4f}")
        _show(table)


def show_comparison(found: Comparison) -> None:
    """A row for each data set, number of shots and method; why runs failed stands below."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("data", "shots", "method"):
        table.add_column(name, overflow="fold")
    metrics = dict.fromkeys(row.metric for row in found.rows)
    for name in (", ".join(metrics), "difference", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"against {escape(found.baseline)}")
    for row in found.rows:
        shots = "all" if row.shots is None else str(row.shots)
        table.add_row(*map(escape, (row.data, shots, row.method, _compared(row), *_contrasted(row, found.baseline))))
    notes = [f"{row.data}, {row.method}: {message}" for row in found.rows for message in row.failed]
    _show(table, *map(escape, dict.fromkeys(notes)))


def _compared(row: Row) -> str:
    """The metric that is compared: mean ± sample deviation over seeds; of a single run the 95 % interval."""
    figure = row.metrics.get(row.metric)
    if figure is None:
        return "failed" if row.failed else "to do"
    spread = "" if figure.low is None or figure.high is None else f" ({_number(row, figure.low)}–{_number(row, figure.high)})"
    if figure.deviation is not None:
        spread = f" ± {_number(row, figure.deviation)}"
    return _number(row, figure.value) + spread + (f", {row.done} of {row.runs}" if row.done < row.runs else "")


def _number(row: Row, value: float, sign: str = "") -> str:
    """Accuracy in per cent, all other metrics as they are."""
    return f"{100 * value:{sign}.1f}" if row.metric == "accuracy" else f"{value:{sign}.3f}"


def _contrasted(row: Row, baseline: str) -> tuple[str, str, str]:
    if row.contrast is None:
        return "", "", "baseline" if row.method == baseline else ""
    return _number(row, row.contrast.difference, "+"), f"{row.contrast.p:.3f}", row.contrast.verdict


def size(count: int) -> str:
    """Bytes as a person reads them.

    >>> size(512), size(621977), size(53806032000)
    ('512 B', '622 kB', '53.8 GB')
    """
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def _show(*parts: RenderableType) -> None:
    from rich.console import Console

    console = Console()
    for part in parts:
        console.print(part)


def show_course(found: Taught) -> None:
    """A row for each held-out task: the median over its templates and their range, before and after."""
    from rich import box
    from rich.table import Table

    about = found.about
    if about["mean"]:
        table = Table("held out", box=box.SIMPLE, padding=(0, 1, 0, 0), title="accuracy: median over templates (least–greatest)")
        for name in ("rows", "templates", "before", "after", "gain", "95 % interval"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, one in about["held_out"].items():
            spreads = (f"{100 * s['median']:.1f} ({100 * s['least']:.0f}–{100 * s['most']:.0f})" for s in (one["before"], one["after"]))
            table.add_row(name, f"{one['rows']:,}", str(len(one["templates"])), *spreads, *_gained(one["gain"]))
        mean = about["mean"]
        table.add_section()
        table.add_row("mean", "", "", f"{100 * mean['before']:.1f}", f"{100 * mean['after']:.1f}", *_gained(mean["gain"]))
        _show(table)
    print_lines(
        {
            "trained on": f"{len(about['trained'])} tasks, {sum(one['templates'] for one in about['trained'].values())} templates",
            "trained parameters": f"{found.trained_parameters:,} of {found.backbone_parameters:,}",
            "seconds": ", ".join(f"{name} {value:.1f}" for name, value in found.seconds.items()),
            "model": f"{found.folder} (stands for the PLM: --backbone {found.folder})",
        }
    )


def _gained(gain: Mapping[str, float]) -> tuple[str, str]:
    return f"{100 * gain['value']:+.1f}", f"{100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}"


@contextlib.contextmanager
def progress_bar(*, shown: bool = True) -> Iterator[Callable[[str, int, int, float], None]]:
    """A bar with time left on a terminal; nothing in a pipe, or where another process shows it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, steps: int, loss: float) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=steps)
            bar.update(tasks[what], completed=done, description=what if isnan(loss) else f"{what} (loss {loss:.3f})")

        yield progress


@contextlib.contextmanager
def jobs_bar() -> Iterator[Callable[[int, int], None]]:
    """Jobs done of all, with time left, on a terminal; nothing in a pipe."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Jobs take minutes; the speed is that of the last hour.
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True, speed_estimate_period=3600) as bar:
        task = bar.add_task("jobs", total=None)
        yield lambda done, jobs: bar.update(task, completed=done, total=jobs)


@contextlib.contextmanager
def counter(what: str) -> Iterator[Callable[[int], None]]:
    """A running count on a terminal, unless the answers go there as well."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    # Answers on the same terminal would be torn by a bar.
    disable = not console.is_terminal or sys.stdout.isatty()
    with Progress(*columns, console=console, disable=disable, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda rows: bar.advance(task, rows)
