"""Text files → pieces → ids on the disk → blocks: nothing lost, nothing twice, little held at once, an order anyone can compute again."""

import gzip
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewtune.data import corpus
from fewtune.data.corpus import Blocks, Order, Piece, pieces, read_ids, split, write_ids
from fewtune.errors import DataError


def written(folder, content, name="a.txt"):
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def letters(texts):
    return [list(text.encode()) for text in texts]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_document_ends_at_an_empty_line_and_with_its_file(tmp_path, name):
    one = written(tmp_path, "\ufeffone\ntwo\n\n \nthree\r\n".encode(), name)
    two = written(tmp_path, b"four", f"b-{name}")
    found = [Piece("one\n", False), Piece("two", True), Piece("three", True), Piece("four", True)]
    assert list(pieces([one, two])) == found
    assert [piece.last for piece in pieces([one], "lines")] == [True, True, True]


def test_a_long_line_is_cut_in_front_of_a_space_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE", 16)
    text = "wörter und noch mehr ééééééééééééééééééé\nende"
    found = list(pieces([written(tmp_path, text.encode())]))
    assert "".join(piece.text for piece in found) == text and len(found) > 4
    assert [piece.last for piece in found] == [False] * (len(found) - 1) + [True]
    assert [piece.text[0] for piece in found[1:3]] == [" ", " "]


def test_the_stream_holds_little_however_large_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE", 1 << 12)
    path, ids = tmp_path / "large.txt", tmp_path / "ids"
    path.write_text("one line without an end " * 100_000)  # without any new line
    tracemalloc.start()
    write_ids(pieces([path]), lambda texts: [[7] * (len(text) // 4) for text in texts], ids, separator=[1], wide=False)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size == 2_400_000 and ids.stat().st_size > 1_000_000
    assert most < 400_000


def test_no_more_pieces_than_a_group_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_GROUP", 3)
    drawn, sizes = [0], []

    def stream():
        for _ in range(10):
            drawn[0] += 1
            yield Piece("ab", True)

    def encode(texts):
        sizes.append(drawn[0] - sum(sizes))
        return letters(texts)

    write_ids(stream(), encode, tmp_path / "ids", separator=[0], wide=True)
    assert sizes == [3, 3, 3, 1]
    assert read_ids(tmp_path / "ids", wide=True).tolist() == [97, 98, 0] * 10


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.txt:2: expected UTF-8, got byte 0xff"):
        list(pieces([written(tmp_path, b"fine\nbad \xff\n")]))
    with pytest.raises(DataError, match="iconv -f UTF-16"):
        list(pieces([written(tmp_path, "fine\n".encode("utf-16"))]))
    with pytest.raises(DataError, match="no such file"):
        list(pieces([tmp_path / "none.txt"]))
    with pytest.raises(DataError, match="a directory"):
        list(pieces([tmp_path]))


cuts = st.tuples(st.integers(0, 200), st.integers(5, 12), st.integers(0, 2), st.integers(0, 2))


@given(cuts)
def test_blocks_hold_every_id_once(cut):
    count, length, before, behind = cut
    ids = np.arange(100, 100 + count, dtype=np.uint16)
    blocks = Blocks(ids, length, (1,) * before, (2,) * behind, pad=0)
    ids_BT, mask_BT = blocks.rows(range(len(blocks)))
    assert ids_BT.shape == (len(blocks), length) and ids_BT.dtype == np.int64
    real = ids_BT[mask_BT == 1]
    assert real[real >= 100].tolist() == ids.tolist()
    assert (ids_BT[mask_BT == 0] == 0).all() and (mask_BT[:-1] == 1).all()
    for row, mask in zip(ids_BT, mask_BT, strict=True):
        whole = row[: mask.sum()].tolist()
        assert whole[:before] == [1] * before and whole[len(whole) - behind :] == [2] * behind


@given(st.integers(1, 3000), st.floats(0.001, 0.5), st.integers(1, 60))
def test_held_out_blocks_and_others_share_none_and_are_all(count, share, most):
    period, held = split(count, share, most)
    blocks = Blocks(np.zeros(count * 4, dtype=np.uint16), 4, period=period, held=held)
    trained, out = [blocks.training(number) for number in range(blocks.trained)], blocks.held_out()
    assert sorted(trained + out) == list(range(count))
    assert count == 1 or out, "something always measures"
    assert len(out) <= 2 * max(1, min(most, round(count * share)))


@pytest.mark.slow
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 3))
def test_each_epoch_has_every_number_once_in_an_order_of_its_own(count, window, seed, epoch):
    order = Order(count, seed, window)
    found = [order.at(position) for position in range(epoch * count, (epoch + 1) * count)]
    assert sorted(found) == list(range(count))
    again = Order(count, seed, window)
    backwards = [again.at(position) for position in reversed(range(epoch * count, (epoch + 1) * count))]
    assert found == backwards[::-1], "a function of the position, whatever was asked before"


def test_epochs_and_seeds_have_different_orders_and_each_window_has_something_of_all_parts():
    order = Order(1000, 1, 100)
    first, second = ([order.at(position) for position in range(start, start + 1000)] for start in (0, 1000))
    other = [Order(1000, 2, 100).at(position) for position in range(1000)]
    assert first != second and first != other
    for start in range(0, 1000, 100):
        window = sorted(first[start : start + 100])
        assert window[0] < 10 and window[-1] >= 990 and max(np.diff(window)) == 10
