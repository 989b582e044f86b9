"""What an encoder-decoder model's decoder makes of the beginnings of answers, given what the encoder read. Knows the family's row only.

    prompt ──► encoder ──► states ─┬─► decoder: <start> word … ──► LM head
                                   └─► decoder: <start> other … ─► LM head

The encoder runs once for each prompt, whatever number of beginnings go on from it. Positions in T5's decoder are those of a row, so
beginnings have rows of their own instead of being the branches of a tree.

Dimensions: B rows, F beginnings of each, J tokens of a beginning, S positions that the encoder read, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewtune.backbone.families import Family


def decode(model: Any, family: Family, hidden_BSD: Tensor, mask_BS: Tensor, written_BFJ: Tensor) -> Tensor:
    """hidden_BTD as the LM head reads them, T = F × J: those of each beginning, one behind the other. What stands behind a beginning in
    its row is padding, which no token before it sees."""
    rows, fills, length = written_BFJ.shape
    states = model.get_submodule(family.writer)(
        input_ids=written_BFJ.reshape(rows * fills, length),
        encoder_hidden_states=hidden_BSD.repeat_interleave(fills, 0),
        encoder_attention_mask=mask_BS.repeat_interleave(fills, 0),
        use_cache=False,
    ).last_hidden_state
    return scaled(model, states).reshape(rows, fills * length, -1)


def scaled(model: Any, hidden_BTD: Tensor) -> Tensor:
    """The decoder's states as the LM head reads them, float32: made smaller where it shares its weights with the embeddings (T5)."""
    smaller = getattr(model.config, "scale_decoder_outputs", False)
    return hidden_BTD.float() * (model.config.hidden_size**-0.5 if smaller else 1.0)


def start(model: Any) -> int:
    """The token that every answer starts from."""
    config = model.config
    return int(config.pad_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id)
