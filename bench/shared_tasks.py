"""Tasks of the data folder in several wordings each, for multi-task training and its test: data only, in words of our own.

A kind is what is asked, not whose texts they are: all sentiment tasks are one kind. No held-out task is of a kind that is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from machine import DataSet

from fewtune.collection import Lesson
from fewtune.data.example import Example
from fewtune.data.readers import read
from fewtune.tasks.task import Task

Words = Mapping[str, str]
Wording = tuple[Words, tuple[str, ...]]
"""Words for the labels (their names where there are none), and templates in which these stand."""


def _as_it_is(example: Example) -> str | None:
    return example.label


def _alike(example: Example) -> str | None:
    """Of a similarity from 0 to 5 whether two sentences say the same; None in between, where people would not agree."""
    score = float(example.label or 0)
    return "yes" if score >= 4 else "no" if score <= 2 else None


@dataclass(frozen=True)
class Shared:
    """A data set as a task: its kind, labels, columns and wordings; `label` makes a label of a row, or None to leave it out."""

    data: str
    kind: str
    labels: tuple[str, ...]
    wordings: tuple[Wording, ...]
    fields: tuple[str, ...] = ("text",)
    label: Callable[[Example], str | None] = field(default=_as_it_is)

    def lesson(self, shared: Path, part: str, draw: Callable[[Sequence[Example]], Sequence[Example]]) -> Lesson:
        """The task with the rows that `draw` takes of those of `train` or `test`."""
        path = DataSet(shared, self.data)._path(f"data/{self.data}/{part}.jsonl.gz")
        found = read(path, text=self.fields, label="label", labeled=True).examples
        rows = [Example(row.fields, label, row.where) for row in found if (label := self.label(row)) is not None]
        return Lesson(self.data, tuple(self._task(*wording) for wording in self.wordings), tuple(draw(rows)))

    def _task(self, words: Words, templates: tuple[str, ...]) -> Task:
        given = {label: (words[label],) for label in self.labels} if words else {}
        return Task(self.labels, self.fields, templates, given, name=self.data)


MOOD, PAIR = ("negative", "positive"), ("text_a", "text_b")
GOOD, LIKED = {"negative": "bad", "positive": "good"}, {"negative": "no", "positive": "yes"}


def _sentiment(data: str, thing: str) -> Shared:
    wordings: tuple[Wording, ...] = (
        ({}, (f"{thing.capitalize()} review: {{text}}\nSentiment: {{slot}}", "{text}\nIs this positive or negative? {slot}")),
        (GOOD, (f"{{text}}\nAll in all, the {thing} was {{slot}}",)),
        (LIKED, (f"{{text}}\nQuestion: Does the writer like the {thing}? Yes or no?\nAnswer: {{slot}}",)),
    )
    return Shared(data, "sentiment", MOOD, wordings)


_AGNEWS = ("world", "sports", "business", "science and technology")
_SNIPS = ("add to playlist", "book restaurant", "get weather", "play music", "rate book", "search creative work", "search screening event")
_TREC = ("abbreviation", "description", "entity", "human", "location", "number")

TRAINED: tuple[Shared, ...] = (
    _sentiment("sst2", "film"),
    _sentiment("cr", "product"),
    _sentiment("yelp_short", "restaurant"),
    _sentiment("uci_amazon_sentences", "phone"),
    Shared(
        "agnews",
        "topic",
        _AGNEWS,
        (
            (
                {},
                (
                    "Article: {text}\nTopic: {slot}",
                    "{text}\nIs this article about world, sports, business or science and technology? {slot}",
                    "In which section of a newspaper does this stand?\n{text}\nSection: {slot}",
                ),
            ),
        ),
    ),
    Shared(
        "snips",
        "intent",
        _SNIPS,
        (
            (
                {},
                (
                    "User: {text}\nIntent: {slot}",
                    "{text}\nWhat does the user want to do? {slot}",
                    f"Choose one of {', '.join(_SNIPS)}.\nCommand: {{text}}\nAnswer: {{slot}}",
                ),
            ),
        ),
    ),
    Shared(
        "trec",
        "question type",
        _TREC,
        (
            (
                {},
                (
                    "Question: {text}\nType of answer: {slot}",
                    "{text}\nThe answer is a kind of {slot}",
                    f"Choose one of {', '.join(_TREC)}.\nQuestion: {{text}}\nChoice: {{slot}}",
                ),
            ),
        ),
    ),
    Shared(
        "stsb",
        "paraphrase",
        ("no", "yes"),
        (
            (
                {},
                (
                    "{text_a}\n{text_b}\nQuestion: Do the two sentences say the same? Yes or no?\nAnswer: {slot}",
                    'Could one write "{text_a}" instead of "{text_b}"? {slot}',
                ),
            ),
            ({"no": "different", "yes": "same"}, ("First: {text_a}\nSecond: {text_b}\nMeaning: {slot}",)),
        ),
        PAIR,
        _alike,
    ),
    Shared(
        "fewglue_copa",
        "causes",
        ("choice1", "choice2"),
        (
            (
                {"choice1": "A", "choice2": "B"},
                (
                    "{text_a}\nWhich is the more likely {question}?\nA: {text_b}\nB: {text_c}\nAnswer: {slot}",
                    "A: {text_b}\nB: {text_c}\n{text_a} The {question} was {slot}",
                ),
            ),
            (
                {"choice1": "first", "choice2": "second"},
                ("{text_a}\nFirst: {text_b} Second: {text_c}\nIs the first or the second the {question}? {slot}",),
            ),
        ),
        ("text_a", "text_b", "text_c", "question"),
    ),
)

_FITS = {"entailment": "yes", "not entailment": "no"}
_THREE = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
_TRUTH = {"entailment": "true", "neutral": "unclear", "contradiction": "false"}

HELD_OUT: tuple[Shared, ...] = (
    Shared(
        "sms_spam",
        "spam",
        ("ham", "spam"),
        (
            (
                {"ham": "no", "spam": "yes"},
                ("{text}\nQuestion: Is this advertising? Yes or no?\nAnswer: {slot}", "{text}\nIs it spam? {slot}"),
            ),
            ({"ham": "friend", "spam": "company"}, ("Message: {text}\nSender: {slot}",)),
            ({"ham": "normal", "spam": "spam"}, ("SMS: {text}\nKind of message, normal or spam: {slot}",)),
        ),
    ),
    Shared(
        "tweeteval_offensive",
        "offensive language",
        ("not offensive", "offensive"),
        (
            (
                {"not offensive": "no", "offensive": "yes"},
                (
                    "{text}\nQuestion: Is this tweet offensive? Yes or no?\nAnswer: {slot}",
                    "Tweet: {text}\nShould a moderator remove it? {slot}",
                ),
            ),
            ({"not offensive": "polite", "offensive": "rude"}, ("{text}\nTone: {slot}", "Is this polite or rude?\n{text}\nIt is {slot}")),
        ),
    ),
    Shared(
        "cola",
        "acceptability",
        ("unacceptable", "acceptable"),
        (
            (
                {"unacceptable": "no", "acceptable": "yes"},
                (
                    "{text}\nQuestion: Is this sentence grammatical? Yes or no?\nAnswer: {slot}",
                    "Would a native speaker say: {text}\n{slot}",
                ),
            ),
            ({"unacceptable": "wrong", "acceptable": "correct"}, ("Sentence: {text}\nGrammar: {slot}",)),
            ({"unacceptable": "bad", "acceptable": "good"}, ("{text}\nThe English of this sentence is {slot}",)),
        ),
    ),
    Shared(
        "rte",
        "inference",
        ("entailment", "not entailment"),
        (
            (
                _FITS,
                (
                    "{text_a}\nQuestion: {text_b} Yes or no?\nAnswer: {slot}",
                    "{text_a}\nDoes it follow that {text_b} {slot}",
                    'Given that {text_a} Must "{text_b}" be so? {slot}',
                ),
            ),
            ({"entailment": "true", "not entailment": "false"}, ("{text_a}\nTrue or false: {text_b} {slot}",)),
        ),
        PAIR,
    ),
    Shared(
        "snli",
        "inference",
        ("entailment", "neutral", "contradiction"),
        (
            (_THREE, ("{text_a}\nQuestion: {text_b} Yes, no or maybe?\nAnswer: {slot}", "{text_a}\nDoes it follow that {text_b} {slot}")),
            (_TRUTH, ("{text_a}\nTrue, false or unclear: {text_b} {slot}", "Suppose: {text_a}\nClaim: {text_b}\nThe claim is {slot}")),
        ),
        PAIR,
    ),
    Shared(
        "fewglue_boolq",
        "reading",
        ("no", "yes"),
        (
            (
                {},
                (
                    "{text_b}\nQuestion: {text_a}?\nAnswer: {slot}",
                    "Passage: {text_b}\nAfter reading this, {text_a}? Yes or no? {slot}",
                ),
            ),
            ({"no": "false", "yes": "true"}, ("{text_b}\nTrue or false: {text_a}? {slot}",)),
            ({"no": "No", "yes": "Yes"}, ("{text_b}\n{text_a}?\n{slot}",)),
        ),
        PAIR,
    ),
    Shared(
        "fewglue_wic",
        "word sense",
        ("different sense", "same sense"),
        (
            (
                {"different sense": "no", "same sense": "yes"},
                (
                    '{text_a}\n{text_b}\nQuestion: Does "{word}" mean the same in both? Yes or no?\nAnswer: {slot}',
                    'Is "{word}" used in one sense in "{text_a}" and "{text_b}"? {slot}',
                ),
            ),
            (
                {"different sense": "different", "same sense": "same"},
                ("{text_a}\n{text_b}\nMeanings of {word}: {slot}", 'First: {text_a}\nSecond: {text_b}\nThe sense of "{word}" is {slot}'),
            ),
        ),
        ("text_a", "text_b", "word"),
    ),
)

TOPICS = ("topic", "question type", "intent", "spam", "offensive language")
"""Kinds of which the PLM knows something untrained; of inference, reading, word senses and acceptability one of this size knows nothing."""
