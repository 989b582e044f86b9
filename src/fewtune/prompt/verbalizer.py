"""Label → words → token ids for one tokenizer. Knows the tokenizer; no template beyond the space before its slot, no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fewtune.errors import TaskError
from fewtune.prompt.tokens import plain_batch, plain_ids

_SENTINELS = ("=", ":", ".")
Word = tuple[int, ...]


@dataclass(frozen=True)
class WordIds:
    """For each label, in order, the token ids of its words; `notes` are sentences for the user."""

    ids: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WholeWords:
    """For each label, in order, its words as all of their token ids, and how many bytes of text each is."""

    ids: tuple[tuple[Word, ...], ...]
    sizes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Verbalizer:
    """The words that stand for each label.

    The score of a label is the mean of its words' logits (PET: Schick & Schütze 2021, section 3.1).
    """

    words: Mapping[str, tuple[str, ...]]

    @property
    def firsts(self) -> tuple[str, ...]:
        """The first word of each label."""
        return tuple(words[0] for words in self.words.values())

    def _each(self, where: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each label with its words, of which there must be one."""
        for label, words in self.words.items():
            if not words:
                raise TaskError(expected=f'words for "{label}"', got="none", where=where, fix="Name one with --words.")
            yield label, words

    def ids(self, tokenizer: Any, *, lead: str | None, where: str = "words") -> WordIds:
        """Each word's first token as it stands in running text, after a space if the slot has a `lead`; where that is None as it begins a
        text of its own.

        Raises `TaskError` for a word that the tokenizer does not know and for two labels whose words begin with the same token.
        """
        owners: dict[int, tuple[str, str]] = {}
        split: list[str] = []
        ids: list[tuple[int, ...]] = []
        for label, words in self._each(where):
            found: dict[int, None] = {}
            for word in words:
                tokens = _shown_tokens(tokenizer, word, lead, where)
                _claim(tokens[0], (label, word), owners, tokenizer, where)
                found[tokens[0]] = None
                if len(tokens) > 1:
                    split.append(f'"{word}" ("{_shown(tokenizer, tokens[0])}")')
            ids.append(tuple(found))
        notes = (f"Read at their first token: {', '.join(split)}.",) if split else ()
        return WordIds(tuple(ids), notes)

    def whole(self, tokenizer: Any, *, lead: str | None, where: str = "words") -> WholeWords:
        """All tokens of each word as it stands in running text, after a space if the slot has a `lead`; where that is None as a text of its
        own.

        Raises `TaskError` for a word with a piece that the tokenizer does not know and for two labels with the same word.
        """
        owners: dict[Word, tuple[str, str]] = {}
        ids: list[tuple[Word, ...]] = []
        sizes: list[tuple[int, ...]] = []
        for label, words in self._each(where):
            found: dict[Word, int] = {}
            for word in words:
                tokens = tuple(_tokens(tokenizer, word, lead, where))
                if tokenizer.unk_token_id in tokens:
                    raise _unknown(word, where)
                other = owners.setdefault(tokens, (label, word))
                if other[0] != label:
                    got = f'"{other[1]}" for {other[0]} and "{word}" for {label}, which are the same for this tokenizer'
                    raise TaskError(expected="words that differ", got=got, where=where, fix="Choose other words with --words.")
                found[tokens] = len(word.strip().encode())
            ids.append(tuple(found))
            sizes.append(tuple(found.values()))
        return WholeWords(tuple(ids), tuple(sizes))


def spelled(tokenizer: Any, texts: Sequence[str], *, lead: str | None, where: str) -> WholeWords:
    """All tokens of each text as it stands in running text, with the `lead` that `Verbalizer.whole` takes: texts of one row, of which the
    tokenizer need not know every piece, nor tell all of them apart."""
    ids = tuple((tuple(_tokens(tokenizer, text, lead, where)),) for text in texts)
    return WholeWords(ids, tuple((len(text.strip().encode()),) for text in texts))


