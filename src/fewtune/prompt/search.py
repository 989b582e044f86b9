"""Find label words and templates with the help of labelled rows. Knows what to try and what to keep; asks a `Judge` how it does, and so
knows no model.

Choosing one prompt on a few rows is close to choosing at random: scores of the same template on two draws of 16 rows hardly correlate. So
the best few are kept and averaged, the spread is said, and no figure of what was found is an estimate of its accuracy.

Dimensions: N rows, F inputs without content, K words, C labels, M proposals.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fewtune import registry
from fewtune.errors import SpecError, TaskError
from fewtune.prompt import label_words, library
from fewtune.prompt.defaults import templates_of
from fewtune.prompt.label_words import Array, Chosen, Indices
from fewtune.tasks.task import Task

_SHOWN = 20


@dataclass(frozen=True)
class Scores:
    """Uncalibrated scores of the labels for the labelled rows and for inputs without content: rows_NC, free_FC.

    Of a whole vocabulary they are log-probabilities of its words: rows_NK, free_FK.
    """

    rows: Array
    free: Array


@dataclass(frozen=True)
class Judged:
    """What a prompt does on the labelled rows once it is calibrated on others of them: the loss of each row, and whether it is right."""

    losses_N: Array
    right_N: NDArray[np.bool_]


class Judge(Protocol):
    """What a search may ask of an untuned PLM about the labelled rows."""

    targets_N: Indices
    causal: bool

    def scores(self, task: Task) -> Scores:
        """How the templates and words of `task` score its labels; raises `TaskError` where they cannot be read."""
        ...

    def own_words(self, task: Task) -> Mapping[str, tuple[str, ...]]:
        """The words that `task` has for its labels, or their names; none where these cannot be told apart."""
        ...

    def vocabulary(self, task: Task, *, without: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], Scores]:
        """Every word that may be chosen, and its log-probability in the slot, the mean over the task's templates.

        None is read at the same token as one of the labels' words in `without`.
        """
        ...

    def proposed(self, task: Task, infill: str | None, most: int) -> tuple[str, ...]:
        """At most `most` templates that the PLM called `infill`, or the one that judges, writes by filling gaps; none where it cannot."""
        ...

    def judge(self, scores: Scores) -> Judged:
        """Losses, each row's under a calibration that was fitted without it."""
        ...

    def alike(self, judged: Sequence[Judged]) -> int:
        """How many cannot be told from the best."""
        ...

    def tell(self, done: int, all: int, loss: float) -> None:
        """Show how far the search is."""
        ...


@dataclass(frozen=True)
class Proposal:
    """What was tried: a template, or a word for each label. `given` says that it is what the search started from.

    `loss` and `accuracy` are its own figures on the rows that chose it, and no estimate.
    """

    text: str
    loss: float
    accuracy: float
    kept: bool = False
    given: bool = False


