"""Text that a PLM writes itself: token after token, the likeliest each time unless others are picked, with the keys and values of what
stands before kept. Knows tokens only.

Prompts of like length share a batch, padded on the left, so that all of them go on at the same place and a window of attention counts
the same tokens as alone. A decoder of its own (seq2seq) has its prompts on the other side: there nothing is padded that goes on.

Dimensions: B rows, T tokens, P vectors in front, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewtune.backbone import seq2seq
from fewtune.backbone.backbone import Backbone
from fewtune.errors import BackboneError

Pick = Callable[[Tensor], Tensor]
"""Log-probabilities_BV → the next tokens_B."""
_Steps = Generator[Tensor, Tensor, None]
"""Gives the last states_BD, is sent the next tokens_B."""


@dataclass(frozen=True)
class Generated:
    """The tokens that were written, the one that ended the text included, and the log-probability of exactly these."""

    ids: tuple[int, ...]
    log_probability: float


def generate(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    most: int,
    ended: Callable[[Sequence[int]], bool],
    begin: Sequence[int] = (),
    entry: int = 0,
    batch_size: int = 32,
    pick: Pick | None = None,
) -> list[Generated]:
    """What the PLM writes behind each prompt (token ids), with the deltas of `entry` in it: the likeliest token each time, or what `pick`
    takes, until `ended` says so of the tokens of a row, or there are `most`.

    An encoder reads the prompt where there is one; the decoder's text begins with `begin` then, its start token where none is given.
    Raises `BackboneError` for a PLM without an LM head, or one that writes no text.
    """
    require(backbone)
    found: dict[int, Generated] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    size = 1 if backbone.scales_by_length else batch_size
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = [prompts[index] for index in chosen]
        with torch.inference_mode(), backbone.routing.of(torch.full((len(batch),), entry)):
            states = _decoded(backbone, batch, begin) if backbone.seq2seq else _continued(backbone, batch, entry)
            found |= zip(chosen, _written(backbone, states, len(batch), most, ended, pick or likeliest), strict=True)
    return [found[index] for index in range(len(prompts))]


def require(backbone: Backbone, where: str = "--backbone") -> None:
    """Raise `BackboneError` for a PLM that writes no text."""
    fix = "Take another --backbone, such as smollm2-135m."
    backbone.require_lm_head(where, fix=fix)
    if not (backbone.causal or backbone.seq2seq):
        got = f"{backbone.name}, a masked model, which fills gaps of a known length"
        raise BackboneError(expected="an autoregressive PLM, or one with a decoder", got=got, where=where, fix=fix)


def likeliest(logs_BV: Tensor) -> Tensor:
    """The token of the highest log-probability in each row."""
    return logs_BV.argmax(-1)


def _written(
    backbone: Backbone, states: _Steps, rows: int, most: int, ended: Callable[[Sequence[int]], bool], pick: Pick
) -> list[Generated]:
    ids: list[list[int]] = [[] for _ in range(rows)]
    logs, unended = [0.0] * rows, set(range(rows))
    hidden_BD = next(states)
    for step in range(most):
        logs_BV = backbone.lm_logits(hidden_BD, None).log_softmax(-1)
        token_B = pick(logs_BV)
        for row in sorted(unended):
            ids[row].append(int(token_B[row]))
            logs[row] += float(logs_BV[row, token_B[row]])
            if ended(ids[row]):
                unended.discard(row)
        if not unended or step == most - 1:
            break
        hidden_BD = states.send(token_B)
    states.close()
    return [Generated(tuple(own), log) for own, log in zip(ids, logs, strict=True)]


def _continued(backbone: Backbone, prompts: Sequence[Sequence[int]], entry: int) -> _Steps:
    """An autoregressive model; trained vectors stand in front of each prompt, behind its padding."""
    vectors = backbone.fronts.of(entry)
    lengths = [sum(map(len, vectors)) + len(prompt) for prompt in prompts]
    mask_BS = torch.tensor([[0] * (max(lengths) - length) + [1] * length for length in lengths], device=backbone.device)
    given = _in_front(backbone, prompts, vectors) if vectors else {"input_ids": _ids(backbone, prompts, left=True)}
    new, cache, shift = mask_BS.shape[1], None, backbone.prefixes.shift(entry)
    while True:
        positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)[:, -new:] + shift
        with backbone.autocast():
            output = backbone.stack(**given, attention_mask=mask_BS, position_ids=positions_BS, past_key_values=cache, use_cache=True)
        token_B = yield output.last_hidden_state[:, -1].float()
        given, new, cache = {"input_ids": token_B[:, None]}, 1, output.past_key_values
        mask_BS = nn.functional.pad(mask_BS, (0, 1), value=1)


def _in_front(backbone: Backbone, prompts: Sequence[Sequence[int]], vectors: Sequence[Tensor]) -> dict[str, Tensor]:
    rows = [torch.cat([*vectors, backbone.embed(torch.tensor(list(prompt), device=backbone.device))]) for prompt in prompts]
    return {"inputs_embeds": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")}


def _ids(backbone: Backbone, prompts: Sequence[Sequence[int]], *, left: bool) -> Tensor:
    pad, longest = backbone.tokenizer.pad_token_id or 0, max(map(len, prompts))
    padding = [[pad] * (longest - len(prompt)) for prompt in prompts]
    rows = [[*more, *prompt] if left else [*prompt, *more] for prompt, more in zip(prompts, padding, strict=True)]
    return torch.tensor(rows, device=backbone.device)


def read(backbone: Backbone, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(states_BSD, mask_BS): what an encoder makes of prompts of any lengths."""
    mask_BT = torch.tensor([[1] * len(prompt) + [0] * (max(map(len, prompts)) - len(prompt)) for prompt in prompts], device=backbone.device)
    return backbone.read(_ids(backbone, prompts, left=False), mask_BT)


def _decoded(backbone: Backbone, prompts: Sequence[Sequence[int]], begin: Sequence[int]) -> _Steps:
    """An encoder reads the prompts once, and the decoder goes on by itself."""
    hidden_BSD, mask_BS = read(backbone, prompts)
    decoder: Any = backbone.model.get_submodule(backbone.family.writer)
    given_BT = torch.tensor([list(begin) or [backbone.start]] * len(prompts), device=backbone.device)
    cache = None
    while True:
        with backbone.autocast():
            output = decoder(
                input_ids=given_BT,
                encoder_hidden_states=hidden_BSD,
                encoder_attention_mask=mask_BS,
                past_key_values=cache,
                use_cache=True,
            )
        token_B = yield seq2seq.scaled(backbone.model, output.last_hidden_state[:, -1])
        given_BT, cache = token_B[:, None], output.past_key_values
