"""The step before tuning in which label words and templates are found: an untuned PLM answers what a search asks of it. Knows recipes,
models and calibrations; what is tried and kept is decided in `fewtune.prompt.search`.

A strategy searches with the rows that it may learn from and no others, so a fold's search never sees the rows that judge it.

Dimensions: N rows, F inputs without content, B batch, D width, K words, V vocabulary, C labels.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fewtune import estimate, plm
from fewtune.backbone.backbone import Backbone, Output
from fewtune.backbone.beams import agreed
from fewtune.data.example import Example, Split
from fewtune.data.sampling import capped, derive, distinct, folds
from fewtune.errors import BackboneError, DataError, SpecError, TaskError
from fewtune.model import TunedModel
from fewtune.precision import settle_precision
from fewtune.prompt import infill as infilling
from fewtune.prompt.batch import Batch
from fewtune.prompt.defaults import lead as lead_of
from fewtune.prompt.defaults import spoken, templates_of
from fewtune.prompt.label_words import Array, Indices
from fewtune.prompt.search import SEARCHES, Found, Judged, Scores, Search
from fewtune.prompt.template import Template
from fewtune.prompt.verbalizer import Verbalizer, WordIds, vocabulary_words
from fewtune.readout.calibration import CONTENT_FREE, Calibrator, Contextual, Temperature, Uncalibrated, likeliest
from fewtune.readout.states import at_slot, states
from fewtune.recipe import Recipe
from fewtune.registry import Plain
from fewtune.tasks import kind_of
from fewtune.tasks.task import Task
from fewtune.train.fit import Session

_FOLDS = 4
_ASKED, _MOST_TOKENS, _LONGEST = 16, 128, 20
"""Rows whose gaps are filled, tokens of each of their texts, and tokens of an answer (Gao et al. 2021 have 20, too)."""
_MOST_ROWS = 512
"""Labelled rows that a search looks at, up to the same number of each label; more would cost as much as tuning."""


def searched(recipe: Recipe, split: Split, backbone: Backbone, session: Session) -> tuple[Recipe, dict[str, Plain]]:
    """The recipe with what was found in its task, and plain facts for `about`; as it is where no search is wanted.

    Templates come first, for words are read in them. Raises `TaskError` for a readout or a kind of task without label words, `DataError`
    where a label has no row.
    """
    if not recipe.search:
        return recipe, {}
    found = find(recipe, split, backbone, session)
    if not session.told:
        _say(found, session)
    task = list(found.values())[-1].task
    return replace(recipe, task=task, search=()), {"search": {name: one.to_dict() for name, one in found.items()}}


def find(recipe: Recipe, split: Split, backbone: Backbone, session: Session) -> dict[str, Found]:
    """What each search of the recipe finds, by its name; the last one has the whole task."""
    check(recipe)
    searches = _in_order(recipe.search)
    judge = PLMJudge(recipe, _rows(recipe, split.train), backbone, session)
    settle_precision(judge.model(recipe.task), recipe.precision, split)
    if not session.told:
        session.say(f"Searching {' and '.join(searches)} with {len(judge.examples)} labelled rows.")
    task, found = recipe.task, {}
    for name, search in searches.items():
        found[name] = _guarded(search, task, judge)
        task = found[name].task
    return found


def _guarded(search: Search, task: Task, judge: PLMJudge) -> Found:
    """What the search finds; the task stays as it was where that is not worse on rows that had no part in the search."""
    found = search.find(task, judge)
    if not search.guard:
        return found
    if min(np.bincount(judge.targets_N)) < 2:
        return replace(found, task=task, taken=False)
    losses_N2 = judge.unseen(search, task)
    before, after = losses_N2.mean(0).tolist()
    taken = estimate.simplest(losses_N2) == 1
    return replace(found, task=found.task if taken else task, unseen=(before, after), taken=taken)


def _in_order(searches: Sequence[Search]) -> dict[str, Search]:
    named = {SEARCHES.name_of(search): search for search in searches}
    if len(named) < len(searches):
        fix = "Search words once and templates once."
        raise SpecError(expected="each search once", got="one twice", where="--search", fix=fix)
    return {name: named[name] for name in ("templates", "words") if name in named}


def check(recipe: Recipe) -> None:
    """Raise `TaskError` where a search is wanted and no word is read, or the task has no labels to find words for; `SpecError` for the
    same search twice."""
    _in_order(recipe.search)
    if recipe.search and not recipe.readout.needs_slot:
        fix = "Take --readout cloze and a --backbone with a language-modelling head, or leave --search out."
        raise TaskError(expected="a readout that reads a word", got="one without label words", where="--search", fix=fix)
    if recipe.search and recipe.readout.reverses:
        fix = "Take --readout cloze or likelihood, or leave --search out."
        raise TaskError(expected="a readout that reads a word", got="one that reads the texts", where="--search", fix=fix)
    if recipe.search and recipe.task.kind != "classification":
        fix = "Leave --search out."
        raise TaskError(expected="a task of kind classification", got=recipe.task.kind, where="--search", fix=fix)


def _by_label(task: Task, examples: Sequence[Example]) -> dict[str, list[Example]]:
    return {label: [example for example in examples if example.label == label] for label in task.labels}


def _rows(recipe: Recipe, train: Sequence[Example]) -> tuple[Example, ...]:
    task = recipe.task
    kind_of(task).check(task, train, "fit")
    once = distinct(train)  # the same text in two folds would have a part in finding what it judges
    groups = _by_label(task, once)
    for label, members in groups.items():
        if not members:
            fix = "Label a row of it, or leave --search out."
            raise DataError(expected=f'labelled rows of "{label}"', got="none", where="--search", fix=fix)
    most = max(4, _MOST_ROWS // len(groups))
    return tuple(example for _, example in capped(groups, most, seed=derive(recipe.seed, "search")))


def _say(found: Mapping[str, Found], session: Session) -> None:
    for name, one in found.items():
        session.say(one.summary(name))
        for line in one.lines:
            session.say(f"  {line}")
        session.say(one.verdict(name))


class PLMJudge:
    """A `fewtune.prompt.search.Judge`: the PLM as it is, before anything is tuned, on labelled rows.

    What it computes for a row is kept in the session's cache, so that searches in folds compute nothing twice.
    """

    def __init__(self, recipe: Recipe, examples: Sequence[Example], backbone: Backbone, session: Session, *, silent: bool = False) -> None:
        self.recipe, self.examples, self.backbone, self.session = recipe, tuple(examples), backbone, session
        self.causal = backbone.causal
        self.targets_N: Indices = np.array(kind_of(recipe.task).targets(recipe.task, examples))
        self.parts = folds(examples, min(_FOLDS, len(examples)), seed=derive(recipe.seed, "search", "folds"))
        self._silent, self._start = silent, time.perf_counter()
        self.writers: dict[str, Backbone] = {}

    def model(self, task: Task) -> TunedModel:
        """The untuned model that asks as `task` says."""
        return TunedModel.assemble(self.backbone, task, self.recipe.readout, max_length=self.recipe.max_length)

    def scores(self, task: Task) -> Scores:
        """Uncalibrated scores of the rows and of inputs without content, the mean over the task's templates."""
        asked = [replace(task, templates=(text,)) for text in task.templates] or [task]
        return self._split([self._scores(self.model(one)) for one in asked])

    def _scores(self, model: TunedModel) -> Tensor:
        """scores_NC of a model with one template; where only the slot is read, its states serve for all words."""
        words = model.asked.words[0]
        if not isinstance(words, WordIds):
            return self._kept(("scores", repr(model.readout), model.max_length, repr(model.asked)), model.raw_scores)
        states_ND = self._states(model.asked.templates[0]).to(self.backbone.device)
        nothing_N1 = torch.zeros(len(states_ND), 1, dtype=torch.long, device=states_ND.device)
        batch = Batch(nothing_N1, nothing_N1, None, nothing_N1[:, 0], words.ids)
        with torch.no_grad():
            return model.reader.scores(Output(states_ND[:, None]), batch).cpu()

    def own_words(self, task: Task) -> dict[str, tuple[str, ...]]:
        """The words that the task has, or its labels' names; none where these cannot be told apart."""
        words = {label: task.words.get(label, (spoken(label),)) for label in task.labels}
        try:
            for template in _templates(task):
                self._first_tokens(words, template)
        except TaskError:
            return {}
        return words

    def _first_tokens(self, words: Mapping[str, tuple[str, ...]], template: Template) -> set[int]:
        """Raises `TaskError` where the readout cannot tell the labels apart by their words."""
        verbalizer, tokenizer, lead = Verbalizer(words), self.backbone.tokenizer, self._lead(template)
        if self.recipe.readout.spells:
            return {word[0] for own in verbalizer.whole(tokenizer, lead=lead).ids for word in own}
        return {token for own in verbalizer.ids(tokenizer, lead=lead).ids for token in own}

    def _lead(self, template: Template) -> str | None:
        return lead_of(template, seq2seq=self.backbone.seq2seq)

    def proposed(self, task: Task, infill: str | None, most: int) -> tuple[str, ...]:
        """Templates that the PLM called `infill`, or this one, writes by filling gaps between the texts and label words of some rows.

        Raises `BackboneError` for a PLM that was named and cannot.
        """
        writer = self._writer(infill)
        if writer is None:
            return ()
        words = {label: listed[0] for label, listed in (self.own_words(task) or {one: (spoken(one),) for one in task.labels}).items()}
        groups = _by_label(task, self.examples)
        rows = [one for _, one in capped(groups, max(1, _ASKED // len(groups)), seed=derive(self.recipe.seed, "infill"))]
        series = []
        for layout in infilling.layouts(len(task.fields), causal=self.causal):
            begin, *marks = infilling.marks(writer.tokenizer, layout)
            texts = [[one.fields[name] for name in task.fields] for one in rows]
            prompts = [
                infilling.asked(writer.tokenizer, layout, own, words[one.label or ""], most=_MOST_TOKENS)
                for one, own in zip(rows, texts, strict=True)
            ]
            found = agreed(writer, prompts, begin=begin, marks=marks, beams=most, most=_LONGEST)
            series.append([infilling.template(writer.tokenizer, layout, task.fields, one.ids) for one in found])
        return tuple(dict.fromkeys(text for texts in itertools.zip_longest(*series) for text in texts if text))[:most]

    def _writer(self, infill: str | None) -> Backbone | None:
        """The PLM that fills gaps, loaded once for a search and its folds."""
        if infill is not None and infill not in self.writers:
            self.writers[infill] = plm.load(infill, device=str(self.backbone.device))
        writer = self.backbone if infill is None else self.writers[infill]
        if writer.seq2seq and infilling.fills(writer.tokenizer):
            return writer
        if infill is None:
            return None
        fix = "Name a T5, or leave infill out."
        raise BackboneError(expected="a PLM that fills gaps of any length", got=writer.name, where="--search templates:infill", fix=fix)

    def vocabulary(self, task: Task, *, without: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], Scores]:
        """Every whole word that can be read in each of the templates, and its log-probabilities, the mean over them."""
        templates = _templates(task)
        tokens = [vocabulary_words(self.backbone.tokenizer, self._lead(template)) for template in templates]
        taken = [self._first_tokens(without, template) for template in templates]
        words = tuple(
            word for word in tokens[0] if all(word in one and one[word] not in out for one, out in zip(tokens, taken, strict=True))
        )
        logs = []
        for template, ids in zip(templates, tokens, strict=True):
            template.check(task.fields, slot=True)
            states_ND = self._states(template)
            logs.append(self._log_probabilities(states_ND, torch.tensor([ids[word] for word in words])))
        return words, self._split(logs)

    def _states(self, template: Template) -> Tensor:
        """states_ND in the slot, of the rows and then of the inputs without content."""
        length = min(self.recipe.max_length, self.backbone.room)

        def compute(examples: Sequence[Example]) -> Tensor:
            return states(self.backbone, [template.render(example.fields) for example in examples], at_slot, most=length, slot=True)

        return self._kept(("states", length, str(template)), compute)

    @torch.no_grad()
    def _log_probabilities(self, states_ND: Tensor, words_K: Tensor) -> Tensor:
        """log_NK of the words, over the whole vocabulary."""
        parts = torch.split(states_ND.to(self.backbone.device), 32)
        return torch.cat([self.backbone.lm_logits(part_BD, None).log_softmax(-1).cpu()[:, words_K] for part_BD in parts])

    @torch.no_grad()
    def _kept(self, what: tuple[Hashable, ...], compute: Callable[[Sequence[Example]], Tensor]) -> Tensor:
        """What `compute` gives for each row and each input without content, from the cache where it is there."""
        examples = (*self.examples, *(Example({name: text for name in self.recipe.task.fields}) for text in CONTENT_FREE))
        cache = self.session.cache
        which = (self.backbone.fingerprint, self.backbone.precision, what)
        keys = [(which, tuple(example.fields[name] for name in self.recipe.task.fields)) for example in examples]
        missing = list({key: example for key, example in zip(keys, examples, strict=True) if key not in cache}.items())
        if missing:
            new_N1D = compute([example for _, example in missing])[:, None]
            cache.add([key for key, _ in missing], [1] * len(missing), new_N1D)
        kept_N1D = cache.get(keys)
        return compute(examples) if kept_N1D is None else kept_N1D[:, 0]

    def _split(self, templates: Sequence[Tensor]) -> Scores:
        mean = torch.stack(list(templates)).mean(0).double().numpy()
        return Scores(mean[: len(self.examples)], mean[len(self.examples) :])

    def judge(self, scores: Scores) -> Judged:
        """Fold by fold: the calibration that suits the other rows (none or contextual, then a temperature) judges those held out."""
        log_NC = np.zeros_like(scores.rows)
        for kept, held in self.parts:
            log_NC[list(held)] = _calibrated(scores, self.targets_N, kept, held)
        return Judged(-log_NC[np.arange(len(log_NC)), self.targets_N], log_NC.argmax(1) == self.targets_N)

    def unseen(self, search: Search, task: Task) -> Array:
        """losses_N2 of each row, with the task as it is and with what the search finds without the row's fold."""
        losses_N2 = np.zeros((len(self.examples), 2))
        for kept, held in self.parts:
            part = PLMJudge(self.recipe, [self.examples[row] for row in kept], self.backbone, self.session, silent=True)
            part.writers = self.writers
            for column, asked in enumerate((task, search.find(task, part).task)):
                log_NC = _calibrated(self.scores(asked), self.targets_N, kept, held)
                losses_N2[list(held), column] = -log_NC[np.arange(len(held)), self.targets_N[list(held)]]
        return losses_N2

    def alike(self, judged: Sequence[Judged]) -> int:
        """How many cannot be told from the best by the rule of one standard error."""
        return int(estimate.alike(np.stack([one.losses_N for one in judged], 1)).sum())

    def tell(self, done: int, all: int, loss: float) -> None:
        """Show progress; after the first proposal, say how long the others take."""
        if self._silent:
            return
        seconds = (time.perf_counter() - self._start) * (all - 1)
        if done == 1 and seconds > 1 and not self.session.told:
            self.session.say(f"Judging {all} templates: about {seconds:.0f} s more.")
        self.session.progress(f"{self.session.label}.search", done, all, loss)


def _templates(task: Task) -> list[Template]:
    return [Template.parse(text) for text in task.templates or templates_of(task, slot=True)]


def _calibrated(scores: Scores, targets_N: Indices, kept: Sequence[int], held: Sequence[int]) -> Array:
    """Log-probabilities of the rows `held`, calibrated on those `kept`."""
    rows_NC, free_FC = torch.from_numpy(scores.rows), torch.from_numpy(scores.free)
    calibrator = _calibrator(rows_NC[list(kept)], free_FC, torch.from_numpy(targets_N[list(kept)]))
    log_NC: Array = calibrator(rows_NC[list(held)]).log_softmax(-1).numpy()
    return log_NC


def _calibrator(scores_NC: Tensor, free_FC: Tensor, targets_N: Tensor) -> Calibrator:
    best = likeliest((Uncalibrated().fit(scores_NC), Contextual().fit(free_FC)), scores_NC, targets_N)
    return Calibrator(best.bias_C, Temperature().fit(best(scores_NC), targets_N).temperature)
