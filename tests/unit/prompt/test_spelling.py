"""What is put at the slot so that every token of every word can be read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewtune.prompt.spelling import Filling, Token, spell
from fewtune.prompt.verbalizer import WholeWords


def whole(*candidates):
    return WholeWords(tuple(candidates), tuple(tuple(1 for _ in words) for words in candidates))


def test_beginnings_that_words_share_hang_on_the_prompt_once():
    spelling = spell(whole(((7, 8, 9),), ((7, 8, 5), (4,)), ((6, 8),)), causal=True)
    assert spelling.fills == ((7, 8, 6),) and spelling.parents == (-1, 0, -1)
    assert spelling.places == ((0, 0), (0, 1), (0, 2), (0, 3)) and spelling.room == 3
    assert spelling.words[0] == ((Token(0, 7), Token(1, 8), Token(2, 9)),)
    assert spelling.words[1] == ((Token(0, 7), Token(1, 8), Token(2, 5)), (Token(0, 4),))
    assert spelling.words[2] == ((Token(0, 6), Token(3, 8)),)
    assert spelling.put((1, 2), (0, 0), 1, None) == [((1, 2, 7, 8, 6), (0,) * 5)]


def test_masks_stand_for_what_is_not_read_yet():
    spelling = spell(whole(((7, 8),), ((7, 9),), ((6,),)), causal=False)
    assert spelling.fills == ((None, None), (7, None), (None,)) and spelling.parents == ()
    assert spelling.places == ((0, 0), (1, 1), (2, 0)) and spelling.room == 1
    assert spelling.words == (((Token(0, 7), Token(1, 8)),), ((Token(0, 7), Token(1, 9)),), ((Token(2, 6),),))
    put = spelling.put((1, 99, 2), (0, 1, 1), 1, 99)
    assert put == [((1, 99, 99, 2), (0, 1, 1, 1)), ((1, 7, 99, 2), (0, 1, 1, 1)), ((1, 99, 2), (0, 1, 1))]


WORDS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=3, unique=True).map(tuple)


@pytest.mark.slow
@given(st.lists(WORDS, min_size=1, max_size=4))
def test_each_token_is_read_where_what_comes_before_it_stands(candidates):
    for causal in (True, False):
        spelling = spell(whole(*candidates), causal=causal)
        for words, read in zip(candidates, spelling.words, strict=True):
            for word, tokens in zip(words, read, strict=True):
                assert tuple(token.token for token in tokens) == word
                for at, token in enumerate(tokens):
                    fill, steps = spelling.places[token.place]
                    if causal:
                        assert branch(spelling, steps) == word[:at]
                    else:
                        assert steps == at and spelling.fills[fill] == (*word[:at], *[None] * (len(word) - at))


def branch(spelling, steps):
    """The tokens from the prompt's end to the one that is so many steps behind the slot."""
    found, node = [], steps - 1
    while node >= 0:
        found.append(spelling.fills[0][node])
        node = spelling.parents[node]
    return tuple(reversed(found))


def test_words_that_are_put_in_have_a_row_each():
    filling = Filling((((7, 8), (4,)), ((6,),)))
    assert filling.fills == ((7, 8), (4,), (6,)) and filling.parents == () and filling.room == 2
    assert filling.put((1, 2), (0, 0), 1) == [((1, 7, 8, 2), (0,) * 4), ((1, 4, 2), (0,) * 3), ((1, 6, 2), (0,) * 3)]
