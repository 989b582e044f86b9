"""What is asked when the user gave only data."""

import pytest

from fewtune.backbone import tiny
from fewtune.errors import TaskError
from fewtune.prompt.defaults import cue, resolve, spoken
from fewtune.prompt.template import Template
from fewtune.tasks.task import Task

BPE, WORDPIECE = tiny.tokenizer("bpe"), tiny.tokenizer("wordpiece")


def asked(labels, *, tokenizer=WORDPIECE, slot=True, **task):
    return resolve(Task.classification(labels, **task), tokenizer, slot=slot)


def texts(found):
    return [str(template) for template in found.templates]


def read(found, tokenizer=WORDPIECE):
    return [[tokenizer.convert_ids_to_tokens(list(ids)) for ids in words.ids] for words in found.words]


# Templates


def test_the_columns_names_are_the_cues():
    found = asked(["negative", "positive"], fields=["review"], label_name="sentiment")
    assert texts(found) == ["Review: {review}\nSentiment: {slot}"]
    assert read(found) == [[["negative"], ["positive"]]] and found.notes == ()


def test_a_pair_is_a_line_each():
    found = asked(["yes", "no"], fields=["the_premise", "hypothesis-2"])
    assert texts(found) == ["The premise: {the_premise}\nHypothesis 2: {hypothesis-2}\nLabel: {slot}"]


def test_turned_around_the_label_stands_first():
    task = Task.classification(["yes", "no"], fields=["premise", "hypothesis"], label_name="entails")
    found = resolve(task, BPE, slot=True, whole=True, reverses=True)
    assert texts(found) == ["Entails: {slot}\nPremise: {premise}\nHypothesis: {hypothesis}"]


def test_a_description_stands_before_every_template_in_which_a_word_is_read():
    described = {"description": " Is {this} good? \n", "descriptions": {"yes": "It is."}}
    assert texts(asked(["yes", "no"], **described)) == ["Is {{this}} good?\nText: {text}\nLabel: {slot}"]
    found = asked(["yes", "no"], templates=["{text} {slot}", "{slot} {text}"], **described)
    assert texts(found) == ["Is {{this}} good?\n{text} {slot}", "Is {{this}} good?\n{slot} {text}"]
    assert texts(asked(["yes", "no"], slot=False, **described)) == ["{text}"]
    turned = resolve(Task.classification(["yes", "no"], **described), BPE, slot=True, whole=True, reverses=True)
    assert texts(turned) == ["Is {{this}} good?\nLabel: {slot}\nText: {text}"]


def test_letters_are_explained_behind_the_description():
    labels = ["get weather", "get news"]
    options = "Options:\nA. get weather\nB. get news\n"
    assert texts(asked(labels, description="What is wanted?")) == [f"What is wanted?\nText: {{text}}\n{options}Label: {{slot}}"]
    assert texts(asked(labels, description="What is wanted?", template="{text} {slot}")) == [f"What is wanted?\n{options}{{text}} {{slot}}"]


@pytest.mark.parametrize("template", ["{text} It was {slot}", "Text: {text}\nLabel: {slot} ."])
def test_turned_around_a_template_must_have_a_text_behind_its_slot(template):
    task = Task.classification(["yes", "no"], templates=["{slot} {text}", template])
    with pytest.raises(TaskError, match=r'template 2: expected a field behind \{slot\}.*"Label: \{slot\} Text: \{text\}"') as caught:
        resolve(task, BPE, slot=True, whole=True, reverses=True)
    assert "\n" not in str(caught.value)


def test_a_head_needs_no_cue_and_no_word():
    found = asked(["a", "b"], fields=["text"], slot=False)
    assert (texts(found), found.words, found.notes) == (["{text}"], (), ())
    assert texts(asked(["a", "b"], fields=["one", "two"], slot=False)) == ["{one}{sep}{two}"]
    assert texts(asked(["a", "b"], template="{text} It was {slot}", slot=False)) == ["{text} It was {slot}"]


def test_names_are_written_as_a_person_would():
    assert [cue(name) for name in ("review", "  my_text ", "A-b  c", "日本", "iPhone")] == ["Review", "My text", "A b c", "日本", "IPhone"]
    assert [spoken(label) for label in ("card_not-working", "a.b", " x ", "camelCase", "_")] == [
        "card not working",
        "a b",
        "x",
        "camelCase",
        "_",
    ]


@pytest.mark.parametrize("name", [" my text", "text ", "a.b!r:c", "日本", "{", "x\ny"])
def test_any_column_can_be_asked_about(name):
    if "{" in name:
        with pytest.raises(TaskError):
            asked(["yes", "no"], fields=[name])
        return
    found = asked(["yes", "no"], fields=[name])
    assert found.templates[0].names == (name,)
    assert Template.parse(texts(found)[0]) == found.templates[0]


def test_given_templates_are_kept_and_checked_by_number():
    found = asked(["yes", "no"], templates=["{text} {slot}", "Is it {slot} {text}"])
    assert texts(found) == ["{text} {slot}", "Is it {slot} {text}"] and len(found.words) == 2
    for template, message in (
        ("{txt} {slot}", r"template 2: expected a field"),
        ("{text}", r"template 2: expected \{slot\}"),
        ("{", "template 2"),
    ):
        with pytest.raises(TaskError, match=message):
            asked(["yes", "no"], templates=["{text} {slot}", template])


