"""Hidden states below the first trained block, computed once for each row and kept without padding. Knows tensors and keys only.

Dimensions: B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor, nn

MOST_BYTES = 2 * 1024**3


class StateCache:
    """Rows' states by key, as many as fit into `most_bytes`."""

    def __init__(self, *, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self.states: dict[Hashable, Tensor] = {}

    def add(self, keys: Sequence[Hashable], lengths: Sequence[int], hidden_BTD: Tensor) -> bool:
        """Keep the rows' states without their padding; false as soon as one no longer fits."""
        for key, length, hidden_TD in zip(keys, lengths, hidden_BTD, strict=True):
            size = length * hidden_TD.shape[-1] * hidden_TD.element_size()
            if self.bytes + size > self.most_bytes:
                return False
            self.states[key] = hidden_TD[:length].clone()
            self.bytes += size
        return True

    def get(self, keys: Sequence[Hashable]) -> Tensor | None:
        """hidden_BTD padded with zeros, or nothing if a row is not kept."""
        if not all(key in self.states for key in keys):
            return None
        return nn.utils.rnn.pad_sequence([self.states[key] for key in keys], batch_first=True)
