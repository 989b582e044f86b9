"""Plain text → ids in which nothing is special, and what each tokenizer puts around texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.backbone import tiny
from fewtune.errors import DataError
from fewtune.prompt.tokens import Specials, blank_line, ends, plain_batch, plain_ids, specials, word_starts

KINDS = ("wordpiece", "bpe", "unigram")
TOKENIZERS = {kind: tiny.tokenizer(kind) for kind in KINDS}
TOKENIZERS["roberta"] = tiny.model("roberta")[1]
SPECIAL = sorted({token for tokenizer in TOKENIZERS.values() for token in tokenizer.all_special_tokens})
harmful = st.lists(st.one_of(st.sampled_from(SPECIAL), st.sampled_from(["good", " ", "a", "[", "]", "<", ">", "\n"])), max_size=6).map(
    "".join
)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20).filter(lambda text: not any(token in text for token in SPECIAL))


def special_ids(tokenizer):
    """The ids that steer a model; the one for unknown pieces stands for text."""
    return set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} if tokenizer.unk_token_id is not None else set())


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@settings(max_examples=80)
@given(text=st.one_of(harmful, texts))
def test_no_text_becomes_a_special_token(kind, text):
    tokenizer = TOKENIZERS[kind]
    assert special_ids(tokenizer).isdisjoint(plain_ids(tokenizer, text))


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@pytest.mark.parametrize("special", SPECIAL)
def test_every_special_token_is_spelled_out_in_text(kind, special):
    tokenizer = TOKENIZERS[kind]
    ids = plain_ids(tokenizer, f"good {special} fun")
    assert special_ids(tokenizer).isdisjoint(ids)
    before, after = plain_ids(tokenizer, "good"), plain_ids(tokenizer, " fun")
    assert ids[: len(before)] == before and ids[-len(after) :] == after and len(ids) > len(before) + len(after)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@settings(max_examples=50)
@given(listed=st.lists(st.one_of(harmful, texts), max_size=5))
def test_a_batch_is_its_texts_one_by_one(kind, listed):
    assert plain_batch(TOKENIZERS[kind], listed) == [plain_ids(TOKENIZERS[kind], text) for text in listed]


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@settings(max_examples=50)
@given(text=texts)
def test_text_without_special_tokens_is_what_the_tokenizer_makes_of_it(kind, text):
    tokenizer = TOKENIZERS[kind]
    assert plain_ids(tokenizer, text) == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_a_surrogate_pair_is_refused(kind):
    with pytest.raises(DataError, match=r"expected text, got half of a surrogate pair in 'a\\ud800b'") as caught:
        plain_batch(TOKENIZERS[kind], ["good", "a\ud800b"])
    assert str(caught.value).isascii()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(text=texts)
def test_ends_are_places_in_the_text_that_never_go_back(kind, text):
    found = ends(TOKENIZERS[kind], text)
    assert len(found) == len(TOKENIZERS[kind].encode(text, add_special_tokens=False))
    assert found == sorted(found) and all(0 <= end <= len(text) for end in found)


def test_ends_by_hand():
    assert ends(TOKENIZERS["wordpiece"], "Good, FUN") == [4, 5, 9]


def test_what_each_tokenizer_puts_around_texts():
    names = TOKENIZERS["wordpiece"].convert_tokens_to_ids
    cls, sep, mask = names("[CLS]"), names("[SEP]"), names("[MASK]")
    assert specials(TOKENIZERS["wordpiece"], causal=False) == Specials((cls,), (sep,), (sep,), mask, True)
    names = TOKENIZERS["roberta"].convert_tokens_to_ids
    start, end, mask = names("<s>"), names("</s>"), names("<mask>")
    assert specials(TOKENIZERS["roberta"], causal=False) == Specials((start,), (end, end), (end,), mask, False)
    names = TOKENIZERS["unigram"].convert_tokens_to_ids
    cls, sep, mask = names("[CLS]"), names("[SEP]"), names("[MASK]")
    assert specials(TOKENIZERS["unigram"], causal=False) == Specials((cls,), (sep,), (sep,), mask, False)


def test_autoregressive_models_get_no_end_and_new_lines_between():
    assert specials(TOKENIZERS["bpe"], causal=True) == Specials((), tuple(plain_ids(TOKENIZERS["bpe"], "\n")), (), None, False)
    found = specials(TOKENIZERS["roberta"], causal=True)
    assert (found.prefix, found.suffix, found.mask) == ((TOKENIZERS["roberta"].bos_token_id,), (), None)


def test_a_text_longer_than_the_model_takes_is_no_matter_here(caplog):
    # It is shortened later, and said once; the tokenizer's own warning would stand between the user's lines.
    tokenizer = tiny.tokenizer("wordpiece")
    long = "good " * (tokenizer.model_max_length + 10 if tokenizer.model_max_length < 10_000 else 5000)
    tokenizer.model_max_length = min(tokenizer.model_max_length, 512)
    assert len(plain_batch(tokenizer, [long])[0]) == len(ends(tokenizer, long)) > 512
    assert not caplog.records


def test_a_blank_line_is_what_stands_between_two_texts():
    line = plain_ids(TOKENIZERS["bpe"], "\n")
    assert blank_line(TOKENIZERS["bpe"]) == tuple(plain_ids(TOKENIZERS["bpe"], "a\n\na"))[1:-1] == (*line, *line)
    assert blank_line(TOKENIZERS["unigram"]) == tuple(plain_ids(TOKENIZERS["unigram"], "\n\n"))  # its letters differ at a beginning


@pytest.mark.parametrize("kind", [*KINDS, "roberta"])
def test_a_word_begins_where_a_space_was(kind):
    tokenizer = TOKENIZERS[kind]
    ids = plain_ids(tokenizer, " great greatest good")
    starts = word_starts(tokenizer, len(tokenizer) + 5)
    words, found = "".join(tokenizer.convert_ids_to_tokens(ids)).replace("##", ""), [starts[token] for token in ids]
    assert found[0] and sum(found) == 3 and len(ids) > 3, words
    assert len(starts) == len(tokenizer) + 5


def test_a_comma_begins_a_word_where_pieces_that_go_on_are_marked_and_none_where_beginnings_are():
    for kind, expected in {"wordpiece": True, "bpe": False}.items():
        tokenizer = TOKENIZERS[kind]
        comma = tokenizer.convert_tokens_to_ids(",")
        assert comma != tokenizer.unk_token_id and word_starts(tokenizer, len(tokenizer))[comma] is expected