@dataclass(frozen=True)
class Found:
    """The task with what was found in it, and what was tried, the best first; `alike` of them cannot be told from the best.

    `lines` are what was found, as a person reads it. `loss` is that of what is kept, averaged; it, too, is no estimate. `unseen` are the
    losses of rows that had no part in it, with the task as it was and with what is found without them, where that was looked at; and
    `taken` says whether the search's result is used.
    """

    task: Task
    lines: tuple[str, ...]
    proposals: tuple[Proposal, ...]
    loss: float
    alike: int
    rows: int
    unseen: tuple[float, float] | None = None
    taken: bool = True

    @property
    def kept(self) -> tuple[Proposal, ...]:
        """What is averaged."""
        return tuple(one for one in self.proposals if one.kept)

    @property
    def shown(self) -> tuple[Proposal, ...]:
        """The first twenty, and what the search started from."""
        return (*self.proposals[:_SHOWN], *(one for one in self.proposals[_SHOWN:] if one.given))

    def summary(self, name: str) -> str:
        """A sentence for the user: how many were tried, how far they lie apart, what is kept, and that no figure is an estimate."""
        losses = [one.loss for one in self.proposals]
        return (
            f"{len(losses)} {name} tried on {self.rows} labelled rows, losses {min(losses):.2f} to {max(losses):.2f}, "
            f"{self.alike} not to be told from the best; {len(self.kept)} averaged ({self.loss:.2f}). "
            f"These figures chose the {name} and estimate nothing."
        )

    def verdict(self, name: str) -> str:
        """A sentence for the user: whether what was found is used, and why."""
        if self.unseen is None:
            return "Used." if self.taken else f"Not used: it takes two rows of each label to see whether they help ({name}:guard=false)."
        before, after = self.unseen
        figures = f"on rows that had no part in finding them the loss is {after:.2f}, and {before:.2f} as it was"
        if self.taken:
            return f"Used: {figures}."
        return f"Not used: {figures}, which is not better by more than chance ({name}:guard=false uses them all the same)."

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON: counts, the spread of the losses, and the first 20 proposals."""
        losses = [one.loss for one in self.proposals]
        return {
            "rows": self.rows,
            "tried": len(self.proposals),
            "kept": len(self.kept),
            "alike": self.alike,
            "loss": {"averaged": self.loss, "low": min(losses), "high": max(losses)},
            "unseen": None if self.unseen is None else {"before": self.unseen[0], "after": self.unseen[1]},
            "taken": self.taken,
            "found": list(self.lines),
            "proposals": [registry.to_dict(one) for one in self.shown],
        }


class Search(Protocol):
    """A frozen dataclass with one verb. With `guard` what it finds is used only where it helps on rows that had no part in finding it."""

    @property
    def guard(self) -> bool:
        """Whether to look at that."""
        ...

    def find(self, task: Task, judge: Judge) -> Found:
        """Better words or templates for `task`; raises `TaskError` where there is nothing to search."""
        ...


@dataclass(frozen=True)
class WordSearch:
    """Label words from the labelled rows, for the templates as they are.

    `by="likelihood"` (Gao et al. 2021, section 5.1): of each label the `likely` likeliest words, of all assignments the `tried` with the
    best zero-shot accuracy, judged again by their cross-validated loss; the words of the best `keep` are averaged. `by="ratio"`
    (Schick, Schmid & Schütze 2020): of each label's likely words the `keep` with the highest likelihood ratio.

    With `own` the words that the task has, or the labels' names, stay among them: what a name says is worth more than a few rows.
    """

    by: Literal["likelihood", "ratio"] = "likelihood"
    keep: int = 30
    likely: int | None = None
    tried: int = 100
    own: bool = True
    guard: bool = True

    def __post_init__(self) -> None:
        _positive(keep=self.keep, likely=self.likely, tried=self.tried)

    def find(self, task: Task, judge: Judge) -> Found:
        """Raises `TaskError` where the vocabulary has fewer words than there are labels."""
        named = judge.own_words(task)
        own = named if self.own else {}
        words, scores = judge.vocabulary(task, without=own)
        if len(words) < len(task.labels):
            fix = "Name words with --words, or take another --backbone."
            raise TaskError(expected=f"a vocabulary of {len(task.labels)} words", got=str(len(words)), where="--search words", fix=fix)
        propose = self._by_ratio if self.by == "ratio" else self._by_likelihood
        tried = {_spelled(task, words, one): one for one in propose(judge, scores, len(task.labels))}
        judged = {text: judge.judge(_only(scores, one)) for text, one in tried.items()}
        order = _best_first(judged)
        places, chosen = label_words.pooled([tried[text] for text in order], keep=self.keep)
        new = dict(zip(task.labels, chosen, strict=True))
        found = replace(task, words={label: (*own.get(label, ()), *(words[word] for word in new[label])) for label in task.labels})
        given = {_spoken(named) if named else "letters": judge.judge(judge.scores(task))}
        kept = {*(order[place] for place in places), *(given if own else ())}
        return _found(found, [f"{label}={'|'.join(one)}" for label, one in found.words.items()], judged, kept, given, judge)

    def _by_likelihood(self, judge: Judge, scores: Scores, labels: int) -> list[Chosen]:
        candidates = label_words.likeliest(scores.rows, judge.targets_N, max(self.likely or 100, labels), labels=labels)
        found = label_words.assignments(scores.rows, judge.targets_N, candidates, most=self.tried)
        return [tuple((word,) for word in one.words) for one in found]

    def _by_ratio(self, judge: Judge, scores: Scores, labels: int) -> list[Chosen]:
        keep = min(self.keep, scores.rows.shape[1] // labels)
        candidates = label_words.likeliest(scores.rows, judge.targets_N, max(self.likely or 1000, labels * keep), labels=labels)
        ratios_CK = label_words.ratios(scores.rows, judge.targets_N, labels=labels)
        return [label_words.shared_out(ratios_CK, candidates, keep=keep)]


@dataclass(frozen=True)
class TemplateSearch:
    """Templates from a library, paraphrases and, where there is a PLM that fills gaps (T5), what it writes there for the labelled rows, for
    the label words as they are: up to `tried` are judged by their cross-validated loss, and the best `keep` are averaged.

    `infill` names such a PLM; where it is left out the PLM itself is asked if it is one. With `own` those that the task has, or the
    default, are always among them.
    """

    keep: int = 4
    tried: int = 12
    own: bool = True
    guard: bool = True
    infill: str | None = None

    def __post_init__(self) -> None:
        _positive(keep=self.keep, tried=self.tried)

    def find(self, task: Task, judge: Judge) -> Found:
        """Raises `TaskError` for a template of the task itself that cannot be read; others that cannot are left out."""
        given = task.templates or templates_of(task, slot=True)
        proposed = judge.proposed(task, self.infill, self.tried)
        listed = library.candidates(task, causal=judge.causal, proposed=proposed)[: max(self.tried, len(given))]
        judged: dict[str, Judged] = {}
        for number, text in enumerate(listed):
            asked = replace(task, templates=(text,))
            scores = judge.scores(asked) if text in given else _readable(asked, judge)
            if scores is not None:
                judged[text] = judge.judge(scores)
            judge.tell(number + 1, len(listed), float(judged[text].losses_N.mean()) if text in judged else float("nan"))
        own = given if self.own else ()
        order = [*own, *(text for text in _best_first(judged) if text not in own)]
        best = order[: max(self.keep, len(own))]
        found = replace(task, templates=tuple(best))
        return _found(found, [repr(text) for text in best], judged, set(best), {text: judged[text] for text in given}, judge)


SEARCHES: registry.Table[Search] = registry.Table("search", {"words": WordSearch, "templates": TemplateSearch})
"""Here and not beside the other prompts' modules, for these are read where no search is wanted."""


