"""Label words → the tokens that are read, for each kind of tokenizer."""

import pytest

from fewtune.backbone import tiny
from fewtune.errors import TaskError
from fewtune.prompt.verbalizer import Verbalizer, vocabulary_words

TOKENIZERS = {kind: tiny.tokenizer(kind) for kind in ("wordpiece", "bpe", "unigram")}


def tokens(kind, words, *, lead=" "):
    found = Verbalizer({label: tuple(given) for label, given in words.items()}).ids(TOKENIZERS[kind], lead=lead)
    return [TOKENIZERS[kind].convert_ids_to_tokens(list(ids)) for ids in found.ids], found.notes


def test_a_leading_space_belongs_to_the_word_where_the_vocabulary_has_spaces():
    words = {"bad": ["negative"], "good": ["positive"]}
    assert tokens("bpe", words) == ([["Ġnegative"], ["Ġpositive"]], ())
    assert tokens("bpe", {"a": ["good"]}, lead="") == ([["good"]], ())
    assert tokens("wordpiece", words) == tokens("wordpiece", words, lead="") == ([["negative"], ["positive"]], ())


def test_how_many_spaces_and_which_stand_around_the_word_does_not_matter():
    assert tokens("bpe", {"a": ["  negative "]}, lead="   ") == tokens("bpe", {"a": ["negative"]})


def test_sentencepiece_adds_no_space_of_its_own():
    after_space, joined = (tokens("unigram", {"a": ["the"]}, lead=lead)[0][0][0] for lead in (" ", ""))
    assert after_space == "▁th" and joined == "t"


def test_a_token_of_nothing_but_white_space_is_not_read():
    # "good" has no piece of its own that holds the space: both vocabularies put a mere space in front.
    assert TOKENIZERS["bpe"].tokenize("a good") == ["a", "Ġ", "good"]
    assert tokens("bpe", {"a": ["good"]}) == ([["good"]], ())
    assert tokens("unigram", {"a": ["good"]})[0] == [["g"]]


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_the_first_token_is_the_one_in_running_text(kind):
    tokenizer = TOKENIZERS[kind]
    for word in ("great", "negative", "positive", "world", "joy", "business"):
        before, whole = (tokenizer.encode(text, add_special_tokens=False) for text in ("a:", f"a: {word}"))
        assert whole[: len(before)] == before
        shown = [token for token in whole[len(before) :] if tokenizer.decode([token]).strip()]
        assert Verbalizer({"a": (word,)}).ids(tokenizer, lead=" ").ids == ((shown[0],),)


def test_several_words_in_order_and_each_token_once():
    found, notes = tokens("wordpiece", {"bad": ["dull", "terrible"], "good": ["great", "joy", "Great", "great"]})
    assert found == [["dull", "terrible"], ["great", "joy"]] and notes == ()


def test_labels_keep_their_order():
    one = Verbalizer({"a": ("dull",), "b": ("great",)}).ids(TOKENIZERS["bpe"], lead="").ids
    other = Verbalizer({"b": ("great",), "a": ("dull",)}).ids(TOKENIZERS["bpe"], lead="").ids
    assert one == other[::-1]


def test_words_of_several_tokens_are_read_at_the_first_and_said_in_one_sentence():
    found, notes = tokens("wordpiece", {"a": ["goodness"], "b": ["fine"], "c": ["science fiction"]})
    assert found == [["good"], ["fine"], ["science"]]
    assert notes == ('Read at their first token: "goodness" ("good"), "science fiction" ("science").',)


def test_the_same_first_token_for_two_labels_is_refused_with_alternatives():
    with pytest.raises(TaskError) as caught:
        tokens("wordpiece", {"a": ["fine", "goodness"], "b": ["good news"]})
    said = str(caught.value)
    assert 'got "goodness" for a and "good news" for b, which both begin with "good"' in said
    assert "--readout head" in said and "\n" not in said


def test_zero_is_a_token_like_any_other():
    tokenizer = tiny.tokenizer("bpe")
    zero = tokenizer.convert_ids_to_tokens(1)  # 0 is the end of text here, which no word can be
    assert Verbalizer({"a": (zero,), "b": ("great",)}).ids(tokenizer, lead="").ids[0] == (1,)

    class Shifted:
        """The same tokenizer with every id one lower."""

        unk_token_id, all_special_ids, all_special_tokens = None, [-1], ["<|endoftext|>"]

        def __call__(self, texts, **options):
            ids = tokenizer(texts, **options)["input_ids"]
            return {"input_ids": [[token - 1 for token in row] for row in ids]}

        def decode(self, ids):
            return tokenizer.decode([token + 1 for token in ids])

    assert Verbalizer({"a": (zero,), "b": ("great",)}).ids(Shifted(), lead="").ids[0] == (0,)


@pytest.mark.parametrize("word", ["", "  ", "\n"])
@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_no_word_is_refused(kind, word):
    with pytest.raises(TaskError, match="expected a word, got"):
        tokens(kind, {"a": [word]})


@pytest.mark.parametrize(("kind", "word"), [("wordpiece", "日本"), ("wordpiece", "~"), ("unigram", "日本"), ("unigram", "Maybe")])
@pytest.mark.parametrize("lead", ["", " "])
def test_an_unknown_word_is_refused(kind, word, lead):
    with pytest.raises(TaskError, match=rf'words of x: expected a word that the tokenizer knows, got "{word}"'):
        Verbalizer({"a": (word,)}).ids(TOKENIZERS[kind], lead=lead, where="words of x")


def test_a_label_without_words_is_refused():
    with pytest.raises(TaskError, match='expected words for "b", got none'):
        tokens("bpe", {"a": ["good"], "b": []})


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_special_tokens_in_words_are_plain_text(kind):
    tokenizer = TOKENIZERS[kind]
    for special in ("[MASK]", "[SEP]"):
        found = Verbalizer({"a": (special,)}).ids(tokenizer, lead=" ")
        assert set(found.ids[0]).isdisjoint(set(tokenizer.all_special_ids))


@pytest.mark.parametrize("lead", [" ", ""])
@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_the_words_of_a_vocabulary_are_one_token_each_and_no_pieces(kind, lead):
    tokenizer, found = TOKENIZERS[kind], vocabulary_words(TOKENIZERS[kind], lead)
    assert not set(found.values()) & set(tokenizer.all_special_ids) and len(set(found.values())) == len(found)
    for word, token in found.items():
        ids = Verbalizer({"label": (word,)}).ids(tokenizer, lead=lead)
        assert word.isalpha() and len(word) > 1 and ids.ids == ((token,),) and ids.notes == ()


def test_words_are_those_that_stand_after_a_space():
    words = vocabulary_words(TOKENIZERS["bpe"], " ")
    assert {"negative", "great", "terrible"} <= words.keys() and "good" not in words  # which is "Ġ" and "good"
    assert all(TOKENIZERS["bpe"].convert_ids_to_tokens(token).startswith("Ġ") for token in words.values())
    assert {"negative", "great", "terrible"} <= vocabulary_words(TOKENIZERS["wordpiece"], "").keys()