# Words


def test_each_template_reads_the_word_as_it_stands_in_it():
    found = asked(["negative", "maybe"], tokenizer=BPE, templates=["{text} It was {slot}", "{text}\n{slot}"])
    assert [words[0] for words in read(found, BPE)] == [["Ġnegative"], ["neg"]]


def test_given_words_stand_for_their_label_and_names_for_the_others():
    found = asked(["good", "terrible"], words={"good": ["great", "joy"]})
    assert read(found) == [[["great", "joy"], ["terrible"]]]


def test_a_name_of_several_tokens_is_read_at_its_first_and_said_once():
    found = asked(["science_fiction", "sports-news"], templates=["{text} {slot}", "{text} It was {slot}"])
    assert read(found) == [[["science"], ["sports"]]] * 2
    assert found.notes == ('Read at their first token: "science fiction" ("science"), "sports news" ("sports").',)


def test_given_words_that_cannot_be_told_apart_are_refused():
    with pytest.raises(TaskError, match="words that differ in their first token"):
        asked(["a", "b"], words={"a": "good news", "b": "good day"})
    with pytest.raises(TaskError, match="words that differ in their first token"):
        asked(["good day", "b"], words={"b": "good news"})


# Letters


def test_names_that_cannot_be_told_apart_are_listed_with_letters():
    found = asked(["good_news", "good_day", "bad"], fields=["review"], label_name="kind")
    assert texts(found) == ["Review: {review}\nOptions:\nA. good news\nB. good day\nC. bad\nKind: {slot}"]
    assert read(found) == [[["a"], ["b"], ["c"]]]
    assert len(found.notes) == 1 and "letters" in found.notes[0]


def test_options_stand_before_a_given_template():
    found = asked(["good news", "good day"], templates=["{text}\nIt was {slot}.", "{slot}: {text}"])
    options = "Options:\nA. good news\nB. good day\n"
    assert texts(found) == [options + "{text}\nIt was {slot}.", options + "{slot}: {text}"]
    assert read(found) == [[["a"], ["b"]]] * 2


def test_a_name_that_the_tokenizer_does_not_know_gets_a_letter_too():
    found = asked(["日本", "good"])
    assert read(found) == [[["a"], ["b"]]]


def test_braces_in_names_are_literal():
    found = asked(["good {text}", "good {slot}"])
    shown = found.templates[0].render({"text": "fun"}).text("B")
    assert shown == "Text: fun\nOptions:\nA. good {text}\nB. good {slot}\nLabel: B"
    assert Template.parse(texts(found)[0]) == found.templates[0]


def many(count):
    return [f"good number {number}" for number in range(count)]


class Pairs:
    """A tokenizer that also has every pair of capitals as a token, as large vocabularies have."""

    unk_token_id, all_special_ids, all_special_tokens = None, [-1], ["<none>"]

    def __call__(self, texts, **options):
        ids = [self._ids(text) for text in ([texts] if isinstance(texts, str) else texts)]
        return {"input_ids": ids[0] if isinstance(texts, str) else ids}

    def _ids(self, text):
        ids = []
        while text:
            size = 2 if len(text) > 1 and text[:2].isalpha() and text[:2].isupper() and "Q" not in text[:2] else 1
            ids.append(int.from_bytes(text[:size].encode(), "big"))
            text = text[size:]
        return ids

    def decode(self, ids):
        return b"".join(token.to_bytes(8, "big").lstrip(b"\0") for token in ids).decode()


def test_more_labels_than_letters_get_pairs_of_letters():
    found = asked(many(60), tokenizer=Pairs())
    (words,) = found.words
    codes = [Pairs().decode([ids[0]]) for ids in words.ids]
    assert codes[:26] == [chr(letter) for letter in range(ord("A"), ord("Z") + 1)]
    assert codes[26:43] == [f"A{letter}" for letter in "ABCDEFGHIJKLMNOPR"]  # AQ is two tokens
    assert len(set(codes)) == 60 and all(len(ids) == 1 for ids in words.ids)
    for code, label in zip(codes, many(60), strict=True):
        assert f"\n{code}. {label}\n" in texts(found)[0]


def test_twenty_six_labels_have_a_letter_each():
    tokenizer = Pairs()
    (words,) = asked(many(26), tokenizer=tokenizer).words
    assert [tokenizer.decode([ids[0]]) for ids in words.ids] == [chr(letter) for letter in range(ord("A"), ord("Z") + 1)]


def test_more_labels_than_the_tokenizer_has_codes_for_are_refused():
    with pytest.raises(TaskError, match="got 40 labels, more than there are letters for. Name words with --words, or use --readout head."):
        asked(many(40))
    assert asked(many(40), slot=False).words == ()


def test_a_code_is_one_token_after_every_lead_and_never_shared():
    found = asked(["good news", "good day", "good"], tokenizer=BPE, templates=["{text}\n{slot}", "{text} {slot}"])
    for words in found.words:
        assert len({ids[0] for ids in words.ids}) == 3
    codes = [line[: line.index(".")] for line in texts(found)[0].split("\n")[1:4]]
    for code in codes:
        for lead in ("", " "):
            ids = BPE(":" + lead + code)["input_ids"][1:]
            assert [BPE.decode([token]).strip() for token in ids if BPE.decode([token]).strip()] == [code]
