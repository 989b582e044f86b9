"""How likely continuations are after their contexts, token by token. Knows token ids; no text, no task and no label.

What contexts have in common is computed once: long beginnings in front of everything (`shared`), the rest as a tree, in which
continuations are branches, too. A pass takes such trees one beside the other in a single row, so nothing is padded, and the LM head is
applied to the states that are read, some at a time.

    description, examples ──► Text: rain ── Topic: ─┬─ world
                          └─► Title: a ─┬─ b ── …   └─ science ── fiction
                                        └─ c ── …

Dimensions: T tokens, D width, U states that are read, K tokens that are read there, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from fewtune.backbone import shared
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.shared import Ids
from fewtune.errors import BackboneError

TOGETHER = 256
"""Tokens of a pass: enough that reading the weights is paid for, so few that what is computed stays near the processor."""
AT_ONCE = 2**22
"""Logits that are held at a time: 16 MiB."""


@dataclass(frozen=True)
class Request:
    """A context of one token or more, and what may follow it."""

    context: Ids
    continuations: tuple[Ids, ...]


@dataclass(frozen=True)
class Score:
    """The log-probability of each token of a continuation, given all before it, and whether each is the likeliest one."""

    tokens: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation."""
        return sum(self.tokens)


@dataclass
class _Tree:
    """Tokens of one pass, each behind its parent (-1: the first of a context), and those that are read: (node, token) in order."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def grow(self, ids: Iterable[int], node: int) -> Iterator[int]:
        """Behind `node` these tokens one after another, those that are there already once; yields their nodes."""
        for token in ids:
            parent, node = node, self._known.setdefault((node, token), len(self.ids))
            if node == len(self.ids):
                self.ids.append(token)
                self.parents.append(parent)
            yield node

    def add(self, request: Request, start: int) -> None:
        """The request without the first `start` tokens of its context."""
        *_, end = self.grow(request.context[start:], -1)
        for ids in request.continuations:
            nodes = (end, *self.grow(ids[:-1], end))
            self.reads += zip(nodes, ids, strict=False)  # nothing is read of a continuation without tokens


def score(backbone: Backbone, requests: Sequence[Request], *, together: int = TOGETHER) -> list[list[Score]]:
    """For each request a score of each of its continuations; about `together` tokens go through the stack at a time.

    Raises `BackboneError` for a model that is not autoregressive or has no LM head, and for a request that is longer than it takes.
    """
    _check(backbone, requests)
    scores: list[list[Score]] = [[] for _ in requests]
    with torch.inference_mode():
        for rows, start in shared.beginnings(backbone, [request.context for request in requests]):
            for tree, members in _trees(requests, rows, start, together):
                read = iter(_read(backbone, tree))
                for row in members:
                    scores[row] = [_score(read, len(ids)) for ids in requests[row].continuations]
    return scores


def _check(backbone: Backbone, requests: Sequence[Request]) -> None:
    backbone.require_lm_head("scoring", fix="Take another --backbone.")
    if not backbone.causal:
        fix = "Take another --backbone."
        raise BackboneError(expected="an autoregressive PLM", got=backbone.name, where="scoring", fix=fix)
    for number, request in enumerate(requests):
        size = len(request.context) + max(map(len, request.continuations), default=1) - 1
        if not request.context or size > backbone.room:
            raise BackboneError(
                expected=f"a context of at least one token, and with a continuation at most {backbone.room + 1}",
                got=f"{len(request.context)} and together {size + 1}",
                where=f"request {number}",
                fix="Cut the context at its beginning.",
            )


def _trees(requests: Sequence[Request], rows: Sequence[int], start: int, together: int) -> Iterator[tuple[_Tree, list[int]]]:
    """`rows`, which begin alike one behind the other, in trees of about `together` tokens."""
    tree, members = _Tree(), list[int]()
    for row in rows:
        tree.add(requests[row], start)
        members.append(row)
        if len(tree.ids) >= together:
            yield tree, members
            tree, members = _Tree(), []
    if members:
        yield tree, members


def _read(backbone: Backbone, tree: _Tree) -> list[tuple[float, bool]]:
    """(log-probability, whether it is the likeliest) of each token that is read."""
    if not tree.reads:
        return []
    ids_1T = torch.tensor([tree.ids], device=backbone.device)
    chain = all(parent == node - 1 for node, parent in enumerate(tree.parents))
    hidden_TD = backbone.forward(ids_1T, torch.ones_like(ids_1T), trees=() if chain else (tree.parents,)).hidden_BTD[0]
    node_K, token_K = torch.tensor(tree.reads, device=backbone.device).T
    node_U, place_K = node_K.unique(return_inverse=True)
    log_K, greedy_K = torch.empty(len(token_K), device=backbone.device), torch.empty_like(token_K, dtype=torch.bool)
    size = max(1, AT_ONCE // backbone.vocabulary)
    for first in range(0, len(node_U), size):
        logits_UV = backbone.lm_logits(hidden_TD[node_U[first : first + size]], None)
        here = (place_K >= first) & (place_K < first + size)
        place, token = place_K[here] - first, token_K[here]
        log_K[here] = logits_UV[place, token] - logits_UV.logsumexp(-1)[place]
        greedy_K[here] = logits_UV.argmax(-1)[place] == token
    return list(zip(log_K.tolist(), greedy_K.tolist(), strict=True))


def _score(read: Iterator[tuple[float, bool]], size: int) -> Score:
    """Of the next `size` tokens that were read."""
    found = [next(read) for _ in range(size)]
    return Score(tuple(log for log, _ in found), all(greedy for _, greedy in found))
