"""Processes that train one model together, each on batches of its own. Knows tensors and torch's process groups; no batch, no weight.

torchrun, and `accelerate launch` on accelerators, say in the environment how many there are; on one machine or several.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as group
from torch import Tensor

from fewtune.errors import SpecError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is. All of them make the calls below, in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes in the place of each tensor."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # one message instead of one for each
        group.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def told(self, value: T) -> T:
        """The value that the first process has."""
        if self.size == 1:
            return value
        values = [value]
        group.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def any(self, here: bool) -> bool:
        """Whether it holds in any process."""
        if self.size == 1:
            return here
        found = torch.tensor([float(here)])
        group.all_reduce(found)
        return bool(found.item())


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """The world that the environment names, for as long as it is needed: this process alone, where it names none.

    Raises `SpecError` for an environment that says only half of it.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        fix = "Start it with: torchrun --nproc-per-node 2 -m fewtune …"
        raise SpecError(expected=f"{missing[0]} beside WORLD_SIZE={size}", got="none", where="the environment", fix=fix)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    group.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(group.get_rank(), group.get_world_size())
    finally:
        group.destroy_process_group()
