"""Text files of any size → token ids on the disk → blocks of one length, in an order that is a function of (seed, epoch).

    files ──► pieces of text ──► ids, a separator behind each document ──► a file of ids ──► blocks_BT

Knows no tokenizer (texts → ids is a function that it is given) and no model. Whatever the size of the files, what is held at once is a
few pieces of text while ids are written, and a window of the order while blocks are read.

Dimensions: B blocks, T tokens.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fewtune.data.files import data_error, opened
from fewtune.data.sampling import derive

Documents = Literal["blank", "lines"]
"""Where a document ends: at an empty line, or with each line."""
Encode = Callable[[Sequence[str]], list[list[int]]]
"""Texts → token ids of each, without any special tokens."""
_PIECE = 1 << 16  # bytes; a longer line is cut where a word ends
_UTF_16 = {codecs.BOM_UTF16_LE[0], codecs.BOM_UTF16_BE[0]}  # which no text in UTF-8 begins with
_GROUP = 256  # pieces that are encoded at once
WINDOW = 1 << 16
"""How many blocks are shuffled among one another."""


@dataclass(frozen=True)
class Piece:
    """A line of a text file, or a part of one that is long; `last` says that a document ends behind it."""

    text: str
    last: bool


def pieces(paths: Iterable[Path], documents: Documents = "blank") -> Iterator[Piece]:
    """The texts of plain text files, also gzipped, in order; a document ends with its file at the latest.

    Raises `DataError` for a file that cannot be read or is no UTF-8.
    """
    for path in paths:
        before: str | None = None
        for text in _lines(path):
            blank = not text.strip()
            if before is not None:
                last = before.endswith("\n") and (blank or documents == "lines")
                yield Piece(before.rstrip("\r\n") if last else before, last)
            before = None if blank else text
        if before is not None:
            yield Piece(before.rstrip("\r\n"), last=True)


def check(path: Path) -> None:
    """Raise `DataError` unless there is a file."""
    if not path.is_file():
        raise data_error(str(path), "a text file", "a directory" if path.is_dir() else "no such file", "Name text files, also .gz.")


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends; of a long one parts of at most `_PIECE` bytes, cut in front of white space if there is any."""
    check(path)
    decoder, number = codecs.getincrementaldecoder("utf-8")(), 1
    with opened(path, path.suffix.lower() == ".gz") as stream:
        kept = stream.readline(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while raw := kept if kept.endswith(b"\n") else kept + stream.readline(_PIECE - len(kept)):
            whole = raw.endswith(b"\n") or len(raw) < _PIECE
            cut = len(raw) if whole else _cut(raw)
            kept = raw[cut:]
            try:
                yield decoder.decode(raw[:cut], final=whole)
            except UnicodeDecodeError as caught:
                byte = caught.object[caught.start]
                kind = "UTF-16" if number == 1 and not caught.start and byte in _UTF_16 else "WINDOWS-1252"
                fix = f"Save it as UTF-8; iconv -f {kind} -t UTF-8 may do it."
                raise data_error(f"{path}:{number}", "UTF-8", f"byte 0x{byte:02x}", fix) from None
            number += raw.endswith(b"\n")


def _cut(raw: bytes) -> int:
    """In front of the last white space, where tokenizers cut as well; at the end if there is none."""
    place = max(raw.rfind(b" "), raw.rfind(b"\t"))
    return place if place > 0 else len(raw)


def write_ids(texts: Iterable[Piece], encode: Encode, target: Path, *, separator: Sequence[int], wide: bool) -> int:
    """Write the ids of all pieces one behind the other, the `separator` behind each document; their number.

    The file is there whole or not at all. `wide` takes four bytes for an id instead of two.
    """
    kind, count = kind_of(wide), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            for group in _groups(texts):
                for piece, ids in zip(group, encode([piece.text for piece in group]), strict=True):
                    row = np.asarray([*ids, *(separator if piece.last else ())], dtype=kind)
                    file.write(row.tobytes())
                    count += len(row)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, target)
    return count


