"""One text for many prompts at once: what a decoder would write behind all of them, searched for with several beginnings side by side.
Knows tokens only.

Dimensions: B prompts, S positions that the encoder read, K beginnings, J tokens of one, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewtune.backbone import seq2seq
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.generation import Generated, read

Found = tuple[tuple[int, ...], float]


@torch.no_grad()
def agreed(
    backbone: Backbone, prompts: Sequence[Sequence[int]], *, begin: int, marks: Sequence[int], beams: int, most: int
) -> list[Generated]:
    """The texts that are likeliest in the mean of their log-probability over all prompts (Gao et al. 2021, section 5.2), best first: of
    ordinary tokens, parted by all but the last of `marks`, in their order, and ended by the last. At most `beams`, each of at most `most`
    tokens. The decoder's text begins with its start token and `begin`.

    Beginnings compete with those that have as many marks, so that one always goes on to the next mark, likely or not.
    """
    hidden_BSD, mask_BS = read(backbone, prompts)
    barred_V = torch.arange(backbone.vocabulary) >= len(backbone.tokenizer)
    barred_V[[*backbone.tokenizer.all_special_ids, *marks]] = True
    going: list[list[Found]] = [[((), 0.0)], *([] for _ in marks)]
    """Beginnings by how many marks they have; the last are whole texts."""
    for _ in range(most):
        longer: list[list[Found]] = [[] for _ in marks] + [going[-1]]
        for passed, own in enumerate(going[:-1]):
            if not own:
                continue
            written_KJ = torch.tensor([[backbone.start, begin, *ids] for ids, _ in own], device=backbone.device)
            total_KV = _mean_logs(backbone, hidden_BSD, mask_BS, written_KJ).cpu() + torch.tensor([log for _, log in own])[:, None]
            mark_K = total_KV[:, marks[passed]].tolist()
            longer[passed + 1] += [((*ids, marks[passed]), log) for (ids, _), log in zip(own, mark_K, strict=True)]
            best, size = total_KV.masked_fill(barred_V, -torch.inf).flatten().topk(min(beams, total_KV.numel())), total_KV.shape[1]
            places = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            longer[passed] += [((*own[place // size][0], place % size), log) for place, log in places if log > -torch.inf]
        going = [sorted(own, key=lambda one: -one[1])[:beams] for own in longer]
        *begun, done = going
        # A text only becomes less likely the longer it is.
        if len(done) == beams and all(own[0][1] <= done[-1][1] for own in begun if own):
            break
    return [Generated(ids, log) for ids, log in going[-1]]


def _mean_logs(backbone: Backbone, hidden_BSD: Tensor, mask_BS: Tensor, written_KJ: Tensor) -> Tensor:
    """logs_KV of the next token, the mean over all prompts."""
    (beginnings, length), prompts = written_KJ.shape, len(hidden_BSD)
    with backbone.autocast():
        states = seq2seq.decode(backbone.model, backbone.family, hidden_BSD, mask_BS, written_KJ.expand(prompts, beginnings, length))
    last = states.reshape(prompts, beginnings, length, -1)[:, :, -1]
    return torch.stack([backbone.lm_logits(last_KD, None).log_softmax(-1) for last_KD in last]).mean(0)
