"""What a PLM would write: the tokens that may come next, words for gaps, or a text that goes on. Knows no task and no training.

Dimensions: B rows, T tokens, V vocabulary, N gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fewtune.backbone import generation, headed
from fewtune.backbone.backbone import Backbone
from fewtune.errors import BackboneError, DataError, SpecError
from fewtune.prompt.tokens import plain_ids, specials

GAP = "[MASK]"
"""How a gap is written for every masked PLM; its own mask token is understood, too."""


@dataclass(frozen=True)
class Candidate:
    """A token, as text, and its probability."""

    text: str
    probability: float


@dataclass(frozen=True)
class Written:
    """A text that goes on, and the log-probability in nats of the tokens that were added."""

    text: str
    tokens: int
    log_probability: float


@dataclass(frozen=True)
class Writing:
    """How a text goes on: with `tokens` more tokens at most, the likeliest each time, or drawn.

    Tokens are drawn from probabilities at a `temperature`, of the likeliest ones that hold `top_p` of the whole (nucleus sampling:
    Holtzman et al. 2020, section 3.1).
    """

    tokens: int = 40
    draw: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        ranges = {
            "tokens": (self.tokens >= 1, "at least 1"),
            "temperature": (self.temperature > 0, "above 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
        }
        for name, (fits, expected) in ranges.items():
            if not fits:
                where, got = f"--{name.replace('_', '-')}", repr(getattr(self, name))
                raise SpecError(expected=expected, got=got, where=where, fix="Change the value.")

    def picker(self, device: torch.device) -> generation.Pick:
        """What chooses each next token; the same draws each time it is made."""
        generator = torch.Generator(device).manual_seed(self.seed)

        def drawn(logs_BV: Tensor) -> Tensor:
            # The likeliest at 0, and double, so that however low a temperature is, the likeliest is left.
            below_BV = (logs_BV - logs_BV.amax(-1, keepdim=True)).double()
            return torch.multinomial(nucleus((below_BV / self.temperature).softmax(-1), self.top_p), 1, generator=generator)[:, 0]

        return drawn if self.draw else generation.likeliest


def nucleus(shares_BV: Tensor, top_p: float) -> Tensor:
    """The shares with all but the likeliest tokens set to 0: the fewest that hold `top_p` together.

    >>> nucleus(torch.tensor([[0.5, 0.125, 0.25, 0.125]]), 0.7).tolist()
    [[0.5, 0.0, 0.25, 0.0]]
    """
    sorted_BV, order_BV = shares_BV.sort(dim=-1, descending=True, stable=True)
    sorted_BV = sorted_BV.masked_fill(sorted_BV.cumsum(-1) - sorted_BV >= top_p, 0.0)
    return torch.zeros_like(shares_BV).scatter(-1, order_BV, sorted_BV)


@dataclass(frozen=True)
class Completion:
    """What was asked and found: candidates for the next token, or for each gap; the text that goes on, if that was wanted."""

    backbone: str
    text: str
    next: tuple[Candidate, ...] = ()
    gaps: tuple[tuple[Candidate, ...], ...] = ()
    written: Written | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON: what was found, and nothing of what was not asked for."""
        found: dict[str, object] = {"next": [asdict(one) for one in self.next]} if self.next else {}
        found |= {"gaps": [[asdict(one) for one in gap] for gap in self.gaps]} if self.gaps else {}
        found |= {"written": asdict(self.written)} if self.written else {}
        return {"backbone": self.backbone, "text": self.text, **found}


def usual(text: str) -> str:
    """The PLM of the catalogue that completes a text unless one is named: a masked one where a word is missing.

    >>> usual("The film was [MASK]."), usual("The film was")
    ('minilm-l6-mlm', 'smollm2-135m')
    """
    return "minilm-l6-mlm" if GAP in text else "smollm2-135m"