def _positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise SpecError(expected="a number above 0", got=str(number), where=f"search.{name}", fix="Ask for at least 1.")


def _readable(task: Task, judge: Judge) -> Scores | None:
    try:
        return judge.scores(task)
    except TaskError:
        return None


def _best_first(judged: Mapping[str, Judged]) -> list[str]:
    return sorted(judged, key=lambda text: float(judged[text].losses_N.mean()))


def _only(scores: Scores, words: Sequence[Sequence[int]]) -> Scores:
    """The labels' scores when each is read at its words: the mean over them."""
    return Scores(*(np.stack([one[:, list(own)].mean(1) for own in words], 1) for one in (scores.rows, scores.free)))


def _spelled(task: Task, words: Sequence[str], chosen: Chosen) -> str:
    return _spoken({label: [words[word] for word in own] for label, own in zip(task.labels, chosen, strict=True)})


def _spoken(words: Mapping[str, Sequence[str]]) -> str:
    """Words as `--words` takes them."""
    return ",".join(f"{label}={'|'.join(own)}" for label, own in words.items())


def _found(
    task: Task, lines: Sequence[str], tried: Mapping[str, Judged], kept: Collection[str], given: Mapping[str, Judged], judge: Judge
) -> Found:
    every = {**tried, **given}
    figures = [(text, float(every[text].losses_N.mean()), float(every[text].right_N.mean())) for text in _best_first(every)]
    proposals = tuple(Proposal(*figure, kept=figure[0] in kept, given=figure[0] in given) for figure in figures)
    together = float(judge.judge(judge.scores(task)).losses_N.mean())
    return Found(task, tuple(lines), proposals, together, judge.alike(list(every.values())), len(judge.targets_N))
