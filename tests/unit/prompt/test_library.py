"""Templates to try: each of the library's can be asked, paraphrases ask of the same fields."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewtune.prompt.library import LIBRARY, candidates, library, paraphrases
from fewtune.prompt.template import Slot, Template
from fewtune.tasks import KINDS
from fewtune.tasks.task import Task

SINGLE = Task(labels=("negative", "positive"), fields=("review_text",), label_name="sentiment")
PAIR = Task(labels=("yes", "no"), fields=("premise", "hypothesis"), label_name="entailed")
BRACES = Task(labels=("yes", "no"), fields=("te{xt}",), label_name="{l}")


def test_it_names_kinds_that_there_are():
    assert set(LIBRARY) <= set(KINDS) and sum(len(texts) for kinds in LIBRARY.values() for texts in kinds.values()) == 21


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("task", [SINGLE, PAIR], ids=["single", "pair"])
def test_every_candidate_can_be_asked(task, causal):
    found = candidates(task, causal=causal)
    assert len(found) == len(set(found)) >= 8
    for text in found:
        template = Template.parse(text)
        template.check(task.fields, slot=True)
        assert template.names == task.fields and str(template) == text
        if causal:
            assert isinstance(template.parts[-1], Slot) and template.slot.lead == " "


def test_the_first_candidates_are_those_that_the_task_has():
    mine = ("{review_text} So: {slot}", "Was it good? {review_text} {slot}")
    task = Task(labels=SINGLE.labels, fields=SINGLE.fields, templates=mine, label_name="sentiment")
    assert candidates(task, causal=True)[:2] == mine
    assert candidates(SINGLE, causal=True)[0] == "Review text: {review_text}\nSentiment: {slot}"


def test_a_model_that_sees_what_follows_is_shown_a_full_stop():
    given, *others = candidates(SINGLE, causal=False)
    assert given.endswith("{slot}") and not any(text.endswith("{slot}") for text in others)
    assert "{review_text} It was {slot}." in others and "{slot}: {review_text}" in others


def test_names_become_cues():
    assert "Review text: {review_text}\nQuestion: What is the sentiment of this review text?\nAnswer: {slot}" in library(SINGLE)
    assert "{premise}? {slot}, {hypothesis}" in library(PAIR)


def test_braces_in_names_stand_for_themselves():
    task = Task(labels=BRACES.labels, fields=("text",), label_name="{l}")
    for text in candidates(task, causal=True):
        Template.parse(text).check(task.fields, slot=True)


def test_a_task_that_the_library_does_not_know_has_its_own_templates_and_paraphrases():
    task = Task(labels=("a", "b"), fields=("one", "two", "three"))
    assert library(task) == () and len(candidates(task, causal=True)) > 3


def test_paraphrases_by_hand():
    assert paraphrases("Review: {review_text} It was {slot}", SINGLE) == (
        "Review: {review_text}\nIt was {slot}",
        "{review_text} It was {slot}",
        "Review: {review_text}\nAnswer: {slot}",
        "Review: {review_text}\nQuestion: What is the sentiment?\nAnswer: {slot}",
        "What is the sentiment?\nReview: {review_text} It was {slot}",
    )
    assert paraphrases("{slot}:\n{review_text}", SINGLE) == ("{slot}: {review_text}",)
    assert paraphrases("{slot}: {review_text}", SINGLE) == ()


WORDS = st.text(alphabet="ab:?.{}\n \u00e4", max_size=12).map(lambda text: text.replace("{", "{{").replace("}", "}}"))


@given(WORDS, WORDS, WORDS, WORDS)
def test_paraphrases_ask_of_the_same_fields_and_have_one_slot(before, between, after, end):
    text = f"{before}{{premise}}{between}{{hypothesis}}{after}{{slot}}{end}"
    found = paraphrases(text, PAIR)
    assert text not in found and len(set(found)) == len(found)
    for one in found:
        template = Template.parse(one)
        template.check(PAIR.fields, slot=True)
        assert template.names == PAIR.fields