def complete(backbone: Backbone, text: str, *, top: int = 10, how: Writing | None = None) -> Completion:
    """`fewtune complete`: words for the gaps of a text that has some; else the next tokens, and the text that goes on as `how` says."""
    own = getattr(backbone.tokenizer, "mask_token", None)
    if how is None and (GAP in text or (own and own in text)):
        return Completion(backbone.name, text, gaps=tuple(map(tuple, fill(backbone, text, top=top))))
    written = None if how is None else write(backbone, text, how)
    return Completion(backbone.name, text, next=tuple(next_tokens(backbone, text, top=top)), written=written)


def next_tokens(backbone: Backbone, text: str, *, top: int = 10) -> list[Candidate]:
    """The likeliest tokens behind a text; raises `BackboneError` for a PLM that is not autoregressive."""
    headed.check_writes(backbone)
    if not backbone.causal:
        fix = f"Put {GAP} where a word is missing, or take another --backbone."
        raise BackboneError(expected="an autoregressive PLM, or a gap", got=f"{backbone.name} and none", where="complete", fix=fix)
    ids = _ids(backbone, text)
    return _read(backbone, ids, [len(ids) - 1], top)[0]


def fill(backbone: Backbone, text: str, *, top: int = 10) -> list[list[Candidate]]:
    """For each gap of a text the likeliest tokens, while the other gaps stay open.

    Raises `BackboneError` for a PLM that is not masked, `DataError` for a text without a gap or one that is too long.
    """
    headed.check_writes(backbone)
    tokenizer = backbone.tokenizer
    if backbone.causal:
        fix = "Take a masked --backbone, or leave the gap out."
        raise BackboneError(expected="a masked PLM, which fills gaps", got=backbone.name, where="complete", fix=fix)
    ids: list[int] = tokenizer(text.replace(GAP, tokenizer.mask_token), verbose=False)["input_ids"]
    gaps = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
    if not gaps:
        raise DataError(expected=f"a text with {GAP}", got="none", where="complete", fix=f"Put {GAP} where a word is missing.")
    _check_length(backbone, ids)
    return _read(backbone, ids, gaps, top)


def write(backbone: Backbone, text: str, how: Writing) -> Written:
    """The text, going on until the PLM ends it; raises `BackboneError` for a PLM that writes none."""
    generation.require(backbone)
    headed.check_writes(backbone)
    ids, end = _ids(backbone, text), backbone.tokenizer.eos_token_id
    most = min(how.tokens, backbone.room - len(ids))
    picked = how.picker(backbone.device)
    (made,) = generation.generate(backbone, [ids], most=most, ended=lambda own: own[-1] == end, pick=picked)
    more = backbone.tokenizer.decode([*ids, *made.ids], skip_special_tokens=True)
    before = backbone.tokenizer.decode(ids, skip_special_tokens=True)
    return Written(text + more.removeprefix(before), len(made.ids), made.log_probability)


def _ids(backbone: Backbone, text: str) -> list[int]:
    """A text as what goes on begins; where it is empty with what texts start with."""
    tokenizer = backbone.tokenizer
    ids = [*specials(tokenizer, causal=True).prefix, *plain_ids(tokenizer, text)]
    ids = ids or [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None][:1]
    if not ids:
        raise DataError(expected="a text", got="an empty one", where="complete", fix="Give the beginning of a text.")
    _check_length(backbone, ids, more=1)
    return ids


def _check_length(backbone: Backbone, ids: Sequence[int], more: int = 0) -> None:
    if len(ids) + more > backbone.room:
        got = f"{len(ids)} tokens"
        raise DataError(expected=f"at most {backbone.room - more} tokens", got=got, where="complete", fix="Shorten the text.")


@torch.inference_mode()
def _read(backbone: Backbone, ids: Sequence[int], places: Sequence[int], top: int) -> list[list[Candidate]]:
    ids_BT = torch.tensor([list(ids)], device=backbone.device)
    hidden_ND = backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD[0, list(places)]
    shares_NV = backbone.lm_logits(hidden_ND, None)[:, : len(backbone.tokenizer)].softmax(-1)
    best = shares_NV.topk(min(top, shares_NV.shape[1]))
    return [
        [Candidate(backbone.tokenizer.decode([token]), share) for token, share in zip(tokens, shares, strict=True)]
        for tokens, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
