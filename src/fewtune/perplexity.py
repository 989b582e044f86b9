"""How likely a PLM finds texts: exactly, token after token, or, where it is masked, each token in the light of all others. Knows no task.

    autoregressive   log p(text) = Σ log p(token | all before it), the first given what texts start with
    masked           pseudo-log-likelihood: Σ log p(token | all others), hiding one after another (Salazar et al. 2020, eq. 1)

A text that is longer than the model takes is read in windows that overlap by half, so that each token is told with half a window before
it at least.

Dimensions: B rows, T tokens, D width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from fewtune.backbone import headed, scoring
from fewtune.backbone.backbone import Backbone
from fewtune.data import readers
from fewtune.data.writers import WriteCells, check_place, open_table
from fewtune.errors import BackboneError, DataError
from fewtune.plm import load as load_backbone
from fewtune.prompt.tokens import plain_batch, specials
from fewtune.sources import Rows, Source
from fewtune.train.language import perplexity

COLUMNS = ("tokens", "log_probability", "perplexity")
_TOGETHER = 256  # texts that are read at once


@dataclass(frozen=True)
class Likelihood:
    """Of one text, or of several together: how many tokens were told, how many bytes they are, and their log-probability in nats."""

    tokens: int
    bytes: int
    log_probability: float

    @property
    def perplexity(self) -> float | None:
        """e to the mean loss of a token; None of no token."""
        return perplexity(-self.log_probability / self.tokens) if self.tokens else None

    @property
    def bits_per_byte(self) -> float | None:
        """The loss in bits for each byte of text, by which models with different tokens can be compared; None of no text."""
        return -self.log_probability / math.log(2) / self.bytes if self.bytes else None


@dataclass(frozen=True)
class Scored:
    """The likelihoods of texts; `exact` says that they are probabilities, and not those of a masked model."""

    backbone: str
    exact: bool
    rows: tuple[Likelihood, ...]

    @property
    def whole(self) -> Likelihood:
        """All texts together."""
        sums = [(one.tokens, one.bytes, one.log_probability) for one in self.rows]
        return Likelihood(sum(one[0] for one in sums), sum(one[1] for one in sums), math.fsum(one[2] for one in sums))

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        whole = self.whole
        return {
            "backbone": self.backbone,
            "exact": self.exact,
            "texts": len(self.rows),
            "tokens": whole.tokens,
            "log_probability": whole.log_probability,
            "perplexity": whole.perplexity,
            "bits_per_byte": whole.bits_per_byte,
            "rows": [dict(zip(COLUMNS, (one.tokens, one.log_probability, one.perplexity), strict=True)) for one in self.rows],
        }


def likelihoods(backbone: Backbone, texts: Iterable[str], *, batch_size: int = 32) -> Iterator[Likelihood]:
    """The likelihood of each text, in order; raises `BackboneError` for a PLM without an LM head of its stack."""
    headed.check_writes(backbone)
    told = _exact if backbone.causal else _pseudo
    stream = iter(texts)
    while group := list(itertools.islice(stream, _TOGETHER)):
        ids = plain_batch(backbone.tokenizer, group)
        for text, row, logs in zip(group, ids, told(backbone, ids, batch_size), strict=True):
            yield Likelihood(len(row), len(text.encode()), math.fsum(logs))


def windows(count: int, most: int) -> list[tuple[int, int, int]]:
    """(first token that is read, first that is told, end) of windows over `count` tokens, at most `most` of them in each.

    >>> windows(5, 8), windows(10, 4)
    ([(0, 0, 5)], [(0, 0, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)])
    """
    found, end = [(0, 0, min(count, most))], most
    while end < count:
        told, end = end, min(count, end + most - most // 2)
        found.append((end - most, told, end))
    return found


def _exact(backbone: Backbone, texts: Sequence[Sequence[int]], batch_size: int) -> list[list[float]]:
    tokenizer = backbone.tokenizer
    begin = list(specials(tokenizer, causal=True).prefix)
    begin = begin or [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None][:1]
    if not begin:
        got, fix = "a tokenizer without one", "Take another --backbone."
        raise BackboneError(expected="a token that texts start with", got=got, where=f'backbone "{backbone.name}"', fix=fix)
    cuts = [(number, *cut) for number, row in enumerate(texts) for cut in windows(len(row), backbone.room - len(begin))]
    requests = [
        scoring.Request((*begin, *texts[number][first:told]), (tuple(texts[number][told:end]),)) for number, first, told, end in cuts
    ]
    found: list[list[float]] = [[] for _ in texts]
    for (number, *_), (score,) in zip(cuts, scoring.score(backbone, requests, together=batch_size * 8), strict=True):
        found[number] += score.tokens
    return found


def _pseudo(backbone: Backbone, texts: Sequence[Sequence[int]], batch_size: int) -> list[list[float]]:
    around = specials(backbone.tokenizer, causal=False)
    most = backbone.room - len(around.prefix) - len(around.suffix)
    found: list[list[float]] = []
    for row in texts:
        logs: list[float] = []
        for first, told, end in windows(len(row), most):
            ids = [*around.prefix, *row[first:end], *around.suffix]
            shift = len(around.prefix) - first
            for start in range(told, end, batch_size):
                logs += _hidden(backbone, ids, [place + shift for place in range(start, min(start + batch_size, end))])
        found.append(logs)
    return found


@torch.inference_mode()
def _hidden(backbone: Backbone, ids: Sequence[int], places: Sequence[int]) -> list[float]:
    """log p of the tokens at `places`, each hidden in a row of its own."""
    ids_BT = torch.tensor([list(ids)] * len(places), device=backbone.device)
    rows_B, places_B = torch.arange(len(places)), torch.tensor(places)
    targets_B = ids_BT[rows_B, places_B]
    ids_BT[rows_B, places_B] = backbone.tokenizer.mask_token_id
    hidden_BTD = backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD
    logs_BV = backbone.lm_logits(hidden_BTD[rows_B, places_B], None).log_softmax(-1)
    return list(logs_BV[rows_B, targets_B].tolist())


def score_files(
    source: Source,
    target: Path | TextIO | None,
    *,
    backbone: str,
    form: str | None = None,
    overwrite: bool = False,
    batch_size: int = 32,
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Scored:
    """`fewtune score`: each row of a file with its tokens, log-probability and perplexity, written to `target`, if there is one, as it is
    there."""
    rows = Rows.of(source, None, say)
    if len(rows.chosen.text) != 1:
        got, fix = ", ".join(rows.chosen.text), "Name one column with --text."
        raise DataError(expected="one column of texts", got=got, where=str(rows.path), fix=fix)
    if isinstance(target, Path):
        check_place(target, overwrite)
    loaded, skipped, found = load_backbone(backbone, device=device, say=say), list[DataError](), list[Likelihood]()
    headed.check_writes(loaded)
    read, again = itertools.tee(rows.read(skipped.append))
    texts = (example.fields[rows.chosen.text[0]] for _, example in read)
    with _table(target, rows.columns, form, overwrite) as write:
        for (row, _), one in zip(again, likelihoods(loaded, texts, batch_size=batch_size), strict=True):
            write(row.values, (one.tokens, _rounded(one.log_probability), _rounded(one.perplexity)))
            found.append(one)
            progress(1)
    if skipped:
        say(readers.skipped(len(skipped), skipped[0]))
    return Scored(backbone, loaded.causal, tuple(found))


def _table(target: Path | TextIO | None, columns: Sequence[str], form: str | None, overwrite: bool) -> AbstractContextManager[WriteCells]:
    if target is None:
        return nullcontext(lambda row, cells: None)
    return open_table(target, columns=columns, answers=COLUMNS, form=form, overwrite=overwrite)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
