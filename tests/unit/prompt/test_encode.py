"""Prompts → ids: as plain text where it fits, shortened in the fields alone where not."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.backbone import tiny
from fewtune.errors import TaskError
from fewtune.prompt.encode import Encoder, Row, level
from fewtune.prompt.template import Template, literal

MASKED = {"wordpiece": tiny.tokenizer("wordpiece"), "unigram": tiny.tokenizer("unigram"), "roberta": tiny.model("roberta")[1]}
CAUSAL = {"bpe": tiny.tokenizer("bpe"), "unigram causal": MASKED["unigram"]}
KINDS = [*MASKED, *CAUSAL]
LONG = 10_000

words = st.lists(
    st.sampled_from(["good", "a", "dull", "Joy!", "é", "日本", "x", "\n", "mess.", "[MASK]", "</s>", "<|endoftext|>"]), max_size=7
)
texts = words.map(" ".join)
pieces = st.one_of(st.sampled_from(["Review: ", " It was", "\n", "{{ok}} ", "no"]), st.sampled_from(["{one}", "{two}"]))


def encoder(kind, max_length=LONG):
    return Encoder({**MASKED, **CAUSAL}[kind], causal=kind in CAUSAL, max_length=max_length)


def encode(kind, template, fields, max_length=LONG):
    (row,) = encoder(kind, max_length).encode([Template.parse(template).render(fields)])
    return row


def shown(kind, row):
    return " ".join(encoder(kind).tokenizer.convert_ids_to_tokens(list(row.ids)))


@st.composite
def templates(draw, kind):
    """The text of a template with at least one field; the slot is last for an autoregressive model."""
    items = draw(st.lists(pieces, max_size=4))
    items.insert(draw(st.integers(0, len(items))), "{one}")
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), "{sep}")
    if draw(st.booleans()):
        items.insert(len(items) if kind in CAUSAL else draw(st.integers(0, len(items))), " {slot}")
    return "".join(items)


# What fits


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(text=texts.filter(lambda text: "[" not in text and "<" not in text))
def test_a_text_alone_is_what_the_tokenizer_makes_of_it(kind, text):
    row = encode(kind, "{text}", {"text": text})
    expected = encoder(kind).tokenizer(text.strip())["input_ids"]
    if kind in CAUSAL:
        end = encoder(kind).tokenizer.sep_token_id
        expected = [token for token in expected if token != end]
        expected = expected or encoder(kind).tokenizer("\n")["input_ids"]  # something must be read
    assert row == Row(tuple(expected), (0,) * len(expected), len(expected) - 1 if kind in CAUSAL else 0)


@pytest.mark.parametrize("kind", list(MASKED))
@settings(max_examples=40)
@given(text=texts.filter(lambda text: "[" not in text and "<" not in text))
def test_a_masked_prompt_is_plain_tokenisation_of_the_text_with_the_mask_written_in(kind, text):
    tokenizer = MASKED[kind]
    row = encode(kind, "Review: {text} It was {slot}.", {"text": text})
    expected = tokenizer(f"Review: {text.strip()} It was{tokenizer.mask_token}.")["input_ids"]
    assert list(row.ids) == expected and row.slot == expected.index(tokenizer.mask_token_id) and not row.shortened


@settings(max_examples=40)
@given(text=texts.filter(lambda text: "<" not in text))
def test_an_autoregressive_prompt_is_plain_tokenisation_of_the_text_up_to_the_slot(text):
    row = encode("bpe", "Review: {text}\nSentiment: {slot}", {"text": text})
    expected = CAUSAL["bpe"](f"Review: {text.strip()}\nSentiment:")["input_ids"]
    assert list(row.ids) == expected and row.slot == len(expected) - 1


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_pair_is_what_the_tokenizer_makes_of_two_texts(kind):
    row = encode(kind, "{one}{sep}{two}", {"one": "good fun", "two": "a mess"})
    plain = MASKED[kind]("good fun", "a mess", return_token_type_ids=True)
    assert list(row.ids) == plain["input_ids"]
    # Hugging Face counts the separator to the first text, as BERT does.
    assert list(row.types) == plain["token_type_ids"] if kind == "wordpiece" else set(row.types) == {0, 1}


def test_a_pair_for_roberta_and_for_an_autoregressive_model():
    tokenizer = MASKED["roberta"]
    assert list(encode("roberta", "{one}{sep}{two}", {"one": "good", "two": "a"}).ids) == tokenizer("good", "a")["input_ids"]
    row = encode("bpe", "{one}{sep}{two}", {"one": "good", "two": "a"})
    assert CAUSAL["bpe"].decode(list(row.ids)) == "good\na"


@pytest.mark.parametrize("kind", list(MASKED))
@settings(max_examples=60)
@given(data=st.data())
def test_exactly_one_mask_and_no_special_token_that_is_not_the_templates(kind, data):
    template = data.draw(templates(kind))
    row = encode(kind, template, {"one": data.draw(texts), "two": data.draw(texts)}, data.draw(st.integers(60, 90)))
    tokenizer = MASKED[kind]
    special = [token for token in row.ids if token in tokenizer.all_special_ids and token != tokenizer.unk_token_id]
    slots, seps = template.count("{slot}"), template.count("{sep}")
    assert special.count(tokenizer.mask_token_id) == slots
    assert len(special) == slots + 2 + seps * (2 if kind == "roberta" else 1)
    assert row.slot == (row.ids.index(tokenizer.mask_token_id) if slots else 0)
    assert len(row.types) == len(row.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_never_empty(kind):
    for template in ("{text}", "{text} {slot}", "{text}{sep}{text}"):
        row = encode(kind, template, {"text": ""})
        assert len(row.ids) == len(row.types) >= 1 and 0 <= row.slot < len(row.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_prompts_one_by_one(kind):
    template = Template.parse("Review: {text} It was {slot}")
    prompts = [template.render({"text": text}) for text in ("good", "", "a dull mess " * 9, "日本 [MASK]")]
    encode_all = encoder(kind, 40).encode
    assert encode_all(prompts) == [row for prompt in prompts for row in encode_all([prompt])]
    assert encode_all([]) == []


def test_text_after_an_autoregressive_slot_is_refused():
    for template in ("{one} {slot}.", "{slot} {one}", "{one} {slot}{sep}"):
        with pytest.raises(TaskError, match=r"expected \{slot\} at the end, got text after it"):
            encode("bpe", template, {"one": "good"})


def test_a_slot_needs_a_mask():
    with pytest.raises(TaskError, match="expected a tokenizer with a mask token, got one without. Use --readout head"):
        Encoder(CAUSAL["bpe"], causal=False, max_length=9).encode([Template.parse("{one} {slot}").render({"one": "a"})])


# What does not fit


def beginnings(text):
    """Every text that shortening from the end may leave, white space at the cut taken off."""
    return sorted({text[:length].rstrip() for length in range(len(text) + 1)} | {text}, key=len)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_only_fields_are_shortened_and_the_row_fits(kind, data):
    """A shortened row is, to the token, the whole encoding of the same template with beginnings of the fields in it."""
    template = Template.parse(data.draw(templates(kind)))
    fields = {name: data.draw(texts).strip() for name in ("one", "two")}
    whole = encoder(kind).encode([template.render(fields)])[0]
    least = encoder(kind).encode([template.render({"one": "", "two": ""})])[0]
    limit = data.draw(st.integers(max(1, len(least.ids)), max(1, len(least.ids), len(whole.ids))))
    row = encoder(kind, limit).encode([template.render(fields)])[0]
    assert len(row.ids) <= limit
    assert row.shortened == (len(whole.ids) > limit)
    if not row.shortened:
        assert row == whole
        return
    used = [fields[name] for name in template.names]
    left = itertools.product(*map(beginnings, used))
    prompts = (template.render({"one": "", "two": "", **dict(zip(template.names, texts, strict=True))}) for texts in left)
    candidates = encoder(kind).encode(list(prompts))
    assert dataclasses.replace(row, shortened=False) in candidates


@pytest.mark.parametrize("limit", range(14, 40, 5))
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "roberta"])
def test_no_more_is_cut_than_must_be(kind, limit):
    row = encode(kind, "Review: {text} It was {slot}", {"text": "good " * 50}, limit)
    assert len(row.ids) in (limit, limit - 1)  # a word may be two tokens with its space


def test_the_longest_field_is_cut_first_from_its_end():
    row = encode("wordpiece", "{one}{sep}{two}?", {"one": "good fun", "two": "a b c d e f g h"}, 10)
    assert shown("wordpiece", row) == "[CLS] good fun [SEP] a b c d ? [SEP]" and row.shortened
    row = encode("wordpiece", "{one}{sep}{two}?", {"one": "x b c d e f g h", "two": "a b c d e f g h"}, 10)
    assert shown("wordpiece", row) == "[CLS] x b c [SEP] a b c ? [SEP]"


def test_a_template_that_alone_is_too_long_is_refused():
    least = len(encode("wordpiece", "Review: {text} It was {slot}.", {"text": ""}).ids)
    assert encode("wordpiece", "Review: {text} It was {slot}.", {"text": "good"}, least).shortened
    with pytest.raises(TaskError, match=rf"expected a template of at most {least - 1} tokens, got {least} tokens without any field"):
        encode("wordpiece", "Review: {text} It was {slot}.", {"text": "good"}, least - 1)
    with pytest.raises(TaskError, match="Shorten the template or raise --max-length"):
        encode("bpe", literal("{x}") + " a b c {slot}", {}, 3)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 40), max_size=5), st.integers(0, 120))
def test_level_is_the_greatest_that_fits(lengths, room):
    best = level(lengths, room)
    assert sum(min(length, best) for length in lengths) <= room
    if best < max(lengths, default=0):
        assert sum(min(length, best + 1) for length in lengths) > room


# Demonstrations

REVIEW = Template.parse("Review: {one} It was {slot}")


def filled(text, word):
    return REVIEW.render({"one": text}).filled(word)


def joined(kind, text, shown, *, most=LONG, causal=None, max_length=LONG):
    """(the query's row alone, the same with demonstrations)."""
    tokenizer, causal = {**MASKED, **CAUSAL}[kind], kind in CAUSAL if causal is None else causal
    one = Encoder(tokenizer, causal=causal, max_length=max_length)
    (row,) = one.encode([REVIEW.render({"one": text})])
    return row, one.join(row, one.demonstrations([filled(*pair) for pair in shown], most=most))


def test_a_masked_query_comes_first_and_each_demonstration_ends_like_a_text():
    row, both = joined("wordpiece", "good fun", [("a dull mess.", "bad"), ("a joy", "good")])
    assert shown("wordpiece", both).replace(" ##", "") == (
        "[CLS] review : good fun it was [MASK] [SEP] review : a dull mess . it was bad [SEP] review : a joy it was good [SEP]"
    )
    assert both.slot == row.slot and both.front == 0
    assert both.types == (0,) * len(row.ids) + (1,) * (len(both.ids) - len(row.ids))


def test_a_tokenizer_that_numbers_no_segments_gets_none():
    row, both = joined("roberta", "good fun", [("a mess", "bad")])
    expected = "<s>Review: good fun It was<mask></s>Review: a mess It was bad</s>"
    assert MASKED["roberta"].decode(list(both.ids)) == expected
    assert set(both.types) == {0} and both.slot == row.slot


def test_an_autoregressive_query_comes_last_behind_blank_lines():
    row, both = joined("bpe", "good fun", [("a mess", "bad"), ("a joy", "good")])
    text = "Review: a mess It was bad\n\nReview: a joy It was good\n\nReview: good fun It was"
    assert CAUSAL["bpe"].decode(list(both.ids)) == text
    assert list(both.ids) == CAUSAL["bpe"](text)["input_ids"]  # and as the tokenizer itself cuts the whole text
    assert both.slot == len(both.ids) - 1 and both.after(both.front) == row
    assert both.ids[both.front :] == row.ids


def test_what_begins_a_text_stands_once():
    tokenizer = MASKED["roberta"]
    row, both = joined("roberta", "good", [("a mess", "bad"), ("a joy", "good")], causal=True)
    assert both.ids[0] == row.ids[0] == tokenizer.bos_token_id and both.ids.count(tokenizer.bos_token_id) == 1
    assert both.ids[both.front :] == row.ids[1:] and both.after(both.front).slot == len(row.ids) - 2


@pytest.mark.parametrize("kind", KINDS)
def test_without_demonstrations_nothing_changes(kind):
    row, both = joined(kind, "good", [])
    assert both == row


def test_a_query_without_a_token_shares_no_front():
    one = Encoder(MASKED["roberta"], causal=True, max_length=LONG)
    (row,) = one.encode([Template.parse("{one}{slot}").render({"one": ""})])
    both = one.join(row, one.demonstrations([filled("good", "bad")], most=LONG))
    assert len(row.ids) == 1 and both.front == 0 and both.slot == len(both.ids) - 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(pairs=st.lists(st.tuples(texts, st.sampled_from(["good", "bad"])), min_size=1, max_size=4), query=texts, extra=st.integers(0, 60))
def test_demonstrations_keep_their_budget_their_words_and_the_query(kind, pairs, query, extra):
    one = encoder(kind)
    whole = one.demonstrations([filled(*pair) for pair in pairs], most=LONG)
    least = sum(len(row.ids) for row in one.demonstrations([filled("", word) for _, word in pairs], most=LONG))
    row, both = joined(kind, query, pairs, most=least + extra)
    assert len(both.ids) - len(row.ids) <= least + extra and len(both.types) == len(both.ids)
    own = row.ids[len(one.specials.prefix) :]
    assert both.after(both.front).ids == own if kind in CAUSAL else both.ids[: len(row.ids)] == row.ids
    parts = one.demonstrations([filled(*pair) for pair in pairs], most=least + extra)
    assert len(parts) == len(pairs)
    if sum(len(part.ids) for part in whole) <= least + extra:
        assert parts == whole
    for (text, word), part in zip(pairs, parts, strict=True):  # each is the whole form of a beginning of its text
        assert part in [one.demonstrations([filled(start, word)], most=LONG)[0] for start in beginnings(text.strip())]


def test_the_longest_demonstration_is_cut_first():
    one = encoder("wordpiece")
    parts = one.demonstrations([filled("a b c d e f g h", "bad"), filled("good fun", "good")], most=17)
    assert [shown("wordpiece", part) for part in parts] == ["review : a b c it was bad [SEP]", "review : good fun it was good [SEP]"]


def test_demonstrations_whose_templates_alone_do_not_fit_are_refused():
    least = len(encoder("bpe").demonstrations([filled("", "bad")], most=LONG)[0].ids)
    assert encoder("bpe").demonstrations([filled("a dull mess", "bad")], most=least)
    with pytest.raises(TaskError, match=rf"demonstrations.budget: expected demonstrations of at most {least - 1} tokens, got {least}"):
        encoder("bpe").demonstrations([filled("a dull mess", "bad")], most=least - 1)


# Texts behind the slot

TURNED = (
    "{slot}: {one}",
    "Label: {slot}\nText: {one}",
    "{slot}\n{one}\nNo",
    "{two} {slot} ({one}).",
    "Label: {slot}{sep}{one}",
)
plain = words.filter(lambda listed: "\n" not in listed and not any(word[0] in "[<" for word in listed)).map(" ".join)


def turned(template, fields, max_length=LONG):
    encoder = Encoder(CAUSAL["bpe"], causal=True, max_length=max_length, reverses=True)
    (row,) = encoder.encode([Template.parse(template).render(fields)])
    return row


def read(row):
    return CAUSAL["bpe"].decode([row.ids[place] for place in row.own])


@pytest.mark.slow
@pytest.mark.parametrize("template", TURNED)
@settings(max_examples=60)
@given(one=plain, two=plain)
def test_what_is_read_are_the_tokens_of_the_fields_behind_the_slot(template, one, two):
    row = turned(template, {"one": one, "two": two})
    assert read(row).strip() == one.strip() and row.said == len(one.split())
    before, _, after = template.partition("{slot}")
    assert CAUSAL["bpe"].decode(row.ids[: row.slot]) == before.format(two=two.strip()).rstrip(" ")
    assert all(place >= row.slot for place in row.own)


def test_both_fields_behind_the_slot_are_read_and_none_before_it():
    fields = {"one": "a dull mess", "two": "great fun"}
    assert read(turned("{slot}\nA: {one}\nB: {two}", fields)) == " a dull mess great fun"
    assert read(turned("A: {one}\n{slot}\nB: {two}", fields)) == " great fun"


@settings(max_examples=40)
@given(one=plain, most=st.integers(12, 25))
def test_what_is_read_is_shortened_and_the_template_is_not(one, most):
    row = turned("Label: {slot}\nText: {one}\nEnd", {"one": one + " dull joy" * 9}, most)
    assert len(row.ids) <= most and row.shortened
    assert CAUSAL["bpe"].decode(row.ids).startswith("Label:\nText:") and CAUSAL["bpe"].decode(row.ids).endswith("\nEnd")
    assert (one + " dull joy" * 9).strip().startswith(read(row).strip())
    others = [token for place, token in enumerate(row.ids) if place not in row.own]
    assert CAUSAL["bpe"].decode(others) in ("Label:\nText:\nEnd", "Label:\nText: \nEnd")
