"""Prompts → one state of each from a PLM, in batches of like length. Knows no task, no label and no word.

Dimensions: N prompts, B rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone, Output
from fewtune.prompt.batch import Batch, buckets, collate, collate_written
from fewtune.prompt.encode import Encoder
from fewtune.prompt.template import Prompt


def at_slot(output: Output, batch: Batch) -> Tensor:
    """hidden_BD where each row's word is read."""
    rows = torch.arange(batch.slot_B.shape[0], device=output.hidden_BTD.device)
    return output.hidden_BTD[rows, batch.slot_B]


def states(
    backbone: Backbone, prompts: Sequence[Prompt], read: Callable[[Output, Batch], Tensor], *, most: int, slot: bool = False
) -> Tensor:
    """states_ND that `read` takes from each batch, float32 on the processor; prompts have at most `most` tokens.

    They are those in the `slot` where it says so, which a decoder writes if there is one.
    """
    pad, writes = backbone.tokenizer.pad_token_id or 0, slot and backbone.seq2seq
    encoder = Encoder(backbone.tokenizer, causal=backbone.causal, max_length=min(most, backbone.room), seq2seq=writes)
    rows = encoder.encode(prompts)
    states_ND = torch.zeros(len(rows), backbone.width)
    for indices in buckets([len(row.ids) for row in rows], size=32):
        chosen = [rows[index] for index in indices]
        if writes:
            batch = collate_written(chosen, pad=pad, start=backbone.start, sentinel=encoder.specials.mask)
        else:
            batch = collate(chosen, pad=pad)
        batch = batch.to(backbone.device)
        with torch.inference_mode():
            output = backbone.forward(batch.ids_BT, batch.mask_BT, batch.types_BT, written_BFJ=batch.written_BFJ)
            states_ND[indices] = read(output, batch).cpu()
    return states_ND
