"""Hidden states below the first trained block, computed once for each row and kept without padding. Knows tensors and keys only.

Kept in memory up to a limit, then in a memory-mapped file without a name, which goes with the process. What a key stands for never
changes (weights below, tokens), so one cache serves the epochs, folds, seeds and settings of a job.

Dimensions: B rows, T tokens, D width.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

MOST_BYTES = 2 * 1024**3
MOST_DISK = 16 * 1024**3


@dataclass(frozen=True)
class _Place:
    """Where in the file a row's states lie."""

    start: int
    shape: tuple[int, int]
    dtype: torch.dtype


class StateCache:
    """Rows' states by key: `most_bytes` of them in memory, then `most_disk` in a file in `folder` (the system's for temporary files)."""

    def __init__(self, *, most_bytes: int = MOST_BYTES, most_disk: int = MOST_DISK, folder: Path | None = None) -> None:
        self.most_bytes, self.most_disk, self.folder = most_bytes, most_disk, folder
        self.bytes, self.disk_bytes = 0, 0
        self.states: dict[Hashable, Tensor | _Place] = {}
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None

    def __del__(self) -> None:
        if self._map is not None:
            self._map.close()
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: Hashable) -> bool:
        """Whether the row's states are kept."""
        return key in self.states

    def add(self, keys: Sequence[Hashable], lengths: Sequence[int], hidden_BTD: Tensor) -> bool:
        """Keep the rows' states without their padding; false as soon as one no longer fits anywhere."""
        for key, length, hidden_TD in zip(keys, lengths, hidden_BTD, strict=True):
            if key not in self.states and not self._keep(key, hidden_TD[:length]):
                return False
        return True

    def _keep(self, key: Hashable, hidden_TD: Tensor) -> bool:
        size = hidden_TD.numel() * hidden_TD.element_size()
        if self.bytes + size <= self.most_bytes:
            self.states[key] = hidden_TD.clone()
            self.bytes += size
        elif self.disk_bytes + size <= self.most_disk:
            self.states[key] = self._write(hidden_TD)
        else:
            return False
        return True

    def _write(self, hidden_TD: Tensor) -> _Place:
        self._file = self._file or tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - lives as long as the cache
        place = _Place(self.disk_bytes, (hidden_TD.shape[0], hidden_TD.shape[1]), hidden_TD.dtype)
        content = hidden_TD.detach().cpu().contiguous().view(torch.uint8).numpy()
        self._file.write(content.tobytes())
        self.disk_bytes += content.nbytes
        return place

    def _read(self, kept: Tensor | _Place) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        assert self._file is not None
        if self._map is None or len(self._map) < self.disk_bytes:
            self._file.flush()
            # A private map: torch wants a buffer that may be written to, and nothing ever is.
            self._map = mmap.mmap(self._file.fileno(), self.disk_bytes, access=mmap.ACCESS_COPY)
        count = kept.shape[0] * kept.shape[1]
        return torch.frombuffer(self._map, dtype=kept.dtype, count=count, offset=kept.start).reshape(kept.shape)

    def get(self, keys: Sequence[Hashable], device: torch.device | str = "cpu") -> Tensor | None:
        """hidden_BTD padded with zeros, or nothing if a row is not kept."""
        if not all(key in self.states for key in keys):
            return None
        rows = [self._read(self.states[key]).to(device) for key in keys]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)
