"""What a search tries and keeps, with a judge that is a table of numbers."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from fewtune.errors import SpecError, TaskError
from fewtune.prompt import library
from fewtune.prompt.search import SEARCHES, Judged, Scores, TemplateSearch, WordSearch
from fewtune.tasks.task import Task

TASK = Task(labels=("bad", "good"), fields=("text",), label_name="mood")
VOCABULARY = ("the", "awful", "dull", "fine", "great", "of", "bad", "good")
# Rows of bad, bad, good, good; "the" and "of" are likely everywhere, "bad" and "good" say little.
LOGS = np.log(
    [
        [0.3, 0.15, 0.12, 0.02, 0.01, 0.3, 0.05, 0.05],
        [0.3, 0.12, 0.15, 0.01, 0.02, 0.3, 0.05, 0.05],
        [0.3, 0.02, 0.01, 0.15, 0.12, 0.3, 0.05, 0.05],
        [0.3, 0.01, 0.02, 0.12, 0.15, 0.3, 0.05, 0.05],
    ]
)


@dataclass
class Table:
    """A judge for which templates have losses, and words the log-probabilities above; uncalibrated."""

    losses: dict = field(default_factory=dict)
    causal: bool = True
    own: dict = field(default_factory=lambda: {"bad": ("bad",), "good": ("good",)})
    targets_N: np.ndarray = field(default_factory=lambda: np.array([0, 0, 1, 1]))
    told: list = field(default_factory=list)
    written: tuple = ()

    def scores(self, task):
        if any("refused" in text or text.startswith("What") for text in task.templates):
            raise TaskError(expected="a template", got="another", where="template", fix="")
        loss = np.mean([self.losses.get(text, 1.0) for text in task.templates]) if task.templates else 0.7
        own_N = np.full(4, -loss)
        other_N = np.log1p(-np.exp(own_N))
        rows_NC = np.where(self.targets_N[:, None] == np.arange(2), own_N[:, None], other_N[:, None])
        return Scores(rows_NC, np.zeros((3, 2)))

    def own_words(self, task):
        return self.own

    def vocabulary(self, task, *, without):
        taken = {word for words in without.values() for word in words}
        places = [place for place, word in enumerate(VOCABULARY) if word not in taken]
        return tuple(VOCABULARY[place] for place in places), Scores(LOGS[:, places], LOGS[:1, places])

    def proposed(self, task, infill, most):
        return self.written[:most]

    def judge(self, scores):
        log_NC = scores.rows - np.log(np.exp(scores.rows).sum(1, keepdims=True))
        return Judged(-log_NC[np.arange(4), self.targets_N], log_NC.argmax(1) == self.targets_N)

    def alike(self, judged):
        return 1

    def tell(self, done, all, loss):
        self.told.append((done, all))


def test_every_search_is_seen():
    assert list(SEARCHES) == ["words", "templates"]


@pytest.mark.parametrize(
    ("text", "search"),
    [
        ("words", WordSearch()),
        ("words:by=ratio,keep=10,own=false", WordSearch(by="ratio", keep=10, own=False)),
        ("templates:keep=2,tried=20", TemplateSearch(keep=2, tried=20)),
    ],
)
def test_as_flags_have_it(text, search):
    assert SEARCHES.from_text(text) == search and SEARCHES.from_text(SEARCHES.to_text(search)) == search
    assert SEARCHES.from_dict(SEARCHES.to_dict(search)) == search


@pytest.mark.parametrize("text", ["words:keep=0", "words:likely=-1", "templates:tried=0"])
def test_numbers_below_one_are_refused(text):
    with pytest.raises(SpecError, match="a number above 0"):
        SEARCHES.from_text(text)


def test_words_that_tell_the_labels_apart_are_found_and_join_the_names():
    found = WordSearch(keep=2).find(TASK, Table())
    assert found.task.words["bad"][0] == "bad" and set(found.task.words["bad"][1:]) <= {"awful", "dull"}
    assert found.task.words["good"][0] == "good" and set(found.task.words["good"][1:]) <= {"fine", "great"}
    assert {one.text for one in found.kept if one.given} == {"bad=bad,good=good"} and len(found.kept) == 3
    assert list(found.task.words) == list(TASK.labels)


def test_without_the_names_only_found_words_are_kept():
    found = WordSearch(keep=1, own=False).find(TASK, Table())
    assert [len(words) for words in found.task.words.values()] == [1, 1] and len(found.kept) == 1
    assert found.kept[0] == found.proposals[0] and not found.kept[0].given


def test_by_the_likelihood_ratio():
    found = WordSearch(by="ratio", keep=2).find(TASK, Table())
    assert {label: set(words) for label, words in found.task.words.items()} == {
        "bad": {"bad", "awful", "dull"},
        "good": {"good", "fine", "great"},
    }


def test_names_that_cannot_be_told_apart_do_not_stay():
    found = WordSearch(keep=1).find(TASK, Table(own={}))
    assert [len(words) for words in found.task.words.values()] == [1, 1]
    assert [one.text for one in found.proposals if one.given] == ["letters"]


def test_a_vocabulary_that_is_too_small_is_refused():
    many = replace(TASK, labels=tuple(f"label {number}" for number in range(9)))
    with pytest.raises(TaskError, match="a vocabulary of 9 words, got 8"):
        WordSearch().find(many, Table(own={}))


def losses():
    given, *others = library.candidates(TASK, causal=True)
    return given, others, {text: 0.1 + 0.05 * number for number, text in enumerate(text for text in others if not text.startswith("What"))}


def test_the_best_few_templates_are_kept_beside_the_one_that_was_given():
    given, others, table = losses()
    judge = Table(losses=table)
    found = TemplateSearch(keep=3, tried=8).find(TASK, judge)
    best = sorted((text for text in others[:7] if not text.startswith("What")), key=table.get)
    assert found.task.templates == (given, *best[:2]) and [one.text for one in found.kept][:2] == best[:2]
    assert TemplateSearch(keep=3, tried=8, own=False).find(TASK, Table(losses=table)).task.templates == tuple(best[:3])
    assert judge.told[-1] == (8, 8)


def test_a_template_of_the_library_that_cannot_be_asked_is_left_out_and_one_of_the_task_is_an_error():
    found = TemplateSearch(tried=20).find(TASK, Table())
    assert not any(one.text.startswith("What") for one in found.proposals) and len(found.proposals) > 5
    with pytest.raises(TaskError):
        TemplateSearch().find(replace(TASK, templates=("refused {text} {slot}",)), Table())


def test_what_is_told_has_the_spread_and_says_that_it_is_no_estimate():
    given, _, table = losses()
    found = TemplateSearch(keep=2, tried=6).find(TASK, Table(losses=table))
    data = found.to_dict()
    assert data["loss"]["low"] == min(one.loss for one in found.proposals) < data["loss"]["high"] == pytest.approx(1.0)
    assert data["tried"] == len(found.proposals) and data["kept"] == 2 and data["rows"] == 4
    assert [one["text"] for one in data["proposals"] if one["given"]] == [given]
    assert "estimate nothing" in found.summary("templates") and "2 averaged" in found.summary("templates")


def test_what_is_written_into_gaps_is_tried_in_turn_with_the_library():
    written = ("{text} so {slot}", "{text} it felt {slot}")
    found = TemplateSearch(keep=1, tried=4, own=False).find(TASK, Table(losses={written[1]: 0.1}, written=written))
    assert found.task.templates == (written[1],) and {*written} < {one.text for one in found.proposals}
    assert len(found.proposals) == 4
