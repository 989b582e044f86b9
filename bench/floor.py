"""The arithmetic floor of a training step: the matrix products that it cannot do without, done bare on the model's own weights.

For the blocks from the first trained one on: the forward, the gradients of the states, and those of the weights where the whole
model is trained; what is below can be computed once and kept. Embeddings, norms, the readout and the method's own few products are
left out. Reads `nn.Linear` only, as BERT and Llama have it.

Dimensions: B rows, T queries, S keys, N positions of a batch, I inputs, O outputs, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone


class Products:
    """`first`: the first block that is computed at all and that gradients go through; `full`: the weights' gradients, too.

    `ahead` positions are computed in front of each row's tokens; `keys` are there beside them to be attended to only.
    """

    def __init__(self, backbone: Backbone, first: int, *, full: bool = False, ahead: int = 0, keys: int = 0) -> None:
        self.full, self.ahead, self.keys = full, ahead, keys
        blocks = [backbone.blocks[number] for number in backbone.order[first:]]
        self.weights = [[part.weight.detach() for part in block.modules() if isinstance(part, nn.Linear)] for block in blocks]
        config = backbone.model.config
        self.heads = config.num_attention_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.drawn: dict[tuple[int, ...], Tensor] = {}

    def pairs(self, rows: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """What is multiplied for a batch; numbers drawn for one shape serve all of that shape."""
        return [pair for block in self.weights for pair in self._block(block, rows, tokens + self.ahead)]

    def _block(self, weights: list[Tensor], rows: int, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        for weight_OI in weights:
            given_NI, wanted_NO = (self._draw(rows * tokens, size) for size in (weight_OI.shape[1], weight_OI.shape[0]))
            yield given_NI, weight_OI.T
            yield wanted_NO, weight_OI
            if self.full:
                yield wanted_NO.T, given_NI
        query_BHTE, key_BHSE = (self._draw(rows, self.heads, length, self.size) for length in (tokens, tokens + self.keys))
        share_BHTS = self._draw(rows, self.heads, tokens, tokens + self.keys)
        scores, mixed, back = (query_BHTE, key_BHSE.mT), (share_BHTS, key_BHSE), (share_BHTS.mT, query_BHTE)
        yield from (scores, mixed, scores, mixed, back, back)  # for each of the two, a gradient to either side

    def _draw(self, *shape: int) -> Tensor:
        if shape not in self.drawn:
            self.drawn[shape] = torch.randn(*shape)
        return self.drawn[shape]


def multiply(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Do the products."""
    for left, right in pairs:
        torch.matmul(left, right)


def operations(pairs: list[tuple[Tensor, Tensor]]) -> int:
    """Multiplications and additions in the products.

    >>> operations([(torch.zeros(2, 3), torch.zeros(3, 5))])
    60
    """
    return sum(2 * left.numel() * right.shape[-1] for left, right in pairs)
