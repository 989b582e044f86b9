"""A member of PET that is asked in another process: plain data, with the PLM by its name. Knows no Ray."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example
from fewtune.errors import BackboneError
from fewtune.recipe import Recipe
from fewtune.runs.worker import Worker, one_thread
from fewtune.strategies.members import Asked, Member
from fewtune.strategies.strategy import Strategy
from fewtune.train.fit import Session


@dataclass(frozen=True)
class Sent:
    """What is asked, without its rows, which many share. `plms` are all that a process is asked for, `plm` is this member's.

    On `machine`, where it was sent from, it keeps its checkpoints in `folder`, elsewhere none.
    """

    name: str
    recipe: Recipe
    strategy: Strategy
    plm: str
    fingerprints: tuple[str, str]
    device: str
    plms: tuple[str, ...]
    machine: str
    folder: Path | None
    key: str
    label: str
    told: bool

    @classmethod
    def of(cls, asked: Asked, plms: Sequence[str]) -> Sent:
        """The same for another process."""
        member, session = asked.member, asked.session
        return cls(
            name=member.name,
            recipe=member.recipe,
            strategy=member.strategy,
            plm=member.backbone.name,
            fingerprints=_fingerprints(member.backbone),
            device=member.backbone.device.type,
            plms=tuple(plms),
            machine=socket.gethostname(),
            folder=None if session.folder is None else session.folder.absolute(),
            key=session.key,
            label=session.label,
            told=session.told,
        )

    def answers(
        self, worker: Worker, train: tuple[Example, ...], rows: tuple[Example, ...], pool: tuple[Example, ...]
    ) -> tuple[Tensor, tuple[str, ...]]:
        """log_NC of `rows`, as `Member.answers` gives them with one thread, and what was said meanwhile.

        Raises `BackboneError` where the PLM of that name is another one here.
        """
        backbones = worker.backbones(self.plms, device=self.device)
        backbone = next(one for one in backbones if one.name == self.plm)
        if _fingerprints(backbone) != self.fingerprints:
            fix = "Have the same files on every machine of the cluster."
            raise BackboneError(
                expected="the PLM with the same fingerprints", got="another", where=f'backbone "{self.plm}" of a worker', fix=fix
            )
        said: list[str] = []
        folder = self.folder if socket.gethostname() == self.machine else None
        session = Session(folder, self.key, self.label, say=said.append, shared=worker.shared(self.key), told=self.told)
        member = Member(self.name, self.recipe, backbone, self.strategy, pool)
        with one_thread():
            return member.answers(train, rows, session), tuple(said)


def _fingerprints(backbone: Backbone) -> tuple[str, str]:
    return backbone.fingerprint, backbone.tokenizer_fingerprint
