"""Plain text → token ids, and what one tokenizer puts around them. Knows the tokenizer; no template, no label.

`tokenizer` is a Hugging Face tokenizer throughout; transformers itself is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewtune.errors import DataError


def plain_batch(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text alone. What looks like a special token ("[MASK]", "</s>") is plain text and stays harmless."""
    if not texts:
        return []
    _check(texts)
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [row if special.isdisjoint(row) else _defused(tokenizer, text) for row, text in zip(ids, texts, strict=True)]


def _check(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            got, fix = f"half of a surrogate pair in {ascii(text[:40])}", "Remove it, or read the text in its right encoding."
            raise DataError(expected="text", got=got, where="tokenizer", fix=fix) from None


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """`plain_batch` of one text."""
    return plain_batch(tokenizer, [text])[0]


def _defused(tokenizer: Any, text: str) -> list[int]:
    # Some vocabularies hold special tokens as ordinary pieces too; a space inside keeps the piece from being found.
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids


def ends(tokenizer: Any, text: str) -> list[int]:
    """For each token of `text`, the position in the text where it ends."""
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False)
    return [end for _, end in encoded["offset_mapping"]]


@dataclass(frozen=True)
class Specials:
    """Token ids that a tokenizer puts in front of a text, between two and behind; `types` says whether segments are numbered, `mask` is
    what stands where something is left out."""

    prefix: tuple[int, ...]
    sep: tuple[int, ...]
    suffix: tuple[int, ...]
    mask: int | None
    types: bool


SENTINEL = "<extra_id_0>"
"""What stands where T5 is to write the first span that is left out (Raffel et al. 2020, section 3.1.4)."""


def specials(tokenizer: Any, *, causal: bool, seq2seq: bool = False) -> Specials:
    """Found by looking at what the tokenizer makes of one text and of a pair.

    Autoregressive models get no end-of-text token, because the text goes on at the slot; segments are new lines for them.
    """
    letter_ids = plain_ids(tokenizer, "a")
    single = tokenizer("a")["input_ids"]
    start = _find(single, letter_ids)
    prefix, suffix = tuple(single[:start]), tuple(single[start + len(letter_ids) :])
    if causal:
        return Specials(prefix, tuple(plain_ids(tokenizer, "\n")), (), None, False)
    pair = tokenizer("a", "a")["input_ids"]
    between = pair[len(prefix) + len(letter_ids) : len(pair) - len(suffix) - len(letter_ids)]
    types = "token_type_ids" in tokenizer.model_input_names
    return Specials(prefix, tuple(between), suffix, sentinel(tokenizer) if seq2seq else tokenizer.mask_token_id, types)


def sentinel(tokenizer: Any, number: int = 0) -> int | None:
    """The id of `SENTINEL`, or of that of a later span, if the tokenizer has it."""
    found: int | None = tokenizer.get_vocab().get(SENTINEL.replace("0", str(number)))
    return found


def blank_line(tokenizer: Any) -> tuple[int, ...]:
    """The ids of a blank line as it stands between two texts, which need not be those of a blank line at an end."""
    letter_ids, between = plain_ids(tokenizer, "a"), plain_ids(tokenizer, "a\n\na")
    inside = between[len(letter_ids) : len(between) - len(letter_ids)]
    return tuple(inside if [*letter_ids, *inside, *letter_ids] == between else plain_ids(tokenizer, "\n\n"))


_MARKS = {"##": False, "Ġ": True, "▁": True}
"""What a vocabulary marks: pieces that go on in a word (WordPiece), or that begin one (byte-level pieces, SentencePiece)."""


def word_starts(tokenizer: Any, size: int) -> tuple[bool, ...]:
    """For each of `size` token ids, whether a word begins with it; in byte-level vocabularies what follows a word without a space, such
    as a comma, belongs to it (as in RoBERTa's own whole-word masking)."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    mark, begins = max(_MARKS.items(), key=lambda marked: sum(piece.startswith(marked[0]) for piece in vocabulary))
    pieces = {number: piece for piece, number in vocabulary.items()}
    return tuple(pieces.get(number, "").startswith((mark, "Ċ") if mark == "Ġ" else mark) == begins for number in range(size))


def _find(ids: list[int], part: list[int]) -> int:
    return next(start for start in range(len(ids)) if ids[start : start + len(part)] == part)