@lru_cache(maxsize=4)  # a second for a large vocabulary, and every fold asks again
def vocabulary_words(tokenizer: Any, lead: str | None) -> Mapping[str, int]:
    """Every word of letters that is one token of its own after a space, and its token after `lead`; no pieces of words, no special tokens.

    A single letter is a word in scripts that write words so, not in Latin. Without a `lead` the word must be one token there, too. Where
    it is None the word begins a text, as SentencePiece has it: after a space.
    """
    tokens = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    texts = (text.strip() for text in tokenizer.batch_decode([[token] for token in tokens]))
    words = dict.fromkeys(text for text in texts if text.isalpha() and (len(text) > 1 or not text.isascii()))
    spaced = _alone(tokenizer, words, " ")
    return spaced if lead is None or lead else _alone(tokenizer, spaced, "")


def _alone(tokenizer: Any, words: Iterable[str], space: str) -> dict[str, int]:
    """The words that are one known token in running text, with it."""
    words = list(words)
    sentinel, before = _sentinel(tokenizer)
    rows = plain_batch(tokenizer, [f"{sentinel}{space}{word}" for word in words])
    alone = ((word, row[-1]) for word, row in zip(words, rows, strict=True) if row[:-1] == before)
    return {word: token for word, token in alone if token != tokenizer.unk_token_id}


def _claim(token: int, owner: tuple[str, str], owners: dict[int, tuple[str, str]], tokenizer: Any, where: str) -> None:
    other = owners.setdefault(token, owner)
    if other[0] == owner[0]:
        return
    raise TaskError(
        expected="words that differ in their first token",
        got=f'"{other[1]}" for {other[0]} and "{owner[1]}" for {owner[0]}, which both begin with "{_shown(tokenizer, token)}"',
        where=where,
        fix="Choose other words (short common ones are single tokens), drop them to have letters read instead, or use --readout head.",
    )


def _shown_tokens(tokenizer: Any, word: str, lead: str | None, where: str) -> list[int]:
    """The ids of `word` in running text, without a token at its beginning that is only white space."""
    ids = _tokens(tokenizer, word, lead, where)
    while len(ids) > 1 and not tokenizer.decode([ids[0]]).strip():
        ids = ids[1:]
    if ids[0] == tokenizer.unk_token_id:
        raise _unknown(word, where)
    return ids


def _tokens(tokenizer: Any, word: str, lead: str | None, where: str) -> list[int]:
    """The ids of `word` in running text, or as a text of its own."""
    if not word.strip():
        raise TaskError(expected="a word", got=repr(word), where=where, fix="Name one with --words.")
    ids = running_ids(tokenizer, word.strip(), lead)
    if not ids:
        raise _unknown(word, where)
    return ids


def running_ids(tokenizer: Any, text: str, lead: str | None) -> list[int]:
    """The ids of a text as it goes on from others, after a space if there is a `lead`; where that is None it goes on from nothing."""
    text = (" " if lead else "") + text
    sentinel, before = ("", []) if lead is None else _sentinel(tokenizer)
    whole = plain_ids(tokenizer, sentinel + text)
    return whole[len(before) :] if whole[: len(before)] == before else plain_ids(tokenizer, text)


def _unknown(word: str, where: str) -> TaskError:
    return TaskError(expected="a word that the tokenizer knows", got=f'"{word}"', where=where, fix="Choose another word.")


def _sentinel(tokenizer: Any) -> tuple[str, list[int]]:
    """What is put in front of a word, to keep SentencePiece from adding a space of its own and to show the space that is there.

    It must be known itself, for unknown pieces that stand side by side become one.
    """
    found = ((text, plain_ids(tokenizer, text)) for text in _SENTINELS)
    return next(((text, ids) for text, ids in found if tokenizer.unk_token_id not in ids), ("", []))


def _shown(tokenizer: Any, token: int) -> str:
    return str(tokenizer.decode([token])).strip()
