"""Where answers end, and which tokens one is."""

import pytest

from fewtune.backbone import tiny
from fewtune.prompt.stopping import Stops
from fewtune.prompt.tokens import plain_ids

BPE, T5 = tiny.tokenizer("bpe"), tiny._TOKENIZERS["t5"]()


def ids(text, tokenizer=BPE):
    return plain_ids(tokenizer, text)


def test_it_ends_before_the_first_of_the_texts_or_at_a_special_token():
    stops = Stops(BPE, ("\n", " it"))
    assert not stops.ended(ids(" great fun")) and stops.text(ids(" great fun")) == "great fun"
    assert stops.ended(ids(" great fun\n")) and stops.text(ids(" great fun\nand a joy")) == "great fun"
    assert stops.text(ids(" was it\n")) == "was"
    assert stops.ended([*ids(" fun"), BPE.eos_token_id]) and stops.text([*ids(" fun"), BPE.eos_token_id]) == "fun"
    assert not Stops(BPE).ended(ids(" fun\n"))


def test_white_space_in_front_of_an_answer_ends_nothing():
    stops = Stops(BPE, ("\n",))
    assert not stops.ended(ids("\n")) and stops.text(ids("\n")) == ""
    assert not stops.ended(ids("\n great fun")) and stops.ended(ids("\n great fun\n"))
    assert stops.text(ids("\n great fun\nand a joy")) == "great fun"


def test_a_text_over_several_tokens_ends_it_too():
    stops = Stops(BPE, ("lifeless mess",))
    assert (
        len(ids("lifeless mess")) > 1
        and stops.ended(ids("a dull, lifeless mess"))
        and stops.text(ids("a dull, lifeless mess")) == "a dull,"
    )


def test_a_sentinel_ends_it():
    sentinel = T5.get_vocab()["<extra_id_1>"]
    assert Stops(T5).ended([*ids("great", T5), sentinel]) and Stops(T5).text([*ids("great", T5), sentinel]) == "great"
    assert not Stops(T5).ended([T5.unk_token_id])


@pytest.mark.parametrize("text", ["great fun", " a dull, lifeless mess "])
@pytest.mark.parametrize("texts", [("\n",), (), ("###", "\n")])
def test_an_answer_that_is_written_is_read_as_the_same_text(text, texts):
    for stops, settings in (
        (Stops(BPE, texts), {"lead": " ", "seq2seq": False}),
        (Stops(BPE, texts), {"lead": "", "seq2seq": False}),
        (Stops(T5, texts), {"lead": None, "seq2seq": True}),
        (Stops(T5, texts), {"lead": " ", "seq2seq": True}),
    ):
        answer = stops.answer(text, most=99, **settings)
        assert stops.ended(answer) and stops.text(answer) == text.strip()
        assert not any(stops.ended(answer[:length]) for length in range(1, len(answer)))
        assert stops.answer(text, most=2, **settings) == answer[:2]


def test_the_end_is_the_first_stop_or_the_end_of_a_text():
    assert Stops(BPE, ("\n", "###")).answer("fun", lead=" ", seq2seq=False, most=9) == tuple(ids("a fun\n")[1:])
    assert Stops(BPE).answer("fun", lead=" ", seq2seq=False, most=9)[-1] == BPE.eos_token_id
    assert Stops(T5, ("\n",)).answer("fun", lead=None, seq2seq=True, most=9) == (*ids("fun", T5), T5.eos_token_id)