def _groups(texts: Iterable[Piece]) -> Iterator[list[Piece]]:
    """So many pieces at once, but not many long ones."""
    group, letters = list[Piece](), 0
    for piece in texts:
        group.append(piece)
        letters += len(piece.text)
        if len(group) == _GROUP or letters > 4 * _PIECE:
            yield group
            group, letters = [], 0
    if group:
        yield group


def kind_of(wide: bool) -> np.dtype[Any]:
    """How an id is stored."""
    return np.dtype("<u4" if wide else "<u2")


def read_ids(path: Path, *, wide: bool) -> NDArray[Any]:
    """What `write_ids` wrote, read from the disk where it is looked at."""
    return np.memmap(path, kind_of(wide), "r") if path.stat().st_size else np.zeros(0, kind_of(wide))


@dataclass(frozen=True, eq=False)
class Blocks:
    """Ids cut into blocks of `length` tokens, each with `prefix` in front and `suffix` behind; the last one may be shorter and is filled
    up with `pad`. No id is lost and none is in two blocks.

    Of every `period` blocks the last `held` are held out of training.
    """

    ids: NDArray[Any] = field(repr=False)
    length: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    pad: int = 0
    period: int = 1
    held: int = 0

    @property
    def body(self) -> int:
        """Ids in a block beside those in front and behind."""
        return self.length - len(self.prefix) - len(self.suffix)

    def __len__(self) -> int:
        return -(-len(self.ids) // self.body)

    @property
    def trained(self) -> int:
        """How many blocks are trained on."""
        whole, rest = divmod(len(self), self.period)
        return whole * (self.period - self.held) + min(rest, self.period - self.held)

    def training(self, number: int) -> int:
        """The place of the block that is the `number`-th of those trained on."""
        whole, rest = divmod(number, self.period - self.held)
        return whole * self.period + rest

    def held_out(self) -> list[int]:
        """The places of the blocks that are held out."""
        first = self.period - self.held
        return [place for start in range(first, len(self), self.period) for place in range(start, min(start + self.held, len(self)))]

    def rows(self, places: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(ids_BT, mask_BT) of blocks; the mask is 1 at all but what fills the last block up."""
        ids_BT = np.full((len(places), self.length), self.pad, dtype=np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for row, place in enumerate(places):
            body = self.ids[place * self.body : (place + 1) * self.body].astype(np.int64)
            whole = np.concatenate([self.prefix, body, self.suffix]).astype(np.int64)
            ids_BT[row, : len(whole)], mask_BT[row, : len(whole)] = whole, 1
        return ids_BT, mask_BT


def split(blocks: int, share: float, most: int) -> tuple[int, int]:
    """(period, held): of how many neighbours the last how many are held out, so that about a `share` of all blocks, `most` at most and one
    at least, is, in runs that are spread evenly over the corpus. One of a period is always trained on; where a single one is held out,
    it is not the last, which may be short, if that can be.

    >>> split(1000, 0.01, 512), split(3, 0.01, 512), split(10**6, 0.01, 512), split(8, 0.9, 512)
    ((200, 2), (2, 1), (31250, 16), (2, 1))
    """
    wanted = max(1, min(most, round(blocks * share)))
    held = max(1, min(16, wanted // 5))
    return max(held + 1, min(blocks - 1, blocks * held // wanted)), held


@dataclass(frozen=True)
class Order:
    """Numbers below `count`, each once in an epoch, in an order that is a pure function of (seed, epoch).

    Numbers are shuffled within windows of at most `window` of them. A window takes every n-th number, so that each has something of all
    parts of the corpus, however it is sorted.
    """

    count: int
    seed: int
    window: int = WINDOW

    def at(self, position: int) -> int:
        """The number at a position; positions go on through one epoch after another."""
        epoch, position = divmod(position, self.count)
        windows = -(-self.count // self.window)
        least, larger = divmod(self.count, windows)
        if position < larger * (least + 1):
            window, place = divmod(position, least + 1)
        else:
            window, place = divmod(position - larger * (least + 1), least)
            window += larger
        size = least + (window < larger)
        return int(_shuffled(size, derive(self.seed, "order", epoch, window))[place]) * windows + window


@lru_cache(maxsize=2)
def _shuffled(size: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(size)
