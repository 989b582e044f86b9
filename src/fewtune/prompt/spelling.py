"""Label words of several tokens: what is put at the slot, and which of its states are read, so that every token of every word is
scored given those before it. Knows token ids only.

Autoregressive: the words' beginnings hang on the prompt as a tree, each beginning once, so that one pass reads all words.

    … Intent: ─┬─ card ─┬─ lost            lost, stolen and the words' last tokens are read, not put in
               │        └─ (stolen)
               └─ (cash)

Masked: a word of n tokens is read over n masks, from left to right, each token given those before it. Words of the same length and
beginning share a row.

    … Intent: [M]  ·  … Intent: [M] [M]  ·  … Intent: card [M]

Written by a decoder (seq2seq): beginnings of the answer, of which one that goes on in another has no row of its own.

    <start> card   (card lost, card stolen, cash)

Turned around (`Filling`): the words stand in the slot and what comes after them is read, so each word has a row of its own.

    … Intent: card lost ⏎ Text: …  ·  … Intent: cash ⏎ Text: …

Dimensions: B rows, F fills, T tokens, P places, K tokens that are read, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fewtune.prompt.verbalizer import WholeWords, Word


@dataclass(frozen=True)
class Token:
    """One token of a word: read at place number `place`."""

    place: int
    token: int


@dataclass(frozen=True)
class Spelling:
    """How the words of one template are read.

    `fills` are what is put at the slot, or written by a decoder, one after another, each in a row of its own; None stands for a mask.
    `parents` are the branches of an autoregressive model's tree (see `fewtune.backbone.tree`), empty for others. `places` are (fill, steps
    behind the slot).
    `words` has, for each candidate, its words as tokens with their places, and `sizes` the number of bytes of each word.
    """

    fills: tuple[tuple[int | None, ...], ...]
    parents: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    words: tuple[tuple[tuple[Token, ...], ...], ...]
    sizes: tuple[tuple[int, ...], ...]

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of all words, one after another."""
        return tuple(token for candidate in self.words for word in candidate for token in word)

    @cached_property
    def room(self) -> int:
        """How many positions the longest word takes beyond those of the slot itself."""
        return max(steps for _, steps in self.places)

    @cached_property
    def reach(self) -> int:
        """How many steps behind the slot the longest word is read, which is less than `room` where a tree has branches."""
        return max(len(word) for candidate in self.words for word in candidate) - 1

    def put(self, ids: Word, types: Word, slot: int, mask: int | None) -> list[tuple[Word, Word]]:
        """(ids, types) of the prompt with each fill at its slot: behind the prompt, or, where there is a mask, in place of it."""
        if mask is None:
            (fill,) = self.fills
            nodes = tuple(token for token in fill if token is not None)
            return [(ids + nodes, types + (types[-1],) * len(nodes))]
        return [
            (
                ids[:slot] + tuple(mask if token is None else token for token in fill) + ids[slot + 1 :],
                types[:slot] + (types[slot],) * len(fill) + types[slot + 1 :],
            )
            for fill in self.fills
        ]


@dataclass(frozen=True)
class Filling:
    """The words of one template where they stand in the slot and are not read: `words` for each candidate."""

    words: tuple[tuple[Word, ...], ...]

    @cached_property
    def fills(self) -> tuple[Word, ...]:
        """What is put at the slot, one after another, each in a row of its own."""
        return tuple(_all(self.words))

    @property
    def parents(self) -> tuple[int, ...]:
        """There is no tree: every row is a text from left to right."""
        return ()

    @cached_property
    def room(self) -> int:
        """How many positions the longest word takes; a slot has none of its own."""
        return max(map(len, self.fills))

    def put(self, ids: Word, types: Word, slot: int) -> list[tuple[Word, Word]]:
        """(ids, types) of the prompt with each fill at its slot."""
        filled = [(*ids[:slot], *fill, *ids[slot:]) for fill in self.fills]
        return [(one, types[:1] * len(one)) for one in filled]


def spell(words: WholeWords, *, causal: bool, seq2seq: bool = False) -> Spelling:
    """How these words are read."""
    return _written(words) if seq2seq else _branching(words) if causal else _masked(words)


def _branching(words: WholeWords) -> Spelling:
    """Every proper beginning of a word is a token of the tree; place 0 is the prompt's end, place k the tree's token number k - 1."""
    places: dict[Word, int] = {(): 0}
    tokens: list[int] = []
    parents: list[int] = []
    for word in _all(words.ids):
        for length in range(1, len(word)):
            if word[:length] not in places:
                places[word[:length]] = len(places)
                tokens.append(word[length - 1])
                parents.append(places[word[: length - 1]] - 1)
    read = tuple(
        tuple(tuple(Token(places[word[:at]], token) for at, token in enumerate(word)) for word in candidate) for candidate in words.ids
    )
    return Spelling((tuple(tokens),), tuple(parents), tuple((0, place) for place in range(len(places))), read, words.sizes)


def _written(words: WholeWords) -> Spelling:
    """Every word without its last token is the beginning of a decoder's row, unless a longer one begins so."""
    fills: list[Word] = []
    for beginning in sorted({word[:-1] for word in _all(words.ids)}, key=lambda word: (-len(word), word)):
        if not any(fill[: len(beginning)] == beginning for fill in fills):
            fills.append(beginning)
    places: dict[tuple[int, int], int] = {}

    def read(word: Word, at: int) -> Token:
        fill = next(number for number, fill in enumerate(fills) if fill[:at] == word[:at])
        return Token(places.setdefault((fill, at), len(places)), word[at])

    found = tuple(tuple(tuple(read(word, at) for at in range(len(word))) for word in candidate) for candidate in words.ids)
    return Spelling(tuple(fills), (), tuple(places), found, words.sizes)


def _masked(words: WholeWords) -> Spelling:
    fills: dict[tuple[int | None, ...], int] = {}
    places: dict[tuple[int, int], int] = {}

    def read(word: Word, at: int) -> Token:
        fill = (*word[:at], *[None] * (len(word) - at))
        place = (fills.setdefault(fill, len(fills)), at)
        return Token(places.setdefault(place, len(places)), word[at])

    found = tuple(tuple(tuple(read(word, at) for at in range(len(word))) for word in candidate) for candidate in words.ids)
    return Spelling(tuple(fills), (), tuple(places), found, words.sizes)


def _all(spelled: Sequence[Sequence[Word]]) -> list[Word]:
    return [word for candidate in spelled for word in candidate]
