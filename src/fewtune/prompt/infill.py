"""Templates that a model which fills gaps proposes: what it is asked about a labelled row, and what template its answer makes. Knows the
tokenizer, no model.

Gao et al. 2021 (LM-BFF), section 5.2: gaps stand between a row's texts and its label's word, and what a T5 writes there, one and the same
for all rows, is a template.

    "a dull mess" <0> terrible <1>  ──►  <0> It was <1> . <2>  ──►  "{text} It was {slot} ."
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewtune.prompt.template import literal
from fewtune.prompt.tokens import plain_batch, sentinel, specials

Layout = tuple[str | int, ...]
"""Fields by their letter, gaps by their number, and the slot."""
_SLOT = "slot"
_SEEN: dict[int, tuple[Layout, ...]] = {
    1: (("a", 0, _SLOT, 1), (0, _SLOT, 1, "a")),
    2: (("a", 0, _SLOT, 1, "b"),),
}
_LEFT: dict[int, tuple[Layout, ...]] = {1: (("a", 0, _SLOT),), 2: (("a", 0, "b", 1, _SLOT),)}


def layouts(fields: int, *, causal: bool) -> tuple[Layout, ...]:
    """Where gaps stand, for so many fields; for an autoregressive model the slot is last. None for more fields than two."""
    return (_LEFT if causal else _SEEN).get(fields, ())


def gaps(layout: Layout) -> int:
    """How many gaps there are."""
    return sum(isinstance(part, int) for part in layout)


def fills(tokenizer: Any) -> bool:
    """Whether it has marks for the gaps of every layout."""
    return None not in (sentinel(tokenizer, 0), sentinel(tokenizer, 1))


def marks(tokenizer: Any, layout: Layout) -> tuple[int, ...]:
    """The tokens that part an answer: that of each gap, and what ends it; for a tokenizer that has them (`fills`)."""
    count = gaps(layout)
    found = [mark for mark in (sentinel(tokenizer, number) for number in range(count + 1)) if mark is not None]
    return tuple(found if len(found) > count else [*found, tokenizer.eos_token_id])


def asked(tokenizer: Any, layout: Layout, texts: Sequence[str], word: str, *, most: int) -> tuple[int, ...]:
    """Token ids of a row's texts and its label's word with gaps between them; each text is cut to `most` tokens."""
    *fields, slot = plain_batch(tokenizer, [*texts, word])
    around, gap, ids = specials(tokenizer, causal=False, seq2seq=True), marks(tokenizer, layout), list[int]()
    for part in layout:
        if isinstance(part, int):
            ids.append(gap[part])
        else:
            ids += slot if part == _SLOT else fields["ab".index(part)][:most]
    return (*around.prefix, *ids, *around.suffix)


def template(tokenizer: Any, layout: Layout, names: Sequence[str], answer: Sequence[int]) -> str:
    """The template that an answer makes: tokens behind the first gap's mark, further marks between them and one at the end."""
    parting, spans = set(marks(tokenizer, layout)), list[list[int]]([[]])
    for token in answer:
        if token in parting:
            spans.append([])
        else:
            spans[-1].append(token)
    written = [literal(" ".join(tokenizer.decode(span).split())) for span in spans]
    places = {"a": f"{{{names[0]}}}", "b": f"{{{names[-1]}}}", _SLOT: "{slot}"}
    said = [written[part] if isinstance(part, int) else places[part] for part in layout]
    return " ".join(one for one in said if one)
